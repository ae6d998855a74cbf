// The list of conversations: open, rename, delete.

import { state, open, discard } from "./conversation.js";
import { askLine, confirmRemoval } from "./dialogs.js";
import { $, el, iconButton } from "./dom.js";
import { conversation, conversations, removeConversation, saveConversation } from "./store.js";

let opened = () => {};

// Connects the list; `whenOpened` is called after a conversation was chosen.
export function start(whenOpened) {
  opened = whenOpened;
  for (const id of ["new-chat", "new-chat-here"]) $(id).onclick = async () => { await open(); opened(); };
}

export async function showChats() {
  const all = await conversations().catch(() => []);
  $("chats").replaceChildren(...all.map(row));
}

function row(chat) {
  const current = chat.id === state.chat?.id;
  const button = el("button.plain.name", { type: "button", dir: "auto", onclick: async () => { await open(chat.id); opened(); } }, chat.title || "Conversation");
  if (current) button.setAttribute("aria-current", "true");
  return el("li.row", {}, button, el("span.tools", {},
    iconButton("edit", `Rename ${chat.title}`, () => rename(chat.id)),
    iconButton("trash", `Delete ${chat.title}`, () => remove(chat))));
}

async function rename(id) {
  const chat = id === state.chat.id ? state.chat : await conversation(id);
  const title = await askLine("Rename the conversation", "Title", chat.title);
  if (title === null) return;
  chat.title = title;
  await saveConversation(chat);
  if (chat === state.chat) $("title").textContent = title;
  await showChats();
}

async function remove(chat) {
  if (!await confirmRemoval("Delete the conversation?", chat.title)) return;
  discard(chat.id);
  await removeConversation(chat.id);
  if (chat.id === state.chat.id) await open();
  await showChats();
  ($("chats").querySelector("button") ?? $("new-chat")).focus();
}
