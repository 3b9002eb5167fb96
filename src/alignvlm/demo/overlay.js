// Draws what overlay.py's payload() describes. Runs inside gradio's HTML component, which gives
// `element` (its root), `props.value` (the payload) and `watch`. Everything the model said goes in
// through textContent, never as markup.
const NS = "http://www.w3.org/2000/svg";
const STOPS = [[253, 224, 71], [249, 115, 22], [190, 24, 93]];
const root = element.querySelector(".reading");

function node(tag, attributes, ...children) {
  const svg = ["svg", "rect", "image"].includes(tag);
  const made = svg ? document.createElementNS(NS, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function colour(strength) {
  const place = Math.min(strength, 0.999) * (STOPS.length - 1);
  const low = STOPS[Math.floor(place)], high = STOPS[Math.floor(place) + 1];
  return "rgb(" + low.map((v, i) => Math.round(v + (high[i] - v) * (place % 1))).join(",") + ")";
}

// white space is shown as marks, so that it can be seen
const visible = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
const percent = (p) => (p < 0.001 ? "< 0.1" : (p * 100).toFixed(1)) + " %";
const said = (token) => (token[2] ? "blank" : visible(token[0]));

function describe(cell) {
  const best = cell[5].slice(0, 3).map((token) => said(token) + " " + percent(token[1]));
  const place = "Row " + (cell[0] + 1) + ", column " + (cell[1] + 1);
  return place + (cell[3] ? ", changed by noise: " : ": ") + best.join(", ");
}

function fillTip(tip, cell) {
  const head = node("div", { class: "tip-head" });
  head.append("row " + (cell[0] + 1) + " · column " + (cell[1] + 1) + " · " + cell[4] + " nats");
  const rows = cell[5].map(([text, p, blank]) => {
    const bar = node("span", { class: "tip-bar" });
    bar.style.width = Math.max(1, p * 100) + "%";
    const name = node("span", { class: blank ? "tip-token tip-blank" : "tip-token" });
    name.append(blank ? "blank" : visible(text));
    return node("div", { class: "tip-row" }, name,
      node("span", { class: "tip-track" }, bar), node("span", { class: "tip-p" }, percent(p)));
  });
  tip.replaceChildren(head, ...rows);
  if (cell[3]) tip.append(node("div", { class: "tip-changed" }, "changed by noise"));
}

function figure(data, side) {
  const [width, height] = data.size, [w, h] = data.cell;
  const svg = node("svg", {
    viewBox: "0 0 " + width + " " + height, role: "group",
    "aria-label": side.name + ": page with " + side.cells.length +
      " cells that say something. Arrow keys go from cell to cell.",
  });
  svg.append(node("image", { href: data.image, width, height, preserveAspectRatio: "none" }));
  const rects = side.cells.map((cell, index) => {
    const rect = node("rect", {
      x: cell[1] * w, y: cell[0] * h, width: Math.min(w, width - cell[1] * w),
      height: Math.min(h, height - cell[0] * h), fill: colour(cell[2]),
      "fill-opacity": (0.15 + 0.55 * cell[2]).toFixed(2), "data-i": index,
      tabindex: index ? -1 : 0, role: "img", class: cell[3] ? "changed" : "",
    });
    svg.append(rect);
    return rect;
  });
  const tip = node("div", { class: "tip", hidden: "" });
  const frame = node("div", { class: "frame" }, svg, tip);
  const text = node("pre", { tabindex: 0, "aria-label": side.name + ": what it reads" });
  if (side.text) text.append(side.text);
  else text.append(node("em", {}, "nothing: every cell is blank"));
  const caption = node("figcaption", {}, node("span", { class: "name" }, side.name));
  const made = node("figure", {}, caption, frame, node("div", { class: "says" }, "Reads"), text);
  const places = new Map(side.cells.map((cell, index) => [cell[0] + "," + cell[1], index]));
  return { made, svg, frame, tip, rects, cells: side.cells, places, current: 0 };
}

function show(view, index, views) {
  const cell = view.cells[index], rect = view.rects[index];
  fillTip(view.tip, cell);
  view.tip.hidden = false;
  const box = rect.getBoundingClientRect(), frame = view.frame.getBoundingClientRect();
  const left = box.left - frame.left, below = box.bottom - frame.top + 6;
  view.tip.style.left =
    Math.max(0, Math.min(left, frame.width - view.tip.offsetWidth)) + "px";
  const fits = box.bottom + view.tip.offsetHeight + 12 < window.innerHeight;
  view.tip.style.top =
    (fits ? below : box.top - frame.top - view.tip.offsetHeight - 6) + "px";
  const place = cell[0] + "," + cell[1];
  for (const other of views) {
    other.rects.forEach((r) => r.classList.remove("pointed"));
    if (other.places.has(place)) other.rects[other.places.get(place)].classList.add("pointed");
  }
}

function hide(view, views) {
  view.tip.hidden = true;
  for (const other of views) other.rects.forEach((r) => r.classList.remove("pointed"));
}

function next(view, key) {
  const at = view.current, cells = view.cells, last = cells.length - 1;
  if (key === "ArrowRight") return Math.min(at + 1, last);
  if (key === "ArrowLeft") return Math.max(at - 1, 0);
  if (key === "Home") return 0;
  if (key === "End") return last;
  const [row, col] = cells[at], down = key === "ArrowDown";
  const rows = cells.map((c) => c[0]).filter((r) => (down ? r > row : r < row));
  if (!rows.length) return at;
  const goal = down ? Math.min(...new Set(rows)) : Math.max(...new Set(rows));
  let best = at, gap = Infinity;
  cells.forEach((c, i) => {
    if (c[0] === goal && Math.abs(c[1] - col) < gap) [best, gap] = [i, Math.abs(c[1] - col)];
  });
  return best;
}

function focusOn(view, index) {
  view.rects[view.current].setAttribute("tabindex", -1);
  view.current = index;
  const rect = view.rects[index];
  rect.setAttribute("tabindex", 0);
  rect.setAttribute("aria-label", describe(view.cells[index]));
  rect.focus();
}

function listen(view, views) {
  const KEYS = ["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"];
  const cellOf = (event) => event.target.dataset && event.target.dataset.i;
  view.svg.addEventListener("pointerover", (event) => {
    const index = cellOf(event);
    if (index === undefined) hide(view, views);
    else show(view, Number(index), views);
  });
  view.svg.addEventListener("pointerleave", () => hide(view, views));
  view.svg.addEventListener("focusin", (event) => {
    const index = cellOf(event);
    if (index === undefined) return;
    if (Number(index) !== view.current) focusOn(view, Number(index));
    event.target.setAttribute("aria-label", describe(view.cells[index]));
    show(view, Number(index), views);
  });
  view.svg.addEventListener("focusout", () => hide(view, views));
  view.svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide(view, views);
    if (!KEYS.includes(event.key) || !view.cells.length) return;
    event.preventDefault();
    focusOn(view, next(view, event.key));
  });
}

function legend(noisy) {
  const scale = node("span", {}, "may be text", node("i", { class: "scale" }), "surely text");
  const swatch = node("span", {}, node("i", { class: "swatch" }), "changed by noise");
  return node("div", { class: "legend" }, scale, ...(noisy ? [swatch] : []));
}

function draw() {
  const data = props.value;
  if (!data || !data.sides) {
    const hint = "No page yet. Drop one above, or take the example page.";
    root.replaceChildren(node("p", { class: "empty" }, hint));
    return;
  }
  const facts = node("dl", { class: "facts" }, ...data.facts.map(([name, value]) =>
    node("div", {}, node("dt", {}, name), node("dd", {}, value))));
  const views = data.sides.map((side) => figure(data, side));
  for (const view of views) listen(view, views);
  const figures = node("div", { class: "figures" }, ...views.map((view) => view.made));
  root.replaceChildren(facts, legend(views.length > 1), figures);
}

watch("value", draw);
draw();
