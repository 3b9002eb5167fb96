// Puts the page together: which document is open, what is being done, what is shown of it.
import { $, copy, node, plural, tabs } from "./dom.js";
import * as api from "./api.js";
import { Viewer } from "./viewer.js";
import { Inside } from "./inside.js";
import { Fields, History, Lines, noAnswer, showAnswer, suggestions, toldOf } from "./ask.js";

const about = await api.about();
const state = {
  opened: null, // the document
  mode: "tab-ask",
  reading: Promise.resolve(), // the page shown
  readings: null, // ends it
  working: null, // ends what was asked for
  sizes: {}, // of pages, px
  answer: null, // the entry shown
  marks: null, // its boxes
};

const viewer = new Viewer(turned);
const history = new History(recall);
const lines = new Lines(point, (box) => viewer.bringIntoSight(box));
const fields = new Fields(goTo);
const inside = about.ids ? new Inside(viewer, about, askInside, look) : null;

function say(text, kind = "") {
  $("status-text").textContent = text;
  $("status").className = kind;
  $("progress").hidden = $("stop-reading").hidden = true;
}

// events of a job, in words
function inWords(event) {
  if (event.event === "waiting")
    return "Waiting: " + plural(event.before, "job") + " before yours";
  if (event.event === "finding") return "Looking for the fields on page " + event.page;
  if (event.event !== "reading") return "";
  if (!event.of) return "Looking for lines on page " + event.page;
  if (event.again) return "Reading doubtful lines again: " + event.done + " of " + event.of;
  return "Reading page " + event.page + ": line " + event.done + " of " + event.of;
}

// what stands below the document when nothing is going on
function idle() {
  const { opened } = state;
  if (!opened) return say("");
  const left = opened.left_out ? "; " + plural(opened.left_out, "more page") + " left out" : "";
  const read = state.sizes[viewer.page] && about.ids ? "Page read · " : "";
  say(read + opened.name + ": " + plural(opened.pages, "page") + left);
}

function show(event) {
  const text = inWords(event);
  if (!text) return;
  say(text);
  const bar = $("progress");
  bar.hidden = $("stop-reading").hidden = false;
  if (event.of) {
    bar.max = event.of;
    bar.value = event.done;
  } else bar.removeAttribute("value");
}

const isAbort = (error) => error.name === "AbortError";

async function open(task, name, example) {
  endWork();
  say("Opening " + name + " …");
  try {
    const opened = await task();
    if (state.opened) api.putAway(state.opened.key);
    state.opened = opened;
  } catch (error) {
    return say(error.message, "error");
  }
  state.sizes = {};
  history.clear();
  fields.clear();
  inside?.reset();
  $("question").value = "";
  $("fields").value = example ? example.fields : "company, date, total";
  suggestions(example ? example.questions : [], (question) => {
    $("question").value = question;
    ask();
  });
  const several = state.opened.pages > 1;
  $("scope").hidden = $("read-all").hidden = !several;
  $("all-pages").textContent = "all " + plural(state.opened.pages, "page");
  document.querySelector("[name=scope][value=this]").checked = true;
  enable(true);
  viewer.open(state.opened);
}

function enable(on) {
  for (const id of ["question", "ask", "fields", "find"]) $(id).disabled = !on;
}

function upload(file) {
  if (file.size > about.max_upload)
    return say(file.name + " is larger than " + about.max_upload / 2 ** 20 + " MiB", "error");
  open(() => api.upload(file), file.name);
}

async function openExample(number) {
  const example = about.examples[number];
  await open(() => api.example(number), example.title, example);
  if (!state.opened || state.opened.name !== example.page) return;
  $("question").value = example.questions[0];
  if (state.mode === "tab-ask") ask();
}

function gallery() {
  $("gallery").replaceChildren(...about.examples.map((example, number) =>
    node("li", {}, node("button", { type: "button", onclick: () => openExample(number) },
      node("span", { class: "picture" }, node("img", { src: "/api/examples/" + number + ".png", alt: "" })),
      node("strong", {}, example.title),
      node("span", { class: "hint" }, example.questions[0])))));
  $("gallery-title").hidden = !about.examples.length;
}

// another page: what was said about the last one goes
function turned(page) {
  endWork();
  state.marks = state.answer = null;
  noAnswer();
  lines.clear("Reading …");
  inside?.forget();
  say("");
  state.reading = read(page);
  lookWhenRead();
}

function endWork() {
  state.readings?.abort();
  state.working?.abort();
  state.working = null;
}

async function read(page) {
  const ends = (state.readings = new AbortController());
  const opened = state.opened;
  try {
    await new Promise((after) => setTimeout(after, 120)); // thumbing through reads nothing
    if (ends.signal.aborted) return;
    await api.job(opened.key, "read", { page }, ends.signal, (event) => {
      show(event);
      if (event.event === "page" && viewer.page === event.page) gotLines(event);
    });
    idle();
  } catch (error) {
    if (isAbort(error)) return;
    say(error.message, "error");
    lines.clear("This page could not be read.");
  }
}

function gotLines(page) {
  state.sizes[page.page] = [page.width, page.height];
  viewer.setSize(page.width, page.height);
  lines.show(page, state.opened.key);
  if (!about.ids) lines.clear("This model turns pages into numbers, not into words.");
}

// something that can be stopped: what it is told goes to `tell`
async function work(task, tell) {
  if (!state.opened) return null;
  state.working?.abort();
  const ends = (state.working = new AbortController());
  $("stop").hidden = false;
  $("ask").hidden = true;
  const begun = performance.now();
  let words = "Waiting for the page";
  const tick = () => tell(words + " … " + Math.floor((performance.now() - begun) / 1000) + " s");
  const clock = setInterval(tick, 250);
  tick();
  try {
    if (!state.sizes[viewer.page]) {
      await state.reading;
      if (!state.sizes[viewer.page] && !ends.signal.aborted) await (state.reading = read(viewer.page));
    }
    ends.signal.throwIfAborted();
    return await task(ends.signal, (event) => {
      if (event.event !== "answering") show(event);
      words = inWords(event) || (event.event === "answering" ? "Answering" : words);
    });
  } catch (error) {
    if (!isAbort(error)) tell(error.message, "error");
    else if (state.working === ends) tell("Stopped");
    return null;
  } finally {
    clearInterval(clock);
    if (state.working === ends || !state.working) {
      state.working = null;
      $("stop").hidden = true;
      $("ask").hidden = false;
      if (!$("progress").hidden && !ends.signal.aborted) idle();
    }
  }
}

async function ask() {
  const question = $("question").value.trim();
  if (!question) return showAnswer("", "Write a question first.", "error");
  const all = state.opened.pages > 1 && document.querySelector("[name=scope]:checked").value === "all";
  const page = viewer.page;
  mark(null);
  let said = "";
  const answer = await work(
    (signal, heard) => api.job(state.opened.key, "ask", { page, question, all_pages: all }, signal, (event) => {
      heard(event);
      if (event.event === "answering") said = event.text;
    }),
    (told, kind = "busy") => showAnswer(said, told, kind));
  if (!answer) return;
  const entry = { question, page, all, answer };
  history.add(entry);
  recall(entry);
}

// show an answer, and its place
function recall(entry) {
  const { answer } = entry;
  const pages = answer.places.map((place) => place.page);
  const goal = pages.includes(viewer.page) ? viewer.page : pages[0] || entry.page;
  viewer.turnTo(goal);
  $("question").value = entry.question;
  state.answer = entry;
  showAnswer(answer.text || "No answer", toldOf(answer, goal));
  markAnswer();
}

function markAnswer() {
  const here = state.answer.answer.places.filter((place) => place.page === viewer.page);
  mark(here.length ? { boxes: here.map((place) => place.box), size: here[0].size } : null);
}

function goTo(field) {
  viewer.turnTo(field.page);
  mark({ boxes: field.boxes, size: field.size });
}

function mark(marks) {
  state.marks = marks;
  if (state.mode !== "tab-ask") return;
  viewer.clear();
  if (marks) viewer.setSize(...marks.size);
  viewer.mark(marks ? marks.boxes : [], "place");
  lines.mark(marks ? marks.boxes : []);
}

function point(box) {
  if (state.mode === "tab-ask") viewer.mark(box ? [box] : [], "pointed");
}

async function find() {
  const page = viewer.page, all = state.opened.pages > 1;
  const found = await work(
    (signal, heard) => api.job(state.opened.key, "fields", { page, all_pages: all, fields: $("fields").value }, signal, heard),
    (told) => fields.clear(told));
  if (found) fields.show(found.fields, state.opened.key);
}

async function readAll() {
  const key = state.opened.key;
  const done = await work(
    (signal, heard) => api.job(key, "read", { all_pages: true }, signal, heard),
    (told, kind) => say(told, kind));
  if (done) say("All " + plural(state.opened.pages, "page") + " read: the files hold them all.");
}

function lookWhenRead() {
  if (state.mode !== "tab-inside" || state.looks === state.reading) return;
  state.looks = state.reading; // once for each reading
  state.reading.then(() => {
    state.looks = null;
    look();
  });
}

// the window into P_vocab
async function look() {
  if (!state.opened || state.mode !== "tab-inside") return;
  const { sigma, halved } = inside, page = viewer.page;
  const data = await work(
    (signal, heard) => api.job(state.opened.key, "window", { page, sigma, halved }, signal, heard),
    (told, kind) => say(told, kind));
  if (!data || viewer.page !== page || state.mode !== "tab-inside") return;
  inside.show(data);
  idle();
}

async function askInside() {
  const question = $("question").value.trim();
  const told = (text) => { $("inside-answer").textContent = text; };
  if (!question) return told("Write a question under Ask first.");
  const { sigma, halved } = inside, page = viewer.page;
  const answer = await work(
    (signal, heard) => api.job(state.opened.key, "ask", { page, question, sigma, halved }, signal, heard), told);
  if (!answer) return;
  const before = state.answer && state.answer.question === question ? " Before: " + (state.answer.answer.text || "no answer") + "." : "";
  told(question + " With these settings: " + (answer.text || "no answer") + "." + before);
}

function stop() {
  if (!state.working && $("progress").hidden) return;
  state.readings?.abort();
  state.working?.abort();
  say("Stopped");
  if (!state.sizes[viewer.page]) lines.clear("Reading was stopped.");
}

gallery();
noAnswer();
lines.clear("Open a document, and what is read on it appears here.");
enable(false);
$("model").textContent = about.name;
$("tab-inside").hidden = !about.ids;
$("tab-fields").hidden = !about.reads;
tabs($("tabs"), (id) => {
  state.mode = id;
  viewer.clear();
  if (id === "tab-ask") mark(state.marks);
  else if (inside.data) inside.show(inside.data);
  else if (state.opened) lookWhenRead();
});
// a field's place was marked instead of the answer's, which is still told as marked
tabs($("views"), (id) => { if (id !== "tab-fields" && state.answer && !state.working) markAnswer(); });
$("file").addEventListener("change", () => {
  if ($("file").files.length) upload($("file").files[0]);
  $("file").value = "";
});
$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("fields-form").addEventListener("submit", (event) => { event.preventDefault(); find(); });
$("stop").addEventListener("click", stop);
$("stop-reading").addEventListener("click", stop);
$("read-all").addEventListener("click", readAll);
$("copy-answer").addEventListener("click", () => copy($("answer-text").textContent, $("copy-answer")));
$("examples").hidden = !about.examples.length;
$("examples").addEventListener("click", () => {
  const shown = $("start").hidden;
  $("start").hidden = !shown;
  $("viewer").hidden = shown || !state.opened;
  $("examples").setAttribute("aria-pressed", shown);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
for (const kind of ["dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    if (kind === "drop" || !event.relatedTarget) document.body.classList.remove("dragging");
  });
document.addEventListener("drop", (event) => {
  if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) upload(event.clipboardData.files[0]);
});
window.addEventListener("pagehide", (event) => {
  if (state.opened && !event.persisted) api.putAway(state.opened.key);
});
document.body.dataset.ready = "";
