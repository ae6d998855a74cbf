// Starts the page and connects its parts: library, conversation and source.

import { models } from "./api.js";
import * as chats from "./chats.js";
import * as conversation from "./conversation.js";
import { $, notify } from "./dom.js";
import { openExport } from "./export.js";
import * as follow from "./follow.js";
import * as library from "./library.js";
import { loadProperties, openSettings, toggleTheme } from "./settings.js";
import * as source from "./source.js";
import { onChange } from "./store.js";

// On narrow windows one part is shown at a time; on wide ones the source opens beside the conversation.
function showPart(name) {
  document.body.dataset.part = name;
  for (const tab of document.querySelectorAll(".tabs button")) {
    if (tab.dataset.show === name) tab.setAttribute("aria-current", "true");
    else tab.removeAttribute("aria-current");
  }
}

function startParts() {
  for (const tab of document.querySelectorAll(".tabs button")) tab.onclick = () => showPart(tab.dataset.show);
  source.start(isOpen => {
    document.body.classList.toggle("has-source", isOpen);
    showPart(isOpen ? "source" : "conversation");
  });
  chats.start(() => { showPart("conversation"); $("say").focus(); });
  $("open-settings").onclick = openSettings;
  $("toggle-theme").onclick = toggleTheme;
  $("export").onclick = openExport;
  Object.assign(conversation.hooks, {
    changed() { chats.showChats(); library.showFiles(); },
    cite(turn, index) { source.openQuote(turn.annotations, index); },
    knowsFile: library.has,
  });
}

async function send() {
  const text = $("say").value.trim();
  if (!text || conversation.isRunning()) return;
  await library.uploaded();
  if ($("say").value.trim() !== text) return;
  $("say").value = "";
  fitMessage();
  conversation.ask(text);
}

function fitMessage() {
  const field = $("say");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, innerHeight * 0.4)}px`;
}

function startComposer() {
  $("composer").onsubmit = event => { event.preventDefault(); send(); };
  $("stop").onclick = conversation.stop;
  $("say").oninput = fitMessage;
  $("say").onkeydown = event => {
    // Enter that ends the composition of an input method is no message.
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
    if (event.key === "ArrowUp" && !$("say").value) {
      const buttons = document.querySelectorAll(".turn.user [aria-label='Edit the question']");
      if (buttons.length) { event.preventDefault(); [...buttons].at(-1).click(); }
    }
  };
  $("say").onpaste = event => {
    if (event.clipboardData.files.length) { event.preventDefault(); library.add(event.clipboardData.files); }
  };
  follow.start();
}

// Escape closes the source, else stops the reply; dialogs and edited questions handle it themselves.
function startKeys() {
  document.addEventListener("keydown", event => {
    if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
    if (document.body.classList.contains("has-source")) source.close();
    else conversation.stop();
  });
}

// Files may be dropped anywhere.
function startDrop() {
  const hasFiles = event => [...event.dataTransfer?.types ?? []].includes("Files");
  let depth = 0;
  const leave = () => { depth = 0; $("drop").hidden = true; };
  document.addEventListener("dragenter", event => { if (hasFiles(event)) { depth++; $("drop").hidden = false; } });
  document.addEventListener("dragleave", event => { if (hasFiles(event) && --depth <= 0) leave(); });
  document.addEventListener("dragover", event => { if (hasFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", event => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    leave();
    library.add(event.dataTransfer.files);
  });
}

// Waits until the model is loaded, then shows its name.
async function loadModel() {
  for (;;) {
    const status = await fetch("health").then(response => response.json()).then(health => health.status, () => "not reachable");
    if (status === "ready" || status === "degraded") break;
    $("model").textContent = status === "loading" ? "loading the model …" : `the server is ${status}`;
    await new Promise(resolve => setTimeout(resolve, 1000));
  }
  $("model").textContent = (await models())[0]?.id ?? "";
  await loadProperties();
}

async function start() {
  startParts();
  startComposer();
  startKeys();
  startDrop();
  onChange(chats.showChats);
  await conversation.open(localStorage.getItem("open"));
  $("say").focus();
  await loadModel();
  await library.start(source.openFile);
}

start().catch(error => notify(error.message));
