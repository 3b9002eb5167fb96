// The document: one page at a time, zoom, thumbnails, and boxes drawn over the page.
import { $, bringUp, node } from "./dom.js";

const STEPS = [0.25, 0.33, 0.5, 0.67, 0.8, 1, 1.25, 1.5, 2, 3, 4];
const LARGEST = 1.6; // of "fit": a small picture is not blown up further

export class Viewer {
  constructor(turned) {
    this.turned = turned;
    this.zoom = null; // null: fit
    this.size = [1, 1];
    this.layer = node("svg", { "aria-hidden": "true" });
    $("sheet").append(this.layer);
    $("previous").addEventListener("click", () => this.turnTo(this.page - 1));
    $("next").addEventListener("click", () => this.turnTo(this.page + 1));
    $("smaller").addEventListener("click", () => this.step(-1));
    $("larger").addEventListener("click", () => this.step(1));
    $("fit").addEventListener("click", () => this.setZoom(null));
    $("scroller").addEventListener("keydown", (event) => this.key(event));
    $("scroller").addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.step(event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
    new ResizeObserver(() => this.lay()).observe($("scroller"));
    $("image").addEventListener("load", () => this.loaded());
  }

  open(opened) {
    this.document = opened;
    this.page = 0;
    this.zoom = null;
    $("start").hidden = true;
    $("viewer").hidden = false;
    $("name").textContent = opened.name;
    $("name").title = opened.name;
    const several = opened.pages > 1;
    $("paging").hidden = !several;
    $("thumbnails").hidden = !several;
    $("thumbnails").replaceChildren(...(several ? this.thumbnails(opened) : []));
    this.turnTo(1);
  }

  thumbnails(opened) {
    return Array.from({ length: opened.pages }, (_, i) =>
      node("button", { type: "button", onclick: () => this.turnTo(i + 1), "aria-label": "Page " + (i + 1) },
        node("img", { src: this.path(i + 1, "thumbnail"), alt: "", loading: "lazy" }),
        node("span", {}, String(i + 1))));
  }

  path(page, kind) {
    return "/api/documents/" + this.document.key + "/" + page + "/" + kind + ".jpg";
  }

  turnTo(page) {
    if (page < 1 || page > this.document.pages || page === this.page) return;
    this.page = page;
    this.clear();
    $("image").classList.add("loading");
    $("image").src = this.path(page, "page");
    $("image").alt = "Page " + page + " of " + this.document.name;
    $("page-of").textContent = "Page " + page + " of " + this.document.pages;
    $("previous").disabled = page === 1;
    $("next").disabled = page === this.document.pages;
    [...$("thumbnails").children].forEach((one, i) => {
      if (i + 1 === page) one.setAttribute("aria-current", "page");
      else one.removeAttribute("aria-current");
      if (i + 1 === page) bringUp($("thumbnails"), one);
    });
    this.turned(page);
  }

  loaded() {
    $("image").classList.remove("loading");
    this.lay();
  }

  // the page's own pixels, in which boxes are told; the picture shown may be smaller
  setSize(width, height) {
    this.size = [width, height];
    this.layer.setAttribute("viewBox", "0 0 " + width + " " + height);
    this.lay();
  }

  fitted() {
    const image = $("image"), box = $("scroller");
    const [width, height] = [image.naturalWidth || 1, image.naturalHeight || 1];
    const phone = matchMedia("(max-width: 760px)").matches;
    const across = (box.clientWidth - 24) / width, down = (box.clientHeight - 24) / height;
    return Math.min(phone ? across : Math.min(across, down), LARGEST);
  }

  lay() {
    const image = $("image");
    if (!image.naturalWidth) return;
    const zoom = this.zoom ?? this.fitted();
    $("sheet").style.width = Math.round(image.naturalWidth * zoom) + "px";
    $("sheet").style.height = Math.round(image.naturalHeight * zoom) + "px";
    $("fit").textContent = Math.round(zoom * 100) + " %";
  }

  setZoom(zoom) {
    const box = $("scroller"), before = $("sheet").offsetWidth;
    const x = (box.scrollLeft + box.clientWidth / 2) / before;
    const y = (box.scrollTop + box.clientHeight / 2) / before;
    this.zoom = zoom;
    this.lay();
    const now = $("sheet").offsetWidth;
    box.scrollTo(x * now - box.clientWidth / 2, y * now - box.clientHeight / 2);
  }

  step(direction) {
    const now = this.zoom ?? this.fitted();
    const next = direction > 0
      ? STEPS.find((step) => step > now * 1.01)
      : STEPS.findLast((step) => step < now * 0.99);
    if (next) this.setZoom(next);
  }

  key(event) {
    if (event.target !== $("scroller") || event.ctrlKey || event.metaKey || event.altKey) return;
    const scrolls = $("scroller").scrollWidth > $("scroller").clientWidth + 1;
    const keys = {
      PageDown: () => this.turnTo(this.page + 1), PageUp: () => this.turnTo(this.page - 1),
      "+": () => this.step(1), "-": () => this.step(-1), 0: () => this.setZoom(null),
    };
    if (!scrolls) {
      keys.ArrowRight = keys.PageDown;
      keys.ArrowLeft = keys.PageUp;
    }
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }

  clear() {
    this.layer.replaceChildren();
    this.layer.setAttribute("aria-hidden", "true");
  }

  // boxes in the page's pixels; the first one is brought into sight
  mark(boxes, kind, grown = 0.12) {
    for (const old of this.layer.querySelectorAll("." + kind)) old.remove();
    for (const [x0, y0, x1, y1] of boxes) {
      const more = grown * (y1 - y0);
      this.layer.append(node("rect", {
        class: kind, x: x0 - more, y: y0 - more, rx: more,
        width: Math.max(x1 - x0, 2) + 2 * more, height: Math.max(y1 - y0, 2) + 2 * more,
      }));
    }
    if (boxes.length) this.bringIntoSight(boxes[0]);
  }

  bringIntoSight([x0, y0, x1, y1]) {
    const box = $("scroller"), scale = $("sheet").offsetWidth / this.size[0];
    const seen = (from, to, start, length) => from >= start && to <= start + length;
    const [left, top] = [x0 * scale, y0 * scale];
    if (!seen(left, x1 * scale, box.scrollLeft, box.clientWidth)) box.scrollLeft = left - 40;
    if (!seen(top, y1 * scale, box.scrollTop, box.clientHeight))
      box.scrollTop = top - box.clientHeight / 3;
  }
}
