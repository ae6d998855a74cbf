"""Compares the text that kimi extracts from documents with that of a second extractor, on a corpus of packages.

usage: documents.py KIMI CORPUS [--json FILE]      (CORPUS: a folder with pdf, docx, pptx, xlsx, epub, html files)
       documents.py KIMI CORPUS --fetch            (fills CORPUS from Debian packages first; needs apt-get and dpkg-deb)

PDF is compared with pdftotext (poppler), DOCX with python-docx, PPTX with python-pptx, XLSX with openpyxl, EPUB and HTML
with html.parser of the standard library. Printed by format: files, words of the second extractor that kimi lacks and the
reverse (in percent, as multisets), order (the share of neighbouring words of the second extractor that are neighbours in
kimi's text, too), pages whose words agree, seconds, and failures. Not part of CI: run by hand.
"""
import argparse, collections, glob, html.parser, json, os, re, struct, subprocess, sys, tempfile, time, zipfile

PACKAGES = ["texlive-latex-base-doc", "python-matplotlib-doc", "gcc-doc", "debian-handbook", "libtasn1-doc", "gnuplot-doc", "r-doc-pdf", "maxima-doc"]


def extract(kimi, path):
    """The reply of one worker: text and parts, or the reason for none."""
    data = open(path, "rb").read()
    code = 0 if data[:1024].find(b"%PDF-") >= 0 else 1 if data[:2] == b"PK" else 2
    body = bytes([code]) + data
    done = subprocess.run([kimi, "document-worker"], input=struct.pack("<Q", len(body)) + body, capture_output=True, timeout=300)
    if len(done.stdout) < 8:
        return None, f"the worker ended: {done.returncode} {done.stderr[-200:]!r}"
    reply = json.loads(done.stdout[8:])
    return reply.get("Ok"), reply.get("Err")


def pdf(path):
    done = subprocess.run(["pdftotext", "-enc", "UTF-8", path, "-"], capture_output=True)
    return done.stdout.decode("utf-8", "replace").split("\f")[:-1] if done.returncode == 0 else None


def docx(path):
    import docx as d

    lines = []
    for block in d.Document(path).iter_inner_content():
        if hasattr(block, "rows"):
            lines += [" ".join(cell.text for cell in row.cells) for row in block.rows]
        else:
            lines.append(block.text)
    return ["\n".join(lines)]


def pptx(path):
    import pptx as p

    def texts(shapes):
        for shape in shapes:
            if shape.has_text_frame:
                yield shape.text_frame.text
            if getattr(shape, "has_table", False) and shape.has_table:
                yield from (cell.text for row in shape.table.rows for cell in row.cells)
            if hasattr(shape, "shapes"):
                yield from texts(shape.shapes)

    slides = []
    for slide in p.Presentation(path).slides:
        notes = slide.notes_slide.notes_text_frame.text if slide.has_notes_slide else ""
        slides.append("\n".join([*texts(slide.shapes), notes]))
    return slides


def xlsx(path):
    import openpyxl

    book = openpyxl.load_workbook(path, data_only=True, read_only=True)
    cell = lambda value: "" if value is None else str(value)
    return ["\n".join(" ".join(map(cell, row)) for row in sheet.iter_rows(values_only=True)) for sheet in book.worksheets]


class Text(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.out, self.skip = [], 0

    def handle_starttag(self, tag, attributes):
        self.skip += tag in ("script", "style", "svg", "noscript", "select")
        self.out.append("" if tag in ("a", "b", "i", "em", "strong", "span", "code", "sub", "sup", "tt", "small", "u", "font", "abbr") else " ")

    def handle_endtag(self, tag):
        self.skip -= tag in ("script", "style", "svg", "noscript", "select")
        self.out.append("" if tag in ("a", "b", "i", "em", "strong", "span", "code", "sub", "sup", "tt", "small", "u", "font", "abbr") else " ")

    def handle_data(self, data):
        if not self.skip:
            self.out.append(data)


def page(data):
    parser = Text()
    charset = re.search(rb"charset=[\"']?([\w-]+)", data[:1024])
    parser.feed(data.decode((charset[1].decode() if charset else "utf-8"), "replace"))
    return "".join(parser.out)


def epub(path):
    import xml.etree.ElementTree as et

    book = zipfile.ZipFile(path)
    opf = re.search(r'full-path="([^"]+)"', book.read("META-INF/container.xml").decode())[1]
    root = et.fromstring(book.read(opf))
    local = lambda name: [node for node in root.iter() if node.tag.rpartition("}")[2] == name]
    items = {item.get("id"): item.get("href") for item in local("item")}
    folder = os.path.dirname(opf)
    return [page(book.read(os.path.normpath(os.path.join(folder, items[ref.get("idref")])).replace(os.sep, "/"))) for ref in local("itemref")]


SECOND = {"pdf": pdf, "docx": docx, "pptx": pptx, "xlsx": xlsx, "epub": epub, "html": lambda path: [page(open(path, "rb").read())]}


def words(text):
    """Words in lower case, without hyphens at line ends and with ligatures as letters."""
    text = text.replace("\u00ad", "").replace("\ufb01", "fi").replace("\ufb02", "fl").replace("\ufb00", "ff").replace("\ufb03", "ffi").replace("\ufb04", "ffl")
    text = re.sub(r"(?<=[a-z])[-\u2010]\s*\n\s*(?=[a-z])", "", text)
    return re.findall(r"[^\W_]+", text.lower())


def lost(ours, theirs):
    a, b = collections.Counter(ours), collections.Counter(theirs)
    return sum((b - a).values()), sum(b.values())


def compare(kimi, path, kind):
    start = time.monotonic()
    found, failure = extract(kimi, path)
    seconds = time.monotonic() - start
    second = SECOND[kind](path)
    if found is None or second is None:
        return {"failure": failure or "the second extractor failed", "seconds": seconds}
    ours, theirs = words(found["text"]), words("\n".join(second))
    lacking, total = lost(ours, theirs)
    extra, _ = lost(theirs, ours)
    pairs = lambda all: list(zip(all, all[1:]))
    broken, neighbours = lost(pairs(ours), pairs(theirs))
    result = {"words": total, "lost": lacking, "extra": extra, "neighbours": neighbours, "broken": broken, "seconds": seconds}
    if kind in ("pdf", "pptx"):
        lines = found["text"].split("\n")
        starts = [part["line"] - 1 for part in found["parts"]] + [len(lines)]
        parts = ["\n".join(lines[a:b]) for a, b in zip(starts, starts[1:])]
        # A word that is hyphenated over the end of a page moves to the page of its start.
        agree = [lost(words(a), words(b)) for a, b in zip(parts, second)]
        result |= {"places": len(second), "places_right": sum(l <= 0.2 * t + 1 for l, t in agree) if len(parts) == len(second) else 0}
    return result


def fetch(corpus):
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=scratch, stderr=subprocess.DEVNULL)
        for package in glob.glob(scratch + "/*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, corpus], check=True)


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi"), p.add_argument("corpus"), p.add_argument("--fetch", action="store_true"), p.add_argument("--json"), p.add_argument("--most", type=int, default=10_000)
    args = p.parse_args()
    if args.fetch:
        fetch(args.corpus)
    results = {}
    for kind in SECOND:
        paths = sorted(path for path in glob.glob(f"{args.corpus}/**/*.{kind}", recursive=True) if os.path.isfile(path))
        for path in paths[:args.most]:
            try:
                result = compare(args.kimi, path, kind)
            except Exception as e:
                result = {"failure": f"the second extractor: {type(e).__name__} {e}", "seconds": 0}
            results.setdefault(kind, {})[os.path.relpath(path, args.corpus)] = result
            if "failure" in result:
                print(f"{path}: {result['failure']}", file=sys.stderr)
            elif result["words"] and result["lost"] / result["words"] > 0.05:
                print(f"{path}: {100 * result['lost'] / result['words']:.1f} % of {result['words']} words lost", file=sys.stderr)
    print(f"{'format':<7} {'files':>5} {'failed':>6} {'words':>9} {'lost %':>7} {'extra %':>8} {'order %':>8} {'places':>13} {'seconds':>8}")
    for kind, files in results.items():
        good = [r for r in files.values() if "failure" not in r]
        total = lambda name: sum(r.get(name, 0) for r in good)
        share = lambda a, b: 100 * a / max(b, 1)
        places = f"{total('places_right')}/{total('places')}" if total("places") else "-"
        print(f"{kind:<7} {len(files):>5} {len(files) - len(good):>6} {total('words'):>9} {share(total('lost'), total('words')):>7.2f} {share(total('extra'), total('words')):>8.2f} {share(total('neighbours') - total('broken'), total('neighbours')):>8.2f} {places:>13} {sum(r['seconds'] for r in files.values()):>8.1f}")
    if args.json:
        json.dump(results, open(args.json, "w"), indent=1)


if __name__ == "__main__":
    main()
