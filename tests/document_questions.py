"""Asks `kimi ask` 60 questions about 12 documents that this script makes: PDF, DOCX and EPUB of 4 to 200 pages.

usage: document_questions.py KIMI [--model FILE] [--seed N] [--save FILE]

Five facts are planted in the held-out prose of each document, with names and wording that models/demo/phrasings.json holds
out from training. An answer is right if it equals the expected one, a place if a quote is located on the page, in the
paragraph or in the chapter of the fact. Each quote that is located is looked up there in the text of a second extractor
(those of tests/documents.py). Every question is a run of its own; runs about a document share its prefix cache. Needs
reportlab, fpdf2, python-docx, ebooklib and pdftotext. Exits with 1 under 90 % of answers and places, or if a located quote
is not at its place. Not part of CI: run by hand.
"""
import argparse, collections, json, pathlib, random, re, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "models/demo")]
from documents import SECOND  # noqa: E402  of this folder

sys.modules.pop("documents")
sys.path.remove(str(HERE))
from documents import SPEC, Prose, Words  # noqa: E402  of models/demo

PAGES = {"pdf": [5, 30, 80, 200], "docx": [4, 20, 60, 120], "epub": [8, 32, 80, 160]}
PAGE_BYTES = 1000
FACTS = 5


def facts(rng):
    """(sentence, question, answer) about subjects and values that occur once."""
    words, found, seen = Words(rng, True, None), [], set()
    held = lambda phrasings: rng.choice(phrasings[-SPEC["held_out"]:])
    while len(found) < FACTS:
        relation = rng.choice(SPEC["relations"])
        subject, value = getattr(words, relation["subject"])(), getattr(words, relation["value"])()
        if {subject, value} & seen:
            continue
        seen |= {subject, value}
        sentence = held(relation["statements"]).format(s=subject, v=value)
        found.append((sentence[0].upper() + sentence[1:], held(relation["questions"]).format(s=subject), relation["answer"].format(v=value)))
    return found


def pages(rng, prose, count, facts):
    """Pages as lists of paragraphs, and the page and paragraph of each fact."""
    out, places = [], []
    of = sorted(rng.sample(range(count), len(facts)) if count >= len(facts) else [rng.randrange(count) for _ in facts])
    for number in range(count):
        sentences = prose.run(rng, PAGE_BYTES)
        cut = len(sentences) // 2
        paragraphs = [sentences[:cut], sentences[cut:]] if cut else [sentences]
        for page, (sentence, *_) in zip(of, facts):
            if page == number:
                paragraph = rng.randrange(len(paragraphs))
                paragraphs[paragraph].insert(rng.randint(0, len(paragraphs[paragraph])), sentence)
                places.append((number, paragraph))
        out.append([" ".join(paragraph) for paragraph in paragraphs])
    return out, places


def make_pdf(path, title, pages, places, with_fpdf):
    """A PDF with a running head, by reportlab (justified) or fpdf2."""
    if with_fpdf:
        import fpdf

        pdf = fpdf.FPDF(format="a5")
        for i, page in enumerate(pages, 1):
            pdf.add_page()
            pdf.set_font("Times", "I", 9)
            pdf.cell(0, 8, f"{title}  {i}", new_x="LMARGIN", new_y="NEXT")
            pdf.set_font("Times", size=10)
            for paragraph in page:
                pdf.multi_cell(0, 5, paragraph.encode("latin-1", "replace").decode("latin-1"), new_x="LMARGIN", new_y="NEXT")
                pdf.ln(3)
        assert pdf.page == len(pages), "a page overflows"
        pdf.output(path)
    else:
        from reportlab.lib.pagesizes import A5
        from reportlab.lib.styles import ParagraphStyle
        from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate
        from xml.sax.saxutils import escape

        style = ParagraphStyle("text", fontName="Times-Roman", fontSize=10, leading=12, spaceAfter=6, alignment=4)
        head = lambda canvas, document: canvas.drawString(50, 560, f"{title}  {document.page}")
        flow = [item for page in pages for item in [*(Paragraph(escape(text), style) for text in page), PageBreak()]]
        document = SimpleDocTemplate(str(path), pagesize=A5, leftMargin=50, rightMargin=50, topMargin=50, bottomMargin=50)
        document.build(flow[:-1], onFirstPage=head, onLaterPages=head)
        assert document.page == len(pages), "a page overflows"
    return [f"p. {page + 1}" for page, _ in places]


def make_docx(path, title, pages, places, _):
    """A DOCX with headings; every fifth page has its paragraphs in a row of a table."""
    import docx

    document, number, at = docx.Document(), 1, {}
    document.add_heading(title)
    for i, page in enumerate(pages):
        if i % 5 == 2:
            cells = document.add_table(1, len(page)).rows[0].cells
            number += 1
        for j, text in enumerate(page):
            if i % 5 == 2:
                cells[j].text = text
            else:
                document.add_paragraph(text)
                number += 1
            at[i, j] = f"par. {number}"
    document.sections[0].header.paragraphs[0].text = title
    document.save(path)
    return [at[place] for place in places]


def make_epub(path, title, pages, places, _):
    """An EPUB with a chapter for every eight pages."""
    from ebooklib import epub
    from html import escape

    book, chapters = epub.EpubBook(), []
    book.set_title(title)
    for i in range(0, len(pages), 8):
        name = f"Chapter {i // 8 + 1}"
        chapter = epub.EpubHtml(title=name, file_name=f"{i}.xhtml")
        chapter.content = f"<h1>{name}</h1>" + "".join(f"<p>{escape(text)}</p>" for page in pages[i:i + 8] for text in page)
        book.add_item(chapter)
        chapters.append(chapter)
    book.toc, book.spine = chapters, chapters
    book.add_item(epub.EpubNcx())
    epub.write_epub(str(path), book)
    return [f"ch. {page // 8 + 1}" for page, _ in places]


MAKE = {"pdf": make_pdf, "docx": make_docx, "epub": make_epub}


def ask(kimi, model, path, cache, question):
    command = [kimi, "ask", "--json", "--quiet", "--temp", "0", "--cache-dir", cache, "-f", path, *(["-m", model] if model else []), question]
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{path}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def is_at(quote, place, second):
    """Whether a quote is at a place in the second extractor's text, in any white space."""
    kind, _, range_ = place.split(" (")[0].partition(" ")
    first, _, last = range_.partition("-")
    wanted = {f"{kind.rstrip('s.')}{'.' if '.' in kind else ''} {n}" for n in range(int(first), int(last or first) + 1)}
    bare = lambda text: re.sub(r"\s+", "", text).translate(str.maketrans("\u2018\u2019\u201c\u201d", "''\"\""))
    return bare(quote) in bare(" ".join(text for name, text in second if name.replace("pp.", "p.") in wanted))


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi"), p.add_argument("--model"), p.add_argument("--seed", type=int, default=1), p.add_argument("--save", type=pathlib.Path)
    args = p.parse_args()
    rng, prose, rows, kept = random.Random(args.seed), Prose(HERE.parent / "models/demo/prose/heldout.txt"), collections.defaultdict(collections.Counter), []
    print("| document | pages | tokens | answers right | places right | quotes located | verified | first question s | others s |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as scratch:
        for kind, sizes in PAGES.items():
            for i, count in enumerate(sizes):
                path, planted = pathlib.Path(scratch, f"report.{kind}"), facts(rng)
                text, places = pages(rng, prose, count, planted)
                expected = MAKE[kind](path, "The report of the year", text, places, i % 2)
                second, row, times = SECOND[kind](str(path)), collections.Counter(), []
                cache = pathlib.Path(scratch, f"{kind}{i}")
                for (sentence, question, answer), place in zip(planted, expected):
                    start = time.monotonic()
                    found = ask(args.kimi, args.model, path, cache, question)
                    times.append(time.monotonic() - start)
                    plain = "\n".join(x for x in found["answer"].split("\n") if not x.lstrip().startswith(">")).strip()
                    located = [(quote["text"], at["place"]) for quote in found["quotes"] for at in quote["places"]]
                    right, at_place = plain == answer, any(at.split(" (")[0] == place for _, at in located)
                    wrong = [(quote, at) for quote, at in located if not is_at(quote, at, second)]
                    row += collections.Counter(answers=right, places=at_place, located=len(located), stand=len(located) - len(wrong))
                    kept.append(dict(document=f"{kind} {count}", sentence=sentence, question=question, expected=answer, place=place, answer=found["answer"], quotes=found["quotes"]))
                    if not right or not at_place or wrong:
                        print(f"{kind} of {count} pages: {question} expected {answer!r} at {place}, found {found['answer']!r} at {[at for _, at in located]}"
                              + "".join(f"; not at {at}: {quote!r}" for quote, at in wrong), file=sys.stderr)
                rows[kind] += row
                others = sum(times[1:]) / (len(times) - 1)
                print(f"| {kind} | {count} | {found['prompt_tokens']:,} | {row['answers']} of {len(planted)} | {row['places']} of {len(planted)} | {row['located']} | {row['stand']} "
                      f"| {times[0]:.1f} | {others:.1f} |", flush=True)
    all_ = sum(rows.values(), collections.Counter())
    print(f"| all | | | {all_['answers']} of {len(kept)} | {all_['places']} of {len(kept)} | {all_['located']} | {all_['stand']} | | |")
    if args.save:
        args.save.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    sys.exit(all_["answers"] < 0.9 * len(kept) or all_["places"] < 0.9 * len(kept) or all_["stand"] < all_["located"])


if __name__ == "__main__":
    main()
