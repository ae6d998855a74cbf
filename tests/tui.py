"""Tests the full-screen chat in a real terminal: tmux types keys and reads the screen, at 80x24 and 200x60.

usage: tui.py KIMI MODEL [LINES]      (needs tmux; MODEL is any file with the published vocabulary)
"""
import itertools, json, os, pathlib, re, shlex, signal, socket, subprocess, sys, tempfile, time, urllib.error, urllib.request

KIMI, MODEL = (os.path.abspath(path) for path in sys.argv[1:3])

NUMBER = itertools.count()
# 10,000 tokens. 3,400 lines are 50,000 tokens, which take a debug build minutes.
FILE_LINES = int(sys.argv[3]) if len(sys.argv) > 3 else 700


class Terminal:
    """A tmux server with one window that runs `kimi chat`."""

    def __init__(self, home, columns, rows, *args, env=(), model=MODEL):
        self.socket = f"kimi-tui-{os.getpid()}-{next(NUMBER)}"
        self.home = pathlib.Path(home)
        variables = {"XDG_DATA_HOME": f"{home}/data", "XDG_STATE_HOME": f"{home}/state", "HOME": home, **dict(env)}
        command = ["env", *(f"{k}={v}" for k, v in variables.items()), KIMI, "chat", "-m", str(model), "--temp", "0", *args]
        line = f"trap : INT; {shlex.join(command)}; echo left $?; exec sleep 100"
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows), "sh", "-c", line)
        self.tmux("set", "-g", "set-clipboard", "on")
        self.wait("/help +lists commands")

    def tmux(self, *args, text=None):
        run = subprocess.run(["tmux", "-L", self.socket, *args], input=text, capture_output=True, text=True)
        assert run.returncode == 0, f"tmux {args}: {run.stderr}"
        return run.stdout

    def screen(self, *args):
        return [row.rstrip() for row in self.tmux("capture-pane", "-p", *args).split("\n")[:-1]]

    def wait(self, what, seconds=20):
        """Waits until a row of the screen, or all rows joined, match the pattern: long lines wrap."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rows = self.screen()
            if any(re.search(what, text) for text in [*rows, "".join(rows)]):
                return rows
            time.sleep(0.03)
        raise AssertionError(f"not on the screen after {seconds} s: {what}\n" + "\n".join(rows))

    def ready(self, line=">"):
        """Waits until the line editor shows this text on its line."""
        end = time.monotonic() + 20
        while [row for row in self.screen() if row][-1:] != [line]:
            assert time.monotonic() < end, self.screen()
            time.sleep(0.03)

    def keys(self, *keys):
        self.tmux("send-keys", *keys)

    def enter(self, text):
        self.tmux("send-keys", "-l", "--", text)
        self.keys("Enter")

    def paste(self, text):
        self.tmux("load-buffer", "-", text=text)
        self.tmux("paste-buffer", "-p")

    def pid(self):
        shell = self.tmux("display", "-p", "#{pane_pid}").strip()
        return int(subprocess.run(["pgrep", "-P", shell], capture_output=True, text=True, check=True).stdout.split()[0])

    def chats(self):
        files = sorted((self.home / "data/kimi/chats").glob("*.json"))
        return [json.loads(file.read_text()) for file in files]

    def close(self):
        subprocess.run(["tmux", "-L", self.socket, "kill-server"], capture_output=True)


def conversation(t, columns, rows):
    t.enter("你好 🎉 world")
    done = t.wait(r"[\d,]+ new")
    assert "▌ 你好 🎉 world" in done and "▌ You" in done, done
    assert len(done) == rows and done[-2] == ">", done
    # The cursor is after the wide characters of the message.
    t.tmux("send-keys", "-l", "宽宽ab")
    t.wait("^> 宽宽ab$")
    x, y = t.tmux("display", "-p", "#{cursor_x},#{cursor_y}").strip().split(",")
    assert (int(x), int(y)) == (2 + 6, rows - 2), (x, y)
    t.keys("C-u")


def tools(t):
    """The editor, the clipboard, the wheel, completion."""
    t.tmux("send-keys", "-l", "written")
    t.keys("C-g")
    t.wait("^> edited_written$")
    t.keys("C-u")
    t.enter("/copy")
    t.wait("copied \\d+ bytes?")
    assert t.tmux("show-buffer") == t.chats()[0]["turns"][1]["text"]
    t.tmux("send-keys", "-l", "/he")
    t.wait("^│. /help +show this help")
    t.keys("Tab", "Enter")
    t.wait("^  Ctrl-O +list of chats")
    for _ in range(3):
        t.enter("/help")
    t.tmux("send-keys", "-l", "\x1b[<64;5;5M")
    t.wait("3 rows below, Ctrl-End")
    t.keys("C-End")


def stop(t):
    t.enter("/set max-tokens 3000")
    t.enter("never ends")
    t.wait(r"generating, \d+ tokens")
    t.keys("Escape")
    t.wait("^  stopped")
    t.wait(r"[\d,]+ new")
    t.enter("/set max-tokens 8")
    t.enter("/regen")
    t.wait("cut at the limit")
    t.enter("/undo")
    t.wait("last exchange removed")
    assert not any("never ends" in row for row in t.screen()[:-4]), t.screen()
    assert [turn["text"] for turn in t.chats()[0]["turns"]][0] == "你好 🎉 world"
    assert len(t.chats()[0]["turns"]) == 2


def resize(t, columns, rows):
    for width, height in [(50, 15), (33, 8), (120, 40), (columns, rows)]:
        t.tmux("resize-window", "-x", str(width), "-y", str(height))
        name = pathlib.Path(MODEL).stem[: width - 2]
        end = time.monotonic() + 5
        while not (len(t.screen()) == height and t.screen()[-1].startswith(name[:10])):
            assert time.monotonic() < end, (width, height, t.screen())
            time.sleep(0.03)
        assert t.screen()[-2].startswith(">"), t.screen()


def paste(t):
    start = time.monotonic()
    t.paste("0123456789 你好\n" * ((1 << 20) // 18))
    t.wait("^  0123456789 你好$", 10)
    t.tmux("send-keys", "-l", "END")
    t.wait("END", 5)
    took = time.monotonic() - start
    t.keys("Enter")
    t.wait("context: expected at most", 30)
    t.wait("END", 5)  # the failed message is in the input again
    t.keys("C-c")
    t.enter("/stats")
    t.wait("^  context")
    return took


def switch(t):
    t.enter("/clear")
    t.wait("^  new chat")
    t.enter("another chat")
    t.wait(r"[\d,]+ new")
    t.keys("C-o")
    t.wait("^╭ Chats:")
    t.keys("Down", "Enter")
    t.wait("^▌ 你好 🎉 world")
    t.enter("more")
    t.wait("[\\d,]+ cached \\((session|memory)\\), [\\d,]+ new")
    assert len(t.chats()) == 2


def file(t):
    path = t.home / "lines.txt"
    path.write_text("".join(f"line {n}: the quick brown fox jumps over {n * 7919 % 1000} dogs\n" for n in range(FILE_LINES)))
    t.enter("/clear")
    t.enter(f"/file {path}")
    t.wait("attached to the next message")
    start = time.monotonic()
    t.enter("which line?")
    t.wait(r"reading lines.txt · \d+ % .*━")
    rows = t.wait(r"[\d,]+ of \d+,000 tokens: (.* )?[\d,]+ new", 120)
    first = time.monotonic() - start
    assert any(f"lines.txt: {FILE_LINES:,} lines" in row for row in rows), rows
    start = time.monotonic()
    t.enter("/regen")
    t.wait(r"cached \((session|memory)\), 0 new", 20)
    return re.search(r"([\d,]+) of", rows[-1])[1], first, time.monotonic() - start


def source(columns, rows, env, below):
    """A quote of the demonstration model shows its place, and its source beside or below the conversation."""
    root = pathlib.Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as home:
        t = Terminal(home, columns, rows, env=env, model=root / "models/demo/kimi-demo.gguf")
        try:
            t.enter(f"/file {root}/docs/museum.txt")
            t.wait("attached to the next message")
            t.enter("What is the access code of the Hartwell mill? Quote the text.")
            t.wait("┃ Hartwell mill is 4713")
            t.wait("┃ ✓ .*museum.txt:2")
            t.keys("C-p")
            screen = t.wait("2  The access code of the")
            assert any(row.startswith("╭ ") for row in screen) == below, screen
            assert re.search(r"\x1b\[[\d;]*m(?=Hartwell mill is 4713)", "\n".join(t.screen("-e"))), "the quote is highlighted"
            t.keys("Escape")
            end = time.monotonic() + 20
            while any("╭" in row for row in t.screen()):
                assert time.monotonic() < end, t.screen()
                time.sleep(0.03)
            leave(t)
        finally:
            t.close()
    print(f"{columns}x{rows}: a quote, and its source {'below' if below else 'beside'} the conversation")


def leave(t):
    t.enter("/quit")
    rows = t.wait("^left 0")
    assert not any("你好" in row for row in rows), "the previous screen is restored"


def at(columns, rows):
    with tempfile.TemporaryDirectory() as home:
        t = Terminal(home, columns, rows, "-n", "8", "--ctx", "60000", env={"VISUAL": "sed -i s/^/edited_/"})
        try:
            conversation(t, columns, rows)
            tools(t)
            stop(t)
            resize(t, columns, rows)
            took = paste(t)
            switch(t)
            tokens, first, second = file(t)
            leave(t)
        finally:
            t.close()
    print(f"{columns}x{rows}: wide text, stop, undo, resize, switch; a megabyte pasted in {took:.1f} s; a file of "
          f"{tokens} tokens answered in {first:.1f} s, again in {second:.1f} s")


def signals():
    """However the process ends, the terminal is restored if possible, and the messages are saved."""
    for number, code in [(signal.SIGTERM, "0"), (signal.SIGKILL, "137")]:
        with tempfile.TemporaryDirectory() as home:
            t = Terminal(home, 80, 24, "-n", "3000")
            try:
                t.enter("kept")
                t.wait(r"generating, \d+ tokens")
                os.kill(t.pid(), number)
                end = time.monotonic() + 10
                while not any(f"left {code}" in row for row in t.screen()):
                    assert time.monotonic() < end, t.screen()
                    time.sleep(0.03)
                assert [turn["text"] for turn in t.chats()[0]["turns"]][0] == "kept"
            finally:
                t.close()
    print("SIGTERM restores the terminal; after SIGKILL the message is on disk")


def colors():
    with tempfile.TemporaryDirectory() as home:
        for env, colored in [((), True), ((("NO_COLOR", "1"),), False)]:
            t = Terminal(home, 80, 24, env=env)
            try:
                assert bool(re.search(r"\x1b\[(3[0-7]|9[0-7]|38)", "\n".join(t.screen("-e")))) == colored, t.screen("-e")
            finally:
                t.close()
    print("colors, and none with NO_COLOR")


def plain(columns, rows):
    with tempfile.TemporaryDirectory() as home:
        t = Terminal(home, columns, rows, "--plain", "-n", "3000")
        try:
            t.ready()
            t.enter("你好 🎉")
            time.sleep(0.5)
            t.keys("C-c")
            t.wait(r"\[stopped\]")
            steps = ["/set max-tokens 8", "/regen", "one", "/undo", "/clear", "second", "/load 你好"]
            said = ["max-tokens 8", "cut at the limit", "cut", "exchange removed", "new chat", "cut", "你好 🎉: 2 messages"]
            for step, words in zip(steps, said):
                t.ready()
                t.enter(step) if step != "one" else (t.paste("one\ntwo"), t.keys("Enter"))
                t.wait(words)
            t.ready()
            t.enter("/quit")
            t.wait("^left 0")
            assert sorted(chat["turns"][0]["text"] for chat in t.chats()) == ["second", "你好 🎉"]
        finally:
            t.close()
    print(f"--plain at {columns}x{rows}: stop, regenerate, paste, undo, switch")


def restored():
    """A message that cannot be answered returns to the line; the message it would have replaced stays."""
    with tempfile.TemporaryDirectory() as home:
        t = Terminal(home, 80, 24, "--plain", "-n", "8", "--ctx", "64")
        try:
            t.ready()
            t.enter("short")
            t.wait("cut at the limit")
            t.ready()
            t.enter("/edit")
            t.ready("> short")
            t.enter(" word" * 100)
            t.wait("> short word.*context: expected.*> short word")
            t.keys("C-c")
            t.wait("edit cancelled; the chat is unchanged")
            t.ready()
            t.enter("/quit")
            t.wait("^left 0")
            [chat] = t.chats()
            assert (len(chat["turns"]), chat["turns"][0]["text"]) == (2, "short"), chat
        finally:
            t.close()
    print("--plain: a failed message returns to the input, and the edited exchange stays")


def remote():
    """A chat with `kimi serve` over HTTP gives the replies of the chat with the file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "HOME": home, "XDG_DATA_HOME": f"{home}/data", "XDG_CACHE_HOME": f"{home}/cache"}
        server = subprocess.Popen([KIMI, "serve", "-m", MODEL, "--port", str(port)], env=env, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 20
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models").read()
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert time.monotonic() < end, "the server starts"
                    time.sleep(0.05)
            chat = [KIMI, "chat", "--plain", "-n", "12", "--temp", "0", "--seed", "1", "-m"]
            url = ["--url", f"http://127.0.0.1:{port}"]
            run = lambda args: subprocess.run([*chat, *args], env=env, input="你好 world\nmore\n", capture_output=True, text=True)
            local, remote = run([MODEL]), run([pathlib.Path(MODEL).stem, *url])
            assert remote.returncode == 0, remote.stderr
            assert remote.stdout == local.stdout and remote.stdout.count("cut at the limit") == 2, (local.stdout, remote.stdout)
            wrong = run(["absent", *url])
            assert wrong.returncode == 1 and "expected the model \"absent\"" in wrong.stderr, wrong.stderr
        finally:
            server.terminate()
            server.wait(40)
    print("--url: the same replies from a server")


at(80, 24)
at(200, 60)
plain(80, 24)
plain(200, 60)
restored()
remote()
signals()
colors()
source(80, 24, (("NO_COLOR", "1"),), below=True)
source(120, 40, (("COLORTERM", "truecolor"),), below=False)
