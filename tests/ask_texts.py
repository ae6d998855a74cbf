"""Asks about facts planted in real texts of this machine: licenses, manuals, code and documentation of 4 to 400 KB.

    python tests/ask_texts.py KIMI [KIMI ...] [--model FILE] [--texts 40] [--facts 200] [--largest 400000] [--from 1] [--seed 1]
                              [--save FILE]

Several programs are compared on the same questions. A quote is right if it is located at the line of the fact, an answer if
it equals the expected one. Numbers and names of answers are looked up in the text by rules of this file's own: those that it
lacks are invented, and an answer fails if `kimi ask` left one of them unmarked. Facts and questions have the wording that
models/demo/phrasings.json holds out from training. Exits with 1 if the last program left an invented part unmarked.

With --prepared N no model runs: an endpoint gives N answers per text, in turn with invented names, numbers, dates and codes, with
facts, and copied from the text.
"""
import argparse, collections, gzip, html.parser, http.server, json, math, os, pathlib, random, re, subprocess, sys, tempfile, threading, time

REPOSITORY = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY / "models/demo"))
from documents import SPEC, Words  # noqa: E402

SMALLEST = 4000
HOME = pathlib.Path.home()
BANDS = [(0, 16_000), (16_000, 64_000), (64_000, 160_000), (160_000, 1 << 30)]


class Prose(html.parser.HTMLParser):
    """The text of a page of HTML."""

    def __init__(self):
        super().__init__()
        self.out, self.hidden = [], 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("script", "style", "nav")
        if tag in ("p", "li", "h1", "h2", "h3", "pre", "tr", "div"):
            self.out.append("\n")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style", "nav") and self.hidden > 0

    def handle_data(self, data):
        if not self.hidden:
            self.out.append(data)


def read(path):
    """The text of a file: of pages without tags, of manuals without requests."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    text = data.decode("utf-8", errors="strict")
    if path.suffix == ".html":
        page = Prose()
        page.feed(text)
        text = re.sub(r"\n\s*\n+", "\n\n", "".join(page.out))
    elif path.suffix == ".gz":
        lines = (re.sub(r"^\.(SH|SS|TH|B|I|BR|IP|TP)\s*", "", line) for line in text.splitlines())
        text = "\n".join(re.sub(r"\\f[A-Z(\[]|\\&|\\", "", line) for line in lines if not line.startswith((".", "'")))
    return re.sub(r"[^\S\n]+$", "", text.replace("\r", ""), flags=re.M).strip()


def sources():
    """Paths by kind of text."""
    registry = sorted((HOME / ".cargo/registry/src").glob("*/*"))
    library = pathlib.Path(os.__file__).parent
    licenses = [*pathlib.Path("/usr/share/common-licenses").glob("*"), *(p for c in registry for p in c.glob("LICENSE*"))]
    return {
        "license": [p for p in licenses if not p.is_symlink()],
        "manual": [*pathlib.Path("/usr/share/man/man1").glob("*.gz"), *pathlib.Path("/usr/share/man/man8").glob("*.gz"),
                   *(p for book in ("book", "reference", "nomicon", "cargo", "rustc", "rustdoc", "edition-guide")
                     for p in (HOME / ".rustup/toolchains").glob(f"stable-*/share/doc/rust/html/{book}/**/*.html"))],
        "code": [*(p for c in registry for p in c.glob("src/**/*.rs")), *library.glob("*.py")],
        "documents": [*(p for c in registry for p in c.glob("*.md")), *library.glob("**/*.rst"), *(REPOSITORY / "docs").glob("*.md")],
    }


def texts(rng, count, largest):
    """`count` texts from the smallest size to the largest, most of them small, the kinds in turn: (kind, names, lines)."""
    kinds = {kind: sorted(p for p in paths if p.is_file() and p.stat().st_size > 500) for kind, paths in sources().items()}
    kinds = {kind: paths for kind, paths in kinds.items() if paths}
    for paths in kinds.values():
        rng.shuffle(paths)
    if not kinds:
        raise SystemExit("expected licenses, manuals, crates or Python's library on this machine, found none")
    found, known = [], set()
    for i in range(count):
        size = int(SMALLEST * (largest / SMALLEST) ** ((i / max(1, count - 1)) ** 2))
        kind = list(kinds)[i % len(kinds)]
        names, text = [], ""
        while len(text.encode()) < size and any(kinds.values()):
            path = (kinds[kind] or max(kinds.values(), key=len)).pop()
            try:
                more = read(path)
            except (UnicodeDecodeError, OSError):
                continue
            if more and hash(more) not in known:
                known.add(hash(more))
                names.append(str(path))
                text += more + "\n\n"
        lines, length = [], 0
        for line in text.split("\n"):
            length += len(line.encode()) + 1
            if length > size and lines:
                break
            lines.append(line)
        found.append((kind, names, lines))
    return found


def planted(rng, lines, count):
    """Inserts `count` facts as lines of their own: the text, [(question, answer, value, line)] and a question without answer."""
    words = Words(rng, True, None)
    held = lambda phrasings: rng.choice(phrasings[-SPEC["held_out"]:])
    facts, seen, lines = [], set(), list(lines)
    while len(facts) < count + 1:
        relation = rng.choice(SPEC["relations"])
        subject, value = getattr(words, relation["subject"])(), getattr(words, relation["value"])()
        if subject in seen or value in seen:
            continue
        seen |= {subject, value}
        sentence = held(relation["statements"]).format(s=subject, v=value)
        sentence = sentence[0].upper() + sentence[1:] if sentence.startswith("the ") else sentence
        question = held(relation["questions"]).format(s=subject)
        facts.append((sentence, question, relation["answer"].format(v=value), value))
    *facts, absent = facts
    for sentence, *_ in facts:
        lines.insert(rng.randint(0, len(lines)), sentence)
    questions = [(q, a, v, 1 + lines.index(sentence)) for sentence, q, a, v in facts]
    return "\n".join(lines) + "\n", questions, absent[1]


WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
# Words that begin sentences of the answers without being names.
STARTS = set("it in the a an at on is no yes for this that set together unfortunately however according".split())


class Looked:
    """The words and numbers of a text and its questions, by rules simpler than those of the program."""

    def __init__(self, text):
        self.raw = re.sub(r"\s+", " ", text.lower())
        self.text = re.sub(r"[\s*_#/>-]+", " ", text).lower()
        self.words = {w.lower() for w in WORD.findall(text)}
        self.numbers = set(NUMBER.findall(text)) | set(re.findall(r"\d+", text))
        self.numbers |= {n.replace(",", "") for n in self.numbers}

    def invented(self, answer):
        """Spans of the answer, without its quotes, that the text lacks."""
        found = []
        body = re.sub(r"(?m)^\s*>.*$", lambda quote: " " * len(quote[0]), answer)
        for number in NUMBER.finditer(body):
            if number[0] not in self.numbers and number[0].replace(",", "") not in self.numbers:
                found.append(number.span())
        for name in re.finditer(r"\b[A-Z\u00c0-\u00de]\w*(?:[ -][A-Z]\w*)*", body):
            parts = re.split(r"[ -]", name[0])
            words = [w for w in parts if not re.search(r"\d|_", w)]      # the others are codes
            whole = len(words) == len(parts)
            first = re.search(r"(?:^|[.!?:>]\s*)\s*$", body[:name.start()]) is not None
            while words and first and words[0].lower() in STARTS:
                words, first = words[1:], False
            known = all(w.lower() in self.words for w in words)
            if words and (not known or whole and len(words) > 1 and " ".join(words).lower() not in self.text):
                found.append(name.span())
        for code in re.finditer(r"\b[A-Za-z]+[-_.]?\d\w*|\b\w+[_.]\w+\b", body):
            if not re.search(r"(?<!\w)" + re.escape(code[0].lower()) + r"(?!\w)", self.raw):
                found.append(code.span())
        return found


def ask(kimi, model, text, questions, scratch):
    """The program's answers to questions about one text, in one conversation."""
    path = scratch / "text.txt"
    path.write_text(text)
    command = [kimi, "ask", "--json", "--quiet", "--no-cache", "--temp", "0", "-f", str(path)]
    done = subprocess.run(command + (["-m", model] if model else []), input="\n".join(questions), text=True, capture_output=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(questions):
        raise SystemExit(f"{' '.join(command)}: expected {len(questions)} answers, found {len(answers)}: {done.stderr.strip()}")
    return answers


INVENTIONS = [
    "{person} signed it on {date}.", "It cost {money}, and {person} paid {money} of that.", "In {town}, {person} keeps {place}.",
    "The code is {code}; it holds {quantity}.", "Set {setting} to {number}.", "Together that is {number}, or {quantity} each.",
    "Unfortunately, only {person} knows. However, {person} lives in {town}.", "According to {person}, {place} has {size}.",
    "- **{person}**: {date}\n- **{town}**: {number}", "It was {date}; {setting} said so to {person}.",
]


class Prepared(http.server.BaseHTTPRequestHandler):
    """An endpoint that gives the answers of its server in turn."""

    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        delta = {"choices": [{"delta": {"content": self.server.answers.pop(0)}, "finish_reason": "stop"}]}
        self.wfile.write(f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *args):
        pass


def prepared(kimi, rng, text, questions, count, scratch):
    """Counts for prepared answers about one text: invented ones, its facts, and other lines of it."""
    words, looked, counts = Words(rng, True, None), Looked(text + "\nNext?"), collections.Counter()
    kinds = ["person", "town", "place", "setting", "number", "code", "date", "money", "quantity", "size"]
    draw = lambda wording: re.sub(r"{(\w+)}", lambda m: getattr(words, m[1])() if m[1] in kinds else m[0], wording)
    lines = text.split("\n")
    facts = [(lines[line - 1], answer) for _, answer, _, line in questions]
    answers = []
    for i in range(count):
        sentence, answer = rng.choice(facts)
        line = rng.choice([x for x in lines if x.strip() and not x.lstrip().startswith(">")]).strip()
        answers.append([f"> {sentence}\n\n{answer} {sentence}", draw(rng.choice(INVENTIONS)), f"It says: {line}"][i % 3])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Prepared)
    server.answers = list(answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = scratch / "text.txt"
    path.write_text(text)
    command = [kimi, "ask", "--url", f"http://127.0.0.1:{server.server_port}", "-m", "m", "--json", "--quiet", "-f", str(path)]
    done = subprocess.run(command, input="Next?\n" * count, text=True, capture_output=True)
    server.shutdown()
    got = [json.loads(line) for line in done.stdout.splitlines()]
    if [g["answer"] for g in got] != answers:
        raise SystemExit(f"expected {count} prepared answers, found {len(got)}: {done.stderr.strip()}")
    for i, answer in enumerate(got):
        marks = [(part["start"], part["end"]) for part in answer["unsupported"]]
        invented = looked.invented(answer["answer"])
        missed = [answer["answer"][a:b] for a, b in invented if not any(s < b and a < e for s, e in marks)]
        counts["invented answers"] += bool(invented)
        counts["invented parts"] += len(invented)
        counts["unmarked"] += len(missed)
        counts["answers of the text"] += i % 3 != 1
        counts["false marks"] += bool(marks) and i % 3 != 1
        for part in missed:
            print(f"unmarked: {part!r} in {answer['answer']!r}", file=sys.stderr)
        for part in answer["unsupported"] if i % 3 != 1 else []:
            print(f"marked: {part['text']!r} in {answer['answer']!r}", file=sys.stderr)
    return counts


def score(text, questions, absent, answers):
    """Counts for one text."""
    counts, looked = collections.Counter(), Looked("\n".join([text, *(q for q, *_ in questions), absent]))
    kept = []
    for (question, expected, value, line), answer in zip([*questions, (absent, SPEC["absent"], None, None)], answers):
        plain = "\n".join(x for x in answer["answer"].split("\n") if not x.lstrip().startswith(">")).strip()
        places = [place for quote in answer["quotes"] for place in quote["places"]]
        at_line = any(place["line"] <= (line or 0) <= place["last_line"] for place in places)
        if line is None:
            counts["absent"] += 1
            counts["absent right"] += plain == expected
        else:
            counts["facts"] += 1
            counts["quotes right"] += at_line
            counts["answers right"] += plain == expected
        first = answer["answer"].lstrip().startswith(">")
        counts["quoted"] += bool(answer["quotes"])
        counts["quoted first"] += bool(answer["quotes"]) and first
        invented = looked.invented(answer["answer"])
        marks = [(part["start"], part["end"]) for part in answer.get("unsupported", [])]
        unmarked = [answer["answer"][a:b] for a, b in invented if not any(s < b and a < e for s, e in marks)]
        counts["invented"] += bool(invented)
        counts["unmarked"] += bool(unmarked)
        counts["marked"] += bool(marks)
        counts["marked though right"] += bool(marks) and plain == expected
        kept.append(dict(question=question, expected=expected, line=line, answer=answer["answer"], quotes=answer["quotes"],
                         unsupported=answer.get("unsupported"), unmarked=unmarked))
    return counts, kept


COLUMNS = ["texts", "facts", "quotes right", "answers right", "absent right", "absent", "quoted", "quoted first", "invented", "unmarked",
           "marked", "marked though right"]


def table(name, rows):
    print(f"\n{name}")
    print("| bytes | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    total = collections.Counter()
    for low, high in BANDS:
        band = sum((c for size, c in rows if low <= size < high), collections.Counter())
        if band:
            last = f"to {high // 1000} KB" if high < 1 << 30 else f"over {low // 1000} KB"
            print(f"| {last} | " + " | ".join(str(band[c]) for c in COLUMNS) + " |")
        total += band
    print("| all | " + " | ".join(str(total[c]) for c in COLUMNS) + " |", flush=True)
    return total


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("kimi", nargs="+")
    p.add_argument("--model")
    p.add_argument("--texts", type=int, default=40)
    p.add_argument("--facts", type=int, default=200)
    p.add_argument("--largest", type=int, default=400_000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--from", dest="first", type=int, default=1, help="the first text to ask about, so that a run can be divided")
    p.add_argument("--prepared", type=int, default=0, metavar="N", help="N prepared answers per text instead of a model's")
    p.add_argument("--save", type=pathlib.Path, help="answers as JSON lines")
    a = p.parse_args()
    rng = random.Random(a.seed)
    drawn = [(kind, names, *planted(rng, lines, math.ceil((i + 1) * a.facts / a.texts) - math.ceil(i * a.facts / a.texts)))
             for i, (kind, names, lines) in enumerate(texts(rng, a.texts, a.largest))]
    if a.prepared:
        with tempfile.TemporaryDirectory() as scratch:
            total = collections.Counter()
            for _, _, text, questions, _ in drawn:
                total += prepared(a.kimi[-1], rng, text, questions, a.prepared, pathlib.Path(scratch))
        print(", ".join(f"{name}: {total[name]}" for name in ("invented answers", "invented parts", "unmarked", "answers of the text", "false marks")))
        sys.exit(total["unmarked"] > 0)
    results, save = {kimi: [] for kimi in a.kimi}, a.save and a.save.open("w")
    with tempfile.TemporaryDirectory() as scratch:
        for i, (kind, names, text, questions, absent) in list(enumerate(drawn))[a.first - 1:]:
            for kimi in a.kimi:
                start = time.monotonic()
                answers = ask(kimi, a.model, text, [q for q, *_ in questions] + [absent], pathlib.Path(scratch))
                counts, kept = score(text, questions, absent, answers)
                counts["texts"] = 1
                results[kimi].append((len(text.encode()), counts))
                print(f"{i + 1}: {kind}, {len(names)} files, {len(text.encode()):,} bytes, {answers[0]['prompt_tokens']:,} tokens, {kimi}: "
                      f"{counts['quotes right']} quotes and {counts['answers right']} answers of {counts['facts']} right, "
                      f"{counts['unmarked']} unmarked, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
                for line in kept if save else []:
                    print(json.dumps(dict(kimi=kimi, text=i + 1, bytes=len(text.encode()), **line), ensure_ascii=False), file=save, flush=True)
    totals = [table(kimi, rows) for kimi, rows in results.items()]
    sys.exit(totals[-1]["unmarked"] > 0)


if __name__ == "__main__":
    main()
