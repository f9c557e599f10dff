/* What is wrong with a page for those who read with little contrast, by keyboard or by ear: a list of
   sentences. Names of buttons and the like are looked at elsewhere, in the browser's own tree. */
(() => {
  const wrong = [], seen = new Set();
  for (const e of document.querySelectorAll("[id]")) {
    if (seen.has(e.id)) wrong.push(`two elements have the id ${e.id}`);
    seen.add(e.id);
  }
  for (const name of ["for", "aria-labelledby", "aria-describedby", "aria-controls"]) {
    for (const e of document.querySelectorAll(`[${name}]`)) {
      for (const id of e.getAttribute(name).split(" ")) if (!seen.has(id)) wrong.push(`${name}: no ${id}`);
    }
  }
  let level = 0;
  for (const e of document.querySelectorAll("h1, h2, h3, h4")) {
    if (!e.checkVisibility()) continue;
    if (e.tagName[1] > level + 1) wrong.push(`${e.textContent}: a level was left out`);
    level = Number(e.tagName[1]);
  }
  for (const e of document.querySelectorAll("[tabindex]")) if (e.tabIndex > 0) wrong.push(`tabindex of ${e.id}`);
  // Contrast as WCAG counts it, of each text with what lies under it, layer on layer.
  const parts = (colour) => { const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const ground = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) layers.unshift(parts(getComputedStyle(e).backgroundColor));
    return layers.reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const light = (rgb) => rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.checkVisibility() || e.closest("script, style, title, noscript")) continue;
    const style = getComputedStyle(e), under = ground(e);
    const [a, b] = [over(parts(e.closest("svg") ? style.fill : style.color), under), under].map(light).sort();
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
    if ((b + 0.05) / (a + 0.05) < (large ? 3 : 4.5)) wrong.push(`contrast ${((b + 0.05) / (a + 0.05)).toFixed(2)}: ${e.textContent.slice(0, 40)}`);
    texts++;
  }
  if (texts < 100) wrong.push(`only ${texts} texts were looked at`);
  return wrong;
})()
