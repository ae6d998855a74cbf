// Writes the open conversation to a file: the shown turns as Markdown, or everything as JSON.

import { state } from "./conversation.js";
import { buttons, form, open } from "./dialogs.js";
import { el, notify } from "./dom.js";
import { path } from "./tree.js";

// The shown turns as Markdown; quotes of files are listed with their places.
export function markdown(chat, turns) {
  const parts = [`# ${chat.title}`];
  if (chat.system) parts.push(`> ${chat.system.replaceAll("\n", "\n> ")}`);
  for (const turn of turns) {
    parts.push(turn.role === "user" ? "## Question" : "## Reply", turn.text);
    const quotes = turn.annotations ?? [];
    if (quotes.length) {
      parts.push(quotes.map(({ quote, place, filename, verified }) => `- “${quote}” (${verified ? place ?? filename : "not in the files"})`).join("\n"));
    }
  }
  return `${parts.join("\n\n")}\n`;
}

function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export async function openExport() {
  const chat = state.chat;
  if (!chat.leaf) return notify("There is nothing to export yet.");
  const kind = el("select", { id: "export-kind" }, el("option", { value: "md" }, "Markdown: the turns that are shown"),
    el("option", { value: "json" }, "JSON: all turns, with alternatives and figures"));
  const dialog = form("Export the conversation", el("label", { htmlFor: "export-kind" }, "Format"), kind, buttons("Export"));
  if (await open(dialog) !== "yes") return;
  const name = chat.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation";
  if (kind.value === "md") download(`${name}.md`, "text/markdown", markdown(chat, path(state.turns, chat.leaf)));
  else download(`${name}.json`, "application/json", JSON.stringify({ ...chat, turns: [...state.turns.values()] }, null, 1));
}
