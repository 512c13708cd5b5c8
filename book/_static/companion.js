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
  if (!target) return;
  const part = target.closest("section")?.querySelector(":scope > details.part"); // folded below its own heading
  const closed = [part, ...around(target)].filter((fold) => fold && !fold.open);
  for (const fold of closed) fold.open = true;
  if (closed.length) target.scrollIntoView();
};
const around = (inner) => {
  const fold = inner.parentElement?.closest("details");
  return fold ? [fold, ...around(fold)] : [];
};
addEventListener("hashchange", unfold);
addEventListener("load", unfold);
document.addEventListener("click", (event) => {
  if (event.target instanceof Element && event.target.closest("a[href^='#']")) setTimeout(unfold); // to the same place again
});

// On paper nothing can be unfolded. Answers and outputs are open there; code that draws is left out, and of the
// reference one line for each module stays, as the rest would be as long as the book. Paper is light.
let folded = [], theme;

addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:is(.sd-dropdown, .hide, .part):not([open])")]
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

// A page that is very long on a telephone shows its beginning and its headings there, and each heading opens what
// stands below it.
const LONG = 9000; // pixels; formulas that are set later make a page a little longer
const sections = () => [...document.querySelectorAll(".bd-article > section > section")];
const all = Object.assign(document.createElement("button"), { className: "open-parts", type: "button" });

const name = () => {
  all.textContent = document.querySelector("details.part:not([open])") ? "Open all sections" : "Close all sections";
};
all.addEventListener("click", () => {
  const open = all.textContent.startsWith("Open");
  for (const part of document.querySelectorAll("details.part")) part.open = open;
});

const fold = (section) => {
  const [heading, ...rest] = section.querySelectorAll(":scope > *:not(span:empty)");
  const part = document.createElement("details"), summary = document.createElement("summary");
  const { top, bottom } = section.getBoundingClientRect();
  part.className = "part";
  part.open = scrollY > 0 && top < innerHeight / 2 && bottom > 0; // what is being read stays open
  part.addEventListener("toggle", name);
  summary.append(heading);
  part.append(summary, ...rest);
  section.append(part);
};

const spread = (part) => {
  const [summary, ...rest] = part.children;
  part.replaceWith(...summary.children, ...rest);
};

const foldParts = () => {
  const parts = document.querySelectorAll("details.part");
  if (!narrow.matches) {
    parts.forEach(spread);
    all.remove();
  } else if (!parts.length && document.documentElement.scrollHeight > LONG && sections().length) {
    sections()[0].before(all);
    sections().forEach(fold);
    name();
    unfold();
  }
};
narrow.addEventListener("change", foldParts);
document.readyState === "complete" ? foldParts() : addEventListener("load", foldParts);
