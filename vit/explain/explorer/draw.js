// From numbers to pixels: maps over a picture, matrices of words, thumbnails of all heads.
"use strict";

// Colours as 256 steps; in the byte order of ImageData.
class Colours {
  constructor(base64) {
    const rgb = bytesOf(base64);
    this.steps = new Uint32Array(256);
    for (let i = 0; i < 256; i++) {
      this.steps[i] = (255 << 24 | rgb[3 * i + 2] << 16 | rgb[3 * i + 1] << 8 | rgb[3 * i]) >>> 0;
    }
  }

  of(value, low, high) {
    const share = high > low ? (value - low) / (high - low) : 0;
    return this.steps[Math.max(0, Math.min(255, Math.round(255 * share)))];
  }

  css(value, low, high) {
    const c = this.of(value, low, high);
    return `rgb(${c & 255} ${c >> 8 & 255} ${c >> 16 & 255})`;
  }

  isDark(value, low, high) {
    const c = this.of(value, low, high);
    return 0.299 * (c & 255) + 0.587 * (c >> 8 & 255) + 0.114 * (c >> 16 & 255) < 140;
  }

  gradient() {
    const stops = [];
    for (let i = 0; i <= 16; i++) stops.push(this.css(i, 0, 16));
    return `linear-gradient(to right, ${stops.join(", ")})`;
  }
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

// A picture without its colours, so that those of a map are the only ones.
function greyOf(picture) {
  const canvas = canvasOf(picture.naturalWidth, picture.naturalHeight), context = canvas.getContext("2d");
  context.filter = "grayscale(1)"; // where a browser lacks filters, the map lies over the colours
  context.drawImage(picture, 0, 0);
  return canvas;
}

// Values [rows, columns] as a picture of one pixel each.
function tile(values, columns, rows, colours, [low, high]) {
  const canvas = canvasOf(columns, rows), context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colours.of(values[i], low, high);
  context.putImageData(image, 0, 0);
  return canvas;
}

function outline(context, x, y, width, height, scale) {
  for (const [colour, line] of [["#000", 4], ["#fff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line * scale;
    context.strokeRect(x, y, width, height);
  }
}

// A map over its picture; `strength` 0..1 is how much of the picture the colours cover.
function drawMap(context, box, picture, values, grid, colours, limits, strength) {
  const { x, y, width, height } = box, [rows, columns] = grid;
  context.imageSmoothingEnabled = true;
  context.globalAlpha = 1;
  context.drawImage(picture, x, y, width, height);
  context.imageSmoothingEnabled = false;
  context.globalAlpha = strength;
  context.drawImage(tile(values, columns, rows, colours, limits), x, y, width, height);
  context.globalAlpha = 1;
}

// Lines between patches, and a frame around the one that asks.
function drawGrid(context, box, grid, colour, scale) {
  const { x, y, width, height } = box, [rows, columns] = grid;
  if (Math.min(width / columns, height / rows) < 6 * scale) return; // a net of lines would hide the picture
  context.strokeStyle = colour;
  context.lineWidth = scale;
  context.beginPath();
  for (let column = 1; column < columns; column++) {
    const at = Math.round(x + column * width / columns) + scale / 2;
    context.moveTo(at, y);
    context.lineTo(at, y + height);
  }
  for (let row = 1; row < rows; row++) {
    const at = Math.round(y + row * height / rows) + scale / 2;
    context.moveTo(x, at);
    context.lineTo(x + width, at);
  }
  context.stroke();
}

function drawPatch(context, box, grid, patch, scale) {
  const [rows, columns] = grid, width = box.width / columns, height = box.height / rows;
  const column = patch % columns, row = (patch - column) / columns;
  outline(context, box.x + column * width, box.y + row * height, width, height, scale);
}

// Where words may not look: a quiet hatching.
function hatching(ink, paper, scale) {
  const size = 8 * scale, canvas = canvasOf(size, size), context = canvas.getContext("2d");
  context.fillStyle = paper;
  context.fillRect(0, 0, size, size);
  context.strokeStyle = ink;
  context.lineWidth = scale;
  for (const shift of [-size, 0, size]) {
    context.beginPath();
    context.moveTo(shift, size);
    context.lineTo(shift + size, 0);
    context.stroke();
  }
  return canvas;
}

function drawMatrix(context, box, matrix, n, m, colours, limits, isAllowed, ink, paper, scale) {
  context.imageSmoothingEnabled = false;
  context.drawImage(tile(matrix, m, n, colours, limits), box.x, box.y, box.width, box.height);
  context.fillStyle = context.createPattern(hatching(ink, paper, scale), "repeat");
  const left = (j) => Math.round(box.x + j * box.width / m), top = (i) => Math.round(box.y + i * box.height / n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < m; j++) {
      if (isAllowed(i, j)) continue;
      const first = j;
      while (j + 1 < m && !isAllowed(i, j + 1)) j++;
      context.fillRect(left(first), top(i), left(j + 1) - left(first), top(i + 1) - top(i));
    }
  }
}

// A dot a head: its figure upwards, its layer to the right; the chosen ones larger.
function drawDots(context, width, height, figures, labels, isChosen, inks, scale) {
  const values = figures.flat().filter((value) => value !== null), most = Math.max(...values, 1e-9);
  const left = 34 * scale, top = 10 * scale, bottom = height - 20 * scale, right = width - 6 * scale;
  const x = (layer) => left + (layer + 0.5) * (right - left) / figures.length, y = (value) => bottom - value / most * (bottom - top);
  context.clearRect(0, 0, width, height);
  context.font = `${11 * scale}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.strokeStyle = inks.line;
  context.lineWidth = scale;
  context.fillStyle = inks.quiet;
  context.textAlign = "right";
  for (const share of [0, 0.5, 1]) {
    context.beginPath();
    context.moveTo(left, Math.round(y(share * most)) + scale / 2);
    context.lineTo(right, Math.round(y(share * most)) + scale / 2);
    context.stroke();
    context.fillText(shown(Number((share * most).toPrecision(2))), left - 6 * scale, y(share * most));
  }
  context.textAlign = "center";
  const every = Math.ceil(figures.length / 16);
  labels.forEach((label, layer) => layer % every === 0 && context.fillText(label, x(layer), height - 8 * scale));
  for (const wanted of [false, true]) {
    figures.forEach((heads, layer) => heads.forEach((value, head) => {
      if (value === null || isChosen(layer, head) !== wanted) return;
      context.beginPath();
      context.arc(x(layer), y(value), (wanted ? 4.5 : 2.5) * scale, 0, 2 * Math.PI);
      context.fillStyle = wanted ? inks.accent : inks.quiet;
      context.globalAlpha = wanted ? 1 : 0.6;
      context.fill();
    }));
  }
  context.globalAlpha = 1;
}

// A number with as many digits as one can use; 0 where it is nothing beside `reach`.
function shown(value, reach = 0) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size <= 1e-6 * reach || size === 0) return "0";
  if (size < 0.0001 || size >= 100000) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}
