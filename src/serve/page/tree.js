// The turns of a conversation form a tree: an edited question or a repeated reply is a sibling of the first one.
// Turns are in a map by their id, in the order in which they were made.

const children = (turns, parent) => [...turns.values()].filter(turn => turn.parent === parent);

// The turns from the start of the conversation to a leaf.
export function path(turns, leaf) {
  const found = [];
  for (let turn = turns.get(leaf); turn; turn = turns.get(turn.parent)) found.unshift(turn);
  return found;
}

// The alternatives of a turn, itself included.
export const siblings = (turns, turn) => children(turns, turn.parent);

// The latest leaf below a turn.
export function deepest(turns, turn) {
  for (;;) {
    const below = children(turns, turn.id);
    if (!below.length) return turn;
    turn = below.at(-1);
  }
}

// The messages of a request. The files of the conversation are parts of the first question, where the server reads them.
export function messages(turns, system, files) {
  const list = system ? [{ role: "system", content: system }] : [];
  let attached = files.map(id => ({ type: "file", file: { file_id: id } }));
  for (const turn of turns) {
    if (turn.role === "assistant") {
      if (turn.text) list.push({ role: "assistant", content: turn.text });
    } else if (attached.length) {
      list.push({ role: "user", content: [...attached, { type: "text", text: turn.text }] });
      attached = [];
    } else {
      list.push({ role: "user", content: turn.text });
    }
  }
  return list;
}
