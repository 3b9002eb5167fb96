"""Pages of the study before they are features: pixels, lines of text with places, questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignvlm.data.synthetic import layouts
from alignvlm.data.synthetic.canvas import Canvas, RenderedPage
from alignvlm.data.synthetic.degrade import degrade
from alignvlm.data.synthetic.fonts import expand_fonts
from alignvlm.data.synthetic.render import RenderSpec, render_page
from alignvlm.documents.words import Word

KINDS = ("form", "receipt", "table")
GAP = 1.6
"""Words on a row that stand further apart, in heights of the row, are pieces of their own."""
SIZE, FONT_PX = ((240, 341), (90, 141)), (16, 22)
"""Px of a rendered page, across and down (ends left out), and of its letters."""
FIELDS = ("company", "date", "total", "address")
TRAIN_FROM, TEST_FROM = 1_000_000, 9_000_000
"""First seeds of rendered pages."""


@dataclass(frozen=True)
class Piece:
    """Words that stand together on a row; ``box`` is left, top, right, bottom in px."""

    text: str
    box: tuple[float, float, float, float]
    row: int


@dataclass(frozen=True)
class Drawn:
    """A page: grey pixels ``[height, width]`` (0 to 255), its pieces row by row, its questions."""

    name: str
    kind: str
    pixels: NDArray[np.uint8]
    pieces: tuple[Piece, ...]
    facts: tuple[tuple[str, str], ...]
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Row by row."""
        rows: dict[int, list[str]] = {}
        for piece in self.pieces:
            rows.setdefault(piece.row, []).append(piece.text)
        return "\n".join(" ".join(row) for row in rows.values())


def pieces_of(words: tuple[Word, ...]) -> tuple[Piece, ...]:
    """Words put together to pieces."""
    pieces: list[Piece] = []
    for word in words:
        left, top, right, bottom = word.box
        last = pieces[-1] if pieces else None
        if last and last.row == word.line and left - last.box[2] < GAP * (bottom - top):
            box = (last.box[0], min(top, last.box[1]), right, max(bottom, last.box[3]))
            pieces[-1] = Piece(f"{last.text} {word.text}", box, last.row)
        else:
            pieces.append(Piece(word.text, word.box, word.line))
    return tuple(pieces)


def from_rendered(name: str, page: RenderedPage, **more: Any) -> Drawn:
    """A rendered page."""
    pixels = np.asarray(page.image.convert("L"))
    facts = tuple((fact.question, fact.answer) for fact in page.facts)
    return Drawn(name, page.layout, pixels, pieces_of(page.words), facts, more)


def rendered(seed: int) -> Drawn:
    """A form, a receipt or a table; one in four looks scanned."""
    rng = np.random.default_rng((seed, 7))
    (low, high), (least, most) = SIZE
    spec = RenderSpec(
        layout=layouts.pick(rng, KINDS), width=int(rng.integers(low, high)),
        height=int(rng.integers(least, most)), font_px=FONT_PX, degrade=0.25,
    )  # fmt: skip
    return from_rendered(f"{spec.layout}/{seed}", render_page(spec, seed))


# ---------------------------------------------------------------------------------- real receipts


def receipts(folder: Path, held_out: bool) -> list[Path]:
    """Box files of the training split; every ninth is held out."""
    files = sorted((folder / "box").iterdir())
    return [f for i, f in enumerate(files) if (i % 9 == 8) == held_out]


def receipt_crop(box_file: Path, rng: np.random.Generator) -> Drawn | None:
    """Some rows of a real receipt around one of its fields; ``None`` where no field is on one row.

    Args:
        box_file: ``box/NAME.txt``, with ``key/NAME.*`` and ``img/NAME.*`` beside its folder.
    """
    root, name = box_file.parent.parent, box_file.stem
    pieces = _transcribed(box_file)
    keys = json.loads(next((root / "key").glob(f"{name}.*")).read_text("utf-8"))
    places = [
        (field, i)
        for field in FIELDS
        for i, piece in enumerate(pieces)
        if len(value := keys.get(field, "")) > 2 and value in piece.text
    ]
    if not places:
        return None
    _, centre = places[int(rng.integers(len(places)))]
    first = max(0, centre - int(rng.integers(3)))
    taken: list[Piece] = []
    for piece in pieces[first : first + 6]:
        if sum(len(p.text) + 1 for p in taken) + len(piece.text) > 100 and len(taken) > 1:
            break
        taken.append(piece)
    facts = tuple(
        (f"What is the {field}?", keys[field])
        for field in FIELDS
        if len(keys.get(field, "")) > 2 and any(keys[field] in p.text for p in taken)
    )
    if not facts:
        return None
    image = Image.open(next((root / "img").glob(f"{name}.*"))).convert("L")
    return _cropped(f"sroie/{name}/{first}", image, taken, facts)


def _transcribed(box_file: Path) -> list[Piece]:
    """Lines of a box file: eight corners and the text; those side by side share a row."""
    pieces: list[Piece] = []
    for line in box_file.read_text("utf-8", errors="replace").splitlines():
        parts = line.split(",", 8)
        if len(parts) < 9 or not parts[8].strip():
            continue
        x, y = [float(v) for v in parts[0:8:2]], [float(v) for v in parts[1:8:2]]
        box = (min(x), min(y), max(x), max(y))
        last = pieces[-1] if pieces else None
        beside = last is not None and last.box[1] < (box[1] + box[3]) / 2 < last.box[3]
        row = 0 if last is None else last.row + (not beside)
        pieces.append(Piece(" ".join(parts[8].split()), box, row))
    return pieces


def _cropped(name: str, image: Image.Image, pieces: list[Piece], facts: Any) -> Drawn:
    boxes = np.array([p.box for p in pieces])
    left, top = np.maximum(boxes[:, :2].min(0) - 4, 0)
    right, bottom = boxes[:, 2:].max(0) + 4
    area = (int(left), int(top), min(int(right), image.width), min(int(bottom), image.height))
    moved = tuple(
        Piece(p.text, tuple(v - (area[0], area[1])[i % 2] for i, v in enumerate(p.box)), p.row)
        for p in pieces
    )
    return Drawn(name, "sroie", np.asarray(image.crop(area)), moved, facts)


# ------------------------------------------------------------------------------- special questions


def laid_out(seed: int) -> Iterator[Drawn]:
    """Three facts in four ways: another order, columns or not, other letters and spacing."""
    rng = np.random.default_rng((seed, 8))
    names = [str(name) for name in rng.choice(list(layouts.FIELDS), 3, replace=False)]
    values = {name: layouts.FIELDS[name][1](rng) for name in names}
    asked = names[0]
    for way in range(4):
        height = 130
        canvas = Canvas(
            440, height, font=layouts.pick(rng, expand_fonts(())), px=int(rng.integers(15, 20)),
            margin=8, line_spacing=float(rng.uniform(1.1, 1.7)),
        )  # fmt: skip
        columns, y = way % 2 == 1, canvas.top
        for name in rng.permutation(names):
            label = layouts.FIELDS[name][0][0] + ("" if columns else ":")
            after = canvas.left + canvas.measure(label) + canvas.space
            canvas.put(canvas.left, y, label)
            canvas.put(max(after, canvas.left + 150) if columns else after, y, values[name])
            canvas.next_line()
            y += canvas.pitch
        page = canvas.page("form", [(f"What is the {asked}?", values[asked])])
        yield from_rendered(f"laid-out/{seed}/{way}", page, group=seed, way=way)


def with_scan(seed: int) -> Iterator[Drawn]:
    """A page as it is drawn, and as a bad scan of it."""
    rng = np.random.default_rng((seed, 9))
    spec = RenderSpec(layout=layouts.pick(rng, KINDS), width=300, height=120, font_px=FONT_PX)
    page = render_page(spec, seed)
    yield from_rendered(f"scan/{seed}/clean", page, pair=seed, scanned=False)
    bad = RenderedPage(degrade(page.image, rng, "basic"), page.words, page.facts, page.layout)
    yield from_rendered(f"scan/{seed}/scanned", bad, pair=seed, scanned=True)


def look_alike(seed: int) -> Iterator[Drawn]:
    """A city, and the same with one vowel changed (the paper's Llanengan)."""
    rng = np.random.default_rng((seed, 10))
    city = layouts.pick(rng, [c for c in layouts.CITIES if set(c.lower()) & set("aeiou")])
    spots = [i for i, letter in enumerate(city) if letter in "aeiou"]
    rare = city
    while rare == city or rare in layouts.CITIES:
        spot = layouts.pick(rng, spots)
        rare = city[:spot] + layouts.pick(rng, "aeiou") + city[spot + 1 :]
    for word in (city, rare):
        canvas = Canvas(240, 40, font=expand_fonts(("DejaVuSans",))[0], px=20, margin=8,
                        line_spacing=1.2)  # fmt: skip
        canvas.put(canvas.left, canvas.top, f"City: {word}")
        page = canvas.page("form", [("What is the city?", word)])
        yield from_rendered(f"look-alike/{seed}/{word}", page, common=city, rare=rare)
