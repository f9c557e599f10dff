"use strict";
/* Text to ids and back, as the package bpe does it, from the same JSON (`Tokenizer.to_dict`).

   Three kinds: "bpe" (byte-level byte-pair encoding), "char" (a token a character), "reduced" (the
   most frequent tokens of a bpe, the rest as one unknown token). */

const Tokenizers = (() => {
  // \s of the patterns is Unicode's White_Space; JavaScript's own \s differs in U+0085 and U+FEFF.
  const SPACE = "\\p{White_Space}";
  const OTHER = `[^${SPACE}\\p{L}\\p{N}]`;
  const PATTERNS = {
    gpt2: `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?${OTHER}+|${SPACE}+(?!\\P{White_Space})|${SPACE}+`,
    gpt4:
      `'(?:[sSſdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}` +
      `| ?${OTHER}+[\\r\\n]*|${SPACE}+$|${SPACE}*[\\r\\n]|${SPACE}+(?!\\P{White_Space})|${SPACE}`,
    none: "[^]+",
  };

  const utf8 = (text) => new TextEncoder().encode(text); // a lone surrogate becomes U+FFFD
  const text = (bytes) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);

  /** GPT-2's alphabet, a visible character for each byte: {character: byte}. */
  function alphabet() {
    const visible = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const map = new Map();
    let next = 256;
    for (let byte = 0; byte < 256; byte++) map.set(String.fromCharCode(visible(byte) ? byte : next++), byte);
    return map;
  }

  class Tokenizer {
    /** What all kinds share; a kind sets bytesOf, special, separator and defines `ordinary(text)`. */
    constructor(special, separator) {
      this.special = special;
      this.separator = separator ?? null;
    }

    get size() {
      return this.bytesOf.length;
    }

    /** The ids of a text in which special tokens are tokens. */
    encode(given) {
      const names = Object.keys(this.special).sort((a, b) => b.length - a.length);
      const whole = text(utf8(given));
      if (!names.length) return this.ordinary(whole);
      const literal = (name) => name.replace(/[.*+?^${}()|[\]\\\/-]/g, "\\$&");
      const pieces = whole.split(new RegExp(`(${names.map(literal).join("|")})`));
      return pieces.flatMap((piece, i) => (i % 2 ? [this.special[piece]] : this.ordinary(piece)));
    }

    /** The text of ids; bytes that are no UTF-8 become U+FFFD. */
    decode(ids) {
      const parts = ids.map((id) => this.bytesOf[id] ?? new Uint8Array());
      const bytes = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
      let at = 0;
      for (const part of parts) { bytes.set(part, at); at += part.length; }
      return text(bytes);
    }
  }

  class Bytes extends Tokenizer {
    constructor(data) {
      super(data.special_tokens, data.special_tokens["<|endoftext|>"]);
      this.data = data;
      const byte = alphabet();
      this.bytesOf = data.vocab.map((t) => Uint8Array.from(t ?? "", (c) => byte.get(c)));
      for (const [name, id] of Object.entries(data.special_tokens)) this.bytesOf[id] = utf8(name);
      this.bytesOf = Array.from(this.bytesOf, (bytes) => bytes ?? new Uint8Array());
      const key = (bytes) => bytes.join(","); // of a token, to find its id by its bytes
      this.ids = new Map();
      data.vocab.forEach((t, id) => { if (t !== null) this.ids.set(key(this.bytesOf[id]), id); });
      this.byte = Array.from({ length: 256 }, (_, b) => this.ids.get(String(b)));
      this.find = (bytes) => this.ids.get(key(bytes));
      this.ranks = new Map(); // "left right": [rank, id of both together]
      const first = new Map();
      data.merges.forEach(([left, right], rank) => {
        const joined = this.find([...this.bytesOf[left], ...this.bytesOf[right]]);
        if (!first.has(joined)) first.set(joined, rank);
        this.ranks.set(`${left} ${right}`, [data.by_token ? first.get(joined) : rank, joined]);
      });
      if (!Object.hasOwn(PATTERNS, data.pattern)) {
        throw new Error("this tokenizer cuts text by a pattern of its own, which the page cannot read");
      }
      this.pattern = new RegExp(PATTERNS[data.pattern], "gu");
    }

    chunks(given) {
      return given.match(this.pattern) ?? [];
    }

    ordinary(given) {
      return this.chunks(given).flatMap((chunk) => this.tree(chunk).map((node) => node.id));
    }

    /** How a chunk is merged: its tokens, each {id, rank, parts}, where `parts` are the two tokens
        that were joined, or none for a byte. The pair of the lowest rank is merged, the leftmost
        first, until no pair has a rank. */
    tree(chunk) {
      const bytes = utf8(chunk);
      const leaf = (id) => ({ id, rank: null, parts: [] });
      const whole = this.data.whole_chunks ? this.find(bytes) : undefined;
      if (whole !== undefined) return [leaf(whole)];
      const nodes = this.data.characters
        ? Array.from(chunk).flatMap((c) => {
            const id = this.find(utf8(c));
            return id === undefined ? Array.from(utf8(c), (b) => leaf(this.byte[b])) : [leaf(id)];
          })
        : Array.from(bytes, (b) => leaf(this.byte[b]));
      for (;;) {
        let best = null, at = -1;
        for (let i = 0; i + 1 < nodes.length; i++) {
          const found = this.ranks.get(`${nodes[i].id} ${nodes[i + 1].id}`);
          if (found && (!best || found[0] < best[0])) { best = found; at = i; }
        }
        if (!best) return nodes;
        nodes.splice(at, 2, { id: best[1], rank: best[0], parts: [nodes[at], nodes[at + 1]] });
      }
    }
  }

  class Characters extends Tokenizer {
    constructor(data) {
      super(data.control_tokens ? { "<unk>": 0, "<s>": 1, "</s>": 2 } : {}, data.control_tokens ? 1 : null);
      this.data = data;
      const first = data.control_tokens ? 3 : 0;
      this.bytesOf = Array.from({ length: data.vocab_size }, () => new Uint8Array());
      this.ids = new Map();
      Array.from(data.characters).forEach((character, i) => {
        this.ids.set(character, first + i);
        this.bytesOf[first + i] = utf8(character);
      });
    }

    ordinary(given) {
      return Array.from(given, (character) => {
        const id = this.ids.get(character) ?? (this.data.control_tokens ? 0 : undefined);
        if (id === undefined) throw new Error(`${JSON.stringify(character)} is not among the characters of this model`);
        return id;
      });
    }
  }

  class Reduced extends Tokenizer {
    constructor(data) {
      const base = new Bytes(data.base), fresh = new Map(data.kept.map((id, i) => [id, i]));
      const kept = Object.entries(base.special).filter(([, id]) => fresh.has(id));
      super(Object.fromEntries(kept.map(([name, id]) => [name, fresh.get(id)])), fresh.get(base.separator));
      this.data = data;
      this.base = base;
      this.fresh = fresh;
      this.bytesOf = [...data.kept.map((id) => base.bytesOf[id]), utf8("\ufffd")];
    }

    ordinary(given) {
      return this.base.ordinary(given).map((id) => this.fresh.get(id) ?? this.data.kept.length);
    }
  }

  const KINDS = { bpe: Bytes, char: Characters, reduced: Reduced };

  return { make: (data) => new KINDS[data.kind](data) };
})();

if (typeof module !== "undefined") module.exports = Tokenizers;
