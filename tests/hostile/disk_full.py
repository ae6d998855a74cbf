"""Simulates a disk that is full at each write in turn, by a shim that fails them (enospc.c) and by a limit on file sizes.

Replies are given all the same, what cannot be kept is said in a line, and with room again everything is as if nothing had been.
"""
import os, resource, shutil, subprocess

import model, observe

HERE = os.path.dirname(os.path.abspath(__file__))
LIMITS = [0, 1, 100, 4096, 10_000, 40_000, 100_000, 1 << 20, 3 << 20]


def build_shim(directory):
    """The path of the shim, or None without a C compiler."""
    path, compiler = os.path.join(directory, "enospc.so"), shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, os.path.join(HERE, "enospc.c"), "-ldl"], check=True, timeout=60)
    return path


class Job:
    """A command that writes files: its answer and the number of writes of a clean run."""

    def __init__(self, name, command, stdin=None, codes=(0,)):
        self.name, self.command, self.stdin, self.codes = name, command, stdin, codes


class DiskFull:
    def __init__(self, kimi, base, scratch):
        self.shim, lines = build_shim(scratch), b"My name is Mara.\n/save kept\nWhat is my name?\n"
        tiny = model.build(kimi, base, kinds=["q8_0"])["q8_0"]
        source = os.path.join(scratch, "checkpoint")
        model.write(source, model.checkpoint(4))
        text = os.path.join(scratch, "text.txt")
        with open(text, "w") as file:
            file.write("The keeper is Mara. " * 60)
        shared = ["--threads", "1", "--temp", "0", "-n", "6", "--cache-dir", "cache"]
        self.jobs = [
            # A conversion without its file is an error. The other commands still give their reply.
            Job("convert", [kimi, "convert", source, "--type", "q8_0", "-o", "out.gguf", "--threads", "1"], codes=(1,)),
            Job("generate", [kimi, "generate", "-m", tiny, "--raw", "The keeper is Mara. " * 30, "--quiet", *shared]),
            Job("ask", [kimi, "ask", "-m", tiny, "-f", text, *shared, "Who is it?"]),
            Job("chat", [kimi, "chat", "--plain", "-m", tiny, *shared], lines, codes=(0, 1)),
        ]
        for job in self.jobs:
            job.answer, job.kept, job.writes = self.clean(job, os.path.join(scratch, job.name))

    def run(self, job, directory, **full):
        return observe.run(job.command, directory, self.environment(directory, **full), job.stdin, seconds=20)

    def environment(self, directory, **full):
        env = {**os.environ, **{name: directory for name in ("HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "FULL_UNDER")}}
        return {**env, "LD_PRELOAD": self.shim, **full} if full and self.shim else env

    def clean(self, job, directory):
        os.mkdir(directory)
        count = os.path.join(directory, "..", job.name + ".count")
        done = self.run(job, directory, FULL_COUNT=count)
        assert done.code == 0, (job.name, done.stderr)
        writes = 0
        if self.shim:
            with open(count) as file:
                writes = int(file.read())
        return done.stdout, contents(directory), writes

    def case(self, draw, directory):
        job = draw.choice(self.jobs)
        os.mkdir(os.path.join(directory, "cache"), 0o700)  # a directory named on the command line that cannot be made is an error
        if self.shim and draw.random() < 0.75:
            after = draw.randrange(job.writes)
            how, done = f"FULL_AFTER={after} of {job.writes}", self.run(job, directory, FULL_AFTER=str(after))
            short = True
        else:
            limit = draw.choice(LIMITS)
            how, done, short = f"ulimit -f, {limit} bytes", self.limited(job, directory, limit), None
        fault = self.judge(job, done, directory, short)
        if not fault:
            fault = self.again(job, directory)
        return f"# {how}\n{' '.join(job.command)}", done, fault and f"{job.name}, {how}: {fault}: {done.error_text[-200:]}"

    def limited(self, job, directory, limit):
        """Runs under RLIMIT_FSIZE, which does not limit the pipes of the output."""
        process = subprocess.Popen(job.command, cwd=directory, env=self.environment(directory), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        try:
            out, err = process.communicate(job.stdin or b"", timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return observe.Run(0, 20, 0, out, err, "no end within 20 s")
        status = process.returncode << 8 if process.returncode >= 0 else -process.returncode
        return observe.Run(status, 0, 0, out, err, None)

    def judge(self, job, done, directory, short):
        codes = job.codes if short else (0, 1)
        fault = done.fault(codes=codes, lines=job.name == "convert")
        if fault:
            return fault
        if job.name == "convert":
            if os.path.exists(os.path.join(directory, "out.gguf")) and done.code:
                return "a refusal that left a file under the final name"
            if done.code == 1 and not any(word in done.error_text for word in ("No space left", "File too large")):
                return "a line that does not say why"
            return None
        if done.stdout != job.answer:
            return "another answer than with room"
        return None

    def again(self, job, directory):
        """With free space again the same command succeeds as in a clean run."""
        done = self.run(job, directory)
        fault = done.fault(codes=(0,) if job.name != "convert" or not os.path.exists(os.path.join(directory, "out.gguf")) else (0, 1))
        if fault:
            return f"again, with room: {fault}: {done.error_text[-200:]}"
        if job.name == "convert" and contents(directory).get("out.gguf") != job.kept["out.gguf"]:
            return "again, with room: another file"
        return None if done.stdout == job.answer else "again, with room: another answer"


def contents(directory):
    found = {}
    for top, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(top, name), "rb") as file:
                found[os.path.relpath(file.name, directory)] = file.read()
    return found
