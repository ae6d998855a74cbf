// Conversations in IndexedDB. Each turn is a record of its own, so that two tabs never overwrite each other's turns.
//
// conversation: { id, title, system, files, leaf, created, updated }
// turn: { id, conversation, parent, role, text, reasoning, annotations, stats, state, error, created }

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("kimi", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("turns", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

// Runs one transaction over both stores; resolves with the result of the request that `act` returns.
async function transact(mode, act) {
  const transaction = (await database()).transaction(["conversations", "turns"], mode);
  const request = act(transaction.objectStore("conversations"), transaction.objectStore("turns"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

const channel = new BroadcastChannel("kimi");

// Calls `changed` when another tab has changed the list of conversations.
export function onChange(changed) {
  channel.onmessage = () => changed();
}

const changed = () => channel.postMessage("changed");

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), b => b.toString(36).padStart(2, "0")).join("");

export async function conversations() {
  const all = await transact("readonly", stored => stored.getAll());
  return all.sort((a, b) => b.updated - a.updated);
}

export const conversation = id => transact("readonly", stored => stored.get(id));

export async function turnsOf(id) {
  const all = await transact("readonly", (_, turns) => turns.index("conversation").getAll(id));
  return new Map(all.sort((a, b) => a.created - b.created).map(turn => [turn.id, turn]));
}

export async function saveConversation(value) {
  await transact("readwrite", stored => stored.put(structuredClone(value)));
  changed();
}

export const saveTurn = turn => transact("readwrite", (_, turns) => turns.put(structuredClone(turn)));

export async function removeConversation(id) {
  await transact("readwrite", (stored, turns) => {
    stored.delete(id);
    const cursor = turns.index("conversation").openKeyCursor(id);
    cursor.onsuccess = () => {
      if (!cursor.result) return;
      turns.delete(cursor.result.primaryKey);
      cursor.result.continue();
    };
  });
  changed();
}

const DEFAULTS = { temperature: "", top_p: "", max_tokens: "", thinking: "" };

// Settings of this browser; an empty value leaves the choice to the server.
export function settings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem("settings") || "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

export const saveSettings = values => localStorage.setItem("settings", JSON.stringify(values));
