// Numbers, sizes and times in words.

export const number = n => Math.round(n).toLocaleString("en-US");

export const count = (n, unit) => `${number(n)} ${unit}${n === 1 ? "" : "s"}`;

export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const units = ["kB", "MB", "GB"];
  let value = bytes / 1000;
  while (value >= 1000 && units.length > 1) { value /= 1000; units.shift(); }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[0]}`;
}

export function seconds(s) {
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 100) return `${Math.round(s)} s`;
  const minutes = Math.floor(s / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(s % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const rate = perSecond => `${perSecond < 100 ? perSecond.toFixed(1) : number(perSecond)} tok/s`;

// The first line of a text, short enough for a list.
export function title(text) {
  const line = text.trim().split("\n")[0].trim();
  return [...line].length > 60 ? `${[...line].slice(0, 59).join("")}…` : line;
}

// The indices in UTF-16 units of ascending indices in Unicode characters, as the server counts.
export function utf16All(text, characters) {
  if (!/[\ud800-\udfff]/.test(text)) return characters;
  let index = 0, passed = 0;
  return characters.map(wanted => {
    for (; passed < wanted && index < text.length; passed++) index += text.codePointAt(index) > 0xffff ? 2 : 1;
    return index;
  });
}

export const utf16 = (text, characters) => utf16All(text, [characters])[0];
