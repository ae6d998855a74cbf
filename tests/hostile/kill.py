"""Sends SIGKILL at random moments of convert, ask, chat and serve: the next run must find nothing broken, and all saved data."""
import json, os, random, subprocess, threading, time

import model, observe, server

DEMO = os.path.join(model.HERE, "..", "..", "models", "demo", "checkpoint")
NAMES = ["Mara Dellwood", "Ivo Tarn", "Selma Quist", "Orrin Vale"]
TURNS = 4


class Kill:
    """The clean runs are done once. A case is killed at a random moment, possibly several times, and then runs to its end."""

    def __init__(self, kimi, base, scratch):
        self.kimi, self.scratch = kimi, scratch
        self.text = os.path.join(scratch, "text.txt")
        with open(self.text, "w") as file:
            file.write("The keeper of the Tiolmere museum is Mara Dellwood. " + " ".join(random.Random(3).choices("the harbour was quiet in winter and letters came late".split(), k=700)))
        clean = os.path.join(scratch, "clean")
        os.makedirs(clean)
        self.converted, self.convert_seconds = self.clean_convert(clean)
        done = observe.run(self.ask("--no-cache"), clean, seconds=60)
        self.answer, self.ask_seconds = done.stdout, done.seconds
        assert done.code == 0 and done.stdout, done.stderr
        done = observe.run(self.chat(), clean, self.home(clean), self.lines(TURNS), seconds=60)
        self.turns, self.chat_seconds = turns_on_disk(clean)[0], done.seconds
        assert len(self.turns) == 2 * TURNS, (done.code, done.stderr)
        start = time.monotonic()
        self.replies = self.serve_all(os.path.join(clean, "serve-log"), os.path.join(clean, "serve-cache"))
        self.serve_seconds = time.monotonic() - start

    def case(self, draw, directory):
        return draw.choice([self.kill_convert, self.kill_ask, self.kill_chat, self.kill_serve])(draw, directory)

    # convert resumes to a byte-identical file.
    def convert(self):
        return [self.kimi, "convert", DEMO, "--type", "q4_k_m", "-o", "out.gguf", "--threads", "1"]

    def clean_convert(self, directory):
        done = observe.run(self.convert(), directory, seconds=120)
        assert done.code == 0, done.stderr
        with open(os.path.join(directory, "out.gguf"), "rb") as file:
            return file.read(), done.seconds

    def kill_convert(self, draw, directory):
        path, fault = os.path.join(directory, "out.gguf"), None
        for _ in range(draw.choice([1, 1, 2, 3])):
            if not killed(self.convert(), draw.uniform(0, self.convert_seconds), directory):
                break
            if os.path.exists(path) and not self.same(path):
                return self.convert(), None, "a file under the final name that is not whole"
        done = None
        if not os.path.exists(path):
            done = observe.run(self.convert(), directory, seconds=60)
            fault = done.fault(codes=(0,)) or (None if self.same(path) else "resumed to another file")
        if not fault and (left := [n for n in os.listdir(directory) if n != "out.gguf"]):
            fault = f"left behind: {left}"
        return self.convert(), done, fault

    def same(self, path):
        with open(path, "rb") as file:
            return file.read() == self.converted

    # The next answer of ask is the one without a cache.
    def ask(self, *cache):
        return [self.kimi, "ask", "-f", self.text, "-n", "12", "--threads", "1", *cache, "Who is the keeper of the Tiolmere museum?"]

    def kill_ask(self, draw, directory):
        command = self.ask("--cache-dir", os.path.join(directory, "cache"))
        for _ in range(draw.choice([1, 1, 2])):
            killed(command, draw.uniform(0, 1.2 * self.ask_seconds), directory)
        done = observe.run(command, directory, seconds=30)
        fault = done.fault(codes=(0,), lines=False)
        if not fault and done.stdout != self.answer:
            fault = "another answer than without a cache"
        if not fault and "checksum" in done.error_text:
            fault = "a damaged file in the cache"
        return command, done, fault

    # The chat contains all that was reported as saved, and continues from there.
    def chat(self, *more):
        return [self.kimi, "chat", "--plain", "-n", "8", "--temp", "0", "--threads", "1", *more]

    def home(self, directory):
        return {**os.environ, "HOME": directory, "XDG_DATA_HOME": directory, "XDG_STATE_HOME": directory, "XDG_CACHE_HOME": directory}

    def lines(self, count, first=0):
        return "".join(f"The keeper is {NAMES[i]}. Who is the keeper?\n/save kept {i + 1}\n" for i in range(first, count)).encode()

    def kill_chat(self, draw, directory):
        command, env = self.chat(), self.home(directory)
        said = killed(command, draw.uniform(0, 1.1 * self.chat_seconds), directory, env, self.lines(TURNS))
        kept = max((n for n in range(1, TURNS + 1) if said and b"saved as kept %d" % n in said), default=0)
        try:
            chats = turns_on_disk(directory)
        except ValueError as e:
            return command, None, f"a chat's file that is no JSON: {e}"
        if kept == 0:
            return command, None, None
        if len(chats) != 1 or chats[0][:2 * kept] != self.turns[:2 * kept]:
            return command, None, f"{kept} turns were said to be saved, found {[len(c) for c in chats]}"
        if kept == TURNS or len(chats[0]) != 2 * kept:
            return command, None, None
        more = self.chat("--load", f"kept {kept}")
        done = observe.run(more, directory, env, self.lines(kept + 1, kept), seconds=30)
        fault = done.fault(codes=(0,), lines=False)
        if not fault and turns_on_disk(directory)[0] != self.turns[:2 * kept + 2]:
            fault = "it continues differently from a clean run"
        return more, done, fault

    # serve gives the same replies after a restart with the same cache.
    def serve_all(self, log, cache, moment=None):
        """The replies of a server, which is killed at `moment` if given."""
        under, replies = server.Server(self.kimi, None, log, "--ctx", "2048", "--cache-dir", cache), []
        timer = threading.Timer(moment, under.process.kill) if moment is not None else None
        try:
            if timer:
                timer.start()
            for i in range(3):
                with open(self.text) as file:
                    body = {"messages": [{"role": "system", "content": file.read()}, {"role": "user", "content": f"Who is {NAMES[i]}?"}], "max_tokens": 8, "temperature": 0}
                answer = server.exchange(under.address, server.post("/v1/chat/completions", body), 30)
                if server.status(answer) is not None:
                    replies.append(json.loads(server.body(answer))["choices"][0]["message"])
        except (OSError, ValueError):
            if not timer:
                raise
        finally:
            if timer:
                timer.join()
            under.end(kill=timer is not None)
        return replies

    def kill_serve(self, draw, directory):
        cache, command = os.path.join(directory, "cache"), "kimi serve --cache-dir cache, killed; three requests; again"
        try:
            self.serve_all(os.path.join(directory, "killed.log"), cache, draw.uniform(0, self.serve_seconds))
            replies = self.serve_all(os.path.join(directory, "again.log"), cache)
        except (RuntimeError, OSError, KeyError, ValueError) as e:
            return command, None, f"after the kill: {e!r}"
        fault = None if replies == self.replies else f"other replies than of a clean run: {replies}"
        with open(os.path.join(directory, "again.log"), errors="replace") as log:
            fault = fault or ("a damaged file in the cache" if "checksum" in log.read() else None)
        return command, None, fault


def killed(command, moment, directory, env=None, stdin=None):
    """Runs a command for a time; returns its standard error until it was killed, or None if it ended before."""
    with open(os.path.join(directory, "input"), "wb") as file:
        file.write(stdin or b"")
    with open(os.path.join(directory, "input"), "rb") as feed, open(os.path.join(directory, "said"), "w+b") as said:
        os.remove(feed.name), os.remove(said.name)
        process = subprocess.Popen(command, cwd=directory, env=env, stdin=feed, stdout=subprocess.DEVNULL, stderr=said)
        try:
            process.wait(moment)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
            process.kill()
            process.wait()
        said.seek(0)
        text = said.read()
    return text or (None if ended else b" ")


def turns_on_disk(directory):
    """The turns of every stored chat, without their ids."""
    folder, found = os.path.join(directory, "kimi", "chats"), []
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if name.endswith(".json"):
            with open(os.path.join(folder, name)) as file:
                found.append([(turn["role"], turn["text"]) for turn in json.load(file)["turns"]])
    return found
