// The open conversation: its turns, the message field, and replies that are being generated.

import { call, events } from "./api.js";
import { $, announce, arrange, el, notify } from "./dom.js";
import { scrollTo, scrollToEnd } from "./follow.js";
import { number, seconds, title } from "./format.js";
import { MarkdownView } from "./markdown.js";
import { conversation, newId, saveConversation, saveTurn, settings, turnsOf } from "./store.js";
import { deepest, messages, path, siblings } from "./tree.js";
import { fill, questionOf, replyOf } from "./turns.js";

// The open conversation and its turns. `hooks` are set by main.js, which connects the parts of the page.
export const state = { chat: null, turns: new Map(), contextLength: 0, thinkingVariable: null };
export const hooks = { changed() {}, cite() {}, fileName: id => id, knowsFile: () => true };

// Replies in progress by conversation: they continue while another conversation is shown.
const running = new Map();

const blank = () => ({ id: newId(), title: "", system: "", files: [], leaf: null, created: Date.now(), updated: 0 });

// Opens a conversation by its id, or a new one.
export async function open(id = null) {
  const found = id && await conversation(id).catch(keepFailed);
  const live = found && running.get(found.id);
  state.chat = live ? live.chat : found || blank();
  state.turns = live ? live.turns : found ? await turnsOf(found.id) : new Map();
  for (const turn of state.turns.values()) if (turn.state === "streaming" && turn !== live?.turn) turn.state = "interrupted";
  localStorage.setItem("open", state.chat.id);
  made = new Map();
  $("turns").replaceChildren();
  await show();
  hooks.changed();
}

export async function save(chat = state.chat) {
  chat.updated = Date.now();
  await saveConversation(chat).catch(keepFailed);
  hooks.changed();
}

const keepFailed = error => notify(`The conversation could not be kept in this browser: ${error?.message ?? "no space"}`);

const actions = {
  show(turn) { state.chat.leaf = deepest(state.turns, turn).id; save(); show(turn.id); },
  edit(turn, text) { ask(text, turn.parent); },
  again(turn) { if (!isRunning()) reply(state.chat, state.turns, turn.parent); },
  cite(turn, index) { hooks.cite(turn, index); },
};

// Elements of the open conversation by turn, made again when the alternatives of a turn change.
let made = new Map();

function elementOf(turn) {
  const alternatives = siblings(state.turns, turn), form = `${alternatives.indexOf(turn)}/${alternatives.length}`;
  if (made.get(turn.id)?.form !== form) {
    const element = (turn.role === "user" ? questionOf : replyOf)(turn, alternatives, actions);
    made.set(turn.id, Object.assign(element, { form }));
  }
  return made.get(turn.id);
}

let shown = 0;

// Shows the turns of the open conversation. The last ones are drawn first, the others while the browser is idle.
async function show(focus = null) {
  const generation = ++shown, live = running.get(state.chat.id);
  const turns = path(state.turns, state.chat.leaf);
  $("title").textContent = state.chat.title || "New conversation";
  document.title = state.chat.title ? `${state.chat.title} · kimi` : "kimi";
  $("welcome").hidden = turns.length > 0;
  const elements = turns.map(elementOf);
  arrange($("turns"), elements);
  setRunning();
  showContext(turns.findLast(turn => turn.stats)?.stats);
  const place = () => focus ? scrollTo(made.get(focus)) : scrollToEnd();
  let drawn = 0;
  for (const [i, turn] of [...turns.entries()].reverse()) {
    const element = elements[i];
    if (turn.role !== "assistant" || element.isFilled) continue;
    element.isFilled = true;
    if (live?.turn === turn) {
      live.attach(element);
    } else {
      if (drawn++ > 3) await new Promise(resolve => (window.requestIdleCallback ?? setTimeout)(resolve));
      if (generation !== shown) { element.isFilled = false; return; }
      await fill(element, turn, actions);
      element.finish();
    }
    if (drawn <= 4) place();
  }
  if (!drawn) place();
}

export const isRunning = () => running.has(state.chat.id);

function setRunning() {
  const busy = isRunning();
  if (busy && document.activeElement === $("send")) $("say").focus();
  $("send").hidden = busy;
  $("stop").hidden = !busy;
}

export const stop = () => stopIn(state.chat?.id);

const stopIn = id => running.get(id)?.controller.abort();

// Stops the reply of a conversation that is deleted, so that it is not kept.
export function discard(id) {
  if (running.has(id)) running.get(id).isDeleted = true;
  stopIn(id);
}

function showContext(stats) {
  const used = stats ? stats.reused + stats.read + stats.generated : 0;
  $("context").textContent = used && state.contextLength ? `${number(used)} of ${number(state.contextLength)} tokens used` : "";
}

async function addTurn(chat, turns, turn) {
  const made = { id: newId(), conversation: chat.id, created: Date.now(), ...turn };
  turns.set(made.id, made);
  chat.leaf = made.id;
  await saveTurn(made).catch(keepFailed);
  return made;
}

// Asks a question after `parent`, by default at the end of the conversation.
export async function ask(text, parent = state.chat.leaf) {
  if (isRunning()) return notify("A reply is being generated: stop it first.");
  // Another conversation may be opened while this one is saved.
  const { chat, turns } = state;
  if (!chat.title) chat.title = title(text);
  const question = await addTurn(chat, turns, { role: "user", parent, text });
  await reply(chat, turns, question.id);
}

// The body of a request for the reply to the last turn of `turns`.
function requestOf(chat, turns) {
  const { temperature, top_p, max_tokens, thinking } = settings();
  const body = {
    messages: messages(turns, chat.system, chat.files.filter(hooks.knowsFile)), stream: true, return_progress: true,
    stream_options: { include_usage: true },
  };
  for (const [name, value] of Object.entries({ temperature, top_p, max_tokens })) if (value !== "") body[name] = Number(value);
  if (thinking !== "" && state.thinkingVariable) body.chat_template_kwargs = { [state.thinkingVariable]: thinking === "on" };
  return body;
}

// Generates a reply to a question, as a new alternative if there is one already.
async function reply(chat, turns, parent) {
  const controller = new AbortController();
  const body = requestOf(chat, path(turns, parent));
  const live = { chat, turns, controller, turn: null, view: null, element: null };
  running.set(chat.id, live);
  live.turn = await addTurn(chat, turns, { role: "assistant", parent, text: "", reasoning: "", annotations: [], stats: null, state: "streaming", error: null });
  live.attach = element => attach(live, element);
  await save(chat);
  if (state.chat === chat) await show();
  announce("The reply is being generated");
  let saved = Date.now();
  try {
    for await (const event of events(await call("v1/chat/completions", { json: body, signal: controller.signal }))) {
      take(live, event);
      if (Date.now() - saved > 1500) { saved = Date.now(); saveTurn(live.turn).catch(keepFailed); }
    }
    if (live.turn.state === "streaming") live.turn.state = "done";
  } catch (error) {
    live.turn.state = error.name === "AbortError" ? "stopped" : "error";
    if (live.turn.state === "error") {
      live.turn.error = error.status === undefined ? "The connection to the server was lost." : error.message;
      if (error.status === undefined) console.error(error);
    }
  }
  await end(live);
}

// Connects a reply in progress with its element.
function attach(live, element) {
  live.element = element;
  live.view = new MarkdownView(element.body);
  live.view.append(live.turn.text);
  element.setAttribute("aria-busy", "true");
  live.progress = el("p.reading.quiet", {}, "Waiting for the model …");
  if (!live.turn.text) element.body.before(live.progress);
  if (element.fold) element.fold.open = true;
}

// Takes one event of the stream into the turn and the page.
function take(live, event) {
  const { turn, element } = live, delta = event.choices?.[0]?.delta ?? {};
  if (event.prompt_progress) showProgress(live, event.prompt_progress);
  if (delta.reasoning_content) {
    turn.reasoning += delta.reasoning_content;
    element?.reasoning(delta.reasoning_content);
    live.progress?.remove();
    if (element) element.fold.open = true;
  }
  if (delta.content) {
    if (!turn.text && element?.fold) element.fold.open = false;
    turn.text += delta.content;
    live.progress?.remove();
    live.view?.append(delta.content);
  }
  if (delta.annotations) turn.annotations.push(...delta.annotations);
  if (event.choices?.[0]?.finish_reason === "length") turn.state = "length";
  if (event.timings) {
    const t = event.timings;
    turn.stats = { reused: t.cache_n, read: t.prompt_n, readMs: t.prompt_ms, generated: t.predicted_n, rate: t.predicted_per_second };
  } else if (event.usage && !turn.stats) {
    const u = event.usage, reused = u.prompt_tokens_details?.cached_tokens ?? 0;
    turn.stats = { reused, read: u.prompt_tokens - reused, readMs: 0, generated: u.completion_tokens, rate: 0 };
  }
}

// Shows how much of the prompt was read, with the time left by the rate so far.
function showProgress(live, { total, cache, processed, time_ms: ms }) {
  if (!live.progress || live.turn.text) return;
  const left = (total - processed) * ms / Math.max(1, processed - cache) / 1000;
  const time = processed > cache && left > 1 ? `, ${seconds(left)} left` : "";
  const bar = el("progress", { max: total, value: processed, aria: { label: "Tokens of the prompt that were read" } });
  live.progress.replaceChildren(bar, ` Reading ${number(processed)} of ${number(total)} tokens${cache ? `, ${number(cache)} reused` : ""}${time}`);
}

// Ends a reply: keeps it, and shows quotes and figures.
async function end(live) {
  const { chat, turn, element } = live;
  running.delete(chat.id);
  if (!live.isDeleted) {
    chat.updated = Date.now();
    await saveTurn(turn).catch(keepFailed);
    await saveConversation(chat).catch(keepFailed);
  }
  hooks.changed();
  if (state.chat !== chat || !element) return;
  setRunning();
  live.progress.remove();
  live.view.close();
  element.removeAttribute("aria-busy");
  if (turn.annotations.length) await fill(element, turn, actions);
  element.finish();
  showContext(turn.stats);
  announce(turn.error ?? (turn.state === "stopped" ? "The reply was stopped" : "The reply is complete"));
}
