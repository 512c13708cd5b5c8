// Figures that answer to the reader's hand. Each draws itself from the data that lie beside its still picture
// (salun_core/pages/figures/interactive.py). Controls are the browser's own, so mouse, touch, keyboard and
// screen readers find what they know; what a change shows is also said in a sentence.

const make = (name, attributes = {}, ...children) => {
  const drawn = ["svg", "g", "path", "circle", "polyline", "line", "rect", "text", "title", "clipPath"].includes(name);
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

let pieces = 0;

// A group of radio buttons; `changed` gets the number of the chosen one. `marks` show what belongs to each in a drawing.
const choice = (legend, labels, changed, marks = []) => {
  const name = `piece-${pieces++}`;
  const box = make("fieldset", {}, make("legend", {}, legend));
  labels.forEach((label, i) => {
    const button = make("input", { type: "radio", name, value: i });
    button.checked = i === 0;
    button.addEventListener("change", () => changed(i));
    box.append(make("label", {}, button, " ", ...(marks[i] ? [marks[i], " "] : []), label));
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

// One picture of a sheet of square ones.
const tile = (sheet, i) => {
  const shown = make("span", { class: "tile" }), side = 40;
  shown.style.backgroundImage = `url(${sheet.uri})`;
  shown.style.backgroundSize = `${sheet.columns * side}px`;
  shown.style.backgroundPosition = `-${(i % sheet.columns) * side}px -${Math.floor(i / sheet.columns) * side}px`;
  return shown;
};

const percent = (share) => `${(100 * share).toFixed(0)}%`;
const range = (values, write) => {
  const [low, high] = [write(Math.min(...values)), write(Math.max(...values))];
  return low === high ? low : `${low.replace("%", "")} to ${high}`;
};

// Paths to walk along: radio buttons choose one, a slider moves on it. `draw(path, at)` shows a place and returns
// its name; each path remembers how far the reader was, and paths of one kind share it.
const walk = (legend, paths, draw, marks = []) => {
  const places = {};
  let path = paths[0];
  const control = slider("", 0, 0, (value) => show(value));
  const buttons = choice(legend, paths.map((p) => p.label), (i) => {
    path = paths[i];
    show(Math.min(places[path.scrub] ?? 0, path.frames.length - 1));
  }, marks);
  const show = (at) => {
    places[path.scrub] = at;
    control.input.max = path.frames.length - 1;
    control.input.value = at;
    const where = draw(path, at);
    control.name.textContent = `${path.scrub}: ${where}`;
    control.input.setAttribute("aria-valuetext", `${path.scrub} ${where}`);
  };
  const go = (i, at) => {
    path = paths[i];
    buttons.querySelectorAll("input")[i].checked = true;
    show(at);
  };
  return { box: make("div", { class: "controls" }, buttons, control.box), go };
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
  const retrained = data.paths[0].frames;
  const wrongOf = (frame) => Math.round(frame.UA * data.forget);

  const { box, go } = walk("Model", data.paths, (path, at) => {
    const frame = path.frames[at], last = path.frames.length - 1;
    areas.forEach((area, i) => area.setAttribute("d", frame.areas[i]));
    crosses.setAttribute("d", frame.wrong.map((i) => {
      const [x, y] = data.points[i].at;
      return `M${x - 4} ${y - 4}l8 8m0-8l-8 8`;
    }).join(""));
    const retrain = path === data.paths[0];
    const where = retrain ? `${at + 1} of ${last + 1}` : `${at} of ${last}`;
    said.textContent = `${path.label}, ${retrain ? "model" : "step"} ${where}: ${wrongOf(frame)} of ${data.forget} forget points wrong`
      + (retrain ? "" : ` (Retrain: ${range(retrained.map(wrongOf), String)})`)
      + `; ${percent(frame.RA)} of retain and ${percent(frame.TA)} of test points right`
      + (retrain ? "." : ` (Retrain: ${range(retrained.map((f) => f.TA), percent)} of test points).`);
    return where;
  });
  go(0, 0);
  return [box, image, said];
};

// --- trajectories in the plane of UA and TA, and the answers that changed on the way -----------------------

const trajectories = (data) => {
  const [width, height, left, bottom] = [420, 300, 46, 40];
  const scale = (axis, from, to) => (value) => from + (value - axis.low) / (axis.high - axis.low) * (to - from);
  const x = scale(data.x, left, width - 16), y = scale(data.y, height - bottom, 10);
  const image = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Paths in the plane of UA and TA", class: "chart" });
  for (const tick of data.x.ticks) {
    image.append(make("line", { x1: x(tick), x2: x(tick), y1: height - bottom, y2: 10 }),
      make("text", { x: x(tick), y: height - bottom + 16, "text-anchor": "middle" }, String(tick)));
  }
  for (const tick of data.y.ticks) {
    image.append(make("line", { x1: left, x2: width - 10, y1: y(tick), y2: y(tick) }),
      make("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  image.append(make("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, data.x.label),
    make("text", { x: 12, y: (height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(height - bottom) / 2})` }, data.y.label));

  // What lies beyond the axes is cut off, a little outside of them, so that marks on an axis stay whole.
  const edge = 5, clip = `piece-clip-${pieces++}`;
  const field = { x: left - edge, y: 10 - edge, width: width - 16 - left + 2 * edge, height: height - bottom - 10 + 2 * edge };
  const isWithin = (cx, cy) => cx >= field.x && cx <= field.x + field.width && cy >= field.y && cy <= field.y + field.height;
  const lines = make("g", { "clip-path": `url(#${clip})` });
  const here = make("circle", { r: 7, class: "here" });
  const places = []; // of every look in the picture: which path, which look, where
  data.paths.forEach((path, i) => {
    const at = path.frames.map((seen) => [x(seen.UA), y(seen.TA)]);
    if (i) lines.append(make("polyline", { points: at.map((p) => p.join()).join(" "), stroke: path.colour }));
    at.forEach(([cx, cy], j) => {
      lines.append(i ? make("circle", { cx, cy, r: 2.6, fill: path.colour }) : make("path", { d: `M${cx - 4} ${cy}h8m-4-4v8`, class: "cross" }));
      if (isWithin(cx, cy)) places.push({ i, j, cx, cy });
    });
  });
  image.append(make("clipPath", { id: clip }, make("rect", field)), lines, here, make("rect", { ...field, class: "target" }));

  // Marks lie on each other: a click goes to the nearest one, and one of the chosen path is nearer than it looks.
  const NEAR = 8;
  let chosen = 0;
  image.addEventListener("click", (event) => {
    const { x: cx, y: cy } = new DOMPoint(event.clientX, event.clientY).matrixTransform(image.getScreenCTM().inverse());
    const apart = (place) => Math.hypot(place.cx - cx, place.cy - cy);
    const mine = places.filter((place) => place.i === chosen && apart(place) <= NEAR);
    const nearest = (mine.length ? mine : places).reduce((one, other) => (apart(other) < apart(one) ? other : one));
    go(nearest.i, nearest.j);
  });

  const said = make("output"), tiles = make("ul", { class: "tiles" });

  const { box, go } = walk("Path", data.paths, (path, at) => {
    const frame = path.frames[at], retrain = path === data.paths[0];
    chosen = data.paths.indexOf(path);
    here.setAttribute("cx", x(frame.UA));
    here.setAttribute("cy", y(frame.TA));
    const outside = !isWithin(x(frame.UA), y(frame.TA));
    here.classList.toggle("outside", outside);
    const before = retrain ? data.original : path.frames[Math.max(at - 1, 0)].answers;
    const changed = data.images.map((_, i) => i).filter((i) => frame.answers[i] !== before[i]);
    const first = changed.slice(0, 12);
    tiles.replaceChildren(...first.map((i) => {
      const { label, role } = data.images[i], name = data.classes;
      const right = frame.answers[i] === label ? "right" : "wrong";
      return make("li", {}, tile(data.sprite, i), make("span", {}, `${role}: ${name[before[i]]} → ${name[frame.answers[i]]}, ${right}`));
    }));
    const where = retrain ? `${at + 1} of ${path.frames.length}` : `${frame.step} of ${path.frames.at(-1).step}`;
    const since = retrain ? "from the original model's" : at ? "since the last look" : "so far";
    const more = changed.length > first.length ? `, ${first.length} of them below` : "";
    said.textContent = `${path.label}, ${retrain ? "model" : "step"} ${where}: UA ${frame.UA.toFixed(1)}%, TA ${frame.TA.toFixed(1)}%${outside ? " (outside the picture)" : ""}. `
      + `${changed.length} of ${data.images.length} answers ${retrain ? "differ" : "changed"} ${since}${more}.`;
    return where;
  }, data.paths.map((path, i) => {
    const mark = make("span", { class: "swatch", "aria-hidden": "true" }, i ? "" : "+");
    if (i) mark.style.background = path.colour;
    return mark;
  }));
  go(data.paths.length > 1 ? 1 : 0, 0);
  return [box, image, said, tiles];
};

// -----------------------------------------------------------------------------------------------------------

// --- the share kept: mask by layer, metrics beside Retrain's, answers -------------------------------------

const keep = (data) => {
  const masks = Object.keys(data.masks);
  let mask = masks[0], rate = data.rates[0];
  const [width, height, head, foot, left] = [420, 120, 26, 18, 46], bar = (width - left) / data.layers.length;
  const image = make("svg", { viewBox: `0 ${-head} ${width} ${head + height + foot}`, role: "img", "aria-label": "Share of each layer that may change, from input to output", class: "chart" });
  const names = data.layers.map(() => make("title"));
  const bars = names.map((name, i) => make("rect", { x: left + i * bar + 0.5, width: Math.max(bar - 1, 1), class: "bar" }, name));
  const line = make("line", { x1: left, x2: width, class: "keep" });
  image.append(make("text", { x: left, y: 15 - head }, "share of each layer that may change"),
    ...[0, 1].flatMap((share) => [make("line", { x1: left, x2: width, y1: height * (1 - share), y2: height * (1 - share) }),
      make("text", { x: left - 6, y: height * (1 - share) + 4, "text-anchor": "end" }, percent(share))]),
    ...bars, line, make("text", { x: left, y: height + foot - 4 }, "first layer"),
    make("text", { x: width, y: height + foot - 4, "text-anchor": "end" }, "last layer"));
  const body = make("tbody");
  const table = make("table", {}, make("caption", {}, "Percent, means over seeds"),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Model"), ...data.metrics.map((name) => make("th", { scope: "col" }, name)))), body);
  const row = (label, values) => make("tr", {}, make("th", { scope: "row" }, label),
    ...data.metrics.map((name) => make("td", {}, values[name] === null ? "diverged" : values[name].toFixed(1))));
  const said = make("output"), tiles = make("ul", { class: "tiles" });
  const here = () => data.states.filter((state) => state.mask === mask && state.rate === rate).sort((a, b) => a.keep - b.keep);
  const control = slider("", 0, 0, (at) => draw(at));

  const draw = (at) => {
    const state = here()[at];
    const shareOf = (value) => `${+(100 * value).toFixed(1)}%`;
    // Why the slider does not move.
    const only = here().length < 2 ? ` (tuned at ${shareOf(state.keep)} only)` : "";
    control.name.textContent = `Keep: ${shareOf(state.keep)}${only}`;
    control.input.setAttribute("aria-valuetext", `${shareOf(state.keep)}${only}`);
    bars.forEach((element, i) => {
      element.setAttribute("height", state.layers[i] * height);
      element.setAttribute("y", height * (1 - state.layers[i]));
      names[i].textContent = `${data.layers[i]}: ${shareOf(state.layers[i])}`;
    });
    line.setAttribute("y1", height * (1 - state.keep));
    line.setAttribute("y2", height * (1 - state.keep));
    body.replaceChildren(row(data.masks[mask], state), row("Retrain", data.retrain));
    const [low, high] = [Math.min(...state.layers), Math.max(...state.layers)];
    const layer = (share) => `${shareOf(share)} of ${data.layers[state.layers.indexOf(share)]}`;
    const lost = state.lost ? `, ${state.lost} diverged` : "";
    const distance = state.gap === null ? "The model diverged" : `Average gap to Retrain ${state.gap.toFixed(2)} points (n = ${state.n}${lost})`;
    said.textContent = `${data.masks[mask]}, learning rate ${rate}, ${shareOf(state.keep)} of the weights may change: `
      + `${low === high ? `${shareOf(low)} of every layer` : `${layer(low)} to ${layer(high)}`}. ${distance}.`;
    tiles.replaceChildren(...data.labels.map((label, i) => {
      const name = (answers) => (answers ? data.classes[answers[i]] : "diverged");
      return make("li", {}, tile(data.sprite, i),
        make("span", {}, `a ${data.classes[label]}: says ${name(state.answers)}; Retrain ${name(data.retrain.answers)}`));
    }));
  };
  const update = (share) => {
    const states = here(), apart = states.map((state) => Math.abs(state.keep - share));
    const at = apart.indexOf(Math.min(...apart));
    control.input.max = states.length - 1;
    control.input.disabled = states.length < 2;
    control.input.value = at;
    draw(at);
  };
  const now = () => here()[Number(control.input.value)].keep;
  const kinds = choice("Mask", Object.values(data.masks), (i) => { const share = now(); mask = masks[i]; update(share); });
  const speeds = choice("Learning rate", data.rates, (i) => { const share = now(); rate = data.rates[i]; update(share); });
  update(data.start);
  return [make("div", { class: "controls" }, kinds, speeds, control.box), image, said, table, tiles];
};

const PIECES = { plane, trajectories, keep };

for (const figure of document.querySelectorAll("figure[data-piece]")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const panel = make("div", { class: "panel" }, ...PIECES[figure.dataset.piece](data));
  figure.querySelector(".still").after(panel);
  figure.classList.add("live");
}
