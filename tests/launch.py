"""Runs coding agents and other clients, unmodified from their registries, with the demonstration model: one turn and a second
one by `kimi launch`, then a new session by hand as docs/clients.md says. Each request is a line of a table: the client, the
path, its status; each turn a line with the tokens of its prompts, and those of them that were reused. No request may fail, the
second turn reads only what is new, and the new session almost nothing.

usage: launch.py KIMI [CLIENT...]      (without clients: those that install within a minute)
"""
import atexit, os, platform, re, shlex, shutil, subprocess, sys, tempfile, time, urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packages import ROOT, Table, install, install_program, skip

HELLO, AGAIN = "Say hello.", "Say it again."
# Most tokens of a turn that are prefilled although an earlier prompt begins with them, and of a new session in all.
MAX_AGAIN = 200
# Clients: the section of docs/clients.md, packages, and the arguments of three turns. Node runs Kimi Code from version 22.19.
NPM = {
    "claude": ("Claude Code", ["@anthropic-ai/claude-code"], ["-p", HELLO], ["-p", "--continue", AGAIN]),
    "codex": ("Codex", ["@openai/codex"], ["exec", "--skip-git-repo-check", HELLO],
              ["exec", "resume", "--last", "--skip-git-repo-check", AGAIN]),
    "opencode": ("opencode", ["opencode-ai"], ["run", HELLO], ["run", "--continue", AGAIN]),
    "kimi-code": ("Kimi Code", ["@moonshot-ai/kimi-code", "node@24"], ["-p", HELLO], ["--continue", "-p", AGAIN]),
    "qwen": ("Qwen Code", ["@qwen-code/qwen-code", "node@24"], ["-p", HELLO], ["--continue", "-p", AGAIN]),
}
PYTHON = {
    "aider": ("aider", "aider-chat", ["--yes-always", "--message", HELLO],
              ["--yes-always", "--restore-chat-history", "--message", AGAIN]),
}
DEFAULT = ["claude", "codex", "opencode", "aider"]


class AgentServer:
    """A server with the demonstration model on a free port, whose log has the status of each request."""

    def __init__(self, kimi, directory):
        args = [kimi, "serve", "--port", "0", "--alias", "kimi", "--ctx", "131072", "--cache-dir", Path(directory) / "cache",
                "--threads", "2", "-n", "48", "--temp", "0"]
        self.path = Path(directory) / "server.log"
        with open(self.path, "w") as log:
            self.process = subprocess.Popen(args, stderr=log)
        atexit.register(self.process.kill)
        while not (found := re.search(r"address=(\S+)", self.log())) or "ready" not in self.log():
            assert self.process.poll() is None, self.log()
            time.sleep(0.02)
        self.base = f"http://{found[1]}"

    def log(self):
        return self.path.read_text()

    def statuses(self):
        return re.findall(r'path="?(\S+?)"? status=(\d+)', self.log())

    def again(self, seen):
        """Tokens that the replies after the first `seen` ones prefilled although an earlier prompt began with them."""
        replies = re.findall(r" reply .*cached=(\d+) .*same=(\d+)", self.log())
        return sum(max(int(same) - int(cached), 0) for cached, same in replies[seen:])

    def replies(self):
        return len(re.findall(r" reply .*same=", self.log()))

    def tokens(self):
        text = urllib.request.urlopen(self.base + "/metrics").read().decode()
        number = lambda name: int(re.search(rf"^kimi_{name}_total (\d+)", text, re.M)[1])
        return number("prompt_tokens"), number("cached_tokens")

    def end(self):
        self.process.terminate()
        assert self.process.wait(30) == 0, self.process.returncode

    def turn(self, table, client, call, command, env, cwd):
        """Runs one turn of an agent; returns the prefilled tokens, the reused ones, and those prefilled again."""
        before, seen, replies = self.tokens(), len(self.statuses()), self.replies()
        out = subprocess.run(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        after = self.tokens()
        calls = [(path, status) for path, status in self.statuses()[seen:] if path != "/metrics"]
        read, reused = (b - a for a, b in zip(before, after))
        for path, status in calls:
            table.row(client, path, int(status))
        table.row(client, call, out.returncode, read + reused, reused)
        wrong = [(path, status) for path, status in calls if int(status) >= 400]
        assert calls and not wrong and out.returncode == 0, (calls, out.stdout[-2000:], out.stderr[-2000:])
        return read, reused, self.again(replies)


def by_hand(title, base, home):
    """Writes the file of a section of docs/clients.md and returns its shell commands."""
    text = (ROOT / "docs" / "clients.md").read_text().replace("http://127.0.0.1:8080", base)
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    for path, contents in re.findall(r"^`~/(\S+)`:\n\n```\w+\n(.*?)^```$", section, re.M | re.S):
        file = home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(contents)
    return re.search(r"^```sh\n(.*?)\n```$", section, re.M | re.S)[1]


def run(kimi, name, title, programs, first, second, table):
    """Three turns of a client: two by `kimi launch`, and a new session by hand."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        home, work = Path(directory) / "home", Path(directory) / "work"
        home.mkdir(), work.mkdir()
        kept = {variable: os.environ[variable] for variable in ("LANG", "TMPDIR") if variable in os.environ}
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        env = {**kept, "PATH": path, "HOME": str(home), "NO_COLOR": "1", "IS_SANDBOX": "1"}
        subprocess.run(["git", "init", "--quiet"], cwd=work, check=True)
        server = AgentServer(kimi, directory)
        launch = lambda args: [kimi, "launch", name, "--url", server.base, "-m", "kimi", "--", *args]
        server.turn(table, name, "turn 1", launch(first), env, work)
        read, reused, again = server.turn(table, name, "turn 2", launch(second), env, work)
        assert reused > read and again < MAX_AGAIN, (name, read, reused, again)
        commands = by_hand(title, server.base, home) + " " + shlex.join(first)
        read, reused, _ = server.turn(table, name, "new session", ["sh", "-ec", commands], env, work)
        assert read < MAX_AGAIN < reused, (name, read, reused)
        server.end()


def installed(name):
    """Installs a client; returns the directory of its commands."""
    if name in NPM:
        return install(*NPM[name][1]) / "node_modules" / ".bin"
    return install_program(PYTHON[name][1])


def main(kimi, *names):
    kimi, names = str(Path(kimi).resolve()), list(names or DEFAULT)
    if not shutil.which("npm") or sys.platform != "linux" or platform.machine() != "x86_64":
        for name in NPM.keys() & names:
            skip("tests/launch.py", name, "npm on x86-64 Linux")
            names.remove(name)
    table = Table()
    # One installation at a time, while the clients before it run.
    with ThreadPoolExecutor(1) as installer:
        for name, path in [(name, installer.submit(installed, name)) for name in names]:
            path, start = path.result(), time.monotonic()
            title, _, first, second = (NPM | PYTHON)[name]
            run(kimi, name, title, path, first, second, table)
            print(f"{name}: ok, {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
