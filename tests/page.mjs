// Tests the built-in page in headless Chromium: key, message, stream, stop, reload, new chat.
// usage: page.mjs BASE KEY CHROMIUM      (needs playwright-core, and replies long enough to be stopped)
import assert from "node:assert";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { chromium } from "playwright-core";

const [base, key, executablePath] = process.argv.slice(2);
const profile = fs.mkdtempSync(path.join(os.tmpdir(), "page-"));
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const browser = await chromium.launchPersistentContext(profile, { executablePath, args, headless: true });
const page = await browser.newPage();
const wrong = [], elsewhere = [];
page.on("pageerror", error => wrong.push(error.message));
page.on("request", request => request.url().startsWith(base) || elsewhere.push(request.url()));
page.on("dialog", dialog => dialog.accept(key));
const texts = kind => page.locator(`.turn.${kind}`).allTextContents();
const until = (check, ...with_) => page.waitForFunction(check, ...with_, { timeout: 20_000, polling: 20 });
const longer = n => until(n => document.querySelector(".turn.assistant:last-child")?.textContent.length > n, n);

// Without a key only the error is shown.
await page.goto(base);
await page.fill("#say", "Let me in");
await page.press("#say", "Enter");
await page.waitForSelector(".turn.error");
assert.match((await texts("error"))[0], /Authorization: Bearer/);
await page.click("#key");
await page.click("#clear");
await page.reload();
await until(() => document.querySelector("#model").textContent === "tiny");

// The reply streams in several pieces, while Stop replaces Send.
await page.fill("#say", "Tell me <b>everything</b>");
await page.press("#say", "Enter");
await longer(0);
const early = (await texts("assistant"))[0];
assert.ok(await page.isVisible("#stop") && !await page.isVisible("#send"));
await longer(early.length + 20);

// Stop ends the reply soon, keeps its text, and leaves the server idle.
await page.click("#stop", { force: true });
await page.waitForSelector("#send", { state: "visible" });
assert.equal(await page.textContent("#state"), "stopped");
const [stopped] = await texts("assistant");
assert.ok(stopped.startsWith(early) && stopped.length > early.length);
for (let left = 100; ; left--) {
  const metrics = await (await fetch(base + "/metrics", { headers: { Authorization: "Bearer " + key } })).text();
  if (/^kimi_requests_running 0$/m.test(metrics) && /^kimi_aborted_total 1$/m.test(metrics)) break;
  assert.ok(left > 0, metrics);
  await page.waitForTimeout(50);
}
await page.waitForTimeout(200);
assert.deepEqual(await texts("assistant"), [stopped]);

// After a reload the conversation is shown, as text, and can be continued.
await page.reload();
assert.deepEqual([await texts("user"), await texts("assistant")], [["Tell me <b>everything</b>"], [stopped]]);
await page.route("**/v1/chat/completions", route =>
  route.continue({ postData: JSON.stringify({ ...JSON.parse(route.request().postData()), max_tokens: 20 }) }));
await page.fill("#say", "More");
await page.click("#send");
await until(() => /tokens, .*prompt: \d+ cached, \d+ new/.test(document.querySelector("#state").textContent));
assert.equal((await texts("assistant")).length, 2);

await page.click("#clear");
await page.reload();
assert.deepEqual([await texts("user"), await texts("assistant")], [[], []]);
assert.deepEqual([wrong, elsewhere], [[], []]);
await browser.close();
fs.rmSync(profile, { recursive: true, force: true });
