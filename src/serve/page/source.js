// The source: the text of a file with the quotes of a reply, opened at one of them.

import { files } from "./api.js";
import { $, el } from "./dom.js";
import { utf16, utf16All } from "./format.js";

// Texts by file id, as the server gives them.
const texts = new Map();
// What is shown: the quotes of one reply, and the index of the current one.
let quotes = [], current = 0, reveal = () => {}, back = null;

// Connects the buttons; `show` brings the part into view.
export function start(show) {
  reveal = show;
  $("source-back").onclick = () => step(-1);
  $("source-on").onclick = () => step(1);
  $("source-close").onclick = close;
}

// Closes the source and returns the focus to what opened it.
export function close() {
  reveal(false);
  back?.focus();
  back = null;
}

async function textOf(id) {
  if (!texts.has(id)) texts.set(id, await files.text(id));
  return texts.get(id);
}

// Opens a file without a quote.
export async function openFile(id) {
  back = document.activeElement;
  quotes = [];
  await render(id, null);
}

// Opens a quote; the others of the same reply can be stepped through.
export async function openQuote(all, index) {
  back = document.activeElement;
  quotes = all;
  current = index;
  await showQuote();
}

function step(by) {
  current = (current + by + quotes.length) % quotes.length;
  showQuote();
}

const showQuote = () => render(quotes[current].file_id, quotes[current]);

let generation = 0;

async function render(id, quote) {
  const mine = ++generation;
  reveal(true);
  $("source-steps").hidden = quotes.length < 2;
  $("source-count").textContent = `${current + 1} of ${quotes.length}`;
  $("source-empty").hidden = true;
  $("source-place").textContent = quote?.verified && quote.place ? short(quote.place, quote.filename) : "";
  if (quote && !quote.verified) return showUnverified(quote);
  $("source-title").textContent = quote?.filename ?? "";
  let file;
  try {
    file = await textOf(id);
  } catch (error) {
    if (mine === generation) showNote(error.status === 404 ? "This file was deleted from the library." : error.message, quote);
    return;
  }
  if (mine !== generation) return;
  $("source-title").textContent = file.filename;
  showNote("");
  const own = quotes.filter(other => other.verified && other.file_id === id);
  const marks = own.map(other => ({ start: utf16(file.text, other.text_start), end: utf16(file.text, other.text_end), isCurrent: other === quote }));
  $("source-text").replaceChildren(...sections(file, marks));
  $("source-text").scrollTop = 0;
  const mark = $("source-text").querySelector("mark.current");
  $("source-text").focus({ preventScroll: true });
  if (!mark) return;
  mark.scrollIntoView({ block: "center" });
  // The heights of the sections above are known only after they were laid out once.
  requestAnimationFrame(() => mark.scrollIntoView({ block: "center" }));
}

function showNote(text, quote = null) {
  $("source-note").hidden = !text;
  $("source-note").textContent = text;
  if (quote) $("source-text").replaceChildren(el("blockquote", { dir: "auto" }, quote.quote));
}

// A quote that was found in no file: it is shown as the reply has it.
function showUnverified(quote) {
  $("source-title").textContent = "Not in the files";
  showNote("No file of this conversation has this text. The model may have changed or invented it.", quote);
  $("source-text").firstChild.classList.add("unverified");
  $("source-text").focus({ preventScroll: true });
}

// Text files that are no code, which has lines that do not wrap.
const PROSE = /\.(?:txt|text|md|markdown|rst|html?|log)$|^[^.]*$/i;

// Sections of at most this many characters are laid out when they come near the window.
const SECTION = 4000;

// The places of a text; one without any, such as plain text, has those of its lines.
function startsOf({ text, places, filename }) {
  if (places.length) {
    const at = utf16All(text, places.map(({ start }) => start));
    return places.map(({ place }, i) => ({ at: at[i], name: short(place, filename) }));
  }
  const starts = [{ at: 0, name: "line 1" }];
  for (let at = text.indexOf("\n"); at >= 0 && at + 1 < text.length; at = text.indexOf("\n", at + 1)) {
    starts.push({ at: at + 1, name: `line ${starts.length + 1}` });
  }
  return starts;
}

// The text of pages without the ends of printed lines, which are longer than lines of a list. Its length is the same.
const withoutLineEnds = text => text.replace(/([^\n]{45,})\n(?=\S)/g, "$1 ");

// The text in sections. Lines, paragraphs and rows have their place beside them, pages and chapters above them.
function sections(file, marks) {
  const { filename } = file, starts = startsOf(file);
  const text = starts.every(({ name }) => name.startsWith("p. ")) ? withoutLineEnds(file.text) : file.text;
  const areNumbered = starts.every(({ name }) => /^(?:line|par\.) \d+$/.test(name));
  const areBeside = areNumbered || (starts.length > 8 && text.length / starts.length < 250);
  const made = [];
  let section = null, length = SECTION;
  for (const [i, { at, name }] of starts.entries()) {
    const end = starts[i + 1]?.at ?? text.length;
    if (length >= SECTION || !areBeside) {
      section = el("section", { dir: "auto" });
      made.push(section);
      length = 0;
    }
    const isNew = name && name !== starts[i - 1]?.name;
    if (areBeside) section.append(el("span.beside", { aria: { hidden: "true" } }, isNew ? areNumbered ? name.split(" ")[1] : name : ""));
    else if (isNew) section.append(el("h3.place", {}, name));
    const target = areBeside ? section : section.appendChild(el(".passage"));
    target.append(...pieces(text, at, end, marks));
    // A paragraph or row that does not end its line would continue in that of the next one.
    if (areBeside && text[end - 1] !== "\n") section.append("\n");
    length += end - at;
  }
  const isCode = starts[0].name === "line 1" && !PROSE.test(filename);
  for (const [name, is] of Object.entries({ numbered: areNumbered, labelled: areBeside && !areNumbered, "is-code": isCode })) {
    $("source-text").classList.toggle(name, is);
  }
  return made;
}

// A place within its file: `notes.txt:12` is line 12 of notes.txt.
function short(place, filename) {
  const rest = place.startsWith(filename) ? place.slice(filename.length).replace(/^[:!\s]+/, "") : place;
  return /^\d+$/.test(rest) ? `line ${rest}` : rest || place;
}

// The text from `at` to `end`, with the parts of quotes marked.
function pieces(text, at, end, marks) {
  const edges = new Set([at, end]);
  const inside = marks.filter(mark => mark.start < end && mark.end > at);
  for (const mark of inside) for (const edge of [mark.start, mark.end]) if (edge > at && edge < end) edges.add(edge);
  const sorted = [...edges].sort((a, b) => a - b);
  return sorted.slice(0, -1).map((from, i) => {
    const part = text.slice(from, sorted[i + 1]), over = inside.filter(mark => mark.start <= from && mark.end >= sorted[i + 1]);
    if (!over.length) return part;
    return el(over.some(mark => mark.isCurrent) ? "mark.current" : "mark", {}, part);
  });
}
