// Builds and finds elements. Text is always set as text, never as markup.

export const $ = id => document.getElementById(id);

// Creates an element: `el("button.small", { onclick, aria: { label } }, "Add")`.
export function el(selector, properties = {}, ...children) {
  const [name, ...classes] = selector.split(".");
  const element = document.createElement(name || "div");
  element.classList.add(...classes);
  const { aria = {}, data = {}, ...rest } = properties;
  for (const [key, value] of Object.entries(aria)) element.setAttribute(`aria-${key}`, value);
  for (const [key, value] of Object.entries(data)) element.dataset[key] = value;
  for (const [key, value] of Object.entries(rest)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

// An icon of the sprite in index.html.
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

// A button that shows an icon; the label is its accessible name and its tooltip.
export function iconButton(name, label, onclick, more = {}) {
  const { aria, ...rest } = more;
  return el("button.icon", { type: "button", title: label, onclick, aria: { label, ...aria }, ...rest }, icon(name));
}

// Makes `elements` the children of a list. Those that are there stay: a press of a button in them is not lost.
export function arrange(list, elements) {
  const wanted = new Set(elements);
  for (const child of [...list.children]) if (!wanted.has(child)) child.remove();
  for (const [i, element] of elements.entries()) if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null);
}

// Announces a short text to screen readers.
export function announce(text) {
  $("status").textContent = text;
}

let noticeTimer;

// Shows one line at the bottom of the page for some seconds; errors use it too.
export function notify(text) {
  clearTimeout(noticeTimer);
  $("notice").textContent = text;
  noticeTimer = setTimeout(() => { $("notice").textContent = ""; }, 8000);
}

// Resolves at the next frame, or soon in a hidden tab, where no frames are drawn.
export function nextFrame() {
  return new Promise(resolve => {
    const timer = setTimeout(resolve, 100);
    requestAnimationFrame(() => { clearTimeout(timer); resolve(); });
  });
}

// Copies a text and shows a check mark on the button for a moment.
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without HTTPS, browsers offer the older command only.
    const field = el("textarea.hidden-text", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const old = [...button.childNodes];
  button.replaceChildren(icon("check"));
  announce("Copied");
  setTimeout(() => button.replaceChildren(...old), 1200);
}
