// Requests to the server: the key, errors in one line, and server-sent events.

import { askKey } from "./dialogs.js";

// An error that the server reports, with its status.
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const key = () => localStorage.getItem("key") || "";

let asking = null;

// Asks for the key once, however many requests were refused; false if the dialog was closed.
function requestKey() {
  asking ??= askKey(key()).then(given => {
    asking = null;
    if (given !== null) localStorage.setItem("key", given);
    return given !== null;
  });
  return asking;
}

// Sends a request and returns the response. Without a valid key the user is asked and the request repeated; other failures throw.
export async function call(path, { json, headers = {}, ...init } = {}) {
  if (json !== undefined) {
    init = { method: "POST", ...init, body: JSON.stringify(json) };
    headers = { "Content-Type": "application/json", ...headers };
  }
  for (;;) {
    const used = key();
    let response;
    try {
      response = await fetch(path, { ...init, headers: used ? { ...headers, Authorization: `Bearer ${used}` } : headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "the server does not answer");
    }
    if (response.ok) return response;
    const answer = await response.json().catch(() => null);
    const error = new ApiError(response.status, answer?.error?.message ?? `status ${response.status}`);
    // Another request may have brought a new key in the meantime.
    if (response.status !== 401 || (key() === used && !await requestKey())) throw error;
  }
}

// The JSON of each `data:` line of a response as it comes; an error event throws.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let rest = ""; ;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:") || line.trim() === "data: [DONE]") continue;
        const event = JSON.parse(line.slice(5));
        if (event.error) throw new ApiError(200, event.error.message ?? String(event.error));
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export const models = async () => (await (await call("v1/models")).json()).data;
export const properties = async () => (await call("props")).json();

const file = id => `v1/files/${encodeURIComponent(id)}`;

// The files API: docs/interfaces.md describes it.
export const files = {
  async list() {
    const found = [];
    for (let after = ""; ;) {
      const page = await (await call(`v1/files?limit=1000${after && `&after=${encodeURIComponent(after)}`}`)).json();
      found.push(...page.data);
      if (!page.has_more || !page.data.length) return found;
      after = page.data.at(-1).id;
    }
  },
  async upload(blob, signal) {
    const body = new FormData();
    body.append("purpose", "user_data");
    body.append("file", blob, blob.name);
    return (await call("v1/files", { method: "POST", body, signal })).json();
  },
  async text(id) {
    return (await call(`${file(id)}/text`)).json();
  },
  async remove(id) {
    return (await call(file(id), { method: "DELETE" })).json();
  },
  async *read(id, signal) {
    yield* events(await call(`${file(id)}/read`, { method: "POST", signal }));
  },
};
