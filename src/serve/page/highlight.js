// Colours code. A language is loaded when a reply first has code in it.

import core from "./vendor/highlight/core.js";

const LANGUAGES = ("bash c cpp csharp css diff go ini java javascript json kotlin lua makefile markdown php python ruby rust sql " +
  "swift typescript xml yaml").split(" ");
const ALIASES = {
  "c++": "cpp", "c#": "csharp", cs: "csharp", golang: "go", h: "c", hpp: "cpp", html: "xml", js: "javascript", jsx: "javascript",
  kt: "kotlin", make: "makefile", md: "markdown", mjs: "javascript", patch: "diff", py: "python", rb: "ruby", rs: "rust", sh: "bash",
  shell: "bash", console: "bash", svg: "xml", toml: "ini", ts: "typescript", tsx: "typescript", yml: "yaml", zsh: "bash",
};
// Colours of more text than this would take longer than a frame.
const MAX_CHARACTERS = 40_000;

const loads = new Map();

function load(language) {
  if (!loads.has(language)) {
    loads.set(language, import(`./vendor/highlight/${language}.js`).then(module => core.registerLanguage(language, module.default)));
  }
  return loads.get(language);
}

// The elements of a highlighted text, from the library's own tree: no markup is parsed.
function build(parent, node) {
  for (const child of node.children) {
    if (typeof child === "string") {
      parent.append(child);
      continue;
    }
    const span = document.createElement("span");
    span.className = (child.scope ?? "").split(".").map((part, i) => i ? `${part}_` : `hljs-${part}`).join(" ");
    build(span, child);
    parent.append(span);
  }
}

// Colours a code element by its `language-` class; an unknown language is left as it is.
export async function colour(code) {
  const name = [...code.classList].find(name => name.startsWith("language-"))?.slice(9).toLowerCase();
  const language = ALIASES[name] ?? name;
  if (!LANGUAGES.includes(language)) return;
  try {
    await load(language);
  } catch {
    return;
  }
  const text = code.textContent;
  if (text.length > MAX_CHARACTERS) return;
  const parts = document.createDocumentFragment();
  build(parts, core.highlight(text, { language, ignoreIllegals: true })._emitter.rootNode);
  code.replaceChildren(parts);
}
