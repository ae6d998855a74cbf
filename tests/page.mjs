// Tests the built-in page in headless Chromium: key, library, conversation, source, keyboard, accessibility, policy.
// usage: page.mjs BASE DEMONSTRATION KEY CHROMIUM DOCUMENT      (needs playwright-core and axe-core)
//
// BASE replies with noise, long enough to be stopped, DEMONSTRATION with quotes of DOCUMENT. Files, progress, streams and
// stops are the server's. Replies whose text matters (Markdown, markup) are given to the page in the server's form.
import assert from "node:assert";
import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import { chromium } from "playwright-core";

const [base, demonstration, key, executablePath, documentPath] = process.argv.slice(2);
const profile = fs.mkdtempSync(path.join(os.tmpdir(), "page-"));
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launchPersistentContext(profile, { executablePath, args, headless: true, viewport: { width: 1280, height: 800 } });
const axe = fs.readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const page = await browser.newPage();
page.setDefaultTimeout(20_000);

// What must not happen: errors in scripts, violations of the policy, requests to other origins, script in content.
const wrong = [], elsewhere = [];
page.on("pageerror", error => wrong.push(error.stack));
page.on("console", message => message.type() === "error" && !/^Failed to load resource/.test(message.text()) && wrong.push(message.text()));
page.on("request", request => /^(data|blob):/.test(request.url()) || [base, demonstration].some(own => request.url().startsWith(own)) || elsewhere.push(request.url()));
await page.addInitScript(() => {
  document.addEventListener("securitypolicyviolation", event => console.error("Content Security Policy", event.violatedDirective, event.sample));
});

const until = (check, ...with_) => page.waitForFunction(check, ...with_, { timeout: 20_000, polling: 20 });
const texts = kind => page.locator(`.turn.${kind} ${kind === "user" ? ".text" : ".reply"}`).allInnerTexts();
const idle = () => page.waitForSelector("#send", { state: "visible" });
const name = label => page.getByRole("button", { name: label });
const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") || document.activeElement.textContent.trim().slice(0, 40) || document.activeElement.id);
const metrics = async () => (await fetch(`${base}/metrics`, { headers: { Authorization: `Bearer ${key}` } })).text();
const api = (path, init) => fetch(`${base}/v1/${path}`, { ...init, headers: { Authorization: `Bearer ${key}` } });

async function ask(text) {
  const replies = await page.locator(".turn.assistant").count();
  await page.fill("#say", text);
  await page.press("#say", "Enter");
  await until(n => document.querySelectorAll(".turn.assistant").length > n, replies);
}

// The stream of a reply with this text and these annotations, in the server's form.
function replyBody(text, annotations = [], reasoning = "") {
  const delta = part => ({ choices: [{ index: 0, delta: part, finish_reason: null }] });
  const timings = { cache_n: 1200, prompt_n: 18, prompt_ms: 30, predicted_n: 40, predicted_ms: 1000, predicted_per_second: 40 };
  const end = { choices: [{ index: 0, delta: {}, finish_reason: "stop" }], timings };
  const events = [...(reasoning ? [delta({ reasoning_content: reasoning })] : []), ...text.match(/[^]{1,40}/gu).map(content => delta({ content })),
    delta({ content: "", annotations }), end];
  return `${events.map(event => `data: ${JSON.stringify(event)}\n\n`).join("")}data: [DONE]\n\n`;
}

// The next replies have this text; `sent` is the last request.
async function replyWith(...reply) {
  const body = replyBody(...reply);
  await page.unroute("**/v1/chat/completions");
  await page.route("**/v1/chat/completions", route => { sent = route.request().postDataJSON(); route.fulfill({ contentType: "text/event-stream", body }); });
}
let sent = null;

// No rule of axe-core is broken seriously, in any state that is shown.
const checked = [];
async function accessible(state) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const serious = found.violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const lines = serious.flatMap(({ id, nodes }) => nodes.map(node => `${id}: ${node.html.slice(0, 120)} ${node.failureSummary}`));
  assert.deepEqual(lines, [], state);
  checked.push(state);
}

const parts = {
  async key() {
    await page.goto(base);
    for (const [given, model] of [["wrong", ""], [key, "tiny"]]) {
      await page.waitForSelector("dialog[open]");
      await page.fill("#key-field", given);
      await page.press("#key-field", "Enter");
      if (model) await until(name => document.querySelector("#model").textContent === name, model);
    }
    await page.reload();
    await until(() => document.querySelector("#model").textContent === "tiny");
    assert.equal(await page.locator("dialog[open]").count(), 0, "the key is kept");
    await accessible("empty");
  },

  async library() {
    const lines = Array.from({ length: 900 }, (_, i) => i === 76 ? "Mara Velt keeps the mill since 3 May 1998. 😀 It has two wheels." : `Line ${i + 1} of the mill book.`);
    lines[0] = `The mill book of ${Date.now()}, which no cache has.`;
    await page.evaluate(() => {
      window.progress = new Set();
      const observer = new MutationObserver(() => document.querySelectorAll(".file .meta").forEach(meta => progress.add(meta.innerText)));
      observer.observe(document.querySelector("#files"), { childList: true, subtree: true });
    });
    await page.setInputFiles("#choose", { name: "mill.txt", mimeType: "text/plain", buffer: Buffer.from(lines.join("\n")) });
    await page.waitForSelector("li:has-text('mill.txt') .ready");
    const progress = await page.evaluate(() => [...window.progress]);
    assert.ok(progress.some(text => /[1-9][\d,]* of [\d,]+ tokens.*tok\/s · [\d.]+ s left/s.test(text)), String(progress));
    assert.match(await page.innerText("li:has-text('mill.txt') .meta"), /ready.*kB.*tokens/s);
    // A file whose name is markup is dropped on the page.
    await page.evaluate(() => {
      const data = new DataTransfer();
      data.items.add(new File(["One short line of text."], "<img src=x onerror=pwned=1>.txt", { type: "text/plain" }));
      for (const type of ["dragenter", "dragover", "drop"]) document.body.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
    });
    await until(() => document.querySelectorAll(".file .ready").length === 2);
    assert.equal(await page.locator("#attached li").count(), 2);
    assert.equal(await page.isVisible("#drop"), false);
    await page.getByRole("button", { name: /^Take <img/ }).click();
    assert.equal(await page.locator("#files input:checked").count(), 1);
  },

  async stream() {
    await page.unroute("**/v1/chat/completions");
    await ask("Tell me <b>everything</b>");
    await until(() => document.querySelector(".reply")?.textContent.length > 0);
    const early = (await texts("assistant"))[0];
    assert.ok(await page.isVisible("#stop") && !await page.isVisible("#send"));
    await until(n => document.querySelector(".reply").textContent.length > n, early.length + 40);
    // Escape stops soon, keeps the text, and leaves the server idle.
    await page.press("#say", "Escape");
    await idle();
    await page.waitForSelector(".facts");
    assert.match(await page.innerText(".facts"), /^Stopped/);
    const [stopped] = await texts("assistant");
    assert.ok(stopped.length > early.length);
    for (let left = 100; ; left--) {
      const text = await metrics();
      if (/^kimi_requests_running 0$/m.test(text) && /^kimi_aborted_total [1-9]/m.test(text)) break;
      assert.ok(left > 0, text);
      await page.waitForTimeout(50);
    }
    await page.reload();
    await page.waitForSelector(".facts");
    assert.deepEqual([await texts("user"), await texts("assistant")], [["Tell me <b>everything</b>"], [stopped]]);
  },

  // Quotes lead to their place in the file; the request has the file once, in the first question.
  async quotes() {
    const file = (await (await api("files")).json()).data.find(file => file.filename === "mill.txt");
    const { text } = await (await api(`files/${file.id}/text`)).json();
    const quotes = ["Mara Velt keeps the mill since 3 May 1998.", "It has two wheels.", "It has nine wheels."];
    const reply = `😀 As written:\n\n> ${quotes[0]}\n\n**So** it is. “${quotes[1]}” But not “${quotes[2]}”, I think.`;
    const characters = string => [...string].length, at = (whole, part) => characters(whole.slice(0, whole.indexOf(part)));
    const annotations = quotes.map((quote, i) => ({
      type: "file_citation", file_id: i < 2 ? file.id : null, filename: i < 2 ? file.filename : null, quote, verified: i < 2,
      place: i < 2 ? "mill.txt:77" : null, index: at(reply, quote) + characters(quote), start_index: at(reply, quote), end_index: at(reply, quote) + characters(quote),
      text_start: i < 2 ? at(text, quote) : null, text_end: i < 2 ? at(text, quote) + characters(quote) : null,
    }));
    await replyWith(reply, annotations, "First the mill, then its wheels.");
    await ask("Who keeps the mill?");
    await idle();
    const first = sent.messages[0].content;
    assert.deepEqual([first[0], sent.messages.length], [{ type: "file", file: { file_id: file.id } }, 3]);
    assert.deepEqual(await page.locator(".reply mark:not(.unverified)").allInnerTexts(), quotes.slice(0, 2));
    assert.deepEqual(await page.locator(".reply mark.unverified").allInnerTexts(), quotes.slice(2));
    assert.match(await page.locator(".facts").last().innerText(), /2 of 3 quotes verified · 1,200 tokens reused · 18 read · 40 generated at 40.0 tok\/s/);
    assert.equal(await page.locator(".reasoning[open]").count(), 0);
    await page.locator("button.cite").nth(1).click();
    await page.waitForSelector("#source-text mark.current");
    assert.equal(await page.innerText("#source-text mark.current"), quotes[1]);
    assert.equal(await page.locator("#source-text mark").count(), 2);
    const [mark, view] = [await page.locator("#source-text mark.current").boundingBox(), await page.locator("#source-text").boundingBox()];
    assert.ok(mark.y > view.y && mark.y + mark.height < view.y + view.height, "the quote is in view");
    await accessible("quotes and source");
    await page.click("#source-on");
    assert.match(await page.innerText("#source-note"), /No file of this conversation has this text/);
    // Escape closes the source and returns to the button of the quote.
    await page.keyboard.press("Escape");
    assert.equal(await page.isVisible("#source"), false);
    assert.match(await focused(), /^Quote from mill.txt/);
  },

  async alternatives() {
    await replyWith("Another reply.");
    await name("Generate again").last().click();
    await idle();
    assert.equal(await page.locator(".switch").last().innerText(), "2 / 2");
    await name("Edit the question").last().click();
    await page.keyboard.type(" And where?");
    await page.keyboard.press("Enter");
    await until(() => document.querySelectorAll(".turn.user").length === 2 && document.querySelector(".turn.user:nth-of-type(3) .text")?.textContent.endsWith("And where?"));
    await idle();
    assert.deepEqual((await texts("user")).at(-1), "Who keeps the mill? And where?");
    await name("Previous alternative").last().click();
    await until(() => document.querySelector(".turn.user:nth-of-type(3) .text").textContent === "Who keeps the mill?");
    await page.reload();
    await page.waitForSelector(".turn.assistant:last-child .facts");
    assert.deepEqual((await texts("user")).at(-1), "Who keeps the mill?", "the choice is kept");
    assert.equal(await page.locator(".switch").count(), 2);
  },

  async markdown() {
    const attacks = ["<img src=x onerror=\"pwned=2\">", "<script>pwned=3</script>", "[a](javascript:pwned=4)", "[b](data:text/html,<script>pwned=5</script>)",
      "![c](https://elsewhere.example/x.png)", "<svg onload=pwned=6><style>*{display:none}</style></svg>", "<a href=\"javascript:pwned=7\" onclick=\"pwned=8\">d</a>",
      "[e](https://elsewhere.example/ \"\\\" onmouseover=pwned=9\")", "`<img src=x onerror=pwned=10>`", "<form id=composer action=/v1/files><input name=say></form>"];
    const code = "```js\nconst x = \"<img src=x onerror=pwned=11>\";\n```";
    await replyWith(`## Title\n\n| a | b |\n|---|--:|\n| 1 | <iframe srcdoc="<script>parent.pwned=12</script>"></iframe> |\n\n${code}\n\n${attacks.join("\n\n")}\n\nمرحبا بالعالم\n\n- one\n- two`);
    await ask("Show Markdown");
    await idle();
    await page.waitForSelector(".reply .hljs-string");
    const reply = page.locator(".reply").last();
    assert.equal(await reply.locator("img, script, iframe, svg:not(.code svg), style, form, input, [onclick], [onerror], [style]").count(), 0);
    const links = await reply.locator("a").evaluateAll(all => all.map(a => [a.protocol, a.rel, a.target]));
    assert.deepEqual(links, Array(2).fill(["https:", "noopener noreferrer nofollow", "_blank"]));
    assert.equal(await reply.locator("td").nth(1).evaluate(cell => getComputedStyle(cell).textAlign), "end");
    assert.equal(await reply.locator("p", { hasText: "مرحبا" }).evaluate(p => getComputedStyle(p).direction), "rtl");
    await browser.grantPermissions(["clipboard-read", "clipboard-write"]);
    await name("Copy the code").last().click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "const x = \"<img src=x onerror=pwned=11>\";");
    await accessible("Markdown");
  },

  // 400,000 characters: what is finished stays, and the page answers keys.
  async long() {
    const paragraph = "The keeper of the mill counted every sack before the river rose. ".repeat(8);
    await replyWith(Array.from({ length: 800 }, (_, i) => `${i % 9 ? "" : `## Part ${i}\n\n`}${paragraph}`).join("\n\n"));
    await ask("Tell it at length");
    await idle();
    assert.ok(await page.evaluate(() => [...document.querySelectorAll(".reply")].at(-1).textContent.length > 400_000));
    await page.evaluate(() => { [...document.querySelectorAll(".reply")].at(-1).firstChild.firstChild.wasHere = true; });
    await replyWith("Short.");
    await ask("And shorter");
    await idle();
    assert.ok(await page.evaluate(() => [...document.querySelectorAll(".reply")].at(-2).firstChild.firstChild.wasHere), "earlier replies are not drawn again");
    const worst = await page.evaluate(async () => {
      const times = [];
      for (let i = 0; i < 20; i++) {
        const start = performance.now();
        document.querySelector("#say").value += "a";
        document.querySelector("#say").dispatchEvent(new Event("input"));
        await new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)));
        times.push(performance.now() - start);
      }
      return times.sort((a, b) => a - b)[10];
    });
    assert.ok(worst < 100, `a key takes ${worst} ms`);
    await page.fill("#say", "");
  },

  async keyboard() {
    // Enter while an input method composes is no message.
    await page.fill("#say", "にほん");
    await page.evaluate(() => document.querySelector("#say").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true })));
    assert.equal(await page.inputValue("#say"), "にほん");
    await page.press("#say", "Shift+Enter");
    assert.equal(await page.inputValue("#say"), "にほん\n");
    await page.fill("#say", "");
    await page.focus(".skip");
    const order = [];
    for (let i = 0; i < 8; i++) {
      if (i) await page.keyboard.press("Tab");
      order.push(await focused());
      const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
      assert.notEqual(outline, "none", `no focus ring on ${order.at(-1)}`);
    }
    assert.deepEqual(order.slice(0, 2), ["Skip to the message", "Add"]);
    assert.ok(order.some(label => label.startsWith("Use ")) && order.some(label => label.startsWith("Delete ")), String(order));
    // Arrow up in an empty field edits the last question; Escape leaves it.
    await page.focus("#say");
    await page.keyboard.press("ArrowUp");
    assert.equal(await focused(), "Edited question");
    await page.keyboard.press("Escape");
    assert.equal(await page.locator(".editing").count(), 0);
    await page.focus("#open-settings");
    await page.keyboard.press("Enter");
    await page.waitForSelector("dialog[open]");
    await accessible("settings");
    await page.fill("#set-system", "Be short.");
    await page.fill("[name=temperature]", "0.3");
    await page.press("[name=temperature]", "Enter");
    assert.equal(await page.locator("dialog[open]").count(), 0, "Enter saves");
    await replyWith("Yes.");
    await ask("Is it so?");
    await idle();
    assert.deepEqual([sent.messages[0], sent.temperature], [{ role: "system", content: "Be short." }, 0.3]);
  },

  // A reply continues while another conversation is shown, and the questions of two tabs are both kept.
  async several() {
    const title = await page.innerText("#title");
    await page.unroute("**/v1/chat/completions");
    await page.click("#new-chat");
    await page.waitForSelector("#welcome", { state: "visible" });
    await ask("Go on while I look elsewhere");
    await until(() => [...document.querySelectorAll(".reply")].at(-1).textContent.length > 20);
    await page.click("#new-chat");
    await page.waitForSelector("#welcome", { state: "visible" });
    assert.ok(await page.isVisible("#send"));
    await page.waitForTimeout(200);
    await page.locator("#chats .name", { hasText: "Go on" }).click();
    await until(() => [...document.querySelectorAll(".reply")].at(-1)?.textContent.length > 100);
    assert.ok(await page.isVisible("#stop"));
    await page.click("#stop");
    await idle();
    assert.equal(await page.locator(".turn").count(), 2);
    const other = await browser.newPage();
    await other.goto(base);
    await other.waitForSelector(".turn.assistant:last-child .facts");
    await other.route("**/v1/chat/completions", route => route.fulfill({ contentType: "text/event-stream", body: replyBody("From the second tab.") }));
    await replyWith("From the first tab.");
    await ask("First tab");
    await idle();
    await other.fill("#say", "Second tab");
    await other.press("#say", "Enter");
    await other.waitForSelector(".turn.user:has-text('Second tab')");
    await other.waitForSelector("#send", { state: "visible" });
    await other.close();
    await page.reload();
    await page.waitForSelector(".turn.assistant:last-child .facts");
    assert.equal(await page.locator(".turn.user .switch").last().innerText(), "2 / 2");
    assert.equal((await texts("user")).at(-1), "Second tab");
    // A conversation that is deleted while it replies stays deleted.
    await page.unroute("**/v1/chat/completions");
    await page.click("#new-chat");
    await ask("Delete me");
    await until(() => document.querySelector(".reply")?.textContent.length > 20);
    await page.locator("#chats li", { hasText: "Delete me" }).hover();
    await name("Delete Delete me").click();
    await name("Delete").last().click();
    await page.waitForSelector("#welcome", { state: "visible" });
    await page.reload();
    await until(() => document.querySelectorAll("#chats li").length === 2);
    await page.locator("#chats li", { hasText: "Go on" }).hover();
    await name(/^Delete Go on/).click();
    await name("Delete").last().click();
    await page.locator("#chats .name", { hasText: title }).click();
    await page.waitForSelector(".turn");
  },

  async themes() {
    const ground = () => page.evaluate(() => getComputedStyle(document.querySelector("#conversation")).backgroundColor);
    const light = await ground();
    await page.emulateMedia({ colorScheme: "dark" });
    const dark = await ground();
    assert.notEqual(light, dark);
    await accessible("dark");
    await page.click("#toggle-theme");
    assert.equal(await ground(), light, "the button overrides the system");
    await page.click("#toggle-theme");
    await page.emulateMedia({ colorScheme: "light" });
    assert.equal(await ground(), dark);
    await page.click("#toggle-theme");
  },

  async phone() {
    await page.setViewportSize({ width: 390, height: 844 });
    for (const part of ["library", "source", "conversation"]) {
      await page.click(`.tabs [data-show=${part}]`);
      assert.ok(await page.isVisible(`#${part}`) && await page.locator(".part:visible").count() === 1);
      // Only code, tables and the files above the message may scroll sideways.
      const wide = await page.evaluate(() => [document.documentElement, ...document.querySelectorAll(".part, .part *")]
        .filter(e => !e.matches("pre, .table, #attached, textarea, input") && ["auto", "scroll", "visible"].includes(getComputedStyle(e).overflowX))
        .filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1 && (e === document.documentElement || getComputedStyle(e).overflowX !== "visible"))
        .map(e => `${e.id} ${e.className} ${e.scrollWidth}`));
      assert.deepEqual(wide, [], part);
      await accessible(`phone ${part}`);
    }
    // A quote opens the source in place of the conversation; closing it leads back.
    await page.locator(".turn.assistant .switch button").first().click();
    await page.locator("button.cite").first().click();
    await page.waitForSelector("#source-text mark.current", { state: "visible" });
    await page.click("#source-close");
    assert.ok(await page.isVisible("#conversation"));
    await page.setViewportSize({ width: 1280, height: 800 });
  },

  // The server reads a file, finds the quotes of a reply in it, and reuses it for the next question.
  async demonstration() {
    await page.unroute("**/v1/chat/completions");
    await page.goto(demonstration);
    await page.waitForSelector("dialog[open]");
    await page.fill("#key-field", key);
    await page.press("#key-field", "Enter");
    await until(() => document.querySelector("#model").textContent.includes("demo"));
    // A question that is asked during the upload waits for it.
    await page.route("**/v1/files", async route => { await page.waitForTimeout(500); await route.continue(); });
    await page.setInputFiles("#choose", documentPath);
    await ask("Where does the keeper of the Tiolmere museum live?");
    await idle();
    await page.unroute("**/v1/files");
    await page.waitForSelector("button.cite");
    const quote = await page.locator(".reply mark").first().innerText();
    await page.locator("button.cite").first().click();
    await page.waitForSelector("#source-text mark.current");
    assert.equal(await page.innerText("#source-text mark.current"), quote);
    assert.ok(fs.readFileSync(documentPath, "utf8").includes(quote), quote);
    await page.keyboard.press("Escape");
    await ask("What is the access code of the Hartwell mill?");
    await idle();
    assert.match(await page.locator(".facts").last().innerText(), /[1-9]\d* tokens reused/);
    await page.goto(base);
    await page.waitForSelector(".turn");
  },

  async exports() {
    const save = async value => {
      await page.click("#export");
      await page.selectOption("#export-kind", value);
      const [download] = await Promise.all([page.waitForEvent("download"), name("Export").last().click()]);
      return fs.readFileSync(await download.path(), "utf8");
    };
    assert.match(await save("md"), /^# Tell me <b>everything<\/b>\n\n> Be short\.\n\n## Question\n/);
    const all = JSON.parse(await save("json"));
    assert.ok(all.turns.length > (await page.locator(".turn").count()), "alternatives are exported");
  },

  async remove() {
    const onRow = async label => { await page.locator("li.row", { has: name(label) }).hover(); await name(label).click(); };
    await onRow("Delete mill.txt");
    await name("Delete").last().click();
    await until(() => document.querySelectorAll(".file").length === 1);
    assert.equal((await (await api("files")).json()).data.length, 1);
    await onRow(/^Delete <img/);
    await page.keyboard.press("Escape");
    assert.equal(await page.locator(".file").count(), 1, "Escape keeps the file");
    await page.click("#new-chat");
    await page.waitForSelector("#welcome", { state: "visible" });
    await replyWith("Hello.");
    await ask("Second conversation");
    await idle();
    await until(() => document.querySelectorAll("#chats li").length === 2);
    await onRow("Rename Second conversation");
    await page.fill("#line-field", "Renamed");
    await page.press("#line-field", "Enter");
    await until(() => document.querySelector("#title").textContent === "Renamed");
    for (const left of [1, 0]) {
      await page.locator("#chats li").first().hover();
      await page.locator("#chats [aria-label^=Delete]").first().click();
      await name("Delete").last().click();
      await until(n => document.querySelectorAll("#chats li").length === n, left);
    }
    await page.reload();
    await page.waitForSelector("#welcome", { state: "visible" });
    assert.equal(await page.locator("#chats li").count(), 0);
  },
};

try {
  for (const [part, run] of Object.entries(parts)) {
    const start = Date.now();
    try {
      await run();
    } catch (error) {
      if (process.env.PAGE_PICTURE) await page.screenshot({ path: process.env.PAGE_PICTURE });
      throw new Error(`page ${part}: ${error.stack.slice(0, 4000)}`);
    }
    console.log(`page ${part}: ok, ${((Date.now() - start) / 1000).toFixed(1)} s`);
  }
  assert.deepEqual([wrong, elsewhere, await page.evaluate(() => window.pwned)], [[], [], undefined]);
  console.log(`page: axe-core 0 serious in ${checked.length} states, 0 policy violations, 0 requests to other origins`);
} finally {
  await browser.close();
  fs.rmSync(profile, { recursive: true, force: true });
}
