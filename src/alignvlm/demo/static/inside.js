// The window into P_vocab: what each token's place is read as, before and after noise and pruning.
import { $, node, percent, plural } from "./dom.js";

// how sure the most probable token is
const CLASSES = [
  { from: 0.99, name: "99–100 %", kind: "p4" },
  { from: 0.9, name: "90–99 %", kind: "p3" },
  { from: 0.5, name: "50–90 %", kind: "p2" },
  { from: 0, name: "0–50 %", kind: "p1" },
];
const classOf = (p) => CLASSES.find((one) => p >= one.from).kind;

// white space and what has no shape is shown as marks, so that it can be seen
const code = (char) => "U+" + char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
const visible = (text) =>
  text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\p{C}/gu, code) || "∅";
const said = ([text, , blank]) => (blank ? "blank" : visible(text));

export class Inside {
  constructor(viewer, about, asked, again) {
    this.viewer = viewer;
    this.about = about;
    this.again = again;
    this.after = true;
    this.noise = { max: 1, step: 0.05 };
    this.build(asked);
  }

  build(asked) {
    const slider = (id, label, max, step, changed) => {
      const output = node("output", { for: id, id: id + "-told" });
      const made = node("input", { id, type: "range", min: 0, max, step, value: 0 });
      made.addEventListener("input", () => { output.textContent = changed(); });
      made.addEventListener("change", () => this.again());
      return node("div", { class: "slider" }, node("label", { for: id }, label), output, made);
    };
    const ids = this.about.ids.toLocaleString("en");
    $("panel-inside").replaceChildren(
      node("p", { class: "hint", id: "inside-about" }, "Before the language model answers, each place on the page becomes a mix of its " + ids + " tokens. Point at a box to see it."),
      slider("sigma", "Noise on what was read", 20, 1, () => this.noiseTold()),
      slider("halved", "Tokens allowed", this.about.halvings, 1, () => this.keptTold()),
      node("div", { class: "line" },
        node("div", { class: "segments", id: "sides", role: "group", "aria-label": "Which reading is drawn" },
          node("button", { type: "button", id: "side-before", "aria-pressed": "false", onclick: () => this.choose(false) }, "Before"),
          node("button", { type: "button", id: "side-after", "aria-pressed": "true", onclick: () => this.choose(true) }, "After")),
        node("button", { type: "button", id: "ask-inside", onclick: asked }, "Ask with these settings")),
      node("p", { id: "inside-answer", class: "hint", "aria-live": "polite" }),
      node("div", { id: "legend" }),
      node("div", { id: "cell", "aria-live": "polite" }),
      node("ul", { id: "facts" }),
      node("div", { id: "readings" }));
    this.tell();
  }

  tell() {
    $("sigma-told").textContent = this.noiseTold();
    $("halved-told").textContent = this.keptTold();
    $("sides").hidden = !this.data || !this.data.after;
    $("ask-inside").hidden = !this.changed();
  }

  get sigma() { return Number((Number($("sigma").value) * this.noise.step).toPrecision(6)); }
  get halved() { return Number($("halved").value); }
  changed() { return this.sigma > 0 || this.halved > 0; }
  noiseTold() { return this.sigma ? "σ = " + this.sigma.toPrecision(2) : "none"; }
  keptTold() {
    const kept = Math.max(1, this.about.ids >> this.halved).toLocaleString("en");
    return this.halved ? kept + ", those this page uses most" : "all " + kept;
  }

  reset() {
    this.data = null;
    $("sigma").value = 0;
    $("halved").value = 0;
    this.forget();
  }

  forget() {
    this.data = null;
    for (const id of ["legend", "cell", "facts", "readings"]) $(id).replaceChildren();
    $("inside-answer").textContent = "";
    this.tell();
  }

  show(data) {
    this.data = data;
    this.noise = data.noise;
    this.viewer.setSize(...data.size);
    this.tell();
    this.draw();
    $("facts").replaceChildren(...data.facts.map(([value, what]) =>
      node("li", {}, node("strong", {}, value), " " + what)));
    this.texts();
  }

  choose(after) {
    this.after = after;
    this.draw();
  }

  // which tokens are drawn: those before or after
  tokens(cell) { return (this.data.after && this.after && cell.after) || cell.before; }

  draw() {
    const compares = Boolean(this.data.after), after = compares && this.after;
    $("side-before").setAttribute("aria-pressed", !after);
    $("side-after").setAttribute("aria-pressed", after);
    this.viewer.clear();
    const layer = this.viewer.layer;
    layer.removeAttribute("aria-hidden");
    const shown = this.data.cells.filter((cell) => !this.tokens(cell)[0][2] || (after && cell.changed));
    // what came up out of nothing lies below what is written
    this.cells = [...shown.filter((cell) => cell.before[0][2]), ...shown.filter((cell) => !cell.before[0][2])];
    this.rects = this.cells.map((cell, i) => {
      const [x0, y0, x1, y1] = cell.box, best = this.tokens(cell)[0];
      const kind = best[2] ? "blank" : classOf(best[1]);
      return node("rect", {
        x: x0, y: y0, width: Math.max(x1 - x0, 1), height: Math.max(y1 - y0, 1), "data-i": i,
        class: "cell " + kind + (after && cell.changed ? " changed" : "") + (cell.before[0][2] ? " risen" : ""), role: "img",
        tabindex: i ? -1 : 0, "aria-label": this.describe(cell),
      });
    });
    this.current = 0;
    const group = node("g", { role: "group", "aria-label": plural(this.cells.length, "token") + " on the page. Arrow keys go from one to the next." }, ...this.rects);
    this.listen(group);
    layer.append(group);
    this.legend(after);
    this.pick(-1);
  }

  legend(after) {
    const counts = new Map();
    for (const rect of this.rects) {
      const kind = rect.classList[1];
      counts.set(kind, (counts.get(kind) || 0) + 1);
    }
    const key = (kind, name, n) => node("span", { class: "key" }, node("i", { class: "swatch " + kind }), name,
      node("small", {}, n.toLocaleString("en")));
    const line = (words, ...keys) => node("div", {}, node("span", { class: "hint" }, words), ...keys);
    const sure = CLASSES.map((one) => key(one.kind, one.name, counts.get(one.kind) || 0));
    // only there is a box drawn around nothing: it said something before
    if (counts.has("blank")) sure.push(key("blank", "blank now", counts.get("blank")));
    const lines = [line("Colour: how probable the likeliest token is, and how many:", ...sure)];
    if (after) lines.push(line("Edge:", key("changed", "says something else than before", this.cells.filter((c) => c.changed).length)));
    $("legend").replaceChildren(...lines);
  }

  describe(cell) {
    const best = this.tokens(cell).slice(0, 3).map((token) => said(token) + " " + percent(token[1]));
    return best.join(", ");
  }

  pick(index) {
    for (const rect of this.rects) rect.classList.remove("pointed");
    const cell = this.cells[index];
    if (!cell) {
      $("cell").replaceChildren(node("p", { class: "hint" },
        this.cells.length ? "Point at a box, or go there with Tab and the arrow keys." : "Every place on this page is blank."));
      return;
    }
    this.rects[index].classList.add("pointed");
    const column = (name, tokens) => node("div", { class: "column" }, node("h3", {}, name), ...tokens.map((token) => {
      const bar = node("span", { class: "bar" });
      bar.style.width = Math.max(1, token[1] * 100) + "%";
      return node("div", { class: "token" },
        node("span", { class: token[2] ? "word none" : "word" }, said(token)),
        node("span", { class: "track" }, bar), node("span", { class: "number" }, percent(token[1])));
    }));
    const both = Boolean(this.data.after && cell.after);
    $("cell").replaceChildren(column(both ? "Before" : "Likeliest tokens", cell.before),
      ...(both ? [column("After", cell.after)] : []));
  }

  listen(group) {
    const at = (event) => event.target.dataset && event.target.dataset.i;
    group.addEventListener("pointerover", (event) => {
      if (at(event) !== undefined) this.pick(Number(at(event)));
    });
    group.addEventListener("click", (event) => {
      if (at(event) !== undefined) this.focus(Number(at(event)));
    });
    group.addEventListener("focusin", (event) => {
      if (at(event) !== undefined) this.pick(Number(at(event)));
    });
    group.addEventListener("keydown", (event) => {
      const next = this.next(event.key);
      if (next === null) return;
      event.preventDefault();
      event.stopPropagation();
      this.focus(next);
    });
  }

  focus(index) {
    this.rects[this.current].setAttribute("tabindex", -1);
    this.current = index;
    this.rects[index].setAttribute("tabindex", 0);
    this.rects[index].focus({ preventScroll: true });
    this.viewer.bringIntoSight(this.cells[index].box);
  }

  next(key) {
    const last = this.cells.length - 1, at = this.current;
    if (key === "ArrowRight") return Math.min(at + 1, last);
    if (key === "ArrowLeft") return Math.max(at - 1, 0);
    if (key === "Home") return 0;
    if (key === "End") return last;
    if (key !== "ArrowDown" && key !== "ArrowUp") return null;
    const own = this.cells[at], down = key === "ArrowDown";
    const rows = this.cells.map((c) => c.row).filter((row) => (down ? row > own.row : row < own.row));
    if (!rows.length) return at;
    const goal = rows.reduce((a, b) => (down ? Math.min(a, b) : Math.max(a, b)));
    let best = at, gap = Infinity;
    this.cells.forEach((cell, i) => {
      const far = Math.abs(cell.box[0] - own.box[0]);
      if (cell.row === goal && far < gap) [best, gap] = [i, far];
    });
    return best;
  }

  texts() {
    const block = (name, text) => node("section", {}, node("h3", {}, name),
      node("pre", { tabindex: 0, "aria-label": name }, text || "nothing: every place is blank"));
    const both = this.data.after !== null;
    $("readings").replaceChildren(block(both ? "Reads before" : "Reads", this.data.before),
      ...(both ? [block("Reads after", this.data.after)] : []));
  }
}
