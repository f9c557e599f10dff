"use strict";
/* The model in plain JavaScript: tinygpt/model/transformer.py line by line, without its backward.

   An array is a Float32Array, row after row, and its shape stands in a comment: T tokens, S tokens
   with those in the cache, D the width of the stream, H heads of width hd, KV key/value heads,
   V tokens of the vocabulary. Sums are taken in float64, what is kept is float32.

   Whoever wants to look inside gives a function look(name, array, shape). It is shown every named
   array, may change the numbers in place, and the pass goes on with what it left there. */

const Forward = (() => {
  const float32 = (n) => new Float32Array(n);

  function dot(a, i, b, j, n) {
    // Four sums at a time: a processor adds them side by side.
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, k = 0;
    for (; k + 3 < n; k += 4) {
      s0 += a[i + k] * b[j + k];
      s1 += a[i + k + 1] * b[j + k + 1];
      s2 += a[i + k + 2] * b[j + k + 2];
      s3 += a[i + k + 3] * b[j + k + 3];
    }
    for (; k < n; k++) s0 += a[i + k] * b[j + k];
    return s0 + s1 + s2 + s3;
  }

  /** x (rows, inputs) times weight (outputs, inputs) transposed, plus bias (outputs): (rows, outputs). */
  function linear(x, rows, inputs, weight, bias) {
    const outputs = weight.length / inputs;
    const y = float32(rows * outputs);
    for (let o = 0; o < outputs; o++) {
      const b = bias ? bias[o] : 0;
      for (let t = 0; t < rows; t++) y[t * outputs + o] = dot(x, t * inputs, weight, o * inputs, inputs) + b;
    }
    return y;
  }

  /** Each row of x (rows, D) brought to one size: by its mean and deviation, or (rms) its size alone. */
  function norm(x, rows, c, weight, bias) {
    const D = c.d_model, y = float32(x.length);
    for (let t = 0; t < rows; t++) {
      let mean = 0, square = 0;
      if (c.norm === "layer") {
        for (let i = 0; i < D; i++) mean += x[t * D + i];
        mean /= D;
      }
      for (let i = 0; i < D; i++) square += (x[t * D + i] - mean) ** 2;
      const scale = 1 / Math.sqrt(square / D + c.norm_eps);
      for (let i = 0; i < D; i++) y[t * D + i] = (x[t * D + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
    }
    return y;
  }

  /** erf by a series of positive terms: 2/sqrt(pi) exp(-x^2) sum of 2^n x^(2n+1) / (1 3 5 ... (2n+1)). */
  function erf(x) {
    if (Math.abs(x) > 6) return Math.sign(x);
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }

  const ACTIVATIONS = {
    gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
    gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
    swiglu: (x) => x / (1 + Math.exp(-x)), // of the gate
  };

  /** cos and sin of the angles t theta^(-2n / width), (length, width / 2) each. */
  function angles(length, width, theta) {
    const half = width / 2, cos = float32(length * half), sin = float32(length * half);
    for (let t = 0; t < length; t++) {
      for (let n = 0; n < half; n++) {
        const angle = t * theta ** ((-2 * n) / width);
        cos[t * half + n] = Math.cos(angle);
        sin[t * half + n] = Math.sin(angle);
      }
    }
    return { cos, sin };
  }

  /** How much a head's scores fall for each token of distance (ALiBi), one number a head. */
  function slopes(heads) {
    const geometric = (n) => Array.from({ length: n }, (_, i) => 2 ** ((-8 / n) * (i + 1)));
    const below = 2 ** Math.floor(Math.log2(heads));
    const between = geometric(2 * below).filter((_, i) => i % 2 === 0);
    return [...geometric(below), ...between.slice(0, heads - below)];
  }

  /** Numbers to probabilities, in place: exp(x) over the sum of all exp, from `start` to `end`. */
  function softmax(x, start = 0, end = x.length) {
    let top = -Infinity, sum = 0;
    for (let i = start; i < end; i++) top = Math.max(top, x[i]);
    for (let i = start; i < end; i++) sum += x[i] = Math.exp(x[i] - top);
    for (let i = start; i < end; i++) x[i] /= sum;
    return x;
  }

  const KNOWN = {
    norm: ["layer", "rms"],
    positions: ["learned", "sinusoidal", "rope", "alibi"],
    ffn: Object.keys(ACTIVATIONS),
    head: ["tied", "untied", "pinv"],
  };

  class Model {
    /** `config` as tinygpt writes it; `weights` {name: Float32Array}. "head.weight" (V, D) is there
        for an untied head, and for a pseudo-inverse one, which is computed where the page is made. */
    constructor(config, weights) {
      this.config = config;
      this.weights = weights;
      this.hd = config.d_model / config.n_head;
      this.kv = config.n_kv_head || config.n_head;
      for (const [key, values] of Object.entries(KNOWN)) {
        if (!values.includes(config[key])) throw new Error(`${key}: ${config[key]} is not known to this page`);
      }
      if (config.positions === "rope") this.rope = angles(config.context, this.hd, config.rope_theta);
      if (config.positions === "sinusoidal") this.waves = angles(config.context, config.d_model, 10000);
      if (config.positions === "alibi") this.slopes = slopes(config.n_head);
    }

    /** How many tokens a query of this layer sees; Infinity: itself and all before it. */
    window(layer) {
      return this.config.windows[layer % this.config.windows.length] || Infinity;
    }

    /** Keys and values of the tokens so far. Set `length` back, and what came after is forgotten. */
    cache() {
      const size = this.config.context * this.kv * this.hd;
      const arrays = Array.from({ length: this.config.n_layer }, () => ({ k: float32(size), v: float32(size) }));
      return { length: 0, arrays };
    }

    /** The stream (T, D) after the last norm, of `ids` that follow what is in the cache. */
    hidden(ids, { cache = this.cache(), look = () => {} } = {}) {
      const { config: c, weights: w } = this;
      const T = ids.length, D = c.d_model, start = cache.length;
      if (start + T > c.context) throw new RangeError(`${start + T} tokens exceed the context of ${c.context}`);
      const x = float32(T * D);
      for (let t = 0; t < T; t++) {
        for (let i = 0; i < D; i++) {
          x[t * D + i] = w["embedding.weight"][ids[t] * D + i] + this.position(start + t, i);
        }
      }
      look("embedding", x, [T, D]);
      for (let layer = 0; layer < c.n_layer; layer++) {
        const name = `blocks.${layer}`;
        const add = (branch, part) => {
          look(`${name}.${part}`, branch, [T, D]);
          for (let i = 0; i < x.length; i++) x[i] += branch[i];
        };
        add(this.attention(this.norm(x, T, `${name}.attn_norm`), T, layer, cache, look), "attn");
        add(this.feedForward(this.norm(x, T, `${name}.ffn_norm`), T, layer), "ffn");
        look(name, x, [T, D]);
      }
      cache.length = start + T;
      return this.norm(x, T, "norm");
    }

    /** Logits (T, V) of `ids`; options as for `hidden`. `last`: of the last token only, (1, V). */
    logits(ids, { last = false, ...options } = {}) {
      const D = this.config.d_model, x = this.hidden(ids, options);
      return last ? this.unembed(x.subarray(x.length - D), 1) : this.unembed(x, ids.length);
    }

    /** Final states (T, D), normed, compared with the row of every token: (T, V). */
    unembed(x, T) {
      const head = this.config.head === "tied" ? "embedding.weight" : "head.weight";
      return linear(x, T, this.config.d_model, this.weights[head]);
    }

    norm(x, T, name) {
      return norm(x, T, this.config, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
    }

    linear(x, T, inputs, name) {
      return linear(x, T, inputs, this.weights[`${name}.weight`], this.weights[`${name}.bias`]);
    }

    /** What is added to the embedding at place `t` and column `i`. */
    position(t, i) {
      const D = this.config.d_model, half = D / 2;
      if (this.config.positions === "learned") return this.weights["positions.weight"][t * D + i];
      if (!this.waves) return 0;
      const wave = i % 2 ? this.waves.cos : this.waves.sin;
      return Math.fround(0.02 * wave[t * half + (i >> 1)]);
    }

    /** Each token asks (q), those before it answer (k) and hand over (v): x (T, D) -> (T, D). */
    attention(x, T, layer, cache, look) {
      const { config: c, hd, kv: KV } = this, H = c.n_head, D = c.d_model;
      const name = `blocks.${layer}.attn`, start = cache.length, S = start + T;
      const qkv = this.linear(x, T, D, `${name}.qkv`); // (T, H + 2 KV, hd)
      const width = (H + 2 * KV) * hd, { k, v } = cache.arrays[layer]; // (context, KV, hd) each
      for (let t = 0; t < T; t++) {
        if (this.rope) for (let h = 0; h < H + KV; h++) this.turn(qkv, t * width + h * hd, start + t);
        k.set(qkv.subarray(t * width + H * hd, t * width + (H + KV) * hd), (start + t) * KV * hd);
        v.set(qkv.subarray(t * width + (H + KV) * hd, (t + 1) * width), (start + t) * KV * hd);
      }
      const scale = c.scale_attention ? 1 / Math.sqrt(hd) : 1;
      const weights = float32(H * T * S); // rows add up to 1
      for (let h = 0; h < H; h++) {
        const group = Math.floor((h * KV) / H) * hd; // the head of keys and values that h shares
        for (let t = 0; t < T; t++) {
          const row = (h * T + t) * S, place = start + t;
          const first = Math.max(0, place - this.window(layer) + 1); // and nobody sees the future
          for (let s = first; s <= place; s++) {
            const score = dot(qkv, t * width + h * hd, k, s * KV * hd + group, hd) * scale;
            weights[row + s] = score - (this.slopes ? this.slopes[h] * (place - s) : 0);
          }
          softmax(weights, row + first, row + place + 1);
        }
      }
      look(`${name}.weights`, weights, [H, T, S]);
      const heads = float32(H * T * hd);
      for (let h = 0; h < H; h++) {
        const group = Math.floor((h * KV) / H) * hd;
        for (let t = 0; t < T; t++) {
          for (let s = 0; s <= start + t; s++) {
            const weight = weights[(h * T + t) * S + s];
            if (weight) for (let i = 0; i < hd; i++) heads[(h * T + t) * hd + i] += weight * v[s * KV * hd + group + i];
          }
        }
      }
      look(`${name}.heads`, heads, [H, T, hd]);
      const y = float32(T * D); // the heads of a token side by side
      for (let h = 0; h < H; h++) {
        for (let t = 0; t < T; t++) y.set(heads.subarray((h * T + t) * hd, (h * T + t + 1) * hd), t * D + h * hd);
      }
      return this.linear(y, T, D, `${name}.out`);
    }

    /** Turn a head's pairs of numbers (2n, 2n + 1) by the angles of place t, in place (RoPE). */
    turn(x, at, t) {
      const { cos, sin } = this.rope, half = this.hd / 2;
      for (let n = 0; n < half; n++) {
        const c = cos[t * half + n], s = sin[t * half + n], even = x[at + 2 * n], odd = x[at + 2 * n + 1];
        x[at + 2 * n] = even * c - odd * s;
        x[at + 2 * n + 1] = even * s + odd * c;
      }
    }

    /** Each token for itself, wider, through an activation, and back: x (T, D) -> (T, D). */
    feedForward(x, T, layer) {
      const c = this.config, name = `blocks.${layer}.ffn`, activation = ACTIVATIONS[c.ffn];
      let h = this.linear(x, T, c.d_model, `${name}.up`); // (T, d_ff)
      if (c.ffn === "swiglu") {
        const gate = this.linear(x, T, c.d_model, `${name}.gate`);
        h = h.map((value, i) => activation(gate[i]) * value);
      } else {
        h = h.map(activation);
      }
      return this.linear(h, T, c.d_ff, `${name}.down`);
    }
  }

  /** A look that takes out sublayers ("blocks.0.ffn") and single heads ("blocks.0.attn.2"), by
      making what they add to the stream zero. `then` may look as well, after that. */
  function ablation(names, then = () => {}) {
    const gone = new Set(names);
    return (name, x, shape) => {
      if (gone.has(name)) x.fill(0);
      const layer = name.endsWith(".heads") ? name.slice(0, -".heads".length) : null;
      for (let h = 0; layer && h < shape[0]; h++) {
        if (gone.has(`${layer}.${h}`)) x.fill(0, h * shape[1] * shape[2], (h + 1) * shape[1] * shape[2]);
      }
      then(name, x, shape);
    };
  }

  /** Probabilities with which tokens are drawn from `logits` (V), as tinygpt/model/drawing.py has them:
      divided by the temperature (0: the likeliest alone), the `topK` likeliest (0: all), and of those
      the fewest that together have a probability of `topP`. */
  function probabilities(logits, temperature, topK, topP) {
    let top = 0;
    logits.forEach((z, i) => { if (z > logits[top]) top = i; });
    if (temperature < 3e-39) return Float64Array.from(logits, (_, i) => (i === top ? 1 : 0));
    const p = Float64Array.from(logits, (z) => (z - logits[top]) / temperature);
    if (topK > 0 && topK < p.length) {
      const least = p.slice().sort()[p.length - topK];
      p.forEach((z, i) => { if (z < least) p[i] = -Infinity; });
    }
    softmax(p);
    if (topP < 1) {
      const order = p.slice().sort().reverse();
      let sum = 0, last = 0;
      while (last < order.length && (sum += order[last]) < topP) last++;
      const least = order[Math.min(last, order.length - 1)];
      let kept = 0;
      p.forEach((value, i) => { kept += p[i] = value < least ? 0 : value; });
      p.forEach((value, i) => { p[i] = value / kept; });
    }
    return p;
  }

  /** The token at which the running sum of `p` passes the number `u` from 0 to 1. */
  function draw(p, u) {
    let sum = 0, last = 0;
    for (let i = 0; i < p.length; i++) {
      if (!p[i]) continue;
      last = i;
      if ((sum += p[i]) > u) break;
    }
    return last;
  }

  /** Numbers from 0 to 1 that a seed decides: Park and Miller's generator. */
  function random(seed) {
    let state = seed % 2147483647 || 1;
    const next = () => (state = (state * 48271) % 2147483647) / 2147483647;
    next(); // the first is small for a small seed
    return next;
  }

  /** Tokens after `ids`, one by one without an end: {id, logits it was drawn from (V), dropped}.
      `pick(logits)` draws. A context that is full loses its older half, and the newer is processed
      again in one pass: tinygpt/model/decode.py's "drop". `dropped` says how many tokens that were. */
  function* continuation(model, ids, V, pick, look) {
    const { context } = model.config, window = ids.slice(-context);
    let cache = model.cache(), fresh = window, dropped = 0;
    for (;;) {
      const logits = model.logits(fresh, { cache, look, last: true }).subarray(0, V);
      const id = pick(logits);
      yield { id, logits, dropped };
      window.push(id);
      fresh = [id];
      dropped = 0;
      if (window.length > context) {
        dropped = window.splice(0, window.length - (context - (context >> 1))).length;
        cache = model.cache();
        fresh = window;
      }
    }
  }

  /** {name: Float32Array} of what the page holds: base64 of little-endian numbers, each tensor with
      its kind; those of int8 count in the scale of their row. */
  function unpack({ tensors, scales }) {
    const entries = Object.entries(tensors).map(([name, [kind, text]]) => {
      const values = numbers(text, kind);
      if (scales[name]) {
        const scale = numbers(scales[name], "float32"), width = values.length / scale.length;
        for (let i = 0; i < values.length; i++) values[i] *= scale[Math.floor(i / width)];
      }
      return [name, values];
    });
    return Object.fromEntries(entries);
  }

  const READERS = {
    float32: [4, (view, at) => view.getFloat32(at, true)],
    float16: [2, (view, at) => half(view.getUint16(at, true))],
    int8: [1, (view, at) => view.getInt8(at)],
  };

  function numbers(base64, kind) {
    const text = atob(base64), bytes = new Uint8Array(text.length), [size, read] = READERS[kind];
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const view = new DataView(bytes.buffer), out = float32(bytes.length / size);
    for (let i = 0; i < out.length; i++) out[i] = read(view, i * size);
    return out;
  }

  /** The number of a float16's 16 bits: a sign, five bits of exponent, ten of fraction. */
  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
  }

  return { Model, ablation, continuation, probabilities, draw, random, softmax, unpack, numbers };
})();

if (typeof module !== "undefined") module.exports = Forward;
