// The page: one state, which the address holds after the #; every event changes it, and `render` shows it.
"use strict";

const content = JSON.parse(document.getElementById("content").textContent);
const $ = (id) => document.getElementById(id);
const cividis = new Colours(content.colours.one), purpleOrange = new Colours(content.colours.difference);
const KEPT_VIEWS = 3; // decoded numbers of the views seen last

const state = { picture: 0, attention: 0, layer: 0, head: MEAN, direction: "to", token: 0, map: "" };
let preview = null; // the token under the pointer, instead of the chosen one
let sort = "layer", strength = 0.65;
let view, numbers, image, grey; // of the picture shown
const decoded = new Map();

// ---- tokens and attentions -------------------------------------------------------------------------------------

const patchesOf = (tokens) => tokens.grid[0] * tokens.grid[1];
const countOf = (tokens) => tokens.kind === "words" ? tokens.words.length : tokens.prefix.length + patchesOf(tokens);
const pictureName = () => Object.keys(view.tokens).find((name) => view.tokens[name].kind === "patches");
const textName = () => Object.keys(view.tokens).find(
  (name) => view.tokens[name].kind === "words" && view.tokens[name].words.length > 1);
const attention = () => view.attentions[state.attention];
const layers = () => numbers.layers[state.attention];
const sourceName = () => state.direction === "to" ? attention().queries : attention().keys;
const resultName = () => state.direction === "to" ? attention().keys : attention().queries;
const token = () => preview === null ? state.token : preview;

// Where there are fewer queries or keys than tokens, they are the last ones: how many come before them.
function skipped(direction) {
  const a = attention();
  return direction === "to" ? countOf(view.tokens[a.queries]) - a.n : countOf(view.tokens[a.keys]) - a.m;
}

function tokenName(name, index) {
  const tokens = view.tokens[name];
  if (tokens.kind === "words") return tokens.words.length > 1 ? `“${tokens.words[index]}”` : tokens.words[0];
  if (index < tokens.prefix.length) return `${tokens.prefix[index]} token`;
  const patch = index - tokens.prefix.length, columns = tokens.grid[1];
  return `patch ${Math.floor(patch / columns)}, ${patch % columns}`;
}

function attended(layer, head) {
  const index = token() - skipped(state.direction);
  return state.direction === "to" ? layer.row(head, index) : layer.column(head, index);
}

// ---- what the map shows ----------------------------------------------------------------------------------------

// The map of the state: { name of the tokens, values of the last ones, difference and the largest value of its two maps,
// heading, about, title }; the title stands alone, under an exported map.
function shownMap() {
  const [kind, what] = state.map.split(":");
  if (kind === "answer") {
    const [one, other] = what.split("-").map(Number), names = view.answers.map((answer) => answer.name);
    const first = numbers.answers[one], second = numbers.answers[other];
    if (other === undefined) {
      const heading = `What speaks for ${names[one]}`;
      return { tokens: pictureName(), values: first, heading, title: heading,
        about: "generic attention explainability: attention weighed by its positive gradient" };
    }
    const heading = `${names[one]} minus ${names[other]}`;
    return { tokens: pictureName(), values: first.map((value, i) => value - second[i]), difference: true,
      largest: [...first, ...second].reduce((most, value) => Math.max(most, Math.abs(value)), 0), heading, title: heading,
      about: "purple speaks for the second, orange for the first" };
  }
  const at = view.maps.findIndex((map) => map.name === state.map);
  if (at >= 0) {
    const map = view.maps[at], each = numbers.maps[at];
    const number = layers()[state.layer].number, layered = each.length > 1;
    const heading = capital(map.name) + (layered ? `, layer ${number}` : "");
    return { tokens: map.tokens, values: layered ? each[number] : each[0], heading, title: heading, about: map.about };
  }
  const layer = layers()[state.layer];
  const head = state.head === MEAN ? "mean of heads" : `head ${state.head}`;
  const isTo = state.direction === "to", asks = tokenName(sourceName(), token());
  return { tokens: resultName(), values: attended(layer, state.head),
    heading: `${capital(asks)} ${isTo ? "attends to" : "is attended by"} …`,
    title: `Attention ${isMatrix() ? "among words; framed: " : ""}${isTo ? "from" : "to"} ${asks}`,
    about: `${attention().name}, layer ${layer.number}, ${head}` };
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

// The values of patches alone, of a map over a picture's tokens.
function ofPatches(map) {
  return map.values.subarray(map.values.length - patchesOf(view.tokens[map.tokens]));
}

const bothWords = () => [sourceName(), resultName()].every((name) => view.tokens[name].kind === "words");
const isMatrix = () => state.map === "" && bothWords();

// Weights [N, M] of a head, of every stride-th query and key.
function weights(layer, head, stride) {
  const n = Math.ceil(layer.n / stride), m = Math.ceil(layer.m / stride), values = new Float32Array(n * m);
  for (let i = 0; i < n; i++) {
    const row = layer.row(head, i * stride);
    for (let j = 0; j < m; j++) values[i * m + j] = row[j * stride];
  }
  return { values, n, m };
}

const matrices = new Map();
function matrixOf(layer, head, stride = 1) {
  const key = [state.picture, state.attention, layer.number, head, stride].join();
  if (!matrices.has(key)) {
    if (matrices.size > 512) matrices.clear();
    matrices.set(key, weights(layer, head, stride));
  }
  return matrices.get(key);
}

// ---- drawing ---------------------------------------------------------------------------------------------------

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function fitted(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  return scale;
}

// Draws the large map into a canvas of any size; leaves in `area` where it lies and what its cells are.
let area = null;
function drawLarge(canvas, scale, map) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  const colours = map.difference ? purpleOrange : cividis;
  if (isMatrix()) return drawWords(context, canvas, scale);
  const name = pictureName(), tokens = view.tokens[name];
  const box = { x: 0, y: 0, width: canvas.width, height: canvas.height };
  const values = map.tokens === name ? ofPatches(map) : map.values;
  const limits = range(values, map.difference, map.largest);
  if (map.tokens === name) {
    drawMap(context, box, grey, values, tokens.grid, colours, limits, strength);
  } else {
    context.drawImage(image, 0, 0, box.width, box.height);
  }
  const asks = token() - tokens.prefix.length;
  if (state.map === "" && sourceName() === name && asks >= 0) drawPatch(context, box, tokens.grid, asks, scale);
  area = { box, rows: tokens.grid[0], columns: tokens.grid[1] };
  return limits;
}

// The matrix of one head's words by words, with the words beside it where there is room.
function drawWords(context, canvas, scale) {
  const a = attention(), layer = layers()[state.layer], { values, n, m } = matrixOf(layer, state.head);
  const queries = view.tokens[a.queries].words.slice(-n), keys = view.tokens[a.keys].words.slice(-m);
  context.font = `${12 * scale}px system-ui, sans-serif`;
  const widest = (words) => Math.min(130 * scale, Math.max(...words.map((word) => context.measureText(word).width)));
  const named = canvas.width / Math.max(n, m) > 16 * scale;
  const left = named ? widest(queries) + 8 * scale : 0, top = named ? widest(keys) + 8 * scale : 0;
  const size = Math.min((canvas.width - left) / m, (canvas.height - top) / n);
  const box = { x: left, y: top, width: size * m, height: size * n }, limits = range(values, false);
  const isAllowed = (i, j) => layer.allowed(Math.max(0, state.head), i, j);
  drawMatrix(context, box, values, n, m, cividis, limits, isAllowed, css("--line"), css("--soft"), scale);
  context.fillStyle = css("--ink");
  context.textBaseline = "middle";
  if (named) {
    context.textAlign = "right";
    queries.forEach((word, i) => context.fillText(word, left - 6 * scale, top + (i + 0.5) * size, left));
    context.textAlign = "left";
    keys.forEach((word, j) => {
      context.save();
      context.translate(left + (j + 0.5) * size, top - 6 * scale);
      context.rotate(-Math.PI / 2);
      context.fillText(word, 0, 0, top);
      context.restore();
    });
  }
  const at = token() - skipped(state.direction);
  if (state.direction === "to") outline(context, box.x, box.y + at * size, box.width, size, scale);
  else outline(context, box.x + at * size, box.y, size, box.height, scale);
  area = { box, rows: n, columns: m };
  return limits;
}

function renderStage(map) {
  const frame = $("frame"), canvas = $("map"), width = frame.clientWidth;
  const wide = window.innerWidth > 720;
  const most = wide ? Math.max(300, window.innerHeight - frame.getBoundingClientRect().top - window.scrollY - 110) : width;
  const tokens = view.tokens[pictureName()];
  const aspect = isMatrix() || !tokens ? 1 : tokens.size[1] / tokens.size[0];
  const shownWidth = Math.floor(Math.min(width, most * aspect));
  const scale = fitted(canvas, shownWidth, Math.floor(shownWidth / aspect));
  const limits = drawLarge(canvas, scale, map);
  canvas.setAttribute("aria-label", `${map.heading} ${map.about}, from ${shown(limits[0], limits[1])} to ${shown(limits[1])}`);
  $("heading").textContent = map.heading;
  $("about").textContent = [map.about, limits[2]].filter(Boolean).join("; ");
  $("low").textContent = shown(limits[0], limits[1]);
  $("high").textContent = shown(limits[1]);
  $("gradient").style.background = (map.difference ? purpleOrange : cividis).gradient();
  $("strength-label").hidden = isMatrix();
  return limits;
}

function renderPicker() {
  const name = pictureName(), tokens = name && view.tokens[name];
  if (!name) return;
  const canvas = $("picker"), width = canvas.clientWidth || 270;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(canvas.width * tokens.size[0] / tokens.size[1]);
  const context = canvas.getContext("2d"), box = { x: 0, y: 0, width: canvas.width, height: canvas.height };
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  drawGrid(context, box, tokens.grid, "rgb(255 255 255 / 0.28)", scale);
  const asks = token() - tokens.prefix.length;
  if (sourceName() === name && asks >= 0) drawPatch(context, box, tokens.grid, asks, scale);
  canvas.setAttribute("aria-label",
    `${view.name}: ${tokens.grid[0]} rows and ${tokens.grid[1]} columns of patches` +
    (sourceName() === name ? "; arrow keys choose one" : ""));
}

function renderChips(map) {
  const name = pictureName(), share = (value) => `${(100 * value).toFixed(1)} %`;
  for (const chip of $("chips").children) {
    const { set, index } = chip.target, isSource = set === sourceName() && index === state.token;
    chip.setAttribute("aria-pressed", String(isSource && state.map === ""));
    const at = index - (countOf(view.tokens[set]) - map.values.length);
    const has = state.map === "" && map.tokens === name && set === name && at >= 0;
    chip.lastChild.textContent = has ? share(map.values[at]) : "";
  }
}

function renderWords(map, limits) {
  const name = textName();
  if (!name) return;
  const buttons = $("words").children, values = map.tokens === name && state.map === "" ? map.values : null;
  const layer = layers()[state.layer], own = token() - skipped(state.direction);
  for (let index = 0; index < buttons.length; index++) {
    const button = buttons[index], asks = sourceName() === name && index === token();
    const at = values ? index - (buttons.length - values.length) : -1;
    const sees = at < 0 ||
      (state.direction === "to" ? layer.allowed(Math.max(0, state.head), own, at) : layer.allowed(Math.max(0, state.head), at, own));
    button.classList.toggle("asks", asks);
    button.setAttribute("aria-pressed", String(asks));
    button.classList.toggle("unseen", !sees);
    button.style.background = at >= 0 && sees ? cividis.css(values[at], ...limits) : "";
    button.style.color = at >= 0 && sees ? (cividis.isDark(values[at], ...limits) ? "#fff" : "#111") : asks ? "var(--ink)" : "";
    button.title = at >= 0 ? (sees ? shown(values[at]) : "may not be attended to") : "";
  }
  if (sourceName() === name) $("scrubber").value = token();
}

// ---- thumbnails of all heads -----------------------------------------------------------------------------------

let cells = []; // { layer, head, x, y, width, height, button } of every thumbnail
const thumbnails = { key: "" }; // the atlas of the present query, and the box that it is laid out in

function order() {
  const a = attention(), all = [];
  a.layers.forEach((_, layer) => {
    for (let head = 0; head < a.heads; head++) all.push({ layer, head });
  });
  const figures = sort === "distance" ? a.distances : a.entropies;
  return all.sort((one, other) => figures[one.layer][one.head] - figures[other.layer][other.head]);
}

// Places a button on every thumbnail; its picture is drawn below it.
function layOut() {
  const a = attention(), box = $("matrix"), tokens = view.tokens[resultName()];
  const byLayer = sort === "layer", across = a.heads + (byLayer && a.heads > 1 ? 1 : 0), gap = 3, margin = byLayer ? 26 : 0;
  const width = Math.max(6, Math.min(64, Math.floor((box.clientWidth - margin) / across) - gap));
  const aspect = !bothWords() && tokens.kind === "patches" ? tokens.grid[0] / tokens.grid[1] : 1;
  const height = Math.max(6, Math.round(width * aspect)), top = byLayer ? 18 : 0;
  for (const cell of cells) cell.button.remove();
  const list = byLayer
    ? a.layers.flatMap((_, layer) => Array.from({ length: across }, (_, i) => ({ layer, head: i - (across - a.heads) })))
    : order();
  cells = list.map((cell, i) => {
    const button = document.createElement("button");
    const x = margin + i % across * (width + gap), y = top + Math.floor(i / across) * (height + gap);
    button.type = "button";
    button.className = "head";
    Object.assign(button.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
    const name = `layer ${a.layers[cell.layer].number}, ${cell.head === MEAN ? "mean of heads" : `head ${cell.head}`}`;
    button.title = name + figuresOf(cell.layer, cell.head);
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", () => change({ layer: cell.layer, head: cell.head, map: keepsLayer() ? state.map : "" }));
    box.append(button);
    return { ...cell, x, y, width, height, button };
  });
  const lines = Math.ceil(list.length / across);
  thumbnails.box = { width: margin + across * (width + gap), height: top + lines * (height + gap), margin, byLayer, across };
}

// A map of tokens that has one picture a layer goes on being shown when the layer changes.
const keepsLayer = () => view.maps.some((map) => map.name === state.map && map.layers);

function figuresOf(layer, head) {
  const a = attention();
  if (head === MEAN) return "";
  const far = a.distances ? `; mean distance ${shown(a.distances[layer][head])} ${a.unit}` : "";
  return `${far}; entropy ${shown(a.entropies[layer][head])} nats`;
}

// One pixel a patch, of all heads and layers: [layers, heads + 1] tiles, the mean first.
function atlas() {
  const a = attention(), all = layers(), words = bothWords(), tokens = view.tokens[resultName()];
  const stride = words ? Math.ceil(Math.max(a.n, a.m) / 96) : 1, picture = !words && tokens.kind === "patches";
  const count = state.direction === "to" ? a.m : a.n, patches = picture ? patchesOf(tokens) : count;
  const columns = picture ? tokens.grid[1] : words ? Math.ceil(a.m / stride) : Math.ceil(Math.sqrt(count));
  const rows = picture ? tokens.grid[0] : words ? Math.ceil(a.n / stride) : Math.ceil(count / columns);
  const canvas = canvasOf(columns * (a.heads + 1), rows * all.length), context = canvas.getContext("2d");
  const drawn = context.createImageData(canvas.width, canvas.height), pixels = new Uint32Array(drawn.data.buffer);
  const steps = cividis.steps;
  const put = (values, layer, place) => {
    const start = values.length - (words ? values.length : patches), size = values.length - start;
    const [low, high] = range(values.subarray(start), false), times = 255 / (high - low);
    for (let i = 0, row = 0, column = 0; i < size; i++) {
      pixels[(layer * rows + row) * canvas.width + place * columns + column] = steps[(values[start + i] - low) * times + 0.5 | 0];
      if (++column === columns) {
        column = 0;
        row++;
      }
    }
  };
  all.forEach((layer, l) => {
    let mean = null;
    for (let head = 0; head < a.heads; head++) {
      const values = words ? matrixOf(layer, head, stride).values : attended(layer, head);
      mean = mean || new Float32Array(values.length);
      for (let i = 0; i < values.length; i++) mean[i] += values[i];
      put(values, l, head + 1);
    }
    put(mean, l, 0);
  });
  context.putImageData(drawn, 0, 0);
  return { canvas, columns, rows };
}

const thumbnailsKey = () => [state.picture, state.attention, state.direction, bothWords() ? "" : token()].join();

function renderHeads(isNewLayout) {
  if (isNewLayout) layOut();
  for (const cell of cells) {
    const isChosen = cell.layer === state.layer && cell.head === state.head;
    cell.button.setAttribute("aria-pressed", String(isChosen));
    cell.button.tabIndex = isChosen ? 0 : -1;
  }
  if (isNewLayout || thumbnailsKey() !== thumbnails.key) drawThumbnailsSoon();
}

// All heads take longer than one: they follow a moment after the large map, once for many changes.
let drawing = false;
function drawThumbnailsSoon() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => setTimeout(() => {
    drawing = false;
    drawThumbnails();
  }));
}

function drawThumbnails() {
  const canvas = $("thumbnails"), box = thumbnails.box, scale = fitted(canvas, box.width, box.height), key = thumbnailsKey();
  if (key !== thumbnails.key) Object.assign(thumbnails, atlas(), { key });
  const { columns, rows } = thumbnails, context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = columns > 64;
  for (const { layer, head, x, y, width, height } of cells) {
    context.drawImage(thumbnails.canvas, (head + 1) * columns, layer * rows, columns, rows,
      Math.round(x * scale), Math.round(y * scale), Math.round(width * scale), Math.round(height * scale));
  }
  if (box.byLayer) {
    context.fillStyle = css("--quiet");
    context.font = `${11 * scale}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    context.textAlign = "center";
    for (const { layer, head, x, y, width, height } of cells) {
      if (y === cells[0].y && (width > 15 || head % 2 !== 1)) {
        context.fillText(head === MEAN ? (width > 23 ? "mean" : "m") : head, (x + width / 2) * scale, 8 * scale);
      }
      if (x === cells[0].x) context.fillText(attention().layers[layer].number, 10 * scale, (y + height / 2) * scale);
    }
  }
}

// How far, or how widely, the heads of each layer look.
function renderPlot() {
  const a = attention(), isFar = sort !== "entropy" && a.distances, canvas = $("plot");
  const scale = fitted(canvas, Math.min(430, canvas.parentElement.clientWidth - 28), 130), inks = {};
  for (const name of ["line", "quiet", "accent"]) inks[name] = css(`--${name}`);
  const isChosen = (layer, head) => layer === state.layer && (head === state.head || state.head === MEAN);
  const figures = isFar ? a.distances : a.entropies;
  drawDots(canvas.getContext("2d"), canvas.width, canvas.height, figures, a.layers.map((layer) => layer.number), isChosen, inks, scale);
  const what = isFar ? `mean attention distance in ${a.unit}` : "mean entropy in nats";
  canvas.title = `${capital(what)} of every head, by layer`;
  canvas.setAttribute("aria-label", `${canvas.title}; the numbers are on the heads' buttons`);
  const number = a.layers[state.layer].number, mean = state.head === MEAN;
  $("figures").textContent = `Layer ${number}, ${mean ? "mean of heads" : `head ${state.head}${figuresOf(state.layer, state.head)}`}`;
  $("plot-title").textContent = canvas.title;
}

// ---- controls --------------------------------------------------------------------------------------------------

function button(text, onClick, target = null) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.target = target;
  made.addEventListener("click", onClick);
  return made;
}

function buildStrip() {
  $("strip").hidden = content.views.length < 2;
  $("strip").replaceChildren(...content.views.map((entry, i) => {
    const made = button("", () => show(i));
    const tokens = Object.values(entry.tokens).find((each) => each.kind === "patches");
    if (tokens) {
      const small = document.createElement("img");
      small.src = tokens.thumbnail;
      small.alt = "";
      made.append(small);
    } else {
      made.textContent = entry.name.slice(0, 24);
    }
    made.title = entry.name;
    made.setAttribute("aria-label", entry.name);
    return made;
  }));
}

// What belongs to one view and does not change while it is shown.
function buildView() {
  const name = pictureName(), text = textName();
  document.querySelector("main").classList.toggle("no-source", !name);
  $("source").hidden = !name;
  $("name").textContent = view.name;
  $("name").title = view.name;
  const chips = [];
  const chip = (label, set, index) => {
    const made = button(label, () => choose(set, index), { set, index }), share = document.createElement("span");
    share.className = "share";
    made.append(share);
    chips.push(made);
  };
  if (name) view.tokens[name].prefix.forEach((label, index) => chip(label === "class" ? "class token" : label, name, index));
  for (const [set, tokens] of Object.entries(view.tokens)) {
    if (tokens.kind === "words" && tokens.words.length === 1 && name) chip(tokens.words[0], set, 0);
  }
  $("chips").replaceChildren(...chips);
  $("reading").hidden = !text;
  if (text) {
    $("words").replaceChildren(...view.tokens[text].words.map((word, index) => button(word, () => choose(text, index))));
    $("scrubber").max = view.tokens[text].words.length - 1;
    $("scrubber").min = firstWord();
  }
  $("answers-panel").hidden = !view.answers.length;
  $("answers").replaceChildren(...view.answers.map((answer, i) => {
    const line = document.createElement("li"), main = button("", () => change({ map: state.map === `answer:${i}` ? "" : `answer:${i}` }));
    main.className = "answer";
    for (const part of [answer.name, `${(100 * answer.probability).toFixed(1)} %`]) {
      const span = document.createElement("span");
      span.textContent = part;
      main.append(span);
    }
    main.style.setProperty("--share", `${100 * answer.probability}%`);
    main.title = answer.name;
    main.disabled = answer.values === null;
    const minus = button("−", () => change({ map: `answer:${activeAnswer()}-${i}` }));
    minus.className = "minus";
    minus.setAttribute("aria-label", `subtract ${answer.name}`);
    line.append(main, minus);
    return line;
  }));
  const kinds = [["", "Attention"], ...view.maps.map((map) => [map.name, map.name === "norm" ? "Token norm" : capital(map.name)])];
  if (view.answers.some((answer) => answer.values !== null)) kinds.push(["answer", "Answer"]);
  $("kinds").replaceChildren(...(kinds.length > 1 ? kinds : []).map(([kind, label]) =>
    button(label, () => change({ map: kind === "answer" ? "answer:0" : kind }), kind)));
  $("directions").replaceChildren(
    button("attends to", () => turn("to"), "to"), button("attended by", () => turn("by"), "by"));
  const several = view.attentions.length > 1;
  $("attentions").replaceChildren(...(several ? view.attentions : []).map((a, i) =>
    button(capital(a.name), () => switchTo(i), i)));
}

const activeAnswer = () => state.map.startsWith("answer:") ? Number(state.map.slice(7).split("-")[0]) : 0;

function buildAttention() {
  const a = attention(), options = [["layer", "layer"], ["entropy", "entropy"]];
  if (a.distances) options.splice(1, 0, ["distance", "distance"]);
  if (!options.some(([value]) => value === sort)) sort = "layer";
  $("sort").replaceChildren(...options.map(([value, label]) => new Option(label, value, false, value === sort)));
  $("left-out").hidden = a.layers.length === a.depth;
  $("left-out").textContent =
    `Layers ${a.layers.map((layer) => layer.number).join(", ")} of ${a.depth}: all of them would make this file too large. ` +
    "A page of fewer pictures holds more.";
}

function renderControls() {
  const press = (parent, isOn) => {
    for (const each of $(parent).children) each.setAttribute("aria-pressed", String(isOn(each.target)));
  };
  press("kinds", (kind) => kind === "answer" ? state.map.startsWith("answer:") : state.map === kind);
  press("directions", (direction) => state.direction === direction);
  for (const each of $("directions").children) each.disabled = state.map !== "";
  press("attentions", (i) => state.attention === i);
  [...$("strip").children].forEach((each, i) => each.setAttribute("aria-pressed", String(i === state.picture)));
  const [one, other] = state.map.startsWith("answer:") ? state.map.slice(7).split("-").map(Number) : [-1, -1];
  [...$("answers").children].forEach((line, i) => {
    line.children[0].setAttribute("aria-pressed", String(i === one));
    line.children[1].setAttribute("aria-pressed", String(i === other));
    line.children[1].disabled = one < 0 || i === one || view.answers[i].values === null;
  });
}

let laidOut = "";
function render() {
  const map = shownMap(), limits = renderStage(map);
  renderPicker();
  renderChips(map);
  renderWords(map, limits);
  renderControls();
  const layout = [state.picture, state.attention, state.direction, sort, $("matrix").clientWidth].join();
  renderHeads(layout !== laidOut);
  laidOut = layout;
  renderPlot();
}

let waiting = false;
function renderSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    render();
  });
}

// ---- changes ---------------------------------------------------------------------------------------------------

let writing = 0;
function change(changes) {
  preview = null;
  Object.assign(state, changes);
  render();
  clearTimeout(writing);
  writing = setTimeout(writeAddress, 250); // browsers refuse more than a few changes of the address a second
}

function switchTo(index, token = null, direction = "to") {
  const a = view.attentions[index], set = direction === "to" ? a.queries : a.keys, count = countOf(view.tokens[set]);
  const first = direction === "to" ? count - a.n : count - a.m;
  const old = attention(), isSame = index === state.attention;
  Object.assign(state, { attention: index, direction, map: "" });
  if (!isSame) {
    state.layer = Math.min(a.layers.length - 1, old.layers.length === a.layers.length ? state.layer : Infinity);
    state.head = state.head < a.heads ? state.head : MEAN;
    buildAttention();
  }
  change({ token: Math.min(count - 1, Math.max(first, token === null ? (set === sourceName() && isSame ? state.token : firstToken(set)) : token)) });
}

// The first word that asks: before it stands what the model only reads.
function firstWord() {
  const name = textName();
  return countOf(view.tokens[name]) - Math.max(...view.attentions.filter((a) => a.queries === name).map((a) => a.n));
}

// What asks at first: a class token that the model pools by; without one, the patch in the middle; of words, the last.
function firstToken(set) {
  const tokens = view.tokens[set];
  if (tokens.kind === "words") return tokens.words.length - 1;
  const [rows, columns] = tokens.grid;
  return tokens.pools && tokens.prefix.includes("class") ? 0 : tokens.prefix.length + Math.floor(rows / 2) * columns + Math.floor(columns / 2);
}

// A token was pointed at: it asks; where it can only answer, the direction turns or another attention takes over.
function choose(set, index) {
  const at = asker(set, index);
  if (at) switchTo(at.attention, index, at.direction);
}

function asker(set, index) {
  const can = (i, direction) => {
    const a = view.attentions[i], own = direction === "to" ? a.queries : a.keys;
    return own === set && index >= countOf(view.tokens[set]) - (direction === "to" ? a.n : a.m);
  };
  const turned = state.direction === "to" ? "by" : "to";
  if (can(state.attention, state.direction)) return { attention: state.attention, direction: state.direction };
  if (can(state.attention, turned) && countOf(view.tokens[sourceName()]) > 1) return { attention: state.attention, direction: turned };
  const other = view.attentions.findIndex((_, i) => can(i, "to"));
  return other < 0 ? null : { attention: other, direction: "to" };
}

function turn(direction) {
  if (direction === state.direction) return;
  const isSelf = attention().queries === attention().keys;
  const set = direction === "to" ? attention().queries : attention().keys;
  switchTo(state.attention, isSelf ? state.token : firstToken(set), direction);
}

let shows = 0; // how many views were asked for: the last one is shown, whichever is decoded first

async function show(index, wanted = null) {
  const asked = ++shows;
  if (index !== 0 && document.readyState === "loading") {
    await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
  }
  stop();
  if (!decoded.has(index)) {
    const entry = content.views[index];
    const picture = Object.values(entry.tokens).find((tokens) => tokens.kind === "patches");
    const loaded = picture ? Object.assign(new Image(), { src: picture.picture }) : null;
    const own = new Numbers(entry, bytesOf($(`data-${index}`).textContent).buffer);
    if (loaded) await loaded.decode();
    decoded.set(index, { numbers: own, image: loaded, grey: loaded && greyOf(loaded) });
    if (decoded.size > KEPT_VIEWS) decoded.delete(decoded.keys().next().value);
  }
  if (asked !== shows) return;
  const before = view;
  const keep = before && before.attentions.map((a) => a.name).join() === content.views[index].attentions.map((a) => a.name).join();
  view = content.views[index];
  ({ numbers, image, grey } = decoded.get(index));
  state.picture = index;
  if (!keep) Object.assign(state, { attention: 0, layer: view.attentions[0].layers.length - 1, head: MEAN, direction: "to", map: "", token: -1 });
  if (wanted) Object.assign(state, wanted);
  repair();
  buildView();
  buildAttention();
  change({});
  document.body.dataset.ready = String(index);
}

// After a change of view or an address by hand: nothing that does not exist.
function repair() {
  const within = (value, count) => Number.isInteger(value) && value >= 0 && value < count;
  if (!within(state.attention, view.attentions.length)) state.attention = 0;
  if (!within(state.layer, attention().layers.length)) state.layer = attention().layers.length - 1;
  if (!within(state.head, attention().heads)) state.head = MEAN;
  if (state.direction !== "by") state.direction = "to";
  const first = skipped(state.direction), count = countOf(view.tokens[sourceName()]);
  if (!within(state.token, count) || state.token < first) state.token = Math.max(first, firstToken(sourceName()));
  const numbersOf = /^answer:(\d+)(?:-(\d+))?$/.exec(state.map);
  const exists = numbersOf
    ? numbersOf.slice(1).every((i) => i === undefined || numbers.answers[Number(i)])
    : state.map === "" || view.maps.some((map) => map.name === state.map);
  if (!exists) state.map = "";
}

// ---- the address -----------------------------------------------------------------------------------------------

function address() {
  const query = new URLSearchParams({
    picture: state.picture, attention: attention().name, layer: attention().layers[state.layer].number,
    head: state.head === MEAN ? "mean" : state.head, direction: state.direction, token: state.token,
  });
  if (state.map) query.set("map", state.map);
  return `#${query}`;
}

function writeAddress() {
  clearTimeout(writing);
  if (location.hash !== address()) history.replaceState(null, "", address());
}

function readAddress() {
  const query = new URLSearchParams(location.hash.slice(1)), picture = Number(query.get("picture") || 0);
  const index = Number.isInteger(picture) && picture >= 0 && picture < content.views.length ? picture : 0;
  if (!query.has("layer")) return show(index);
  const { attentions } = content.views[index];
  const found = Math.max(0, attentions.findIndex((a) => a.name === query.get("attention")));
  return show(index, {
    attention: found,
    layer: attentions[found].layers.findIndex((layer) => layer.number === Number(query.get("layer"))),
    head: query.get("head") === "mean" ? MEAN : Number(query.get("head")),
    direction: query.get("direction"),
    token: Number(query.get("token")),
    map: query.get("map") || "",
  });
}

async function copyLink() {
  writeAddress();
  let done = true;
  try {
    await navigator.clipboard.writeText(location.href);
  } catch {
    const field = document.createElement("textarea");
    field.value = location.href;
    document.body.append(field);
    field.select();
    done = document.execCommand("copy");
    field.remove();
  }
  $("copy").textContent = done ? "Copied" : "Copy it from the address bar";
  setTimeout(() => { $("copy").textContent = "Copy link"; }, 1500);
}

// ---- export ----------------------------------------------------------------------------------------------------

// A text in lines of at most `width` pixels: broken between words, or within one that is longer than a line.
function linesOf(context, text, width) {
  const lines = [""], fits = (line) => context.measureText(line).width <= width, last = () => lines[lines.length - 1];
  for (const word of text.split(/\s+/).filter(Boolean)) {
    if (last() && fits(`${last()} ${word}`)) {
      lines[lines.length - 1] += ` ${word}`;
      continue;
    }
    if (last()) lines.push("");
    for (const letter of word) {
      if (last() && !fits(last() + letter)) lines.push("");
      lines[lines.length - 1] += letter;
    }
  }
  return lines;
}

// What stands under an exported map: whose it is, what it shows, and, where words have the values, those.
function captionOf(map, note) {
  const told = [view.name, map.title, [map.about, note].filter(Boolean).join("; ")];
  if (map.tokens !== pictureName() && !isMatrix()) {
    const { words } = view.tokens[map.tokens], first = words.length - map.values.length;
    told.push(words.slice(first).map((word, i) => `${word} ${shown(map.values[i])}`).join("; "));
  }
  return told.map((text) => text.length > 600 ? `${text.slice(0, 599)}…` : text);
}

const LINE = 22, EDGE = 12; // pixels of the caption below an exported map

function exported() {
  const tokens = view.tokens[pictureName()], map = shownMap();
  let [height, width] = isMatrix() ? [1024, 1024] : tokens.size;
  const times = Math.max(1, Math.ceil(1024 / Math.max(height, width)));
  [height, width] = [height * times, width * times];
  const canvas = canvasOf(width, height), before = area, limits = drawLarge(canvas, 2, map);
  area = before;
  const whole = canvasOf(Math.max(width, 480), height), context = whole.getContext("2d"); // room for a caption
  const font = "16px system-ui, sans-serif", inner = whole.width - 2 * EDGE;
  context.font = font;
  const lines = captionOf(map, limits[2]).flatMap((text) => linesOf(context, text, inner));
  whole.height = height + 2 * EDGE + (lines.length + 1) * LINE; // which resets the context
  context.fillStyle = "#fff";
  context.fillRect(0, 0, whole.width, whole.height);
  if (isMatrix()) {
    context.fillStyle = css("--panel");
    context.fillRect(0, 0, width, height);
  }
  context.drawImage(canvas, Math.floor((whole.width - width) / 2), 0);
  context.fillStyle = "#1b1f24";
  context.font = font;
  context.textBaseline = "middle";
  lines.forEach((line, i) => context.fillText(line, EDGE, height + EDGE + (i + 0.5) * LINE));
  const colours = map.difference ? purpleOrange : cividis, [low, high] = [shown(limits[0], limits[1]), shown(limits[1])];
  const y = height + EDGE + (lines.length + 0.5) * LINE, left = 2 * EDGE + context.measureText(low).width;
  const reach = inner - EDGE - left - context.measureText(high).width;
  context.fillText(low, EDGE, y);
  context.fillText(high, left + reach + EDGE, y);
  context.imageSmoothingEnabled = false;
  context.drawImage(tile(Float32Array.from({ length: 256 }, (_, i) => i), 256, 1, colours, [0, 255]), left, y - 7, reach, 14);
  return whole;
}

function save() {
  exported().toBlob((blob) => {
    const link = document.createElement("a");
    const stem = view.name.split(/[\\/]/).pop().replace(/\.[a-z]+$/i, "").replace(/[^\p{L}\p{N}._-]+/gu, "_");
    link.download = `${stem || "map"}.${(state.map || "attention").replace(/[^a-z0-9-]+/g, "-")}.png`;
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, "image/png");
}

// ---- pointer and keys ------------------------------------------------------------------------------------------

// Row and column under the pointer, of a box of cells in a canvas; null outside.
function cellAt(event, canvas, { box, rows, columns }) {
  const bounds = canvas.getBoundingClientRect(), scale = canvas.width / bounds.width;
  const column = Math.floor(((event.clientX - bounds.left) * scale - box.x) / box.width * columns);
  const row = Math.floor(((event.clientY - bounds.top) * scale - box.y) / box.height * rows);
  return row >= 0 && row < rows && column >= 0 && column < columns ? { row, column } : null;
}

function patchAt(event) {
  const tokens = view.tokens[pictureName()], canvas = $("picker");
  const box = { x: 0, y: 0, width: canvas.width, height: canvas.height };
  const at = cellAt(event, canvas, { box, rows: tokens.grid[0], columns: tokens.grid[1] });
  return at && tokens.prefix.length + at.row * tokens.grid[1] + at.column;
}

function look(event) {
  const index = patchAt(event);
  const can = index !== null && event.pointerType !== "touch" && state.map === "" && sourceName() === pictureName() &&
    index >= skipped(state.direction);
  if (preview !== (can ? index : null)) {
    preview = can ? index : null;
    renderSoon();
  }
}

function readOut(event) {
  const at = area && cellAt(event, $("map"), area);
  if (!at) {
    $("readout").textContent = "";
    return;
  }
  const { row, column } = at;
  if (isMatrix()) {
    const a = attention(), { values, m } = matrixOf(layers()[state.layer], state.head);
    const name = (set, count, i) => tokenName(set, countOf(view.tokens[set]) - count + i);
    const value = layers()[state.layer].allowed(Math.max(0, state.head), row, column) ? shown(values[row * m + column]) : "may not be attended to";
    $("readout").textContent = `${name(a.queries, a.n, row)} to ${name(a.keys, a.m, column)}: ${value}`;
    return;
  }
  const map = shownMap();
  if (map.tokens !== pictureName()) return;
  $("readout").textContent = `patch ${row}, ${column}: ${shown(ofPatches(map)[row * area.columns + column])}`;
}

function choosePoint(event) {
  const at = area && cellAt(event, $("map"), area);
  if (!at) return;
  if (isMatrix()) {
    const set = sourceName(), index = state.direction === "to" ? at.row : at.column;
    choose(set, index + skipped(state.direction));
  } else {
    choose(pictureName(), view.tokens[pictureName()].prefix.length + at.row * area.columns + at.column);
  }
}

function step(across, down) {
  const set = sourceName(), tokens = view.tokens[set], first = skipped(state.direction);
  if (tokens.kind === "words") {
    const next = Math.min(tokens.words.length - 1, Math.max(first, state.token + across + down));
    return change({ token: next, map: "" });
  }
  const [rows, columns] = tokens.grid, patch = state.token - tokens.prefix.length;
  if (patch < 0) return change({ token: firstToken(set) < tokens.prefix.length ? tokens.prefix.length : firstToken(set), map: "" });
  const row = Math.min(rows - 1, Math.max(0, Math.floor(patch / columns) + down));
  const column = Math.min(columns - 1, Math.max(0, patch % columns + across));
  return change({ token: tokens.prefix.length + row * columns + column, map: "" });
}

const within = (value, count) => Math.min(count - 1, Math.max(0, value));
const moveLayer = (by) => change({ layer: within(state.layer + by, attention().layers.length), map: keepsLayer() ? state.map : "" });
const moveHead = (by) => change({ head: within(state.head + 1 + by, attention().heads + 1) - 1, map: "" });
const moveView = (by) => show(within(state.picture + by, content.views.length));

const KEYS = {
  ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
  "[": () => moveLayer(-1), "]": () => moveLayer(1), ",": () => moveHead(-1), ".": () => moveHead(1),
  c: () => {
    const name = pictureName(), index = name ? view.tokens[name].prefix.indexOf("class") : -1;
    if (index >= 0) choose(name, index);
  },
  t: () => turn(state.direction === "to" ? "by" : "to"),
  n: () => moveView(1), p: () => moveView(-1),
  "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const isField = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  const isTyped = event.ctrlKey || event.metaKey || event.altKey || $("help").open;
  if (!view || isTyped || (isField && event.key.startsWith("Arrow")) || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

let playing = 0;
function stop() {
  clearInterval(playing);
  playing = 0;
  $("play").textContent = "Play";
  $("play").setAttribute("aria-pressed", "false");
}

function play() {
  if (playing) return stop();
  const name = textName(), last = view.tokens[name].words.length - 1;
  const at = sourceName() === name ? state.token : last;
  choose(name, at >= last ? firstWord() : at);
  $("play").textContent = "Pause";
  $("play").setAttribute("aria-pressed", "true");
  playing = setInterval(() => {
    if (sourceName() !== name || state.token >= last) stop();
    else choose(name, state.token + 1);
  }, 700);
}

$("picker").addEventListener("pointermove", look);
$("picker").addEventListener("pointerleave", () => {
  if (preview === null) return;
  preview = null;
  renderSoon();
});
$("picker").addEventListener("click", (event) => {
  const index = patchAt(event);
  if (index !== null) choose(pictureName(), index);
});
$("map").addEventListener("pointermove", readOut);
$("map").addEventListener("pointerleave", () => { $("readout").textContent = ""; });
$("map").addEventListener("click", choosePoint);
$("scrubber").addEventListener("input", (event) => choose(textName(), Number(event.target.value)));
$("strength").addEventListener("input", (event) => {
  strength = Number(event.target.value) / 100;
  renderSoon();
});
$("sort").addEventListener("change", (event) => {
  sort = event.target.value;
  render();
});
$("play").addEventListener("click", play);
$("copy").addEventListener("click", copyLink);
$("export").addEventListener("click", save);
$("ask-help").addEventListener("click", () => $("help").showModal());
window.addEventListener("resize", () => view && renderSoon());
window.addEventListener("hashchange", readAddress);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (!view) return;
  renderSoon();
  drawThumbnailsSoon();
});

$("title").textContent = content.title;
buildStrip();
readAddress();

// For the console, and for tests: numbers as the page computes them, by position among the layers kept.
window.explorer = {
  state,
  row: (kind, layer, head, i) => Array.from(numbers.layers[kind][layer].row(head, i)),
  column: (kind, layer, head, j) => Array.from(numbers.layers[kind][layer].column(head, j)),
};
