// The library: files on the server, their reading, and which of them the open conversation uses.

import { files as api } from "./api.js";
import { state, save } from "./conversation.js";
import { confirmRemoval } from "./dialogs.js";
import { $, announce, arrange, el, icon, iconButton, notify } from "./dom.js";
import { count, number, rate, seconds, size } from "./format.js";

// Files by id; `reading` is the last event of a file that is being read, `failed` its error in one line.
const known = new Map();
// Files that are being uploaded, or whose upload failed.
const uploads = new Set();
let available = true, loaded = false, openSource = () => {};

// Connects the list; `open` shows the text of a file.
export async function start(open) {
  openSource = open;
  for (const id of ["add-files", "attach", "welcome-add"]) $(id).onclick = () => $("choose").click();
  $("choose").onchange = () => { add($("choose").files); $("choose").value = ""; };
  $("file-search").oninput = showFiles;
  // Other tabs and clients may have changed the list.
  document.addEventListener("visibilitychange", () => { if (!document.hidden && available) load(); });
  await load();
}

// Reads the list of files from the server. A server without the files API has no library.
export async function load() {
  try {
    const listed = await api.list();
    loaded = true;
    for (const id of [...known.keys()]) if (!listed.some(file => file.id === id)) known.delete(id);
    for (const file of listed) known.set(file.id, { ...known.get(file.id), ...file });
  } catch (error) {
    available = error.status !== 404;
    if (!available) $("files-empty").textContent = "This server takes no files.";
    for (const id of ["add-files", "attach", "welcome-add"]) $(id).disabled = !available;
  }
  showFiles();
}

export const name = id => known.get(id)?.filename ?? "a deleted file";
// Until the list has come, every file counts as present.
export const has = id => !loaded || known.has(id);

// Uploads files, adds them to the open conversation, and has them read.
export function add(list) {
  if (!available) return notify("This server takes no files.");
  for (const blob of list) {
    const entry = { blob, name: blob.name || "file" };
    entry.done = upload(entry);
  }
}

// Resolves when no upload is in progress, so that a question is not sent without its files.
export const uploaded = () => Promise.all([...uploads].map(entry => entry.done));

async function upload(entry) {
  entry.error = null;
  entry.controller = new AbortController();
  uploads.add(entry);
  showFiles();
  try {
    const file = await api.upload(entry.blob, entry.controller.signal);
    uploads.delete(entry);
    const old = known.get(file.id);
    known.set(file.id, { ...old, ...file });
    if (file.status === "error") return showFiles();
    use(file.id, true);
    if (!file.ready) read(file.id);
  } catch (error) {
    if (error.name === "AbortError") uploads.delete(entry);
    else entry.error = error.message;
    showFiles();
  }
}

// Files are read one after the other, so that the time left is that of the file.
let queue = Promise.resolve();

function read(id) {
  const file = known.get(id);
  if (file.reading || file.ready) return;
  file.controller = new AbortController();
  Object.assign(file, { reading: { waiting: true }, failed: null });
  queue = queue.then(() => readNow(id, file)).catch(() => {});
  showFiles();
}

async function readNow(id, file) {
  try {
    if (file.controller.signal.aborted) return;
    for await (const event of api.read(id, file.controller.signal)) {
      const entry = known.get(id);
      if (!entry) return;
      if (event.type === "error") throw new Error(event.message ?? "the file could not be read");
      if (event.type === "file.reading") Object.assign(entry, { reading: event, tokens: event.tokens, tokens_read: event.tokens_read });
      if (event.type === "file.ready") {
        Object.assign(entry, { reading: null, ready: true, tokens: event.tokens, tokens_read: event.tokens });
        announce(`${entry.filename} is ready`);
      }
      showFile(id);
    }
  } catch (error) {
    if (error.name !== "AbortError" && known.has(id)) known.get(id).failed = error.message;
  } finally {
    if (known.has(id)) known.get(id).reading = null;
    showFile(id);
  }
}

// Adds a file to the open conversation or takes it out.
export function use(id, wanted) {
  const chat = state.chat;
  chat.files = wanted ? [...new Set([...chat.files, id])] : chat.files.filter(other => other !== id);
  if (chat.leaf) save();
  showFiles();
}

async function remove(id) {
  const file = known.get(id);
  if (!await confirmRemoval("Delete the file?", `${file.filename} and what was read of it are removed from the server.`)) return;
  file.controller?.abort();
  try {
    await api.remove(id);
  } catch (error) {
    if (error.status !== 404) return notify(`${file.filename}: ${error.message}`);
  }
  known.delete(id);
  use(id, false);
  $("add-files").focus();
}

// Shows the list and the files above the message.
export function showFiles() {
  const wanted = $("file-search").value.trim().toLowerCase();
  const listed = [...known.values()].filter(file => file.filename.toLowerCase().includes(wanted)).sort((a, b) => b.created_at - a.created_at);
  arrange($("files"), [...[...uploads].map(uploadRow), ...listed.map(row)]);
  $("file-search").hidden = known.size < 4 && !wanted;
  $("files-empty").hidden = known.size + uploads.size > 0;
  showAttached();
}

// Shows one file again, without the others: the focus and open menus stay where they are.
function showFile(id) {
  const old = $("files").querySelector(`[data-id="${CSS.escape(id)}"] .meta`), file = known.get(id);
  if (!old || !file) return showFiles();
  if (old.update && file.reading && !file.reading.waiting) old.update(file.reading);
  else old.replaceWith(meta(file));
}

function showAttached() {
  const used = state.chat?.files.filter(id => known.has(id)) ?? [];
  $("attached").hidden = !used.length;
  if ($("attached").dataset.ids === used.join()) return;
  $("attached").dataset.ids = used.join();
  $("attached").replaceChildren(...used.map(id => el("li", {}, icon("file"), el("span", { dir: "auto" }, name(id)),
    iconButton("close", `Take ${name(id)} out of this conversation`, () => { use(id, false); $("say").focus(); }))));
}

// Rows by file, made again when what they show besides the second line changes.
const rows = new Map();

function row(file) {
  const used = state.chat?.files.includes(file.id) ?? false, form = `${used} ${file.status} ${file.failed} ${file.reading ? "reading" : `${file.ready} ${file.tokens_read}`}`;
  if (rows.get(file.id)?.form !== form) rows.set(file.id, Object.assign(rowOf(file, used), { form }));
  return rows.get(file.id);
}

function rowOf(file, used) {
  const toggle = el("input", { type: "checkbox", checked: used, disabled: file.status === "error", aria: { label: `Use ${file.filename} in this conversation` },
    title: "Use in this conversation", onchange: event => use(file.id, event.target.checked) });
  const title = el("button.plain.name", { type: "button", dir: "auto", title: file.filename, disabled: file.status === "error", onclick: () => openSource(file.id) }, file.filename);
  return el("li.row.file", { data: { id: file.id } }, toggle, el(".what", {}, title, meta(file)),
    el("span.tools", {}, iconButton("trash", `Delete ${file.filename}`, () => remove(file.id))));
}

// The second line of a file: what it is, how far it was read, or why it cannot be.
function meta(file) {
  if (file.status === "error" || file.failed) {
    const again = file.failed && el("button.small", { type: "button", onclick: () => read(file.id) }, "Try again");
    return el(".meta.error", { dir: "auto" }, file.failed ?? file.status_details ?? "the file cannot be read", again);
  }
  if (file.reading) return progress(file);
  const tokens = file.tokens ? ` · ${count(file.tokens, "token")}` : "";
  if (file.ready) return el(".meta.quiet", {}, el("span.ready", {}, icon("check"), "ready"), `· ${size(file.bytes)}${tokens}`);
  return el(".meta.quiet", {}, `${size(file.bytes)}${tokens} ·`, el("button.link", { type: "button", onclick: () => read(file.id) }, file.tokens_read ? "Continue reading" : "Read"));
}

function progress(file) {
  const bar = el("progress", { max: 1, value: 0, aria: { label: `${file.filename}: tokens that were read` } });
  const done = el("span", {}, "waiting"), pace = el("span.whole");
  const stop = el("button.link", { type: "button", aria: { label: `Stop reading ${file.filename}` }, onclick: () => known.get(file.id)?.controller.abort() }, "Stop");
  const update = ({ tokens, tokens_read: read, tokens_per_second: speed, seconds_left: left }) => {
    Object.assign(bar, { max: tokens, value: read });
    done.textContent = `${number(read)} of ${number(tokens)} tokens`;
    pace.textContent = [speed > 0 && rate(speed), left !== null && `${seconds(left)} left`].filter(Boolean).join(" · ");
  };
  if (!file.reading.waiting) update(file.reading);
  return Object.assign(el(".meta.quiet", {}, bar, done, stop, pace), { update });
}

function uploadRow(entry) {
  if (entry.row && entry.row.error === entry.error) return entry.row;
  const drop = () => { entry.controller.abort(); uploads.delete(entry); showFiles(); };
  const what = entry.error
    ? el(".meta.error", {}, entry.error, el("button.small", { type: "button", onclick: () => { entry.done = upload(entry); } }, "Try again"))
    : el(".meta.quiet", {}, el("progress", { aria: { label: `${entry.name}: upload` } }), `uploading ${size(entry.blob.size)}`);
  entry.row = el("li.row.file", {}, icon("file"), el(".what", {}, el("span.name", { dir: "auto" }, entry.name), what),
    el("span.tools", {}, iconButton("close", `Cancel ${entry.name}`, drop)));
  return Object.assign(entry.row, { error: entry.error });
}
