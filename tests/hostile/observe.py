"""Runs a process and judges how it ended: exit status, signal, time, peak memory, standard error."""
import os, re, select, signal, subprocess, time

HANG_SECONDS = 10
SPARE_BYTES = 1 << 30  # over what the sound model takes
LONGEST_LINE = 4096
# Characters that must never reach a terminal raw: C0 (except tab and newline), DEL, C1, and those that change the direction.
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Run:
    """The outcome of a process."""

    def __init__(self, status, seconds, peak, stdout, stderr, killed):
        self.code = os.waitstatus_to_exitcode(status)
        self.seconds, self.peak, self.killed = seconds, peak, killed
        self.stdout, self.stderr = stdout, stderr
        self.error_text = stderr.decode(errors="replace")

    def fault(self, codes=(0, 1, 2), raw=True, limit=SPARE_BYTES, lines=True):
        """The fault, or None. A process must give an answer or one line, in time and in bounded memory."""
        if self.killed:
            return self.killed
        if self.code < 0:
            return f"signal {signal.Signals(-self.code).name}"
        if self.code == 101 or "panicked at" in self.error_text:
            return "panic"
        if self.code not in codes:
            return f"exit code {self.code}, expected one of {codes}"
        if self.peak > limit:
            return f"peak of {self.peak >> 20} MiB"
        said = [line for line in self.error_text.split("\n") if line and not line.startswith("warning: ")]
        if lines and self.code == 1 and len(said) != 1:
            return f"{len(said)} lines for a refusal, expected 1"
        if any(len(line.encode()) > LONGEST_LINE for line in self.error_text.split("\n")):
            return "a line of standard error longer than 4 KiB"
        if raw and (found := RAW.search(self.error_text)):
            return f"raw U+{ord(found[0]):04X} on standard error"
        return None


def resident(pid):
    """The resident memory of a process in bytes."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * 4096
    except (OSError, IndexError, ValueError):
        return 0


def run(command, cwd, env=None, stdin=None, seconds=HANG_SECONDS, limit=SPARE_BYTES, preexec=None):
    """Runs a command to its end, or kills it and sets `killed` if it takes too much time or memory."""
    out, err = (os.memfd_create(name) for name in ("out", "err"))
    feed = subprocess.DEVNULL
    if stdin is not None:
        feed = os.memfd_create("in")
        os.write(feed, stdin)
        os.lseek(feed, 0, os.SEEK_SET)
    try:
        start = time.monotonic()
        process = subprocess.Popen(command, cwd=cwd, env=env, stdin=feed, stdout=out, stderr=err, preexec_fn=preexec)
        status, usage, killed = wait(process, start + seconds, limit)
        taken = time.monotonic() - start
        return Run(status, taken, usage.ru_maxrss << 10, read(out), read(err), killed)
    finally:
        for file in [out, err] + ([feed] if stdin is not None else []):
            os.close(file)


def wait(process, deadline, limit):
    """The status and usage of a child, and the reason if it was killed."""
    killed, pidfd = None, os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        while not poll.poll(50):
            if time.monotonic() > deadline:
                killed = f"no end within the limit of {HANG_SECONDS} s"
            elif (size := resident(process.pid)) > limit:
                killed = f"{size >> 20} MiB and growing"
            if killed:
                process.kill()
                break
    finally:
        os.close(pidfd)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return status, usage, killed


def read(file):
    size = os.lseek(file, 0, os.SEEK_END)
    os.lseek(file, 0, os.SEEK_SET)
    return os.read(file, min(size, 1 << 24))
