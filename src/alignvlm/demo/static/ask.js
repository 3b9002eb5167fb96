// Question, answer, history; the text of the page; fields.
import { $, bringUp, copy, node } from "./dom.js";

export function showAnswer(text, told, kind = "") {
  $("answer-text").textContent = text;
  $("answer-text").className = kind;
  $("told").textContent = told;
  $("copy-answer").hidden = kind !== "";
}

export function noAnswer() {
  showAnswer("The answer appears here, and its place on the page.", "", "empty");
}

export function suggestions(questions, chosen) {
  $("suggestions").replaceChildren(...questions.map((question) =>
    node("button", { type: "button", class: "chip", title: question, onclick: () => chosen(question) }, question)));
}

// how an answer came about, in words
export function toldOf(answer, page) {
  const seconds = answer.seconds.toFixed(1) + " s";
  if (!answer.text) return "There is no text on the page that could answer. " + seconds;
  const pages = [...new Set(answer.places.map((place) => place.page))];
  let where = "not found word for word on the page";
  if (pages.length) where = pages.length === 1 && pages[0] === page ? "marked on the page" : "on page " + pages.join(", ");
  if (answer.missing.length) where += "; not on it: " + answer.missing.join(", ");
  return where[0].toUpperCase() + where.slice(1) + " · " + seconds;
}

export class History {
  constructor(chosen) {
    this.chosen = chosen;
    this.clear();
  }

  clear() {
    $("history").replaceChildren();
    $("history-empty").hidden = false;
  }

  add(entry) {
    $("history-empty").hidden = true;
    const about = entry.all ? "all pages" : "page " + entry.page;
    $("history").prepend(node("li", {},
      node("button", { type: "button", onclick: () => this.chosen(entry) },
        node("span", { class: "asked" }, entry.question),
        node("span", { class: "said" }, entry.answer.text || "no answer"),
        node("span", { class: "hint" }, about))));
  }
}

export class Lines {
  constructor(pointed, chosen) {
    this.pointed = pointed;
    this.chosen = chosen;
    $("copy-text").addEventListener("click", () => copy(this.text, $("copy-text")));
  }

  clear(message = "") {
    this.text = "";
    $("lines").replaceChildren(...(message ? [node("li", { class: "empty" }, message)] : []));
    this.enable(null);
  }

  enable(key) {
    $("copy-text").disabled = !this.text;
    for (const form of ["txt", "md", "json"]) {
      const link = $("save-" + form);
      if (key) link.href = "/api/documents/" + key + "/text." + form;
      else link.removeAttribute("href");
    }
  }

  show(page, key) {
    this.text = page.lines.map((line) => line.text).join("\n");
    if (!page.lines.length) return this.clear("Nothing was read on this page.");
    $("lines").replaceChildren(...page.lines.map((line) => {
      const made = node("li", {
        onpointerenter: () => this.pointed(line.box), onpointerleave: () => this.pointed(null),
        onclick: () => this.chosen(line.box),
      }, line.text);
      made.box = line.box;
      return made;
    }));
    this.enable(key);
  }

  // lines that the answer stands in
  mark(boxes) {
    for (const line of $("lines").children) {
      const own = line.box;
      const here = own && boxes.some(([x0, y0, x1, y1]) =>
        Math.min(y1, own[3]) - Math.max(y0, own[1]) > 0.5 * (y1 - y0) && x0 < own[2] && x1 > own[0]);
      line.classList.toggle("here", Boolean(here));
      if (here) bringUp($("lines"), line);
    }
  }
}

export class Fields {
  constructor(chosen) {
    this.chosen = chosen;
  }

  clear(told = "Each value is words of the page, never invented.") {
    $("table").hidden = true;
    $("save-csv").hidden = true;
    $("fields-told").textContent = told;
  }

  show(found, key) {
    const rows = found.map((field) => {
      const value = field.value ?? field.text;
      const place = field.boxes.length > 0;
      const unsure = field.confidence < 0.5;
      const shown = value
        ? node("button", { type: "button", class: unsure ? "link unsure" : "link", disabled: !place, title: field.text,
            onclick: () => this.chosen(field) }, value)
        : node("span", { class: "hint" }, "not on the page");
      const cell = node("td", {}, shown);
      if (value && unsure) cell.append(node("div", { class: "hint" }, "unsure, perhaps not on the page"));
      if (field.note) cell.append(node("div", { class: "hint" }, field.note));
      return node("tr", {}, node("th", { scope: "row" }, field.name), cell,
        node("td", { class: "number" }, field.page ? String(field.page) : ""),
        node("td", { class: "number" }, value ? Math.round(field.confidence * 100) + " %" : ""));
    });
    $("table").tBodies[0].replaceChildren(...rows);
    $("table").hidden = false;
    $("save-csv").hidden = false;
    $("save-csv").href = "/api/documents/" + key + "/fields.csv";
    $("fields-told").textContent = "Choose a value to see where it stands.";
  }
}
