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
  return el("dialog", { aria: { labelledby: "dialog-title" } }, el("form", { method: "dialog" }, heading, ...content));
}

export const buttons = (accept, kind = "primary", cancel = "Cancel") => el(".buttons", {},
  el("button", { type: "submit", value: "", formNoValidate: true }, cancel),
  el(`button.${kind}`, { type: "submit", value: "yes" }, accept));

// Makes Enter in a field accept: the browser would take the first button, which cancels.
function acceptOnEnter(dialog, field) {
  field.addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    dialog.close("yes");
  });
}

// Asks for the API key; null if the dialog was closed without one.
export async function askKey(old) {
  const field = el("input", { type: "password", autocomplete: "off", value: old, required: true, id: "key-field" });
  const dialog = form("API key",
    el("p", {}, "This server asks for a key. It is kept in this browser only."),
    el("label", { htmlFor: "key-field" }, "Key"), field, buttons("Use the key"));
  acceptOnEnter(dialog, field);
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
  acceptOnEnter(dialog, field);
  const done = open(dialog);
  field.select();
  return await done === "yes" && field.value.trim() ? field.value.trim() : null;
}
