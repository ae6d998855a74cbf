// The dialog of settings: those of the open conversation, of sampling in this browser, and the key.

import { properties } from "./api.js";
import { state, save } from "./conversation.js";
import { buttons, form, open } from "./dialogs.js";
import { el } from "./dom.js";
import { saveSettings, settings } from "./store.js";

let defaults = {};

// Reads what the server uses where a setting is empty, and whether the chat template has a switch for reasoning.
export async function loadProperties() {
  const found = await properties().catch(() => null);
  if (!found) return;
  defaults = found.default_generation_settings?.params ?? {};
  state.contextLength = found.default_generation_settings?.n_ctx ?? 0;
  state.thinkingVariable = /\b(enable_thinking|thinking)\b/.exec(found.chat_template ?? "")?.[1] ?? null;
}

function numberField(label, name, values, range, usual) {
  const input = el("input", { type: "number", name, id: `set-${name}`, value: values[name], placeholder: usual === undefined ? "" : String(usual), ...range });
  return el(".setting", {}, el("label", { htmlFor: input.id }, label), input);
}

export async function openSettings() {
  const values = settings();
  const system = el("textarea", { id: "set-system", rows: 4, value: state.chat.system, dir: "auto", placeholder: "How the model is to answer in this conversation" });
  const key = el("input", { type: "password", id: "set-key", value: localStorage.getItem("key") ?? "", autocomplete: "off" });
  const thinking = state.thinkingVariable && el("select", { id: "set-thinking" },
    ...[["", "As the model does"], ["on", "On"], ["off", "Off"]].map(([value, text]) => el("option", { value, selected: values.thinking === value }, text)));
  const numbers = [
    numberField("Temperature", "temperature", values, { min: 0, max: 2, step: 0.05 }, defaults.temperature),
    numberField("Top-p", "top_p", values, { min: 0, max: 1, step: 0.01 }, defaults.top_p),
    numberField("Max tokens", "max_tokens", values, { min: 1, step: 1 }, defaults.n_predict),
  ];
  const dialog = form("Settings",
    el("label", { htmlFor: "set-system" }, "System prompt of this conversation"), system,
    el("fieldset", {}, el("legend", {}, "Replies"), el(".numbers", {}, ...numbers),
      thinking && el(".setting", {}, el("label", { htmlFor: "set-thinking" }, "Reasoning"), thinking),
      el("p.quiet", {}, "An empty field leaves the choice to the server.")),
    el("label", { htmlFor: "set-key" }, "API key of this server"), key, buttons("Save"));
  if (await open(dialog) !== "yes") return;
  const field = name => dialog.querySelector(`[name=${name}]`).value;
  saveSettings({ temperature: field("temperature"), top_p: field("top_p"), max_tokens: field("max_tokens"), thinking: thinking ? thinking.value : values.thinking });
  localStorage.setItem("key", key.value.trim());
  if (system.value.trim() !== state.chat.system) {
    state.chat.system = system.value.trim();
    if (state.chat.leaf) await save();
  }
}

// Switches between light and dark, starting from what is shown.
export function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}
