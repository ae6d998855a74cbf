"""Draws the pictures of README.md and docs/ from the records in docs/results.

    python docs/figures.py             writes docs/*.svg
    python docs/figures.py --check     fails if a picture is not what the records give
    python docs/figures.py --ask KIMI  records docs/results/ask.screen.json: `kimi ask` in a terminal of tmux
    python docs/figures.py --page KIMI records docs/page*.png: the page of `kimi serve` in Chromium (needs npm)

Each record states the command, machine and date of its figures. Screens are recorded as rows of styled text:
chat*.screen.json by the test `the_picture_of_the_chat_is_up_to_date`, from the cells of its screens (UPDATE_PICTURES=1).
Needs nothing but Python; SVG styles follow the reader's light or dark theme.
"""
import json, math, pathlib, re, shlex, subprocess, sys, tempfile, time, unicodedata
from html import escape

HERE = pathlib.Path(__file__).parent
STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px; fill: #1f2328; }
.card { fill: #ffffff; stroke: #d1d9e0; } .grid { stroke: #e6eaef; } .axis { stroke: #b7bfc8; }
.title { font-size: 16px; font-weight: 600; } .head { font-size: 14px; font-weight: 600; }
.note, .tick { fill: #59636e; font-size: 12px; } .value { font-size: 12px; } .strong { font-weight: 600; }
.label { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; }
.kimi { fill: #2563eb; } .peer { fill: #a3acb8; } .line-kimi { stroke: #2563eb; } .line-peer { stroke: #a3acb8; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .card { fill: #0d1117; stroke: #30363d; } .grid { stroke: #21262d; } .axis { stroke: #484f58; }
  .note, .tick { fill: #9198a1; } .kimi { fill: #58a6ff; } .peer { fill: #6e7681; }
  .label { stroke: #0d1117; }
  .line-kimi { stroke: #58a6ff; } .line-peer { stroke: #6e7681; }
}
"""


class Svg:
    """Collects elements of one picture."""

    def __init__(self, width, height, title):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def text(self, x, y, words, kind="", anchor="start"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>')

    def rect(self, x, y, width, height, kind, radius=2):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}" class="{kind}"/>')

    def line(self, x0, y0, x1, y1, kind, width=1):
        self.parts.append(f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}" stroke-width="{width}"/>')

    def dot(self, x, y, kind, radius=5):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}"/>')

    def raw(self, element):
        self.parts.append(element)

    def page(self, style=STYLE):
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(self.title)}">',
                          f"<title>{escape(self.title)}</title>", f"<style>{style}</style>", *self.parts, "</svg>", ""])


def record(name):
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def card(width, height, title, subtitle):
    svg = Svg(width, height, title)
    svg.rect(0.5, 0.5, width - 1, height - 1, "card", 8)
    svg.text(24, 34, title, "title")
    svg.text(24, 55, subtitle, "note")
    return svg


def legend(svg, right, y):
    svg.rect(right - 172, y - 10, 11, 11, "kimi")
    svg.text(right - 155, y, "kimi")
    svg.rect(right - 108, y - 10, 11, 11, "peer")
    svg.text(right - 91, y, "llama.cpp")


def notes(svg, lines):
    for i, line in enumerate(reversed(lines)):
        svg.text(24, svg.height - 18 - 17 * i, line, "note")


def number(value):
    if value == 0:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def bars(svg, box, head, groups, top):
    """A panel of paired bars: groups are (label, kimi, llama.cpp) on one scale from 0 to top."""
    x, y, width, height = box
    svg.text(x, y, head, "head")
    floor, ceiling = y + height, y + 38
    svg.line(x, floor, x + width, floor, "axis")
    step = width / len(groups)
    bar = min(34, step * 0.36)
    for i, (labels, ours, theirs) in enumerate(groups):
        middle = x + step * (i + 0.5)
        for value, kind, left in [(ours, "kimi", middle - bar - 1), (theirs, "peer", middle + 1)]:
            tall = (floor - ceiling) * value / top
            svg.rect(left, floor - tall, bar, tall, kind)
            svg.text(left + bar / 2, floor - tall - 6, number(value), "value strong" if kind == "kimi" else "value", "middle")
        for j, label in enumerate(labels):
            svg.text(middle, floor + 18 + 15 * j, label, "tick", "middle")


def cases(speed, form, kind):
    return [row for row in speed["rows"] if row["format"] == form and row["kind"] == kind]


DEPTH = "CPU, 2 threads; depth = tokens already in the context; higher is better"


def pairs(rows):
    def labels(row):
        depth = f"depth {row['depth']:,}" + (" *" if row.get("note") == "busier" else "")
        return [depth] if row["kind"] == "decode" else [f"{row['tokens']:,} tokens", f"at {depth}"]
    return [(labels(row), row["kimi"], row["llama.cpp"]) for row in rows]


def speed(form="Q4_K_M"):
    data = record("speed")
    svg = card(820, 424, f"Tokens per second by depth, {form}", DEPTH)
    legend(svg, 820, 34)
    for (x, width), kind in [((24, 420), "prefill"), ((490, 306), "decode")]:
        rows = cases(data, form, kind)
        bars(svg, (x, 94, width, 208), kind.capitalize() + ", tok/s", pairs(rows), max(r["kimi"] for r in rows))
    notes(svg, ["Five layers with the sizes of the 48B model, random weights, 4.7 GiB. Zen 4, memory bandwidth 30-34 GB/s, batches of 512.",
                "Both programs ran in turn on the same file; medians of five. * separate run while the machine was busier.",
                "llama-cpp-sys-2 0.1.161, native build. Record: docs/results/speed.json"])
    return svg


def formats():
    data = record("speed")
    names = list(dict.fromkeys(row["format"] for row in data["rows"]))
    svg = card(820, 116 + 216 * len(names), "Tokens per second by depth and format", DEPTH)
    legend(svg, 820, 34)
    for i, form in enumerate(names):
        y = 94 + 216 * i
        gib = cases(data, form, "decode")[0]["gib"]
        for (x, width), kind in [((24, 420), "prefill"), ((490, 306), "decode")]:
            top = max(row["kimi"] for row in data["rows"] if row["kind"] == kind)
            bars(svg, (x, y, width, 150), f"{form}, {gib} GiB: {kind}, tok/s", pairs(cases(data, form, kind)), top)
    notes(svg, ["Conditions: docs/results/speed.json. * separate run while the machine was busier. Q4_K_M: a quieter run than the other formats."])
    return svg


def load():
    rows = record("load")["rows"]
    svg = card(820, 386, "Concurrent clients: throughput and time to first token", "CPU, 2 threads, demonstration model in Q8_0")
    legend(svg, 820, 34)
    for x, key, head in [(24, "rate", "Replies, tok/s (higher is better)"), (432, "p50", "First token, median, ms (lower is better)")]:
        groups = [([f"{r['clients']} client" + "s" * (r["clients"] > 1)], r["kimi"][key], r["llama.cpp"][key]) for r in rows]
        bars(svg, (x, 94, 364, 208), head, groups, max(max(ours, theirs) for _, ours, theirs in groups))
    notes(svg, ["Each request has 200 words and a reply of 64 tokens. Both servers ran in turn on the same file; medians of five.",
                "llama.cpp's server: the wheel xllamacpp. Record: docs/results/load.json"])
    return svg


def first_token():
    data = record("first_token")
    rows = data["rows"]
    groups = list(dict.fromkeys((row["tokens"], row["model"]) for row in rows))
    left, right, top, y = 120, 610, 76, 92
    svg = card(820, 152 + 40 * len(groups) + 52 * len(rows), "Time to first token: two questions about one file",
               "CPU, 2 threads; lower is better; logarithmic scale")
    legend(svg, 820, 34)
    place = lambda seconds: left + (right - left) * (math.log10(max(seconds, 0.01)) + 2) / (math.log10(2500) + 2)
    bottom = svg.height - 80
    for seconds, words in [(0.01, "10 ms"), (0.1, "0.1 s"), (1, "1 s"), (10, "10 s"), (100, "100 s"), (1000, "1,000 s")]:
        svg.line(place(seconds), top, place(seconds), bottom, "grid")
        svg.text(place(seconds), bottom + 17, words, "tick", "middle")
    for tokens, model in groups:
        svg.raw(f'<text x="24" y="{y + 6}" class="label"><tspan class="strong">{tokens:,} tokens,</tspan> {model}</text>')
        y += 18
        for row in [r for r in rows if (r["tokens"], r["model"]) == (tokens, model)]:
            kind = "kimi" if row["server"] == "kimi" else "peer"
            svg.text(24, y + 23, row["server"])
            for i, (key, words) in enumerate([("first", "first (reads the file)"), ("second", "second (cached)")]):
                svg.rect(left, y + 20 * i, place(row[key]) - left, 16, kind)
                end = f'<tspan class="strong">{number(row[key])} s</tspan> {words}'
                svg.raw(f'<text x="{place(row[key]) + 6:.1f}" y="{y + 20 * i + 12.5:.1f}" class="value label">{end}</text>')
            y += 50
        y += 24
    notes(svg, ["2 cores, one server after the other. llama.cpp's server (wheel xllamacpp) restored its checkpoints; it was not measured at",
                "131,517 tokens. Record: docs/results/first_token.json"])
    return svg


def quality():
    data = record("quality")
    rows = [row for row in data["rows"] if row["kl"] > 0]
    svg = card(820, 446, "Quality by size: KL divergence from F32", "Demonstration model (9.5 M parameters, 38.4 MB in F32); lower is better; logarithmic scale")
    left, right, top, bottom = 72, 730, 100, 358
    across = lambda size: left + (right - left) * (size / 1e6 - 4) / 7
    down = lambda kl: top + (bottom - top) * (math.log10(0.5) - math.log10(kl)) / (math.log10(0.5) - math.log10(0.001))
    for kl in [0.001, 0.01, 0.1]:
        svg.line(left, down(kl), right, down(kl), "grid")
        svg.text(left - 8, down(kl) + 4, f"{kl:g}", "tick", "end")
    svg.text(24, top - 12, "KL divergence", "tick")
    svg.line(left, bottom, right, bottom, "axis")
    for size in range(4, 12):
        svg.text(across(size * 1e6), bottom + 18, str(size), "tick", "middle")
    svg.text((left + right) / 2, bottom + 36, "file size, MB", "tick", "middle")
    for one, two in zip(rows, rows[1:]):
        svg.line(across(one["bytes"]), down(one["kl"]), across(two["bytes"]), down(two["kl"]), "line-kimi", 2)
    above = None  # the last label above the line
    for row in sorted(rows, key=lambda row: row["bytes"]):
        x, y = across(row["bytes"]), down(row["kl"])
        svg.dot(x, y, "kimi")
        fits = above is None or x - above[0] > 130 or y - above[1] > 24
        above = (x, y) if fits else above
        at = f'x="{x + 9:.1f}" y="{y - 8:.1f}"' if fits else f'x="{x - 8:.1f}" y="{y + 18:.1f}" text-anchor="end"'
        svg.raw(f'<text {at} class="label"><tspan class="strong">{row["format"]}</tspan> {row["kl"]:.4f}</text>')
    notes(svg, ["64 windows of 512 tokens of held-out prose. Record: docs/results/quality.json"])
    return svg


def sizes():
    rows = record("sizes")["rows"]
    svg = card(820, 446, "convert --size against llama.cpp's mixes", "Demonstration model; KL divergence from F32 at the same bytes; lower is better; logarithmic scale")
    left, right, top, bottom = 72, 730, 100, 358
    least, most = math.floor(min(row["kimi"]["bytes"] for row in rows) / 1e6), math.ceil(max(row["kimi"]["bytes"] for row in rows) / 1e6)
    across = lambda size: left + (right - left) * (size / 1e6 - least) / (most - least)
    down = lambda kl: top + (bottom - top) * (math.log10(1) - math.log10(kl)) / (math.log10(1) - math.log10(0.005))
    for kl in [0.01, 0.1, 1]:
        svg.line(left, down(kl), right, down(kl), "grid")
        svg.text(left - 8, down(kl) + 4, f"{kl:g}", "tick", "end")
    svg.text(24, top - 12, "KL divergence", "tick")
    svg.line(left, bottom, right, bottom, "axis")
    for size in range(least, most + 1):
        svg.text(across(size * 1e6), bottom + 18, str(size), "tick", "middle")
    svg.text((left + right) / 2, bottom + 36, "file size, MB", "tick", "middle")
    for name, kind in [("llama.cpp", "peer"), ("kimi", "kimi")]:
        places = [(across(row[name]["bytes"]), down(row[name]["kl"])) for row in rows]
        for one, two in zip(places, places[1:]):
            svg.line(*one, *two, f"line-{kind}", 2)
        for row, (x, y) in zip(rows, places):
            svg.dot(x, y, kind)
            if name == "kimi":
                less = 100 * (1 - row["kimi"]["kl"] / row["llama.cpp"]["kl"])
                svg.raw(f'<text x="{x - 8:.1f}" y="{y + 18:.1f}" text-anchor="end" class="label value">{less:.0f} % less</text>')
            else:
                svg.raw(f'<text x="{x + 9:.1f}" y="{y - 8:.1f}" class="label"><tspan class="strong">{row["mix"]}</tspan></text>')
    legend(svg, right + 60, 34)
    notes(svg, ["Each with its own importance matrix of the same text. Record: docs/results/sizes.json"])
    return svg


CELL, LINE, MARGIN = 8.4, 17, 18
COLUMNS = 118
CHATS = {"chat": "the source of a quote beside the conversation", "chat-light": "the light theme", "chat-first": "the first screen",
         "chat-reading": "a file is read", "chat-no-color": "no colours, the source below", "chat-code": "a table and code",
         "chat-menu": "completions, in 256 colours", "chat-list": "the list of chats"}
QUESTIONS = ["Who keeps the Tiolmere museum?", "Who runs the Tiolmere museum?"]
SCREEN = """
text { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 14px; white-space: pre; }
"""


def cells(character):
    """Columns of a character in a terminal."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else 0 if unicodedata.combining(character) else 1


def screen(name, title):
    """A terminal: each row a list of [column, columns, text, foreground, background, attributes]."""
    data = record(f"{name}.screen")
    ground, ink = data["background"], data["foreground"]
    width, height = round(data["columns"] * CELL + 2 * MARGIN), data["rows"] * LINE + MARGIN + 44
    svg = Svg(width, height, title)
    svg.raw(f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" fill="{ground}" stroke="#6e7681"/>')
    for i, color in enumerate(["#ff5f57", "#febc2e", "#28c840"]):
        svg.raw(f'<circle cx="{22 + 20 * i}" cy="20" r="6" fill="{color}"/>')
    svg.raw(f'<text x="{width / 2}" y="25" text-anchor="middle" fill="#6e7681">{escape(data["title"])}</text>')
    for y, row in enumerate(data["lines"]):
        for column, columns, words, fore, back, attributes in row:
            x, top = MARGIN + column * CELL, 40 + y * LINE
            if "reverse" in attributes:
                fore, back = back or ground, fore or ink
            if back:
                svg.raw(f'<rect x="{x:.1f}" y="{top}" width="{columns * CELL:.1f}" height="{LINE}" fill="{back}"/>')
            style = f'fill="{fore or ink}"'
            style += ' font-weight="bold"' if "bold" in attributes else ""
            style += ' font-style="italic"' if "italic" in attributes else ""
            style += ' opacity="0.65"' if "dim" in attributes else ""
            style += ' text-decoration="underline"' if "underline" in attributes else ""
            # Words apart from each other are placed one by one: fonts differ in the width of a space.
            for part in re.finditer(r"\S+( \S+)*", words):
                left, wide = (sum(map(cells, text)) * CELL for text in (words[:part.start()], part[0]))
                size = f'textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs"'
                svg.raw(f'<text x="{x + left:.1f}" y="{top + 13}" xml:space="preserve" {size} {style}>{escape(part[0])}</text>')
    return svg.page(SCREEN)


PALETTE = ["#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4",
           "#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff"]


def styled(line):
    """The runs of a row that `tmux capture-pane -e` printed."""
    runs, column, fore, attributes = [], 0, None, set()
    for code, words in re.findall(r"\x1b\[([\d;]*)m|([^\x1b]+)", line):
        if words:
            runs.append([column, len(words), words, fore, None, sorted(attributes)])
            column += len(words)
            continue
        for n in map(int, (code or "0").split(";")):
            if n == 0:
                fore, attributes = None, set()
            elif n in (1, 2, 3, 4, 7):
                attributes.add({1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "reverse"}[n])
            elif 30 <= n <= 37 or 90 <= n <= 97:
                fore = PALETTE[n - 30 if n < 90 else n - 82]
            elif n == 39:
                fore = None
    return runs


def record_ask(kimi):
    """Records two questions about the README to the demonstration model in a terminal; standard error is dim."""
    kimi = pathlib.Path(kimi).resolve()
    shown = [f'kimi ask -f README.md "{question}"' for question in QUESTIONS]
    tmux = lambda *words: subprocess.run(["tmux", "-L", "figures", *words], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        tmux("-f", "/dev/null", "new-session", "-d", "-s", "ask", "-x", str(COLUMNS), "-y", "40", "env", "-i", f"PATH={kimi.parent}:/usr/bin:/bin",
             "TERM=xterm-256color", "LANG=C.UTF-8", f"HOME={home}", "PS1=\\[\\e[1;32m\\]$\\[\\e[0m\\] ", "bash", "--norc", "--noprofile")
        try:
            tmux("send-keys", "-t", "ask", f"cd {HERE.parent} && clear", "Enter")
            time.sleep(1)
            for command in shown:
                tmux("send-keys", "-t", "ask", command, "Enter")
                rows = answered(lambda: tmux("capture-pane", "-t", "ask", "-p", "-e"))
            answers = [subprocess.run([kimi, *shlex.split(command)[1:]], cwd=HERE.parent, env={"HOME": home}, check=True, capture_output=True, text=True)
                       for command in shown]
        finally:
            tmux("kill-server")
    stdout = {line.rstrip() for answer in answers for line in answer.stdout.split("\n")}
    for row in rows:
        words = "".join(run[2] for run in row).rstrip()
        if words not in stdout and not words.startswith("$ "):
            rows[rows.index(row)] = [[*run[:5], ["dim"]] for run in row]
    keep = {"title": "kimi ask", "command": "; ".join(shown), "build": "dev profile", "date": time.strftime("%Y-%m-%d"), "columns": COLUMNS, "rows": len(rows),
            "foreground": "#e6edf3", "background": "#0d1117", "lines": rows}
    keep["lines"] = "LINES"
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    text = json.dumps(keep, ensure_ascii=False, indent=1).replace('"LINES"', f"[\n{lines}\n]")
    (HERE / "results/ask.screen.json").write_text(text + "\n")


def answered(capture):
    """The rows of the terminal once the shell prompts again, without the prompt."""
    for _ in range(600):
        time.sleep(0.5)
        lines = capture().rstrip().split("\n")
        if len(lines) > 2 and re.sub(r"\x1b\[[\d;]*m", "", lines[-1]).strip() == "$":
            return [styled(line) for line in lines[:-1]]
    sys.exit("kimi ask did not end")


PAGE = """
import { chromium } from "playwright-core";
const [base, folder, file, ...turns] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
const desktop = { viewport: { width: 1280, height: 800 } };
const phone = { viewport: { width: 412, height: 915 }, deviceScaleFactor: 1.5, isMobile: true, hasTouch: true };
const forms = [["page", "light", desktop], ["page-dark", "dark", desktop], ["page-phone", "dark", phone]];
for (const [name, colorScheme, form] of forms) {
  const page = await (await browser.newContext({ ...form, colorScheme })).newPage();
  await page.goto(base);
  await page.setInputFiles("#choose", file);
  await page.waitForSelector("#attached li");
  await page.waitForSelector(".ready", { state: "attached" });
  for (const [i, turn] of turns.entries()) {
    await page.fill("#say", turn);
    await page.press("#say", "Enter");
    await page.waitForFunction(n => document.querySelectorAll(".facts").length === n && document.querySelector("#stop").hidden, i + 1);
  }
  if (form === desktop) {
    await page.locator("button.cite:not(.unverified)").last().click();
    await page.waitForSelector("mark.current");
  }
  await page.mouse.move(0, 0);
  await page.waitForTimeout(1500);
  await page.screenshot({ path: `${folder}/${name}.png` });
}
await browser.close();
"""
TURNS = ["Where does the keeper of the Tiolmere museum live?", "What is the access code of the Hartwell mill?"]  # both fit the window


def record_page(kimi):
    """Asks the demonstration model about docs/museum.txt on the page of `kimi serve` and writes docs/page*.png."""
    with tempfile.TemporaryDirectory() as folder:
        command = [kimi, "serve", "-m", HERE.parent / "models/demo/kimi-demo.gguf", "--port", "0", "--cache-dir", f"{folder}/cache", "--temp", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            try:
                base = next(found[1] for line in server.stderr if (found := re.search(r"address=(\S+)", line)))
                subprocess.run(["npm", "install", "--silent", "--prefix", folder, "playwright-core"], check=True)
                (pathlib.Path(folder) / "page.mjs").write_text(PAGE)
                subprocess.run(["node", "page.mjs", f"http://{base}", HERE, HERE / "museum.txt", *TURNS], cwd=folder, check=True)
            finally:
                server.terminate()


def main():
    recorders = {"--ask": record_ask, "--page": record_page}
    if sys.argv[1:2] and sys.argv[1] in recorders:
        return recorders[sys.argv[1]](sys.argv[2])
    pictures = {"speed": speed().page(), "formats": formats().page(), "first-token": first_token().page(), "load": load().page(),
                "quality": quality().page(), "sizes": sizes().page(),
                **{name: screen(name, f"kimi chat in a terminal: {what}") for name, what in CHATS.items()}, "ask": screen("ask", "kimi ask in a terminal")}
    stale = []
    for name, page in pictures.items():
        path = HERE / f"{name}.svg"
        if "--check" in sys.argv:
            stale += [path.name] * (not path.exists() or path.read_text() != page)
        else:
            path.write_text(page)
    if stale:
        sys.exit(f"not what docs/results gives: {', '.join(stale)}: run docs/figures.py")


if __name__ == "__main__":
    main()
