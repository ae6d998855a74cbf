// Shows one turn: a question, or a reply with its reasoning, quotes, figures and buttons.

import { chips, marked, place } from "./citations.js";
import { copy, el, icon, iconButton } from "./dom.js";
import { count, number, rate, seconds } from "./format.js";
import { draw } from "./markdown.js";

// The switch between the alternatives of a turn; nothing where there is one only.
function switcher(turn, alternatives, actions) {
  const at = alternatives.indexOf(turn);
  if (alternatives.length < 2) return null;
  const step = (by, label, name) => iconButton(name, label, () => actions.show(alternatives[at + by]), { disabled: !alternatives[at + by] });
  return el("span.switch", { role: "group", aria: { label: "Alternatives" } }, step(-1, "Previous alternative", "left"),
    el("span", {}, `${at + 1} / ${alternatives.length}`), step(1, "Next alternative", "right"));
}

// What was reused, read and generated, as one sentence.
export function figures(stats) {
  if (!stats) return "";
  const parts = [];
  if (stats.reused) parts.push(`${count(stats.reused, "token")} reused`);
  parts.push(`${stats.reused ? number(stats.read) : count(stats.read, "token")} read${stats.readMs > 100 ? ` in ${seconds(stats.readMs / 1000)}` : ""}`);
  parts.push(`${number(stats.generated)} generated${stats.rate ? ` at ${rate(stats.rate)}` : ""}`);
  return parts.join(" · ");
}

const STATES = { stopped: "Stopped", interrupted: "Interrupted: the page was closed", length: "Cut off at the token limit" };

export function questionOf(turn, alternatives, actions) {
  // A long text scrolls within the question, also by keyboard.
  const long = turn.text.length > 2000 ? { tabIndex: 0, role: "region", aria: { label: "Text of the question" } } : {};
  const text = el(".text", { dir: "auto", ...long }, turn.text);
  const buttons = el(".actions", {}, switcher(turn, alternatives, actions),
    iconButton("edit", "Edit the question", () => edit(element, turn, actions)),
    iconButton("copy", "Copy the question", event => copy(turn.text, event.currentTarget)));
  const element = el("article.turn.user", { aria: { label: "Question" }, data: { id: turn.id } }, text, buttons);
  return element;
}

// Replaces a question by a field; saving asks the changed question as an alternative.
function edit(element, turn, actions) {
  const old = [...element.childNodes];
  const field = el("textarea", { value: turn.text, dir: "auto", aria: { label: "Edited question" }, rows: Math.min(12, turn.text.split("\n").length + 1) });
  const close = () => { element.replaceChildren(...old); element.classList.remove("editing"); old[1].querySelector(".icon:last-of-type").focus(); };
  const save = () => { if (field.value.trim()) actions.edit(turn, field.value.trim()); };
  field.onkeydown = event => {
    if (event.isComposing) return;
    if (event.key === "Escape") { event.stopPropagation(); close(); }
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); save(); }
  };
  element.classList.add("editing");
  element.replaceChildren(field, el(".buttons", {}, el("button", { type: "button", onclick: close }, "Cancel"),
    el("button.primary", { type: "button", onclick: save }, "Ask")));
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

// The elements of a reply. `streaming` replies are filled by the caller.
export function replyOf(turn, alternatives, actions) {
  const body = el(".reply");
  const element = el("article.turn.assistant", { aria: { label: "Reply" }, data: { id: turn.id } }, body);
  element.reasoning = text => {
    if (!element.thoughts) {
      element.thoughts = el(".thoughts", { dir: "auto" });
      element.fold = el("details.reasoning", {}, el("summary", {}, "Reasoning"), element.thoughts);
      body.before(element.fold);
    }
    element.thoughts.append(text);
  };
  element.body = body;
  if (turn.reasoning) element.reasoning(turn.reasoning);
  return Object.assign(element, { finish: () => footOf(element, turn, alternatives, actions) });
}

// Adds the last lines of a finished reply: an error, quotes without a place, figures and buttons.
function footOf(element, turn, alternatives, actions) {
  element.querySelector(".foot-lines")?.remove();
  const foot = el(".foot-lines");
  if (turn.error) {
    foot.append(el("p.error", { role: "alert", dir: "auto" }, turn.error, el("button.small", { type: "button", onclick: () => actions.again(turn) }, "Try again")));
  }
  const quotes = turn.annotations ?? [];
  const missing = quotes.filter(quote => !quote.verified).length;
  const state = STATES[turn.state];
  const facts = [state, quotes.length && `${quotes.length - missing} of ${count(quotes.length, "quote")} verified`, figures(turn.stats)];
  foot.append(el("p.facts.quiet", {}, facts.filter(Boolean).join(" · ")));
  foot.append(el(".actions", {}, switcher(turn, alternatives, actions),
    iconButton("copy", "Copy the reply", event => copy(turn.text, event.currentTarget)),
    iconButton("again", "Generate again", () => actions.again(turn))));
  element.append(foot);
}

// Fills a finished reply with its text and quotes.
export async function fill(element, turn, actions) {
  const quotes = turn.annotations ?? [];
  const body = el(".reply");
  await draw(body, quotes.length ? marked(turn.text, quotes) : turn.text);
  if (quotes.length) {
    const show = index => actions.cite(turn, index);
    const left = place(body, quotes, show);
    if (left.length) {
      body.append(el("p.left", {}, icon("quote"), ...left.map(chips(quotes, show))));
    }
  }
  element.body.replaceWith(body);
  element.body = body;
}
