// Markdown of replies as sanitised elements. HTML in a reply is shown as text; what the parser makes passes DOMPurify
// with a short list of tags, and the Content-Security-Policy admits no other way from text to markup.

import { Marked } from "./vendor/marked.js";
import "./vendor/purify.js";
import { copy, el, icon, nextFrame } from "./dom.js";
import { colour } from "./highlight.js";

const purify = globalThis.DOMPurify;

const TAGS = ("p br hr h3 h4 h5 h6 ul ol li blockquote pre code em strong del a table thead tbody tr th td sub sup kbd span").split(" ");
const RULES = {
  ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ["href", "class", "align", "start"], ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false, RETURN_DOM_FRAGMENT: true,
};

const escape = text => text.replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);

// Tags without attributes that models write inside of tables and formulas.
const PLAIN_TAG = /^<(?:br ?\/?|\/?(?:sub|sup|kbd))>$/i;

const renderer = {
  html: ({ text, block }) => PLAIN_TAG.test(text) ? text : block ? `<p>${escape(text)}</p>` : escape(text),
  // An image would be a request to another server: its address is shown as a link.
  image({ href, text }) { return `<a href="${escape(href)}">${escape(text || href)}</a>`; },
  code: ({ text, lang }) => `<pre><code class="language-${escape((lang || "").split(/\s/)[0])}">${escape(text)}</code></pre>`,
  // Headings of a reply are below those of the page.
  heading({ tokens, depth }) {
    const level = Math.min(6, depth + 2);
    return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
  },
  checkbox: ({ checked }) => `<span class="check">${checked ? "☑" : "☐"} </span>`,
};

const marked = new Marked({ gfm: true, renderer });

// Blank lines and link definitions make no elements.
const isBlock = token => token.type !== "space" && token.type !== "def";

const DIRECTED = "p, h3, h4, h5, h6, ul, ol, li, blockquote, th, td";

// Adds what markup of replies must not bring itself: text direction, safe links, scrolling tables, the head of code.
function finish(fragment) {
  for (const element of fragment.querySelectorAll(DIRECTED)) element.dir = "auto";
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) link.replaceWith(...link.childNodes);
    else Object.assign(link, { target: "_blank", rel: "noopener noreferrer nofollow" });
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = el(".table", { tabIndex: 0, role: "region", aria: { label: "Table" } });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of fragment.querySelectorAll("pre > code")) frameCode(code);
  return fragment;
}

function frameCode(code) {
  const language = [...code.classList].find(name => name.startsWith("language-"))?.slice(9) ?? "";
  const button = el("button.small", { type: "button", aria: { label: "Copy the code" } }, icon("copy"), "Copy");
  button.onclick = () => copy(code.textContent, button);
  const pre = code.parentElement, frame = el(".code");
  pre.tabIndex = 0;
  pre.dir = "ltr";
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  pre.replaceWith(frame);
  frame.append(el(".code-head", {}, el("span", {}, language || "text"), button), pre);
}

// The elements of blocks. Their order in the page is that of the blocks.
function elements(tokens) {
  return finish(purify.sanitize(marked.parser(tokens), RULES));
}

// Blocks of one group are laid out together; groups outside of the window are skipped by the browser.
const GROUP = 24;

// A text that grows. Finished blocks stay as they are; only the last one is made again when text comes.
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.text = "";
    this.finished = 0;
    this.tail = el(".tail");
    element.append(this.tail);
    this.drawing = false;
  }

  append(text) {
    this.text += text.replaceAll("\r", "");
    if (!this.drawing) this.drawSoon();
  }

  // Draws at the next frame, less often where the last block takes long.
  async drawSoon() {
    this.drawing = true;
    await nextFrame();
    const start = performance.now();
    this.draw(false);
    const took = performance.now() - start;
    if (took > 12) await new Promise(resolve => setTimeout(resolve, took * 4));
    this.drawing = false;
    if (!this.closed && this.drawn !== this.text.length) this.drawSoon();
  }

  draw(last) {
    if (this.closed) return;
    const tokens = marked.lexer(this.text.slice(this.finished));
    const open = last ? tokens.length : Math.max(0, tokens.findLastIndex(isBlock));
    for (const token of tokens.slice(0, open)) {
      this.finished += token.raw.length;
      if (isBlock(token)) this.add(token);
    }
    this.tail.replaceChildren(last ? "" : elements(tokens.slice(open)));
    this.drawn = this.text.length;
  }

  add(token) {
    if (!this.group || this.group.childElementCount >= GROUP) {
      this.group = el(".group");
      this.tail.before(this.group);
    }
    const made = elements([token]);
    for (const code of made.querySelectorAll("pre > code")) colour(code);
    this.group.append(made);
  }

  // Draws the end of the text; nothing is added afterwards.
  close() {
    this.draw(true);
    this.tail.remove();
    this.closed = true;
  }
}

// Draws a whole text, in slices that leave the page responsive.
export async function draw(element, text) {
  const view = new MarkdownView(element);
  let start = performance.now();
  for (const token of marked.lexer(text.replaceAll("\r", "")).filter(isBlock)) {
    view.add(token);
    if (performance.now() - start > 10) {
      await nextFrame();
      start = performance.now();
    }
  }
  view.tail.remove();
}
