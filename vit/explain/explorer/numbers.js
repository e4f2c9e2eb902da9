// From the bytes of the page to probabilities: softmax(q k^T / sqrt(K)), a row or a column at a time.
// Letters: H heads, N queries, M keys, K dim of one head. Everything is little-endian, as typed arrays are.
"use strict";

const MEAN = -1; // the number that stands for the mean of all heads

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// `count` numbers of so many bits, as `packed` of explorer.py wrote them, put into `out` as floats from `at` on. They stay
// whole numbers; their scale comes after the dot product.
function unpack(buffer, start, bits, out, at, count) {
  if (bits === 32) return out.set(new Float32Array(buffer, start, count), at);
  const bytes = new Uint8Array(buffer, start), half = 1 << (bits - 1), mask = (1 << bits) - 1;
  if (bits === 8) {
    for (let i = 0; i < count; i++) out[at + i] = bytes[i] - half;
    return;
  }
  for (let i = 0, next = 0, have = 0, value = 0; i < count; i++) {
    for (; have < bits; have += 8) value |= bytes[next++] << have;
    out[at + i] = (value & mask) - half;
    value >>>= bits;
    have -= bits;
  }
}

// One layer: what `encoded` of explorer.py wrote.
class Layer {
  constructor(attention, layer, buffer) {
    const { heads, n, m, dim, causal } = attention;
    Object.assign(this, { heads, n, m, dim, causal, number: layer.number });
    this.q = new Float32Array(heads * n * dim);
    this.k = new Float32Array(heads * m * dim);
    layer.bits.forEach((bits, head) => {
      unpack(buffer, layer.q[head], bits, this.q, head * n * dim, n * dim);
      unpack(buffer, layer.k[head], bits, this.k, head * m * dim, m * dim);
    });
    this.qScale = new Float32Array(buffer, layer.qScale, heads * n);
    this.kScale = new Float32Array(buffer, layer.kScale, heads * m);
    this.sums = new Float32Array(buffer, layer.sums, heads * n);
    this.mask = layer.mask && {
      shape: layer.mask.shape,
      bits: new Uint8Array(buffer, layer.mask.bits, Math.ceil(layer.mask.shape.reduce((a, b) => a * b) / 8)),
    };
  }

  allowed(head, i, j) {
    if (this.causal && j > i + this.m - this.n) return false;
    if (!this.mask) return true;
    const [heads, n, m] = this.mask.shape;
    const bit = ((heads > 1 ? head : 0) * n + (n > 1 ? i : 0)) * m + j;
    return (this.mask.bits[bit >> 3] >> (7 - (bit & 7)) & 1) === 1;
  }

  // What query i attends to, added to out [M] with a weight.
  addRow(head, i, out, weight) {
    const { dim, m, q, k, kScale } = this, own = (head * this.n + i) * dim;
    const scale = this.qScale[head * this.n + i], sum = this.sums[head * this.n + i];
    const free = !this.causal && !this.mask;
    for (let j = 0, at = head * m * dim; j < m; j++, at += dim) {
      if (!free && !this.allowed(head, i, j)) continue;
      let dot = 0;
      for (let d = 0; d < dim; d++) dot += q[own + d] * k[at + d];
      out[j] += weight * Math.exp(dot * scale * kScale[head * m + j] - sum);
    }
  }

  // How much each query attends to key j, added to out [N] with a weight.
  addColumn(head, j, out, weight) {
    const { dim, n, q, k, qScale, sums } = this, own = (head * this.m + j) * dim;
    const scale = this.kScale[head * this.m + j], free = !this.causal && !this.mask;
    for (let i = 0, at = head * n * dim; i < n; i++, at += dim) {
      if (!free && !this.allowed(head, i, j)) continue;
      let dot = 0;
      for (let d = 0; d < dim; d++) dot += k[own + d] * q[at + d];
      out[i] += weight * Math.exp(dot * scale * qScale[head * n + i] - sums[head * n + i]);
    }
  }

  _of(add, count, head, index) {
    const out = new Float32Array(count);
    if (head !== MEAN) add.call(this, head, index, out, 1);
    else for (let h = 0; h < this.heads; h++) add.call(this, h, index, out, 1 / this.heads);
    return out;
  }

  row(head, i) {
    return this._of(this.addRow, this.m, head, i);
  }

  column(head, j) {
    return this._of(this.addColumn, this.n, head, j);
  }
}

// The numbers of one view, decoded when it is first shown.
class Numbers {
  constructor(view, buffer) {
    this.layers = view.attentions.map((a) => a.layers.map((layer) => new Layer(a, layer, buffer)));
    this.maps = view.maps.map((map) => {
      const each = (l) => new Float32Array(buffer, map.values + 4 * l * map.count, map.count);
      return map.layers ? Array.from({ length: map.layers }, (_, l) => each(l)) : [each(0)];
    });
    const picture = Object.values(view.tokens).find((tokens) => tokens.kind === "patches");
    const patches = picture ? picture.grid[0] * picture.grid[1] : 0;
    this.answers = view.answers.map((answer) =>
      answer.values === null ? null : new Float32Array(buffer, answer.values, patches));
  }
}

const NEARLY_UNIFORM = 0.1; // as in vit/explain/pictures.py: the colors span at least this part of the largest value

// The values at both ends of the colors, and a note where a map says little. A difference is around 0, and is judged
// by the `largest` value of its two maps.
function range(values, difference, largest = 0) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const reach = Math.max(Math.abs(low), Math.abs(high)), spread = difference ? reach : high - low;
  largest = Math.max(largest, reach);
  if (largest === 0) return [difference ? -1 : 0, 1, "zero everywhere"];
  const least = NEARLY_UNIFORM * largest;
  const note = spread >= least ? "" : (difference ? "hardly a difference: at most" : "nearly uniform: values differ by") +
    ` ${Number((100 * spread / largest).toPrecision(2))} % of the largest${difference ? " of both maps" : ""}`;
  if (difference) return [-Math.max(reach, least), Math.max(reach, least), note];
  const margin = Math.max(0, least - spread) / 2;
  return [low - margin, high + margin, note];
}
