// Small helpers. Everything a document or the model says goes in through text, never as markup.
const NS = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

export function node(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "g"].includes(tag);
  const made = svg ? document.createElementNS(NS, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export const plural = (n, one) => n.toLocaleString("en") + " " + one + (n === 1 ? "" : "s");
export const percent = (p) => (p < 0.001 ? "< 0.1" : (p * 100).toFixed(p > 0.9995 ? 0 : 1)) + " %";

// tabs: one of them is in the tab order, arrows go from one to the next
export function tabs(list, chosen = () => {}) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const choose = (tab) => {
    for (const one of all) {
      const on = one === tab;
      one.setAttribute("aria-selected", on);
      one.tabIndex = on ? 0 : -1;
      $(one.getAttribute("aria-controls")).hidden = !on;
    }
    chosen(tab.id);
  };
  for (const tab of all) tab.addEventListener("click", () => choose(tab));
  list.addEventListener("keydown", (event) => {
    const seen = all.filter((tab) => !tab.hidden);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = seen.indexOf(document.activeElement);
    const tab = seen[(at + step + seen.length) % seen.length];
    tab.focus();
    choose(tab);
  });
  return { choose: (id) => choose($(id)) };
}

// within its list alone: scrollIntoView would move the whole page on a phone
export function bringUp(list, item) {
  const [outer, inner] = [list.getBoundingClientRect(), item.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom)
    list.scrollTop += inner.top - outer.top - list.clientHeight / 3;
  if (inner.left < outer.left || inner.right > outer.right)
    list.scrollLeft += inner.left - outer.left - list.clientWidth / 3;
}

export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // without https only this old way is there
    const area = node("textarea", { class: "away", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  // pressed again before that is over, the button still has its own name to go back to
  button.dataset.name ??= button.textContent;
  button.textContent = "Copied";
  clearTimeout(button.again);
  button.again = setTimeout(() => (button.textContent = button.dataset.name), 1500);
}
