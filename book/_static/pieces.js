// Figures that answer to the reader's hand. Each draws itself from the data that lie beside its still picture
// (salun_core/pages/figures/interactive.py). Controls are the browser's own, so mouse, touch, keyboard and
// screen readers find what they know; what a change shows is also said in a sentence.

const make = (name, attributes = {}, ...children) => {
  const drawn = ["svg", "g", "path", "circle", "polyline", "line", "rect", "text"].includes(name);
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

let pieces = 0;

// A group of radio buttons; `changed` gets the number of the chosen one.
const choice = (legend, labels, changed) => {
  const name = `piece-${pieces++}`;
  const box = make("fieldset", {}, make("legend", {}, legend));
  labels.forEach((label, i) => {
    const button = make("input", { type: "radio", name, value: i });
    button.checked = i === 0;
    button.addEventListener("change", () => changed(i));
    box.append(make("label", {}, button, ` ${label}`));
  });
  return box;
};

// A slider with its name; `changed` gets its value.
const slider = (label, last, value, changed) => {
  const name = make("span", {}, label);
  const input = make("input", { type: "range", min: 0, max: last, step: 1 });
  input.value = value;
  input.addEventListener("input", () => changed(Number(input.value)));
  return { box: make("label", { class: "slider" }, name, input), input, name };
};

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const range = (values, write) => {
  const [low, high] = [write(Math.min(...values)), write(Math.max(...values))];
  return low === high ? low : `${low.replace(" %", "")} to ${high}`;
};

// --- the plane: decision areas and points, step by step --------------------------------------------------

const plane = (data) => {
  const side = data.side;
  const image = make("svg", { viewBox: `0 0 ${side} ${side}`, role: "img", "aria-label": "Decision areas and points" });
  const areas = data.colours.slice(1).map((colour) => make("path", { fill: colour, class: "area" }));
  const points = make("g"), crosses = make("path", { class: "cross" });
  for (const point of data.points) {
    const [x, y] = point.at, fill = data.colours[point.class];
    points.append(point.role === "forget"
      ? make("path", { d: `M${x} ${y - 4.5}l4.5 4.5-4.5 4.5-4.5-4.5z`, fill, class: "forget" })
      : make("circle", { cx: x, cy: y, r: 2, fill }));
  }
  const ground = make("rect", { width: side, height: side, fill: data.colours[0] });
  image.append(make("g", { opacity: 0.28 }, ground, ...areas), points, crosses);

  const said = make("output");
  let path = data.paths[0], at = 0, step = 0;
  const retrained = data.paths[0].frames;
  const wrongOf = (frame) => Math.round(frame.UA * data.forget);

  const draw = () => {
    const frame = path.frames[at], last = path.frames.length - 1;
    areas.forEach((area, i) => area.setAttribute("d", frame.areas[i]));
    crosses.setAttribute("d", frame.wrong.map((i) => {
      const [x, y] = data.points[i].at;
      return `M${x - 4} ${y - 4}l8 8m0-8l-8 8`;
    }).join(""));
    const retrain = path === data.paths[0];
    const where = retrain ? `model ${at + 1} of ${last + 1}` : `step ${at} of ${last}`;
    control.name.textContent = `${path.scrub}: ${retrain ? at + 1 : at}`;
    control.input.setAttribute("aria-valuetext", where);
    said.textContent = `${path.label}, ${where}: ${wrongOf(frame)} of ${data.forget} forget points wrong`
      + (retrain ? "" : ` (Retrain: ${range(retrained.map(wrongOf), String)})`)
      + `; ${percent(frame.RA)} of retain and ${percent(frame.TA)} of test points right`
      + (retrain ? "." : ` (Retrain: ${range(retrained.map((f) => f.TA), percent)} of test points).`);
  };
  const control = slider("", 0, 0, (value) => { at = value; if (path !== data.paths[0]) step = value; draw(); });
  const choose = (i) => {
    path = data.paths[i];
    const last = path.frames.length - 1;
    at = i === 0 ? 0 : Math.min(step, last);
    control.input.max = last;
    control.input.value = at;
    draw();
  };
  choose(0);
  return [make("div", { class: "controls" }, choice("Model", data.paths.map((p) => p.label), choose), control.box), image, said];
};

// -----------------------------------------------------------------------------------------------------------

const PIECES = { plane };

for (const figure of document.querySelectorAll("figure[data-piece]")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const panel = make("div", { class: "panel" }, ...PIECES[figure.dataset.piece](data));
  figure.querySelector(".still").after(panel);
  figure.classList.add("live");
}
