// Keeps the end of the conversation in view while a reply grows, until the user scrolls up.

import { $ } from "./dom.js";

let following = true, last = 0;

const distance = () => $("scroller").scrollHeight - $("scroller").scrollTop - $("scroller").clientHeight;

export function start() {
  const scroller = $("scroller");
  scroller.addEventListener("scroll", () => {
    if (distance() < 40) following = true;
    else if (scroller.scrollTop < last - 1) following = false;
    last = scroller.scrollTop;
    $("to-end").hidden = distance() < 300;
  }, { passive: true });
  new ResizeObserver(() => {
    if (following) scrollToEnd();
    $("to-end").hidden = distance() < 300;
  }).observe($("turns"));
  $("to-end").onclick = scrollToEnd;
}

export function scrollToEnd() {
  following = true;
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

// Shows an element instead of the end.
export function scrollTo(element) {
  following = false;
  element?.scrollIntoView({ block: "start" });
}
