// Quotes of a reply that the server looked up in the files: marks in the text, and a button with the place of each.
//
// Before Markdown is parsed, private characters are written around each quote; afterwards they are found in the text of
// the elements. So a quote keeps its place whatever Markdown makes of the text around it.

import { el, icon } from "./dom.js";
import { utf16 } from "./format.js";

const OPEN = "\ue0f0", CLOSE = "\ue0f1", BUTTON = "\ue0f2", FIRST = 0xe100, MOST = 0x1700;
const PRIVATE = /[\ue0f0-\ue0f2\ue100-\uf7ff]/g;

// The text with private characters around its quotes. Those that the model wrote itself are replaced.
export function marked(text, annotations) {
  let out = "", end = 0;
  const plain = text.replace(PRIVATE, "\ufffd");
  const quotes = annotations.map((quote, i) => [utf16(text, quote.start_index), utf16(text, quote.end_index), i])
    .filter(([start, end]) => start < end).sort((a, b) => a[0] - b[0]);
  for (let [from, to, i] of quotes) {
    if (from < end || i >= MOST) continue;
    // At the start of a line, a mark of a quotation or list stays before the quote.
    if (from === 0 || plain[from - 1] === "\n") from += /^[\s>*+\-#]*/.exec(plain.slice(from, to))[0].length;
    while (to > from && plain[to - 1] === "\n") to--;
    if (from >= to) continue;
    // The button comes after the marks that close the quote.
    const index = String.fromCharCode(FIRST + i), closing = /^[”"»’']?[.,;:!?]?/.exec(plain.slice(to))[0];
    out += `${plain.slice(end, from)}${OPEN}${index}${plain.slice(from, to)}${CLOSE}${closing}${BUTTON}${index}`;
    end = to + closing.length;
    // Quotes in lines of their own stay in lines of their own.
    if (plain[end] === "\n") out += "  ";
  }
  return out + plain.slice(end);
}

// The name of a place, or what is wrong with a quote. Where a reply quotes several files, the file is named too.
function placeOf({ verified, place, filename }, several) {
  if (!verified) return "not in the files";
  return !place ? filename : several && !place.startsWith(filename) ? `${filename} ${place}` : place;
}

// Buttons of quotes, in the order of the quotes.
export function chips(quotes, show) {
  const several = new Set(quotes.filter(quote => quote.verified).map(quote => quote.file_id)).size > 1;
  return index => chip(quotes[index], placeOf(quotes[index], several), () => show(index));
}

// The button that opens a quote in its file.
function chip(quote, place, onclick) {
  const name = quote.verified ? `Quote from ${quote.filename}, ${quote.place ?? "the file"}: show it` : "This quote is not in the files";
  return el(quote.verified ? "button.cite" : "button.cite.unverified", { type: "button", onclick, title: quote.filename ?? "", aria: { label: name } },
    icon(quote.verified ? "check" : "close"), place);
}

// Replaces the private characters by marks and buttons; returns the quotes that have no place in the elements.
export function place(element, annotations, show) {
  const found = new Set(), button = chips(annotations, show);
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  let inside = null;
  for (const node of nodes) {
    if (inside === null && !/[\ue0f0-\ue0f2]/.test(node.data)) continue;
    const code = node.parentElement.closest("pre");
    const parts = [];
    for (const part of node.data.split(/([\ue0f0\ue0f2].|\ue0f1)/s)) {
      if (part[0] === OPEN) {
        inside = part.charCodeAt(1) - FIRST;
      } else if (part === CLOSE) {
        inside = null;
      } else if (part[0] === BUTTON) {
        const index = part.charCodeAt(1) - FIRST;
        if (code) continue;
        found.add(index);
        parts.push(button(index));
      } else if (part) {
        parts.push(inside === null || code || !part.trim() ? part : quoted(part, annotations[inside], show, inside));
      }
    }
    node.replaceWith(...parts);
  }
  return annotations.map((_, i) => i).filter(i => !found.has(i));
}

// A part of a quote. Its button is what the keyboard and screen readers use.
const quoted = (text, quote, show, index) =>
  el(quote.verified ? "mark" : "mark.unverified", { onclick: () => getSelection().isCollapsed && show(index) }, text);
