"use strict";
// The page of a recorded run. Everything that moves is drawn on canvases, from typed arrays.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const runs = data.runs.map(decoded);
const two = runs.length > 1;
// The common time of all runs: every step at which one of them has a piece.
const steps = [...new Set(runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
const state = { position: 0, playing: false, speed: 1, layer: 0, hover: -1, dark: false, frames: 0 };
const panels = []; // {canvas, draw(context, width, height)}
const PIECES_IN_A_SECOND = 8;
const SHAPES = 8;
window.replayPage = { state, runs, steps, show, drawAll };

// ---------------------------------------------------------------- data

function bytes(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

function decoded(run) {
  run.count = run.places.length;
  for (const key of ["points", "predicted", "labels"]) run[key] = new Int16Array(bytes(run[key]).buffer);
  for (const key of ["heat", "activations", "images", "surface"]) run[key] = new Int8Array(bytes(run[key]).buffer);
  if (run.thumbnails) run.thumbnails = bytes(run.thumbnails);
  const total = (parts) => parts.reduce((sum, part) => sum + part, 0);
  // Where each image begins in a piece, and how long a piece is.
  const offsets = (parts) => parts.map((_, n) => total(parts.slice(0, n)));
  const size = (shape) => shape.reduce((product, n) => product * n, 1);
  run.layers.forEach((layer, n) => (layer.first = total(run.layers.slice(0, n).map((each) => each.heat[0]))));
  run.heatSize = run.heat.length / run.steps.length;
  run.activationsAt = offsets(run.layers.map((layer) => size(layer.activations)));
  run.activationsSize = total(run.layers.map((layer) => size(layer.activations)));
  run.imagesAt = offsets(run.weights.map((w) => size(w.image)));
  run.imagesSize = total(run.weights.map((w) => size(w.image)));
  return run;
}

function stepNow() {
  const low = Math.floor(state.position);
  const high = Math.min(low + 1, steps.length - 1);
  return steps[low] + (steps[high] - steps[low]) * (state.position - low);
}

// The place of a step between the pieces of a run: [piece before, piece after, share of the way].
function between(run, step) {
  let after = run.steps.findIndex((each) => each >= step);
  if (after < 0) after = run.steps.length - 1;
  if (after === 0 || run.steps[after] <= step) return [after, after, 0];
  const before = after - 1;
  return [before, after, (step - run.steps[before]) / (run.steps[after] - run.steps[before])];
}

function nearest(run) {
  const [before, after, way] = between(run, stepNow());
  return way < 0.5 ? before : after;
}

// ---------------------------------------------------------------- colours

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function mixed(one, other, share) {
  return one.map((value, n) => Math.round(value + (other[n] - value) * share));
}

function colourOf(label) {
  const base = rgb(data.palette[label % data.palette.length]);
  return state.dark ? mixed(base, [255, 255, 255], 0.4) : base;
}

const css = (colour) => `rgb(${colour.join()})`;
let theme = {};
const themed = (name) => (theme[name] ??= getComputedStyle(document.documentElement).getPropertyValue(name).trim());

// Blue for negative, orange for positive; the middle is the colour of the card.
function diverging(share) {
  const middle = state.dark ? [29, 33, 39] : [246, 247, 249];
  const end = share < 0 ? (state.dark ? [110, 170, 255] : [20, 80, 170]) : state.dark ? [255, 165, 70] : [190, 85, 0];
  return mixed(middle, end, Math.min(1, Math.abs(share)));
}

// ---------------------------------------------------------------- canvases

function element(parent, tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  parent.append(made);
  return made;
}

function panel(parent, label, height, draw, still = false) {
  const canvas = element(parent, "canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  if (height) canvas.style.height = `${height}px`;
  const made = { canvas, draw, still }; // a still panel changes only from piece to piece
  panels.push(made);
  return made;
}

function fitted(canvas) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return ratio;
}

function visible(canvas) {
  const box = canvas.getBoundingClientRect();
  return box.bottom > -50 && box.top < innerHeight + 50 && box.width > 0;
}

let asked = false;
function refresh() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    drawAll();
  });
}

// First everything is measured, then drawn, then written: the browser lays the page out only once.
function drawAll() {
  const seen = panels.filter(({ canvas }) => canvas.isConnected && visible(canvas));
  const ratios = seen.map(({ canvas }) => fitted(canvas));
  seen.forEach((each, n) => {
    const { canvas, draw } = each;
    const key = each.still ? `${runs.map(nearest)} ${canvas.width} ${canvas.height} ${state.dark}` : "";
    if (key && each.key === key) return;
    each.key = key;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    draw(context, canvas.width, canvas.height, ratios[n]);
  });
  const step = `step ${Math.round(stepNow()).toLocaleString("en")}`;
  byId("slider").value = state.position;
  say(byId("step"), step);
  byId("slider").setAttribute("aria-valuetext", step);
  writeTitles();
  state.frames += 1;
}

// Changes the text of an element, and spans after it, only if they are other ones.
function say(node, text, spans = []) {
  const key = JSON.stringify([text, spans]);
  if (node.said === key) return;
  node.said = key;
  node.textContent = text;
  for (const [words, colour] of spans) element(node, "span", words).style.color = colour ?? "";
}

// ---------------------------------------------------------------- points

// The pixels of a mark: each class has a shape of its own, so colour is not needed to tell them apart.
const marks = new Map();
function mark(shape, radius) {
  const key = shape * 100 + radius;
  if (marks.has(key)) return marks.get(key);
  const inside = [
    (x, y) => x * x + y * y <= 1.1,
    (x, y) => Math.max(Math.abs(x), Math.abs(y)) <= 0.85,
    (x, y) => y <= 0.8 && y >= 2 * Math.abs(x) - 1.1,
    (x, y) => Math.abs(x) + Math.abs(y) <= 1.1,
    (x, y) => -y <= 0.8 && -y >= 2 * Math.abs(x) - 1.1,
    (x, y) => Math.min(Math.abs(x), Math.abs(y)) <= 0.35,
    (x, y) => Math.abs(Math.abs(x) - Math.abs(y)) <= 0.45,
    (x, y) => x * x + y * y <= 1.1 && x * x + y * y >= 0.35,
  ][shape % SHAPES];
  const offsets = [];
  for (let y = -radius; y <= radius; y++) {
    for (let x = -radius; x <= radius; x++) if (inside(x / radius, y / radius)) offsets.push(x, y);
  }
  marks.set(key, Int8Array.from(offsets));
  return marks.get(key);
}

function place(run, layer, example, [before, after, way], width, height, edge) {
  const one = 2 * ((before * run.layers.length + layer) * run.count + example);
  const other = 2 * ((after * run.layers.length + layer) * run.count + example);
  if (run.points[one] === -32768 || run.points[other] === -32768) return null;
  const x = run.points[one] + (run.points[other] - run.points[one]) * way;
  const y = run.points[one + 1] + (run.points[other + 1] - run.points[one + 1]) * way;
  const scale = (Math.min(width, height) / 2 - edge) / 32000;
  return [width / 2 + x * scale, height / 2 - y * scale];
}

const buffers = new Map();
function drawPoints(run, layer, context, width, height, ratio) {
  const key = `${width} ${height}`;
  if (!buffers.has(key)) buffers.set(key, context.createImageData(width, height));
  const image = buffers.get(key);
  const pixels = new Uint32Array(image.data.buffer).fill(0);
  const radius = Math.max(1, Math.round((run.count > 2000 ? 1 : run.count > 600 ? 1.6 : 2.6) * ratio));
  const edge = radius + 2;
  const time = between(run, stepNow());
  const colours = run.classes.map((_, n) => {
    const [red, green, blue] = colourOf(n);
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
  const shapes = run.classes.map((_, n) => mark(n, radius));
  const [before, after, way] = time;
  const scale = (Math.min(width, height) / 2 - edge) / 32000;
  const points = run.points;
  let one = 2 * (before * run.layers.length + layer) * run.count;
  let other = 2 * (after * run.layers.length + layer) * run.count;
  let lost = 0;
  for (let n = 0; n < run.count; n++, one += 2, other += 2) {
    if (points[one] === -32768 || points[other] === -32768) {
      lost += 1;
      continue;
    }
    const x = Math.round(width / 2 + (points[one] + (points[other] - points[one]) * way) * scale);
    const y = Math.round(height / 2 - (points[one + 1] + (points[other + 1] - points[one + 1]) * way) * scale);
    const shape = shapes[run.labels[n]];
    const colour = colours[run.labels[n]];
    for (let at = 0; at < shape.length; at += 2) {
      pixels[(y + shape[at + 1]) * width + x + shape[at]] = colour;
    }
  }
  context.putImageData(image, 0, 0);
  if (lost === run.count) write(context, "not finite", 6 * ratio, 16 * ratio, ratio);
  if (state.hover >= 0 && run.places[state.hover] === state.hoverPlace) {
    const at = place(run, layer, state.hover, time, width, height, edge);
    if (at) ring(context, at, ratio);
  }
}

function ring(context, [x, y], ratio) {
  for (const [colour, line] of [[themed("--back"), 5], [themed("--text"), 2]]) {
    context.beginPath();
    context.arc(x, y, 7 * ratio, 0, 2 * Math.PI);
    Object.assign(context, { strokeStyle: colour, lineWidth: line * ratio });
    context.stroke();
  }
}

function write(context, text, x, y, ratio, colour = themed("--quiet")) {
  context.font = `${11 * ratio}px system-ui, sans-serif`;
  context.fillStyle = colour;
  context.fillText(text, x, y);
}

function nearestExample(run, layer, canvas, event) {
  const ratio = fitted(canvas);
  const box = canvas.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
  const time = between(run, stepNow());
  let [found, least] = [-1, (14 * ratio) ** 2];
  const radius = Math.max(1, Math.round((run.count > 2000 ? 1 : run.count > 600 ? 1.6 : 2.6) * ratio));
  for (let n = 0; n < run.count; n++) {
    const at = place(run, layer, n, time, canvas.width, canvas.height, radius + 2);
    const distance = at ? (at[0] - x) ** 2 + (at[1] - y) ** 2 : Infinity;
    if (distance < least) [found, least] = [n, distance];
  }
  return found;
}

function showTip(run, example, event) {
  const tip = byId("tip");
  tip.hidden = example < 0;
  if (example < 0) return;
  tip.textContent = "";
  element(tip, "strong", `example ${run.places[example]}`);
  if (run.classes.length > 1) {
    const guess = run.predicted[nearest(run) * run.count + example];
    const label = run.labels[example];
    element(tip, "div", `class ${run.classes[label]}`);
    if (guess >= 0) {
      element(tip, "div", `predicted ${run.classes[guess] ?? guess}${guess === label ? "" : ", which is wrong"}`);
    }
  }
  if (run.plane) element(tip, "div", `input ${run.plane[example].map((value) => value.toFixed(2)).join(", ")}`);
  if (run.thumbnails) {
    const [high, wide] = run.thumbnail;
    const canvas = element(tip, "canvas");
    Object.assign(canvas, { width: wide, height: high });
    const image = new ImageData(wide, high);
    for (let n = 0; n < high * wide; n++) {
      const grey = run.thumbnails[example * high * wide + n];
      image.data.set([grey, grey, grey, 255], 4 * n);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 6))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 6))}px`;
}

// ---------------------------------------------------------------- images

const small = document.createElement("canvas");
function drawImage(context, values, start, rows, columns, colour, box) {
  Object.assign(small, { width: columns, height: rows });
  const image = new ImageData(columns, rows);
  for (let n = 0; n < rows * columns; n++) {
    const value = values[start + n];
    image.data.set(value === -128 ? [128, 128, 128, 255] : [...colour(value, n), 255], 4 * n);
  }
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, ...box);
}

const signed = (value) => diverging(value / 127);

function drawHeat(run, layer, unit, context, box) {
  const { first, heat } = run.layers[layer];
  const [rows, columns] = run.pixels;
  const start = nearest(run) * run.heatSize + (first + unit) * heat[1];
  drawImage(context, run.heat, start, rows, columns, signed, box);
}

function drawSurface(run, context, box, ratio) {
  const side = Math.sqrt(run.surface.length / run.steps.length / 2);
  const start = nearest(run) * 2 * side * side;
  const [scale, certainty] = run.surface_scale[nearest(run)];
  const middle = rgb(state.dark ? "#1d2127" : "#f6f7f9");
  const colour = (value, n) => {
    const sure = run.surface[start + side * side + n] * certainty;
    return mixed(middle, colourOf(Math.round(value * scale)), 0.1 + 0.55 * Math.max(0, sure));
  };
  drawImage(context, run.surface, start, side, side, colour, box);
  context.drawImage(inputPoints(run, context.canvas, box, ratio), 0, 0);
}

// The inputs do not move, so their picture is drawn once for each size, and kept.
const pictures = new Map();
function inputPoints(run, { width, height }, [left, top, size], ratio) {
  const key = `${runs.indexOf(run)} ${width} ${height} ${left} ${top} ${size} ${state.dark}`;
  if (pictures.has(key)) return pictures.get(key);
  if (pictures.size > 8) pictures.clear();
  const picture = Object.assign(document.createElement("canvas"), { width, height });
  const context = picture.getContext("2d");
  const [a, b, half] = run.bounds;
  run.plane.forEach(([x, y], n) => {
    context.fillStyle = css(colourOf(run.labels[n]));
    const at = [left + ((x - a) / half + 1) * size / 2, top + (1 - (y - b) / half) * size / 2];
    const radius = mark(run.labels[n], 3);
    for (let k = 0; k < radius.length; k += 2) {
      context.fillRect(at[0] + radius[k] * ratio * 0.6, at[1] + radius[k + 1] * ratio * 0.6, ratio * 0.7, ratio * 0.7);
    }
  });
  pictures.set(key, picture);
  return picture;
}

// ---------------------------------------------------------------- curves

function drawCurves(lines, context, width, height, ratio, log = false, limits = null) {
  const left = 46 * ratio, right = 8 * ratio, top = 6 * ratio, bottom = 18 * ratio;
  const value = (y) => (log ? Math.log10(y) : y);
  const all = lines.flatMap((line) => line.y.filter((y) => y !== null && Number.isFinite(y) && (!log || y > 0)).map(value));
  if (!all.length) return write(context, "no values", left, top + 14 * ratio, ratio);
  let low = Infinity, high = -Infinity;
  for (const each of all) { low = Math.min(low, each); high = Math.max(high, each); }
  if (limits) [low, high] = limits;
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const last = steps[steps.length - 1] || 1;
  const [from, to] = [steps[0], last];
  const x = (step) => left + ((width - left - right) * (step - from)) / (to - from || 1);
  const y = (each) => top + (height - top - bottom) * (1 - (value(each) - low) / (high - low));
  context.strokeStyle = themed("--line");
  context.lineWidth = ratio;
  for (const share of [0, 0.5, 1]) {
    const at = low + (high - low) * share;
    const line = top + (height - top - bottom) * (1 - share);
    context.strokeRect(left, line, width - left - right, 0.01);
    write(context, Number((log ? 10 ** at : at).toPrecision(3)).toString(), 2 * ratio, line + 4 * ratio, ratio);
  }
  write(context, "step " + from.toLocaleString("en"), left, height - 4 * ratio, ratio);
  context.textAlign = "right";
  write(context, to.toLocaleString("en"), width - right, height - 4 * ratio, ratio);
  context.textAlign = "left";
  for (const line of lines) {
    context.strokeStyle = line.colour();
    context.lineWidth = 2 * ratio;
    context.setLineDash(line.dashed ? [5 * ratio, 4 * ratio] : []);
    context.beginPath();
    let drawing = false;
    line.y.forEach((each, n) => {
      const fine = each !== null && (!log || each > 0);
      if (fine) context[drawing ? "lineTo" : "moveTo"](x(line.x[n]), y(each));
      drawing = fine;
    });
    context.stroke();
  }
  context.setLineDash([]);
  context.fillStyle = themed("--text");
  context.fillRect(x(stepNow()) - ratio / 2, top, ratio, height - top - bottom);
}

function jumpTo(canvas) {
  const jump = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = canvas.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left - 46) / (box.width - 54)));
    const step = steps[0] + share * (steps[steps.length - 1] - steps[0]);
    const after = steps.findIndex((each) => each >= step);
    show(after <= 0 ? 0 : after - 1 + (step - steps[after - 1]) / (steps[after] - steps[after - 1]));
  };
  canvas.addEventListener("pointerdown", jump);
  canvas.addEventListener("pointermove", jump);
}

// ---------------------------------------------------------------- the sections

const NOT_CURVES = new Set(["step", "epoch", "seconds", "learning_rate"]);

function valueAt(run, key) {
  const at = run.curves.step ?? [];
  let found = null;
  for (let n = 0; n < at.length && at[n] <= stepNow(); n++) if (run.curves[key]?.[n] != null) found = run.curves[key][n];
  return found;
}

const short = (value) => (value == null ? "-" : Number(value.toPrecision(3)).toString());
const percent = (value) => (value == null ? "-" : `${Math.round(100 * value)} %`);

function buildCurves() {
  const names = new Set(runs.flatMap((run) => Object.keys(run.curves)));
  const metrics = [...names].filter((key) => !NOT_CURVES.has(key) && !key.startsWith("val_"));
  for (const key of metrics) {
    const card = element(byId("curves"), "div", "", "card");
    const head = element(card, "h3");
    const lines = runs.flatMap((run, n) =>
      [key, `val_${key}`].filter((each) => run.curves[each]).map((each) => ({
        x: run.curves.step, y: run.curves[each],
        colour: () => css(colourOf(two ? n : each.startsWith("val_") ? 1 : 0)),
        dashed: two ? !each.startsWith("val_") : false, run, each,
      })));
    const seen = lines.flatMap((line) => line.y.filter((y) => y != null));
    const log = key === "loss" && Math.min(...seen) > 0 && Math.max(...seen) > 10 * Math.min(...seen);
    const made = panel(card, `curves of ${key}`, 150, (...given) => drawCurves(lines, ...given, log));
    made.title = () => {
      say(head, `${key}${log ? ", log scale" : ""}`, lines.map((line) => {
        const kind = line.each.startsWith("val_") ? "validation" : "training";
        const name = `${two ? `${line.run.name} ` : ""}${kind}`;
        return [`${line.dashed ? "- -" : "\u2014"} ${name} ${short(valueAt(line.run, line.each))}`, line.colour()];
      }));
    };
    jumpTo(made.canvas);
  }
}

const layerPaths = [...new Set(runs.flatMap((run) => run.layers.map((layer) => layer.path)))];
const layerIn = (run, path) => run.layers.findIndex((layer) => layer.path === path);

function buildLayers() {
  byId("layers").classList.toggle("two", two);
  layerPaths.forEach((path, number) => {
    const card = element(byId("layers"), "div", "", "card square");
    Object.assign(card, { tabIndex: 0 });
    card.setAttribute("role", "button");
    card.dataset.layer = path;
    const head = element(card, "h3");
    const pair = element(card, "div", "", "pair");
    for (const run of runs) {
      const figure = element(pair, "figure");
      const layer = layerIn(run, path);
      if (layer < 0) {
        element(figure, "figcaption", `${run.name} has no such layer`);
        continue;
      }
      const made = panel(figure, `examples after ${path}`, 0, (...given) => drawPoints(run, layer, ...given));
      if (two) element(figure, "figcaption", run.name);
      made.title = () => {
        if (run !== runs.find((each) => layerIn(each, path) >= 0)) return;
        const scores = runs.map((each) => {
          const at = layerIn(each, path);
          return at < 0 ? null : each.readout[nearest(each)][at];
        });
        const known = scores.some((score) => score != null);
        say(head, path, known ? [[`readout ${scores.map(percent).join(" and ")}`]] : []);
        card.classList.toggle("chosen", state.layer === number);
        card.setAttribute("aria-pressed", state.layer === number);
      };
      const hover = (event) => {
        state.hover = nearestExample(run, layer, made.canvas, event);
        state.hoverPlace = run.places[state.hover];
        showTip(run, state.hover, event);
        refresh();
      };
      made.canvas.addEventListener("pointermove", hover);
      made.canvas.addEventListener("pointerdown", hover);
      made.canvas.addEventListener("pointerleave", () => {
        state.hover = -1;
        byId("tip").hidden = true;
        refresh();
      });
    }
    const choose = () => chooseLayer(number);
    card.addEventListener("click", choose);
    card.addEventListener("keydown", (event) => event.key === "Enter" && choose());
  });
  const { classes } = runs[0];
  if (classes.length > 1) {
    classes.slice(0, 40).forEach((name, n) => {
      const item = element(byId("legend"), "span");
      panel(item, `mark of class ${name}`, 0, (context, width, height) => {
        const shape = mark(n, Math.floor(width / 2) - 1);
        context.fillStyle = css(colourOf(n));
        for (let k = 0; k < shape.length; k += 2) context.fillRect(width / 2 + shape[k], height / 2 + shape[k + 1], 1, 1);
      }, true);
      item.append(name);
    });
  }
}

function chooseLayer(number) {
  state.layer = (number + layerPaths.length) % layerPaths.length;
  buildInside();
  refresh();
}

function buildInside() {
  const home = byId("inside");
  home.textContent = "";
  for (let n = panels.length - 1; n >= 0; n--) if (!panels[n].canvas.isConnected) panels.splice(n, 1);
  const path = layerPaths[state.layer];
  const pair = element(home, "div", "", "wide");
  for (const run of runs) {
    const layer = layerIn(run, path);
    if (layer < 0) continue;
    const card = element(pair, "div", "", "card");
    if (two) element(card, "h3", run.name);
    const about = run.layers[layer];
    if (about.heat[1]) {
      const grid = element(card, "div", "", "heat square pixels");
      for (let unit = 0; unit < about.heat[0]; unit++) {
        const figure = element(grid, "figure");
        panel(figure, `heat map of unit ${unit} of ${path}`, 0, (context, width, height) =>
          drawHeat(run, layer, unit, context, [0, 0, width, height]), true);
        element(figure, "figcaption", `unit ${about.shown[unit]}`);
      }
    }
    const [units, some] = about.activations;
    panel(card, `activations of ${path}`, 14 * units, (context, width, height) =>
      drawImage(context, run.activations, nearest(run) * run.activationsSize + run.activationsAt[layer], units, some, signed, [0, 0, width, height]), true).canvas.style.maxWidth = `${16 * some}px`;
    element(card, "figcaption", `activations: ${units} units (rows) for ${some} examples (columns)`);
    run.weights.forEach((w, n) => {
      if (w.layer !== layer) return;
      const [rows, columns] = w.image;
      const made = panel(card, `weights ${w.path}`, Math.max(60, Math.min(220, rows * 7)), (context, width, height) =>
        drawImage(context, run.images, nearest(run) * run.imagesSize + run.imagesAt[n], rows, columns, signed, [0, 0, width, height]), true);
      made.canvas.style.maxWidth = `${Math.max(60, 12 * columns)}px`;
      const caption = element(card, "figcaption");
      made.title = () => {
        const speed = run.speed[nearest(run)][n];
        say(caption, `weights ${w.path} [${w.shape}], ${rows} x ${columns} of them; ` +
          (speed == null ? "not yet moved" : `in a step they move by ${short(speed)} of their size (update ratio)`));
      };
    });
  }
}

function buildNetwork() {
  const drawn = runs.filter((run) => run.network);
  byId("network-section").hidden = !drawn.length;
  for (const run of drawn) {
    const tall = 40 + 44 * Math.max(...run.network.map((column) => run.layers[column.layer].heat[0]), 4);
    const card = element(byId("network"), "div", "", "card");
    if (two) element(card, "h3", run.name);
    panel(card, `network of ${run.name}`, tall, (...given) => drawNetwork(run, ...given), true);
  }
}

function drawNetwork(run, context, width, height, ratio) {
  const surface = Math.min(height - 30 * ratio, width * 0.34);
  const columns = run.network;
  const apart = (width - surface) / columns.length;
  const size = Math.min(34 * ratio, apart * 0.6, height / 10);
  const at = (column, unit) => {
    const count = run.layers[columns[column].layer].heat[0];
    return [apart * (column + 0.5), height / 2 + (unit - (count - 1) / 2) * Math.min(44 * ratio, height / count)];
  };
  const piece = nearest(run);
  columns.forEach((column, n) => {
    if (!n) return;
    const [rows, some] = run.weights[column.weights].image;
    const start = piece * run.imagesSize + run.imagesAt[column.weights];
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < some; j++) {
        const share = run.images[start + i * some + j] / 127;
        const [[x, y], [right, down]] = [at(n - 1, i), at(n, j)];
        context.strokeStyle = css(diverging(Math.sign(share) * (0.35 + 0.65 * Math.abs(share))));
        context.lineWidth = Math.abs(share) * 4 * ratio;
        context.beginPath();
        context.moveTo(x + size / 2, y);
        context.bezierCurveTo((x + right) / 2, y, (x + right) / 2, down, right - size / 2, down);
        context.stroke();
      }
    }
  });
  columns.forEach((column, n) => {
    for (let unit = 0; unit < run.layers[column.layer].heat[0]; unit++) {
      const [x, y] = at(n, unit);
      drawHeat(run, column.layer, unit, context, [x - size / 2, y - size / 2, size, size]);
      context.strokeStyle = themed("--quiet");
      context.lineWidth = ratio;
      context.strokeRect(x - size / 2, y - size / 2, size, size);
    }
  });
  drawSurface(run, context, [width - surface, (height - surface) / 2, surface, surface], ratio);
}

function buildUnits() {
  const kinds = [["dead units", 0], ["saturated units", 1]];
  for (const [name, kind] of kinds) {
    const card = element(byId("units"), "div", "", "card");
    const head = element(card, "h3");
    const of = (path, dashed) => runs.map((run, n) => ({ run, n, layer: layerIn(run, path), dashed }));
    const lines = () => of(layerPaths[state.layer]).filter((each) => each.layer >= 0).map(({ run, n, layer }) => ({
      x: run.steps, y: run.units.map((units) => units[layer][kind]), colour: () => css(colourOf(n)), dashed: n > 0,
    }));
    const made = panel(card, `${name} over the steps`, 120, (...given) => drawCurves(lines(), ...given, false, [0, 1]));
    made.title = () => say(head, `share of ${name} of ${layerPaths[state.layer]}`);
    jumpTo(made.canvas);
  }
  const card = element(byId("units"), "div", "", "card");
  const head = element(card, "h3");
  const lines = () => runs.map((run, n) => ({ run, n, layer: layerIn(run, layerPaths[state.layer]) }))
    .filter((each) => each.layer >= 0).map(({ run, n, layer }) => ({
      x: run.steps, y: run.readout.map((scores) => scores[layer]), colour: () => css(colourOf(n)), dashed: n > 0,
    }));
  const made = panel(card, "readout over the steps", 120, (...given) => drawCurves(lines(), ...given, false, [0, 1]));
  made.title = () => say(head, `readout accuracy of ${layerPaths[state.layer]}`);
  jumpTo(made.canvas);
}

// ---------------------------------------------------------------- titles that say what is seen

function writeTitles() {
  for (const { canvas, title } of panels) if (title && canvas.isConnected) title();
  const step = Math.round(stepNow()).toLocaleString("en");
  say(byId("curves-title"), `At step ${step}: ` + runs.map((run) => {
    const key = ["val_accuracy", "val_loss", "accuracy", "loss"].find((each) => run.curves[each]);
    const value = key && valueAt(run, key);
    return `${two ? `${run.name} ` : ""}${value == null ? "no record yet" : `${key} ${short(value)}`}`;
  }).join("; "));
  say(byId("layers-title"), runs.map((run) => {
    const scores = run.readout[nearest(run)];
    const best = scores.reduce((top, score, n) => (score != null && score > (scores[top] ?? -1) ? n : top), 0);
    const inputs = `${run.classes.length > 1 ? `a linear readout gets ${percent(scores[0])} right on the input` : `${run.count} examples, layer by layer`}`;
    return (two ? `${run.name}: ` : "") + (run.classes.length > 1 ? `${inputs}, ${percent(scores[best])} on ${run.layers[best].path}` : inputs);
  }).join("; "));
  const path = layerPaths[state.layer];
  const states = runs.map((run) => [run, layerIn(run, path)]).filter(([, layer]) => layer >= 0);
  say(byId("inside-title"), `Inside ${path}`);
  say(byId("units-title"), states.map(([run, layer]) => {
    const [dead, saturated] = run.units[nearest(run)][layer];
    return `${two ? `${run.name}: ` : ""}${percent(dead)} of the units of ${path} are dead, ${percent(saturated)} saturated`;
  }).join("; "));
}

function writeFixedTitles() {
  const ends = runs.map((run) => {
    const key = ["val_accuracy", "val_loss", "accuracy", "loss"].find((each) => run.curves[each]?.some((y) => y != null));
    const last = key ? run.curves[key].filter((y) => y != null).pop() : null;
    return `${run.name} ends at step ${run.steps[run.steps.length - 1].toLocaleString("en")}${key ? ` with ${key} ${short(last)}` : ""}`;
  });
  byId("title").textContent = ends.join("; ");
  document.title = `Replay: ${runs.map((run) => run.name).join(" and ")}`;
  byId("subtitle").textContent = `${runs[0].count} examples after ${layerPaths.length} layers, at ${steps.length} steps. Press ? for the keys.`;
  byId("layers-note").textContent = "Each panel is a plane of large variance that turns slowly, scaled to its own spread. A readout is fitted to half of the examples and tested on the others.";
  byId("inside-note").textContent = {
    plane: "A heat map is the output of a unit over the plane of the inputs. Blue is negative, orange positive.",
    image: "A heat map is the covariance of a unit with each pixel: which pixels it answers to. Blue is negative, orange positive.",
    other: "Blue is negative, orange positive.",
  }[runs[0].kind];
  byId("network-title").textContent = "What each unit has learned: heat maps over the plane; links are weights, and the last square is the decision";
}

// ---------------------------------------------------------------- playing

function show(position) {
  state.position = Math.min(steps.length - 1, Math.max(0, position));
  refresh();
}

let lastTime = 0;
function tick(time) {
  if (!state.playing) return;
  const seconds = Math.min(0.2, (time - lastTime) / 1000);
  lastTime = time;
  state.position = Math.min(steps.length - 1, state.position + seconds * state.speed * PIECES_IN_A_SECOND);
  drawAll();
  if (state.position >= steps.length - 1) return setPlaying(false);
  requestAnimationFrame(tick);
}

function setPlaying(playing) {
  if (playing && state.position >= steps.length - 1) state.position = 0;
  state.playing = playing;
  byId("play").firstElementChild.firstElementChild.setAttribute("d", playing ? "M3 2h4v12H3zM9 2h4v12H9z" : "M3 2l11 6-11 6z");
  byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  lastTime = performance.now();
  if (playing) requestAnimationFrame(tick);
}

function setSpeed(change) {
  const select = byId("speed");
  select.selectedIndex = Math.min(select.options.length - 1, Math.max(0, select.selectedIndex + change));
  state.speed = Number(select.value);
}

function setDark(dark) {
  state.dark = dark;
  document.documentElement.classList.toggle("dark", dark);
  theme = {};
  refresh();
}

function begin() {
  byId("slider").max = steps.length - 1;
  writeFixedTitles();
  buildCurves();
  buildLayers();
  buildNetwork();
  buildUnits();
  chooseLayer(Math.min(1, layerPaths.length - 1));
  byId("slider").addEventListener("input", (event) => show(Number(event.target.value)));
  byId("play").addEventListener("click", () => setPlaying(!state.playing));
  byId("speed").addEventListener("change", () => setSpeed(0));
  byId("theme").addEventListener("click", () => setDark(!state.dark));
  byId("help").addEventListener("click", () => byId("keys").showModal());
  const preference = matchMedia("(prefers-color-scheme: dark)");
  preference.addEventListener("change", () => setDark(preference.matches));
  setDark(preference.matches);
  const keys = {
    " ": () => setPlaying(!state.playing),
    ArrowRight: () => show(Math.floor(state.position + 1 + 1e-9)),
    ArrowLeft: () => show(Math.ceil(state.position - 1 - 1e-9)),
    Home: () => show(0),
    End: () => show(steps.length - 1),
    ArrowUp: () => setSpeed(1),
    ArrowDown: () => setSpeed(-1),
    "[": () => chooseLayer(state.layer - 1),
    "]": () => chooseLayer(state.layer + 1),
    d: () => setDark(!state.dark),
    "?": () => byId("keys").showModal(),
  };
  addEventListener("keydown", (event) => {
    const typing = event.target.tagName === "SELECT" || byId("keys").open;
    if (!keys[event.key] || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  addEventListener("resize", refresh);
  addEventListener("scroll", refresh, { passive: true });
}

begin();
