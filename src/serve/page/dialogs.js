// Modal dialogs: the key, a question with two answers, and a line of text. They resolve when they close.

import { el } from "./dom.js";

// Opens a dialog and resolves with the value of the button that closed it; Escape gives an empty string.
export function open(dialog) {
  document.body.append(dialog);
  dialog.showModal();
  return new Promise(resolve => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
  });
}

// The form of a dialog, with its title as the accessible name.
export function form(title, ...content) {
  const heading = el("h2", { id: "dialog-title" }, title);
  const inner = el("form", { method: "dialog" }, heading, ...content);
  // Enter in a field accepts: the browser would take the first button, which cancels.
  inner.addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.isComposing || event.target.localName !== "input") return;
    event.preventDefault();
    inner.requestSubmit(inner.querySelector("[value=yes]"));
  });
  return el("dialog", { aria: { labelledby: "dialog-title" } }, inner);
}

export const buttons = (accept, kind = "primary", cancel = "Cancel") => el(".buttons", {},
  el("button", { type: "submit", value: "", formNoValidate: true }, cancel),
  el(`button.${kind}`, { type: "submit", value: "yes" }, accept));

// Asks for the API key; null if the dialog was closed without one.
export async function askKey(old) {
  const field = el("input", { type: "password", autocomplete: "off", value: old, required: true, id: "key-field" });
  const dialog = form("API key",
    el("p", {}, "This server asks for a key. It is kept in this browser only."),
    el("label", { htmlFor: "key-field" }, "Key"), field, buttons("Use the key"));
  return await open(dialog) === "yes" && field.value ? field.value.trim() : null;
}

// Asks a question whose answer removes something.
export async function confirmRemoval(title, detail, accept = "Delete") {
  return await open(form(title, el("p", { dir: "auto" }, detail), buttons(accept, "danger"))) === "yes";
}

// Asks for one line of text; null if it was not given.
export async function askLine(title, label, value) {
  const field = el("input", { type: "text", value, dir: "auto", id: "line-field" });
  const dialog = form(title, el("label", { htmlFor: "line-field" }, label), field, buttons("Save"));
  const done = open(dialog);
  field.select();
  return await done === "yes" && field.value.trim() ? field.value.trim() : null;
}
