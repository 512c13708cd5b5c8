// What scrolls can be reached with the keyboard: printed text, and tables, also those that a script draws later.
const reachable = () => {
  for (const printed of document.querySelectorAll("div.cell_output pre:not([tabindex])")) {
    printed.tabIndex = 0;
    printed.setAttribute("role", "group");
    printed.setAttribute("aria-label", "Printed text");
  }
  for (const body of document.querySelectorAll(".dt-scroll-body:not([tabindex])")) {
    body.tabIndex = 0;
    body.setAttribute("role", "region");
    body.setAttribute("aria-label", "Table, scrolls sideways");
  }
};
new MutationObserver(reachable).observe(document.documentElement, { childList: true, subtree: true });

// Where a mark or a number comes from is shown where the reader points, taps, or moves to with the keyboard:
// Enter on a figure or a table goes to its first mark, arrows go on, Escape returns. Without this script the
// browser shows the same texts as titles.
const tip = document.createElement("div");
tip.id = "origin-text";
tip.setAttribute("role", "tooltip");
tip.hidden = true;

let current = null;

const hide = () => { tip.hidden = true; };

const show = (origin) => {
  current = origin;
  if (origin.title) {
    origin.dataset.origin = origin.title;
    // A mark has no other name for a screen reader; a number of a table is its own.
    if (origin.matches("[role=img]")) origin.setAttribute("aria-label", origin.title);
    origin.removeAttribute("title");
  }
  tip.textContent = origin.dataset.origin;
  if (!tip.isConnected) document.body.append(tip);
  tip.hidden = false;
  const at = origin.getBoundingClientRect(), size = tip.getBoundingClientRect(), gap = 8;
  const left = Math.min(Math.max(gap, at.left + at.width / 2 - size.width / 2), innerWidth - size.width - gap);
  const above = at.top - size.height - gap;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > gap ? above : Math.min(at.bottom + gap, innerHeight - size.height - gap)}px`;
};

// Moving to a mark with the keyboard may scroll the page, also under a pointer at rest: the text then goes along.
const leave = () => { !tip.hidden && current === document.activeElement ? show(current) : hide(); };

const originOf = (event) => event.target instanceof Element ? event.target.closest(".origin") : null;

const move = (event) => {
  if (event.key === "Escape") return hide();
  const here = event.target;
  const home = here instanceof Element ? here.closest("figure.result") : null;
  if (!home) return;
  const origins = [...home.querySelectorAll(".origin")];
  if (!origins.length) return;
  const now = origins.indexOf(here);
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (now < 0 && event.key === "Enter") origins[0].focus();
  else if (now >= 0 && step) origins[(now + step + origins.length) % origins.length].focus();
  else return;
  event.preventDefault();
};

document.addEventListener("pointerover", (event) => { const origin = originOf(event); origin ? show(origin) : leave(); });
document.addEventListener("focusin", (event) => { const origin = originOf(event); origin ? show(origin) : hide(); });
document.addEventListener("focusout", hide);
document.addEventListener("scroll", leave, { capture: true, passive: true });
document.addEventListener("keydown", move);

// A link into something folded opens it, in browsers that do not do so themselves.
const unfold = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target && target.closest("details:not([open])");
  if (!folded) return;
  folded.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", unfold);
addEventListener("load", unfold);

// On paper nothing can be unfolded. Answers and outputs are open there; code that draws is left out, and of the
// reference one line for each module stays, as the rest would be as long as the book. Paper is light.
let folded = [], theme;

addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:is(.sd-dropdown, .hide):not([open])")]
    .filter((fold) => !fold.querySelector("dl.py") && !fold.closest(".tag_hide-input"));
  for (const fold of folded) fold.open = true;
  theme = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
});
addEventListener("afterprint", () => {
  for (const fold of folded) fold.open = false;
  document.documentElement.dataset.theme = theme;
});

// On a telephone the verdict of a main table stands right behind the names of its rows; elsewhere it ends the columns
// that it is the mean of.
const narrow = matchMedia("(max-width: 600px)");
const place = () => {
  for (const table of document.querySelectorAll("table.results")) {
    const now = [...table.rows[0].cells].findIndex((cell) => cell.textContent.trim() === "Avg. Gap");
    if (now < 1) continue;
    table.dataset.verdict ??= now;
    const then = narrow.matches ? 1 : Number(table.dataset.verdict);
    if (then === now) continue;
    for (const row of table.rows) {
      const cell = row.cells[now];
      cell.remove();
      row.insertBefore(cell, row.cells[then] ?? null);
    }
  }
};
narrow.addEventListener("change", place);
document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", place) : place();
