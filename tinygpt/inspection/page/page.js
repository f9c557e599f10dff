"use strict";
/* What the page does with its data, by section. Text of tokens and samples goes in as text alone,
   never as HTML. */

(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);

  // ------------------------------------------------------------------------- small helpers

  /** An element: el("td", {class: "x", onclick: f}, "text", other). */
  function el(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }
  function svg(tag, attributes = {}, ...children) {
    return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  }
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }
  function rows(table, caption, head, body) {
    const header = el("tr", {}, ...head.map((cell) => el("th", { scope: "col" }, cell)));
    const lines = body.map(([first, ...rest]) =>
      el("tr", {}, el("th", { scope: "row" }, first), ...rest.map((cell) => el("td", {}, cell))));
    table.replaceChildren(el("caption", {}, caption), el("thead", {}, header), el("tbody", {}, ...lines));
  }
  const number = (v, digits = 3) => (v === null || !isFinite(v) ? "–" : String(Number(v.toPrecision(digits))));
  const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : `${(100 * p).toPrecision(2)} %`);
  const short = (v) => {
    const [unit, letter] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([u]) => Math.abs(v) >= u) ?? [1, ""];
    return number(v / unit, 3) + letter;
  };
  const bar = (share) => el("span", { class: "bar", style: `width:${(8 * Math.min(share, 1)).toFixed(2)}rem` });
  const cell = (...children) => { const box = new DocumentFragment(); box.append(...children); return box; };
  const breathe = () => new Promise((done) => setTimeout(done)); // so that the browser can paint

  // Canvases hold the colours that they were drawn with: these draw them again.
  const painters = [];
  const repaint = () => painters.forEach((paint) => paint());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  // ------------------------------------------------------------------------------- the run

  const CHARTS = [
    ["Loss, nats per token", "loss"],
    ["Learning rate", "lr"],
    ["Gradient norm, before it is cut", "grad_norm"],
    ["Tokens a second", "rate"],
  ];

  /** The mean of each value and those around it, `width` to either side; null is passed over. */
  function smoothed(values, width) {
    return values.map((_, i) => {
      const near = values.slice(Math.max(0, i - width), i + width + 1).filter((v) => v !== null);
      return near.length ? near.reduce((a, b) => a + b, 0) / near.length : null;
    });
  }

  /** Round numbers between low and high, some four of them. */
  function ticks(low, high) {
    const raw = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw) ?? 10 * power;
    const first = Math.ceil(low / step); // counted, not added up: a step may vanish beside a number
    return Array.from({ length: 7 }, (_, i) => (first + i) * step || 0).filter((v) => v <= high + step / 1e6);
  }

  /** A chart: series are {name, x, y, kind}, where kind "raw" is a pale line that has no name. */
  function chart(title, xName, series, marks) {
    const W = 480, H = 260, left = 52, right = 8, top = 8, bottom = 34;
    const points = series.flatMap((s) => s.x.map((x, i) => [x, s.y[i]])).filter(([x, y]) => x !== null && y !== null);
    if (!points.length) return null;
    const bounds = (k) => points.reduce(([a, b], p) => [Math.min(a, p[k]), Math.max(b, p[k])], [Infinity, -Infinity]);
    const [x0, x1] = bounds(0);
    let [y0, y1] = bounds(1);
    if (y1 - y0 <= 1e-9 * Math.max(Math.abs(y0), Math.abs(y1))) { y0 -= Math.abs(y0) / 2 || 1; y1 += Math.abs(y1) / 2 || 1; }
    const X = (x) => left + ((x - x0) / (x1 - x0 || 1)) * (W - left - right);
    const Y = (y) => H - bottom - ((y - y0) / (y1 - y0)) * (H - top - bottom);
    const said = series.filter((s) => s.kind !== "raw").map((s) => {
      const seen = s.y.filter((v) => v !== null);
      return `${s.name}: first ${number(seen[0])}, last ${number(seen.at(-1))}, lowest ${number(Math.min(...seen))}, highest ${number(Math.max(...seen))}`;
    });
    const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: 0, "aria-label": `${title}. ${said.join(". ")}.` });
    for (const y of ticks(y0, y1)) {
      picture.append(svg("line", { class: "grid", x1: left, x2: W - right, y1: Y(y), y2: Y(y) }),
        svg("text", { x: left - 5, y: Y(y) + 4, "text-anchor": "end" }, short(y)));
    }
    for (const x of ticks(x0, x1)) {
      picture.append(svg("text", { x: X(x), y: H - bottom + 16, "text-anchor": X(x) > W - 30 ? "end" : "middle" }, short(x)));
    }
    picture.append(svg("text", { x: (left + W) / 2, y: H - 3, "text-anchor": "middle" }, xName));
    const apart = []; // marks that would lie on each other are one
    for (const { x, name } of marks.filter((m) => m.x >= x0 && m.x <= x1).sort((a, b) => a.x - b.x)) {
      const last = apart.at(-1);
      if (last && X(x) - X(last.x) < 6) last.names.push(name);
      else apart.push({ x, names: [name] });
    }
    apart.forEach(({ x, names }, i) => {
      const name = names.join(", "), y = top + 10 + 13 * (i % 3);
      picture.append(svg("line", { class: "mark", x1: X(x), x2: X(x), y1: top, y2: H - bottom }, svg("title", {}, name)),
        svg("text", X(x) > W - 90 ? { x: X(x) - 3, y, "text-anchor": "end" } : { x: X(x) + 3, y }, name));
    });
    for (const s of series) {
      let path = "", pen = "M";
      s.x.forEach((x, i) => {
        if (x === null || s.y[i] === null) { pen = "M"; return; }
        path += `${pen}${X(x).toFixed(1)},${Y(s.y[i]).toFixed(1)}`;
        pen = "L";
      });
      picture.append(svg("path", { class: `s${s.index % 4} ${s.kind ?? ""}`, d: path }));
      if (s.kind === "dots") s.x.forEach((x, i) => {
        if (x !== null && s.y[i] !== null) picture.append(svg("circle", { class: `s${s.index % 4}`, cx: X(x), cy: Y(s.y[i]), r: 2.5, fill: "currentColor" }));
      });
    }
    const cursor = svg("line", { class: "cursor", y1: top, y2: H - bottom, visibility: "hidden" });
    const read = el("p", { class: "hint", role: "status" });
    picture.append(cursor);
    const named = series.filter((s) => s.kind !== "raw");
    const places = named.reduce((a, b) => (b.x.length > a.x.length ? b : a)).x;
    let at = places.length - 1;
    const show = (i) => {
      at = Math.max(0, Math.min(places.length - 1, i));
      const x = places[at];
      cursor.setAttribute("x1", X(x));
      cursor.setAttribute("x2", X(x));
      cursor.setAttribute("visibility", "visible");
      const nearest = (s) => s.x.reduce((best, v, j) => (Math.abs(v - x) < Math.abs(s.x[best] - x) ? j : best), 0);
      read.textContent = `${xName} ${short(x)}: ` + named.map((s) => `${s.name} ${number(s.y[nearest(s)], 4)}`).join(", ");
    };
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (!move) return;
      event.preventDefault();
      show(at + move);
    });
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      const x = x0 + ((((event.clientX - box.left) / box.width) * W - left) / (W - left - right)) * (x1 - x0);
      show(places.reduce((best, v, i) => (Math.abs(v - x) < Math.abs(places[best] - x) ? i : best), 0));
    });
    const key = named.length < 2 ? [] : named.map((s) =>
      el("span", { class: "key" }, svg("svg", { viewBox: "0 0 40 8", "aria-hidden": "true" },
        svg("path", { class: `s${s.index % 4}`, d: "M0,4h40", "stroke-width": 2 })), s.name));
    return el("figure", { class: "chart" }, el("figcaption", {}, title), picture, el("div", {}, ...key), read);
  }

  /** Where on the axis `key` an event lies that the log gives by its step. */
  function place(run, event, key) {
    if (key === "step" || event[key] !== undefined) return event[key];
    const i = run.curves.step.findIndex((step) => step >= event.step);
    return i < 0 ? run.curves[key].at(-1) : run.curves[key][i];
  }

  function drawCurves() {
    const key = $("axis").value, width = Number($("smooth").value), xName = $("axis").selectedOptions[0].text;
    $("smooth-out").textContent = width ? `${2 * width + 1} points` : "none";
    const runs = data.runs.filter((run) => run.curves.step);
    const marks = runs.length === 1 ? runs[0].events.map((e) => ({ x: place(runs[0], e, key), name: e.event })) : [];
    const figures = CHARTS.map(([title, column]) => {
      const series = [];
      runs.forEach((run, i) => {
        const x = run.curves[key], y = run.curves[column], label = runs.length > 1 ? `${run.name}, ` : "";
        const smooth = column === "loss" || column === "grad_norm" || column === "rate";
        if (smooth && width) series.push({ x, y, kind: "raw", index: i });
        const first = runs.length > 1 ? i : 0;
        series.push({ name: `${label}${column === "loss" ? "training" : title.toLowerCase()}`, x, y: smooth ? smoothed(y, width) : y, index: first });
        if (column === "loss" && run.valid.step) {
          series.push({ name: `${label}validation`, x: run.valid[key], y: run.valid.valid_loss, kind: "dots", index: runs.length > 1 ? i : 1 });
        }
      });
      return chart(title, xName, series, marks);
    });
    const copying = data.runs.filter((run) => run.copying.step).map((run, i) => ({
      name: runs.length > 1 ? run.name : "loss", x: run.copying.step, y: smoothed(run.copying.copy_loss, width), index: i,
    }));
    if (copying.length) figures.push(chart("Before the text: loss on random tokens that repeat", "steps (the text begins at 0)", copying, []));
    $("charts").replaceChildren(...figures.filter(Boolean));
  }

  function startRun() {
    if (data.runs.some((run) => run.curves.step)) {
      $("curves").hidden = false;
      $("axis").addEventListener("change", drawCurves);
      $("smooth").addEventListener("input", drawCurves);
      drawCurves();
    }
    const all = [...document.querySelectorAll(".sample")];
    if (all.length > 1) {
      const slider = $("sample");
      slider.max = slider.value = all.length - 1;
      const show = () => {
        all.forEach((figure, i) => { figure.hidden = i !== Number(slider.value); });
        $("sample-out").textContent = `${Number(slider.value) + 1} of ${all.length}`;
      };
      slider.addEventListener("input", show);
      $("sample-controls").hidden = false;
      show();
      addEventListener("beforeprint", () => all.forEach((figure) => { figure.hidden = false; }));
      addEventListener("afterprint", show);
    }
  }

  // ----------------------------------------------------------------------------- the model

  let tokenizer, model;
  let V = 0; // tokens that can be drawn: the model may have more rows than the tokenizer has tokens
  const state = {
    ids: [], // the window: the last tokens of the text, as many as the context holds
    before: [], // the tokens of the text that are no longer in it
    at: 0, // the chosen place, after which the page looks
    row: 0, // the token whose attention is read
    layer: 0, head: 0, gone: new Set(), seen: {}, logits: null, running: false,
  };

  /** A token as it is shown: a space as an open box, bytes that are no character as numbers. */
  function label(id) {
    const name = Object.keys(tokenizer.special).find((key) => tokenizer.special[key] === id);
    if (name !== undefined) return name;
    const bytes = tokenizer.bytesOf[id] ?? [];
    if (!bytes.length) return `#${id}`;
    const text = tokenizer.decode([id]);
    const shown = text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "→");
    const visible = !/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Mn}]/u.test(shown) && (!text.includes("\ufffd") || id === tokenizer.size - 1);
    return visible ? shown : `0x${Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("")}`;
  }

  const row = (t) => state.logits.subarray(t * V, (t + 1) * V);
  const opening = () => (tokenizer.separator === null ? [] : [tokenizer.separator]);
  const choice = () => [Number($("temperature").value), Number($("topk").value), Number($("topp").value)];

  /** Make a text the one that is looked at; where it exceeds the context, the status says so. */
  function read(text) {
    const ids = [...opening(), ...tokenizer.encode(text)];
    const whole = ids.length ? ids : tokenizer.encode("\n");
    const most = model.config.context, over = Math.max(0, whole.length - most);
    if (over) say(`The text has ${whole.length} tokens; the context holds ${most}, and the last of them are shown.`);
    state.before = whole.slice(0, over);
    state.ids = whole.slice(over);
  }

  /** Take the first tokens out of the window. */
  function forget(count) {
    state.before.push(...state.ids.splice(0, count));
    state.at = Math.max(0, state.at - count);
  }

  const say = (text) => { $("status").textContent = text; };

  /** Logits (T, V) of the ids, of the tokens that exist. */
  function logitsOf(ids, look) {
    const all = model.logits(ids, { look }), width = all.length / ids.length;
    if (width === V) return all;
    const out = new Float32Array(ids.length * V);
    for (let t = 0; t < ids.length; t++) out.set(all.subarray(t * width, t * width + V), t * V);
    return out;
  }

  /** Minus the logarithm of a token's probability after place t. */
  function surprise(logits, t, id) {
    const p = Forward.softmax(Float64Array.from(logits.subarray(t * V, (t + 1) * V)));
    return -Math.log(p[id]);
  }

  /** Run the model on the ids and show everything. */
  function analyse() {
    const seen = {};
    const keep = (name, x, shape) => { seen[name] = { x: x.slice(), shape }; };
    state.logits = logitsOf(state.ids, Forward.ablation(state.gone, keep));
    state.seen = seen;
    state.at = Math.min(state.at, state.ids.length - 1);
    state.row = state.at;
    showTokens();
    showPlace();
    showHeads();
    showScores();
  }

  function select(t) {
    if (state.running) return; // what is shown is not of this text
    state.at = state.row = t;
    [...$("tokens").children].forEach((button, i) => button.setAttribute("aria-pressed", i === t));
    showPlace();
    drawLarge();
  }

  function tokenButton(id, t, s) {
    const shade = s === null ? "" : `background:rgba(var(--shade),${(0.5 * Math.min(s / 8, 1)).toFixed(2)})`;
    const said = el("span", { class: "unseen" }, s === null ? ", the first" : ", surprise ");
    return el("button", { type: "button", style: shade, "aria-pressed": t === state.at, onclick: () => select(t) },
      label(id), said, el("small", {}, s === null ? "·" : s.toFixed(1)));
  }

  function showTokens() {
    const surprises = state.ids.map((id, t) => (t ? surprise(state.logits, t - 1, id) : null));
    $("tokens").replaceChildren(...state.ids.map((id, t) => tokenButton(id, t, surprises[t])));
    $("window-words").textContent = state.before.length ? `The first ${state.before.length} tokens of the text are no longer in the context of ${model.config.context}; below are the others.` : "";
  }

  function showPlace() {
    showNext();
    showLens();
    showStream();
    showParts();
  }

  function showNext() {
    const [temperature, topK, topP] = choice(), logits = row(state.at);
    $("temperature-out").textContent = temperature ? temperature.toFixed(2) : "0: the likeliest";
    $("topk-out").textContent = topK || "all";
    $("topp-out").textContent = topP < 1 ? topP.toFixed(2) : "all";
    const plain = Forward.softmax(Float64Array.from(logits)), drawn = Forward.probabilities(logits, temperature, topK, topP);
    const best = Array.from(plain.keys()).sort((a, b) => logits[b] - logits[a]).slice(0, 15);
    const actual = state.ids[state.at + 1];
    if (actual !== undefined && !best.includes(actual)) best.push(actual);
    const kept = drawn.reduce((n, p) => n + (p > 0), 0);
    $("next-words").textContent = `After “${label(state.ids[state.at])}”, place ${state.at + 1} of ${state.ids.length}: choose a token to put it there. p is the model's own probability; a token is drawn with what temperature, top-k and top-p make of it, which keep ${kept} of ${V} tokens.`;
    rows($("next"), "The likeliest tokens",
      ["token", "p", "as a bar", "drawn with", "as a bar"],
      best.map((id) => [
        cell(el("button", { type: "button", onclick: () => choose(id) }, label(id)), id === actual ? " ← stands here" : ""),
        percent(plain[id]), bar(plain[id]), drawn[id] ? percent(drawn[id]) : "cut off", bar(drawn[id]),
      ]));
  }

  /** Put a token after the chosen place; what stood from there on goes. */
  function choose(id) {
    const { context } = model.config;
    state.ids = [...state.ids.slice(0, state.at + 1), id];
    state.at += 1;
    if (state.ids.length > context) forget(state.ids.length - (context - (context >> 1)));
    showText();
    analyse();
    $("next").querySelector("button").focus();
  }

  function showText() {
    const whole = [...state.before, ...state.ids];
    const first = opening().length && whole[0] === tokenizer.separator ? 1 : 0;
    $("text").value = tokenizer.decode(whole.slice(first));
  }

  /** Draw up to `count` tokens after the last, one by one, with a cache of keys and values. */
  async function go(count) {
    if (state.running) { state.running = false; return; }
    state.running = true;
    $("go").textContent = "Stop";
    for (const button of $("tokens").children) button.setAttribute("aria-pressed", false);
    const pick = (logits) => Forward.draw(Forward.probabilities(logits, ...choice()), Math.random());
    let written = 0, spent = 0, why = "", painted = performance.now(), begin = painted;
    for (const { id, logits, dropped } of Forward.continuation(model, state.ids, V, pick, Forward.ablation(state.gone))) {
      forget(dropped);
      [...$("tokens").children].slice(0, dropped).forEach((button) => button.remove());
      state.ids.push(id);
      state.at = state.ids.length - 1;
      written++;
      $("tokens").lastElementChild?.setAttribute("aria-pressed", false);
      $("tokens").append(tokenButton(id, state.at, surprise(logits, 0, id)));
      if (id === tokenizer.separator) why = " The model ended the text.";
      if (performance.now() - painted > 15) {
        showText();
        spent += performance.now() - begin;
        await breathe();
        begin = painted = performance.now();
      }
      if (why || written >= count || !state.running) break;
    }
    spent += performance.now() - begin;
    if (state.ids.length > model.config.context) forget(state.ids.length - model.config.context);
    state.running = false;
    $("go").textContent = "Continue";
    showText();
    analyse();
    say(`${written} token${written === 1 ? "" : "s"} written, ${(spent / written).toFixed(1)} ms each.${why}`);
  }

  function startPrompt() {
    $("alive").hidden = false;
    $("topk").max = Math.min(200, V);
    let waiting;
    $("text").value = data.prompt;
    $("text").addEventListener("input", () => {
      clearTimeout(waiting);
      state.running = false;
      waiting = setTimeout(() => {
        try {
          say("");
          const atEnd = state.at === state.ids.length - 1;
          read($("text").value);
          if (atEnd) state.at = state.ids.length - 1;
          analyse();
        } catch (error) {
          say(error.message);
        }
      }, 250);
    });
    $("step").addEventListener("click", () => go(1));
    $("go").addEventListener("click", () => go(100));
    $("undo").addEventListener("click", () => {
      if (state.running || state.ids.length < 2) return;
      state.ids.pop();
      if (state.before.length) state.ids.unshift(state.before.pop());
      state.at = state.ids.length - 1;
      showText();
      analyse();
    });
    for (const id of ["temperature", "topk", "topp"]) $(id).addEventListener("input", showNext);
  }

  // -------------------------------------------------------------------------------- inside

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** Draw a head's weights on a canvas, `size` pixels a cell; hidden cells are hatched. */
  function drawHead(canvas, layer, head, size) {
    const { x, shape: [, T, S] } = state.seen[`blocks.${layer}.attn.weights`];
    canvas.width = S * size;
    canvas.height = T * size;
    const pen = canvas.getContext("2d"), shade = colour("--shade"), window = model.window(layer);
    for (let t = 0; t < T; t++) {
      for (let s = 0; s < S; s++) {
        const hidden = s > t || t - s >= window, weight = x[(head * T + t) * S + s];
        pen.fillStyle = hidden ? ((s + t) % 2 ? colour.hatch : colour.ground) : `rgba(${shade},${Math.sqrt(weight).toFixed(3)})`;
        pen.fillRect(s * size, t * size, size, size);
      }
    }
  }

  function showHeads() {
    const layers = [];
    colour.hatch = colour("--raised");
    colour.ground = colour("--ground");
    const { n_layer: L, n_head: H } = model.config;
    for (let layer = 0; layer < L; layer++) {
      const all = [];
      for (let head = 0; head < H; head++) {
        const canvas = el("canvas", { "aria-hidden": "true" });
        drawHead(canvas, layer, head, 1);
        const reach = isFinite(model.window(layer)) ? `window ${model.window(layer)}` : "sees all";
        const show = () => {
          Object.assign(state, { layer, head });
          $("heads").querySelectorAll("button").forEach((b, i) => b.setAttribute("aria-pressed", i === layer * H + head));
          drawLarge();
        };
        const pressed = layer === state.layer && head === state.head;
        all.push(el("button", { type: "button", "aria-pressed": pressed, onclick: show },
          canvas, el("span", { class: "unseen" }, "layer and head "), `${layer}.${head}`, el("span", { class: "unseen" }, `, ${reach}`), el("small")));
      }
      layers.push(el("div", { class: "layer" }, ...all));
    }
    $("heads").replaceChildren(...layers);
    drawLarge();
  }

  function drawLarge() {
    const { layer, head } = state, T = state.ids.length, window = model.window(layer);
    drawHead($("map-large"), layer, head, Math.max(2, Math.floor(480 / T)));
    $("map-large").setAttribute("aria-label", `Attention of layer ${layer}, head ${head}. The arrow keys choose the token that looks.`);
    $("large-title").textContent = `Layer ${layer}, head ${head}: ${isFinite(window) ? `a token sees itself and the ${window - 1} before it` : "a token sees itself and all before it"}.`;
    showRow();
  }

  function showRow(column = null) {
    const { layer, head, row: t } = state, T = state.ids.length;
    const { x } = state.seen[`blocks.${layer}.attn.weights`];
    const weights = Array.from(x.subarray((head * T + t) * T, (head * T + t) * T + t + 1), (w, s) => [w, s]);
    const at = column === null ? "" : ` It looks at “${label(state.ids[column])}” (place ${column + 1}) with ${column <= t ? percent(weights[column][0]) : "nothing: that comes later"}.`;
    $("large-read").textContent = `“${label(state.ids[t])}” (place ${t + 1}).${at}`;
    const best = weights.sort((a, b) => b[0] - a[0]).slice(0, 8).filter(([w]) => w > 0.001);
    $("large-row").replaceChildren(...best.map(([w, s]) => el("li", {}, bar(w), ` ${percent(w)} “${label(state.ids[s])}” (place ${s + 1})`)));
    drawArcs();
  }

  /** The words in a line, and arcs from those that look back to those that are looked at. */
  function drawArcs() {
    const { layer, head, row } = state, T = state.ids.length, { x } = state.seen[`blocks.${layer}.attn.weights`];
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = "14px system-ui, sans-serif";
    const words = state.ids.map(label), widths = words.map((word) => pen.measureText(word).width + 10), middle = [];
    widths.reduce((left, width) => { middle.push(left + width / 2); return left + width; }, 4);
    const wide = middle.at(-1) + widths.at(-1) / 2 + 4;
    const height = (t, s) => 14 + 0.3 * (middle[t] - middle[s]) ** 0.9;
    const arcs = [];
    for (let t = 0; t < T; t++) {
      for (let s = 0; s <= t; s++) {
        const w = x[(head * T + t) * T + s];
        if (w >= (t === row ? 0.02 : 0.3)) arcs.push({ t, s, w });
      }
    }
    const ground = Math.max(30, ...arcs.map(({ t, s }) => height(t, s))) + 6;
    const paths = arcs.sort((a, b) => (a.t === row) - (b.t === row)).map(({ t, s, w }) => {
      const up = height(t, s), way = t === s
        ? `M${middle[t] - 5},${ground}a5,9 0 1 1 10,0` // a loop: it looks at itself
        : `M${middle[t]},${ground}C${middle[t]},${ground - 1.33 * up} ${middle[s]},${ground - 1.33 * up} ${middle[s]},${ground}`;
      return svg("path", { class: t === row ? "arc" : "arc pale", d: way, "stroke-width": (1 + 5 * w).toFixed(1), opacity: ((t === row ? 0.3 : 0.15) + (t === row ? 0.7 : 0.3) * w).toFixed(2) },
        svg("title", {}, `“${words[t]}” looks at “${words[s]}” with ${percent(w)}`));
    });
    const names = words.map((word, t) => svg("text", {
      x: middle[t], y: ground + 18, "text-anchor": "middle", class: t === row ? "looks" : "", onclick: () => { state.row = t; showRow(); },
    }, word));
    const picture = $("arcs"), most = arcs.filter((arc) => arc.t === row).sort((a, b) => b.w - a.w).slice(0, 3);
    for (const [name, value] of Object.entries({ viewBox: `0 0 ${wide} ${ground + 26}`, width: wide, height: ground + 26 })) picture.setAttribute(name, value);
    picture.setAttribute("aria-label", `Arcs of layer ${layer}, head ${head}: “${words[row]}” looks at ${most.map(({ s, w }) => `“${words[s]}” ${percent(w)}`).join(", ") || "nothing much"}.`);
    picture.replaceChildren(...paths, ...names);
    const box = $("arcs-scroll"), room = box.clientWidth, largest = most[0]?.s ?? row;
    const far = middle[row] - middle[largest] < room - 80 ? largest : row; // what is to be in sight beside the token
    if (middle[far] - 40 < box.scrollLeft || middle[row] + 40 > box.scrollLeft + room) box.scrollLeft = (middle[far] + middle[row] - room) / 2;
  }

  function startInside() {
    $("opened").hidden = false;
    const canvas = $("map-large");
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect(), T = state.ids.length;
      const clip = (v) => Math.max(0, Math.min(T - 1, Math.floor(v * T)));
      state.row = clip((event.clientY - box.top) / box.height);
      showRow(clip((event.clientX - box.left) / box.width));
    });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      state.row = Math.max(0, Math.min(state.ids.length - 1, state.row + move));
      showRow();
    });
    $("measure").addEventListener("click", measure);
    $("restore").addEventListener("click", () => { state.gone.clear(); analyse(); });
    $("others").addEventListener("click", () => { seed++; tell(); });
    painters.push(showHeads);
  }

  /** Scores of every head that say what it does; those on repeated random tokens are made once. */
  let repeated = null;
  function onRepeated() {
    const { n_layer: L, n_head: H, context } = model.config;
    const n = Math.max(2, Math.min(32, Math.floor((context - 1) / 2)));
    const random = Forward.random(1), half = Array.from({ length: n }, () => Math.floor(random() * V)), ids = [...opening(), ...half, ...half], T = ids.length;
    const scores = [];
    model.hidden(ids, { look: (name, x) => {
      if (!name.endsWith(".attn.weights")) return;
      for (let h = 0; h < H; h++) {
        let same = 0, induction = 0;
        for (let t = T - n; t < T; t++) {
          same += x[(h * T + t) * T + t - n] / n;
          induction += x[(h * T + t) * T + t - n + 1] / n;
        }
        scores.push({ same, induction });
      }
    } });
    return Array.from({ length: L * H }, (_, i) => scores[i]);
  }

  function showScores() {
    const { n_layer: L, n_head: H } = model.config, T = state.ids.length;
    repeated ??= onRepeated();
    const body = [];
    const told = Array.from({ length: T - 1 }, (_, t) => // where the token that comes after t stood before
      [...state.ids.slice(0, t + 1).keys()].filter((s) => state.ids[s] === state.ids[t + 1]));
    /** The mean weight on those places, beyond the share that they have among the tokens seen: 0 is
        a head that looks evenly at all, 1 one that looks at them alone. */
    const copies = (x, h, window) => {
      const found = told.flatMap((places, t) => {
        const seen = places.filter((s) => t - s < window), share = seen.length / Math.min(t + 1, window);
        const weight = seen.reduce((sum, s) => sum + x[(h * T + t) * T + s], 0);
        return places.length && share < 1 ? [(weight - share) / (1 - share)] : [];
      });
      return found.length ? found.reduce((a, b) => a + b) / found.length : 0;
    };
    for (let layer = 0; layer < L; layer++) {
      const { x } = state.seen[`blocks.${layer}.attn.weights`];
      for (let h = 0; h < H; h++) {
        const mean = (from, at) => {
          let sum = 0;
          for (let t = from; t < T; t++) sum += x[(h * T + t) * T + at(t)];
          return T > from ? sum / (T - from) : 0;
        };
        const scores = { previous: mean(1, (t) => t - 1), first: mean(2, () => 0), itself: mean(1, (t) => t), copies: copies(x, h, model.window(layer)), ...repeated[layer * H + h] };
        const [name, most] = Object.entries(scores).reduce((a, b) => (b[1] > a[1] ? b : a));
        $("heads").children[layer].children[h].querySelector("small").textContent = most > 0.4 ? name : "";
        body.push([`${layer}.${h}`, most > 0.4 ? name : "–", ...Object.values(scores).map((v) => v.toFixed(2))]);
      }
    }
    rows($("scores"), "Heads by layer", ["head", "name", "previous", "first", "itself", "copies", "same", "induction"], body);
  }

  function showLens() {
    const D = model.config.d_model, names = ["embedding", ...Array.from({ length: model.config.n_layer }, (_, i) => `blocks.${i}`)];
    const final = Array.from(row(state.at).keys()).reduce((a, b) => (row(state.at)[b] > row(state.at)[a] ? b : a));
    const body = names.map((name) => {
      const x = state.seen[name].x.subarray(state.at * D, (state.at + 1) * D);
      const p = Forward.softmax(Float64Array.from(model.unembed(model.norm(x, 1, "norm"), 1).subarray(0, V)));
      const best = Array.from(p.keys()).sort((a, b) => p[b] - p[a]).slice(0, 5);
      const rank = p.reduce((n, v) => n + (v > p[final]), 1);
      return [name === "embedding" ? "embedding" : `after block ${name.slice(7)}`, ...best.map((id) => `${label(id)} ${percent(p[id])}`), String(rank)];
    });
    rows($("lens"), `After “${label(state.ids[state.at])}”; the last column is the place of “${label(final)}”, with which the model ends`, ["depth", "1st", "2nd", "3rd", "4th", "5th", "place"], body);
  }

  function showStream() {
    const D = model.config.d_model, { n_layer: L } = model.config;
    const length = (name) => Math.hypot(...state.seen[name].x.subarray(state.at * D, (state.at + 1) * D));
    const names = ["embedding"];
    for (let i = 0; i < L; i++) names.push(`blocks.${i}.attn`, `blocks.${i}.ffn`, `blocks.${i}`);
    const lengths = names.map(length), most = Math.max(...lengths);
    const said = (name) => {
      const [, i, part] = name.split(".");
      if (i === undefined) return "the stream: embedding";
      return { attn: `attention ${i} adds`, ffn: `feed-forward ${i} adds` }[part] ?? `the stream after block ${i}`;
    };
    rows($("stream"), `At “${label(state.ids[state.at])}”`, ["what", "length", "as a bar"], names.map((name, i) => [said(name), number(lengths[i]), bar(lengths[i] / most)]));
  }

  const effects = new Map(); // part: nats, for the place and ids that they were measured at
  const parts = (layer) => [
    ...Array.from({ length: model.config.n_head }, (_, h) => [`blocks.${layer}.attn.${h}`, `head ${h}`]),
    [`blocks.${layer}.attn`, "attention"], [`blocks.${layer}.ffn`, "feed-forward"],
  ];

  function showParts() {
    const key = `${state.at} ${state.ids}`;
    tell();
    if (effects.key !== key) { effects.clear(); effects.key = key; $("effect").textContent = ""; }
    const layers = Array.from({ length: model.config.n_layer }, (_, i) => i);
    rows($("parts"), state.gone.size ? `Taken out: ${[...state.gone].join(", ")}` : "Nothing is taken out", ["layer", ...parts(0).map(([, name]) => name)],
      layers.map((layer) => [String(layer), ...parts(layer).map(([part, name]) => {
        const nats = effects.get(part), flip = () => {
          if (!state.gone.delete(part)) state.gone.add(part);
          analyse();
          $("parts").querySelector(`[data-part="${part}"]`).focus();
        };
        const shade = nats === undefined ? null : `background:rgba(var(--${nats > 0 ? "shade" : "other"}),${(0.5 * Math.min(Math.abs(nats) / 3, 1)).toFixed(2)})`;
        return el("button", { type: "button", "data-part": part, "aria-pressed": state.gone.has(part), onclick: flip, style: shade },
          el("span", { class: "unseen" }, `layer ${layer}, ${name}: `),
          nats === undefined ? (state.gone.has(part) ? "out" : "in") : `${nats > 0 ? "+" : ""}${nats.toFixed(2)}`);
      })]));
  }

  let told = 0; // how often the two texts were begun: what is written for an older one stops
  let seed = 1;

  /** Write the text on from the chosen place, by the whole model and without what is taken out. */
  async function tell(count = 80) {
    const mine = ++told, gone = [...state.gone];
    $("stories").hidden = !gone.length;
    if (!gone.length) return;
    const from = state.ids.slice(0, state.at + 1), begun = tokenizer.decode(from.slice(-12).filter((id) => id !== tokenizer.separator));
    $("story-title").textContent = `Without ${gone.join(", ")}`;
    $("story-read").textContent = "";
    const texts = [];
    for (const [box, parts] of [[$("story-whole"), []], [$("story-without"), gone]]) {
      const random = Forward.random(seed), ids = [];
      let painted = performance.now();
      const pick = (logits) => Forward.draw(Forward.probabilities(logits, ...choice()), random());
      for (const { id } of Forward.continuation(model, from, V, pick, Forward.ablation(parts))) {
        if (id !== tokenizer.separator) ids.push(id);
        if (performance.now() - painted > 15) {
          await breathe();
          painted = performance.now();
          if (mine !== told) return; // another has begun
        }
        if (id === tokenizer.separator || ids.length >= count) break;
      }
      texts.push(ids);
      let same = 0; // tokens before the first that differs
      while (texts.length > 1 && same < ids.length && ids[same] === texts[0][same]) same++;
      const rest = el(texts.length > 1 ? "mark" : "span", {}, tokenizer.decode(ids.slice(same)));
      box.replaceChildren(el("span", { class: "begun" }, `…${begun}`), tokenizer.decode(ids.slice(0, same)), rest);
      if (texts.length > 1) $("story-read").textContent = same === ids.length && same === texts[0].length ? "Both texts are the same." : `The texts part after ${same} token${same === 1 ? "" : "s"}.`;
    }
  }

  async function measure() {
    const upTo = state.ids.slice(0, state.at + 1);
    const last = (gone) => model.logits(upTo, { look: Forward.ablation(gone), last: true }).subarray(0, V);
    const whole = last([]);
    const target = state.ids[state.at + 1] ?? Array.from(whole.keys()).reduce((a, b) => (whole[b] > whole[a] ? b : a));
    const before = surprise(whole, 0, target), key = effects.key, found = new Map();
    for (let layer = 0; layer < model.config.n_layer; layer++) {
      for (const [part] of parts(layer)) {
        found.set(part, surprise(last([part]), 0, target) - before);
        await breathe();
        if (effects.key !== key) return; // the text or the place is another by now
      }
      $("effect").textContent = `Layer ${layer} of ${model.config.n_layer} is measured.`;
    }
    for (const [part, nats] of found) effects.set(part, nats);
    const [worst, nats] = [...found].reduce((a, b) => (b[1] > a[1] ? b : a));
    $("effect").textContent = `The surprise of “${label(target)}” is ${before.toFixed(2)} nats. It grows most, by ${nats.toFixed(2)}, without ${worst}.`;
    showParts();
  }

  // ------------------------------------------------------------------------------- weights

  /** A tensor as {rows, columns, values, names}: whole where the weights are here, else what Python
      chose of it. `names(row)` says of what a row is; a vector is one row. */
  function tensor(name, shape) {
    if (!model) {
      const [rows, columns, text] = data.pictures[name];
      return { rows, columns, values: Forward.numbers(text, "int8"), part: true };
    }
    const [rows, columns] = shape.length > 1 ? shape : [1, shape[0]];
    return { rows, columns, values: model.weights[name] };
  }

  /** Draw the numbers, at most `most` to a side, one a pixel: above 0 blue, below orange. */
  function paint(canvas, { rows, columns, values }, most) {
    const height = Math.min(rows, most), width = Math.min(columns, most), pen = canvas.getContext("2d");
    canvas.width = width;
    canvas.height = height;
    let square = 0;
    for (const v of values) square += v * v;
    const full = 3 * Math.sqrt(square / values.length) || 1, image = pen.createImageData(width, height);
    const [above, below] = ["--shade", "--other"].map((name) => colour(name).split(",").map(Number));
    for (let i = 0; i < height; i++) {
      for (let j = 0; j < width; j++) {
        const v = values[Math.floor((i * rows) / height) * columns + Math.floor((j * columns) / width)] / full;
        image.data.set(v > 0 ? above : below, 4 * (i * width + j));
        image.data[4 * (i * width + j) + 3] = 255 * Math.min(Math.abs(v), 1);
      }
    }
    pen.putImageData(image, 0, 0);
  }

  /** Of which head a row of the matrix of queries, keys and values is. */
  function rowName(name, r) {
    if (!model || !name.endsWith("qkv.weight")) return "";
    const { n_head: H } = model.config, h = Math.floor(r / model.hd);
    if (h < H) return `, query of head ${h}`;
    return h < H + model.kv ? `, key of head ${h - H}` : `, value of head ${h - H - model.kv}`;
  }

  /** A tensor at full size, with its numbers to be read by pointer and arrow keys. */
  function enlarged(name, shape) {
    const found = tensor(name, shape), { rows, columns, values } = found;
    const canvas = el("canvas", { class: "whole", tabindex: 0, role: "img", "aria-label": `The picture of ${name}, ${rows} rows by ${columns} columns. The arrow keys read its numbers.` });
    const read = el("p", { class: "hint", role: "status" }, found.part ? "Some rows and columns of it, for the weights are not in this page." : `${rows} rows (outputs) by ${columns} columns (inputs). The pointer and the arrow keys read the numbers.`);
    paint(canvas, found, 4096);
    canvas.style.width = `min(100%, ${Math.max(columns * (columns < 400 ? 3 : 1), 160)}px)`;
    if (rows === 1) canvas.style.height = "24px";
    let at = [0, 0];
    const show = (r, c) => {
      at = [Math.max(0, Math.min(rows - 1, r)), Math.max(0, Math.min(columns - 1, c))];
      if (!found.part) read.textContent = `Row ${at[0]}${rowName(name, at[0])}, column ${at[1]}: ${number(values[at[0] * columns + at[1]], 4)}`;
    };
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      show(Math.floor(((event.clientY - box.top) / box.height) * rows), Math.floor(((event.clientX - box.left) / box.width) * columns));
    });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      show(at[0] + move[0], at[1] + move[1]);
    });
    const box = el("div", { class: "view", tabindex: 0, role: "region", "aria-label": `${name}, enlarged` }, canvas);
    return el("tr", {}, el("td", { colspan: 10 }, el("div", { class: "enlarged" }, read, box)));
  }

  /** A picture in every row of the table, which enlarges it below. */
  function startTensors() {
    const drawn = [...document.querySelectorAll(".tensor")].map((place) => {
      const line = place.closest("tr"), name = line.cells[0].textContent, shape = line.cells[1].textContent.split(" × ").map(Number);
      const canvas = el("canvas", { "aria-hidden": "true" });
      let large = null;
      const button = el("button", { type: "button", "data-tensor": name, "aria-expanded": "false", "aria-label": `Picture of ${name}: enlarge`, onclick: () => {
        if (large) large.remove();
        else line.after(large = enlarged(name, shape));
        button.setAttribute("aria-expanded", Boolean(large.isConnected));
        if (!large.isConnected) large = null;
      } }, canvas);
      place.replaceChildren(button);
      return () => {
        paint(canvas, tensor(name, shape), 96);
        if (large) paint(large.querySelector("canvas"), tensor(name, shape), 4096);
      };
    });
    const all = () => drawn.forEach((draw) => draw());
    painters.push(all);
    all();
  }

  let mark = null; // the token of the map that is chosen
  let near = []; // its neighbours

  function drawMap() {
    const { points: [xs, ys], labels } = data.map, canvas = $("plane"), pen = canvas.getContext("2d");
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = Math.max(300, (width * 2) / 3);
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    pen.scale(ratio, ratio);
    const low = [Math.min(...xs), Math.min(...ys)], high = [Math.max(...xs), Math.max(...ys)];
    const X = (i) => 10 + ((xs[i] - low[0]) / (high[0] - low[0] || 1)) * (width - 60);
    const Y = (i) => height - 12 - ((ys[i] - low[1]) / (high[1] - low[1] || 1)) * (height - 24);
    drawMap.nearest = (px, py) => labels.reduce((best, _, i) => {
      const distance = Math.hypot(X(i) - px, Y(i) - py);
      return distance < best[1] ? [i, distance] : best;
    }, [0, Infinity]);
    pen.font = "13px system-ui, sans-serif";
    pen.fillStyle = colour("--quiet");
    labels.forEach((_, i) => pen.fillRect(X(i) - 1.5, Y(i) - 1.5, 3, 3));
    // Names where there is room: words before parts of words, and no bytes that are no character.
    const named = labels.map((_, i) => i).filter((i) => !/^0x/.test(labels[i]));
    const word = (i) => Number(/^␣\p{L}{2}/u.test(labels[i]));
    const taken = [];
    pen.fillStyle = colour("--text");
    for (const i of named.sort((a, b) => word(b) - word(a) || a - b).slice(0, 800)) {
      const box = [X(i) + 3, Y(i) - 9, X(i) + 3 + pen.measureText(labels[i]).width, Y(i) + 6];
      if (taken.some((o) => o[0] < box[2] && box[0] < o[2] && o[1] < box[3] && box[1] < o[3])) continue;
      taken.push(box);
      pen.fillText(labels[i], X(i) + 3, Y(i) + 4);
    }
    pen.strokeStyle = colour("--orange");
    for (const i of mark === null ? [] : [mark, ...near]) { // the token thick, its neighbours thin, each with a name
      pen.lineWidth = i === mark ? 3 : 1.5;
      pen.beginPath();
      pen.arc(X(i), Y(i), i === mark ? 9 : 6, 0, 2 * Math.PI);
      pen.stroke();
      if (i === mark) {
        const wide = pen.measureText(labels[i]).width;
        pen.fillStyle = colour("--ground");
        pen.fillRect(X(i) + 11, Y(i) - 10, wide + 6, 19);
        pen.fillStyle = colour("--text");
        pen.fillText(labels[i], X(i) + 14, Y(i) + 4);
      }
    }
  }

  /** The tokens whose rows point most nearly in the same direction, by the cosine of the angle. */
  function neighbours(i, count = 10) {
    const D = model.config.d_model, E = model.weights["embedding.weight"], ids = data.map.ids;
    const dot = (a, b) => {
      let sum = 0;
      for (let k = 0; k < D; k++) sum += E[a * D + k] * E[b * D + k];
      return sum;
    };
    const own = ids[i], size = dot(own, own);
    return ids.map((id, j) => [j, dot(own, id) / (Math.sqrt(size * dot(id, id)) || 1)])
      .filter(([j]) => j !== i).sort((a, b) => b[1] - a[1]).slice(0, count);
  }

  function showNear(i) {
    const { labels } = data.map, found = model ? neighbours(i) : [];
    mark = i;
    near = found.map(([j]) => j);
    drawMap();
    $("near").textContent = `“${labels[i]}”` + (model ? `: nearest ${found.map(([j, c]) => `“${labels[j]}” ${c.toFixed(2)}`).join(", ")}.` : ": the weights are not in this page, so it has no neighbours to tell of.");
  }

  function startMap() {
    const { labels, shares } = data.map;
    $("map").hidden = false;
    $("map-words").textContent = `Every token is a row of the embedding. The plane holds its two widest directions, with ${percent(shares[0])} and ${percent(shares[1] ?? 0)} of the variance; neighbours are found among all directions, by the cosine a·b / |a||b|.`;
    $("plane").setAttribute("aria-label", `A map of ${labels.length} tokens. The search field above finds one and tells its neighbours; the arrow keys go from token to token.`);
    const under = (event) => {
      const box = $("plane").getBoundingClientRect();
      return drawMap.nearest(event.clientX - box.left, event.clientY - box.top);
    };
    let held = false; // a click holds a token until the next one; else the pointer shows where it is
    $("plane").addEventListener("pointermove", (event) => {
      const [i, distance] = under(event);
      if (!held && distance < 15 && i !== mark) showNear(i);
    });
    $("plane").addEventListener("click", (event) => {
      const [i, distance] = under(event);
      held = distance < 15;
      if (held) showNear(i);
    });
    $("plane").addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        event.preventDefault();
        showNear(((mark ?? -1) + (event.key === "ArrowRight" ? 1 : -1) + labels.length) % labels.length);
      }
    });
    $("find").addEventListener("input", () => {
      const wanted = $("find").value.replaceAll(" ", "␣");
      if (!wanted) return;
      const found = [`␣${wanted}`, wanted].map((text) => labels.indexOf(text)).find((i) => i >= 0) ?? labels.findIndex((text) => text.includes(wanted));
      if (found < 0) $("near").textContent = `No token holds “${wanted}”.`;
      else showNear(found);
    });
    addEventListener("resize", drawMap);
    painters.push(drawMap);
    drawMap();
  }

  // ----------------------------------------------------------------------------- tokenizer

  const WORDS = {
    bpe: "The text is cut into chunks, about a word with the space before it, and a chunk into bytes. Then the pair of neighbours that was learned first (its rank is the lowest) is joined, again and again, until no pair is known: byte-pair encoding.",
    char: "Every character is a token. One that training did not see is the unknown token, if there is one.",
    reduced: "The text is cut by byte-pair encoding; of its tokens only the most frequent are kept, and every other one is the unknown token.",
  };

  function startTokenizer() {
    $("cut").hidden = false;
    $("cut-words").textContent = `${WORDS[data.tokenizer.kind]} This tokenizer has ${tokenizer.size.toLocaleString("en")} tokens.`;
    $("cut-text").value = data.prompt;
    const merging = tokenizer.base ?? tokenizer;
    const tree = (node, name) => el("li", {}, el("code", {}, name(node.id)), node.rank === null ? "" : ` joined by merge ${node.rank}`,
      ...(node.parts.length ? [el("ul", {}, ...node.parts.map((part) => tree(part, name)))] : []));
    const baseLabel = (id) => JSON.stringify(merging.decode([id])).slice(1, -1) + ` [${Array.from(merging.bytesOf[id], (b) => b.toString(16).padStart(2, "0")).join(" ")}]`;
    const total = data.counts?.reduce((a, b) => a + b, 0), places = data.counts?.slice().sort((a, b) => b - a);
    const often = (id) => {
      if (!data.counts) return "";
      const n = data.counts[id];
      return n ? ` It comes ${n.toLocaleString("en")} times among the ${total.toLocaleString("en")} tokens of the training text, ${percent(n / total)}; ${places.indexOf(n)} tokens come more often.` : " It does not come in the training text.";
    };
    const show = () => {
      let ids;
      try {
        ids = tokenizer.encode($("cut-text").value);
      } catch (error) {
        $("cut-count").textContent = error.message;
        return;
      }
      const bytes = new TextEncoder().encode($("cut-text").value).length;
      $("cut-count").textContent = `${ids.length} tokens for ${bytes} bytes: ${number(bytes / Math.max(ids.length, 1))} bytes a token.`;
      $("cut-token").replaceChildren();
      $("cut-tokens").replaceChildren(...ids.map((id) => el("button", { type: "button", onclick: () => {
        const bytesOf = Array.from(tokenizer.bytesOf[id], (b) => b.toString(16).padStart(2, "0")).join(" ");
        const about = el("p", {}, `Token ${id}: `, el("code", {}, label(id)), `, bytes ${bytesOf || "none"}.${often(id)}`);
        const inBase = tokenizer.base ? data.tokenizer.kept[id] : id;
        const merged = merging.tree && inBase !== undefined && !Object.values(merging.special).includes(inBase) ? merging.tree(merging.decode([inBase])) : [];
        const heading = merged.length ? [el("p", {}, "How its bytes are merged:"), el("ul", { class: "tree" }, ...merged.map((node) => tree(node, baseLabel)))] : [];
        $("cut-token").replaceChildren(about, ...heading);
      } }, label(id), el("small", {}, String(id)))));
    };
    $("cut-text").addEventListener("input", show);
    show();
  }

  // --------------------------------------------------------------------------------- start

  /** Start a section; if it fails, the page says so, and the others go on. */
  function attempt(name, start) {
    try {
      start();
      return true;
    } catch (error) {
      $("failed").hidden = false;
      $("failed").append(`${name} cannot be shown: ${error.message}. `);
      return false;
    }
  }

  window.started = true; // else the page says that its scripts did not start
  const present = (id) => { document.querySelector(`#${id} > .absent`).hidden = true; };

  // On paper nothing can be opened, and the ground is white.
  const closed = [...document.querySelectorAll("details")], root = document.documentElement;
  const paper = (on) => {
    closed.forEach((details) => { details.open = on; });
    root.classList.toggle("paper", on);
    repaint();
  };
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));

  attempt("The run", startRun);
  if (data.tokenizer && attempt("The tokenizer", () => { tokenizer = Tokenizers.make(data.tokenizer); })) {
    present("tokenizer");
    attempt("The tokenizer", startTokenizer);
    if (data.weights) attempt("The model", () => {
      model = new Forward.Model(data.config, Forward.unpack(data.weights));
      const kind = data.weights.dtype;
      data.weights = null; // its text is no longer needed
      V = Math.min(tokenizer.size, data.config.vocab_size);
      read(data.prompt);
      state.at = state.ids.length - 1;
      present("prompt");
      present("inside");
      startPrompt();
      startInside();
      analyse();
      const telling = repeated.map(({ induction }) => induction), most = telling.indexOf(Math.max(...telling));
      if (telling[most] > 0.4) $("heads").querySelectorAll("button")[most].click(); // the head to begin with
      $("error").hidden = false;
      $("error").textContent = data.error
        ? `The weights lie in this page as ${kind}, which rounds them. On the prompt that stood here first, no logit is off by more than ${number(data.error)}.`
        : "The weights lie in this page as they are, in float32.";
    });
  }
  if (model || data.pictures) attempt("The pictures of the tensors", startTensors);
  if (data.map) attempt("The map", startMap);
})();
