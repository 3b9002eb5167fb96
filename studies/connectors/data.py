"""Pages of the study: forms to be asked about, covered words, and look-alike words."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignvlm.data.records import Record, make_record, transcript
from alignvlm.data.sources import RenderSource, draw
from alignvlm.data.synthetic import layouts
from alignvlm.data.synthetic.corpus import builtin_passages
from alignvlm.data.synthetic.fonts import expand_fonts
from alignvlm.data.synthetic.render import Canvas, RenderedPage, RenderSpec, render_page
from alignvlm.eval.tasks.vcr import VCRStyle, VCRTask

HEIGHT, WIDTH, FONT_PX, FONT = 24, 192, 13, "DejaVuSansMono"
"""Px of a page and of its text: one line of 24 characters, each 8 px wide."""
CELL = 8
"""Px of a feature cell: a character stands in one cell and no two in the same."""
FORMS = RenderSpec(
    layout="form", width=WIDTH, height=HEIGHT, font_px=(FONT_PX, FONT_PX), fonts=(FONT,),
    margin=0, line_spacing=1.0,
)  # fmt: skip
TEXT = FORMS.model_copy(update={"layout": "text"})
READ = "Read the text on the page."
RESTORE = "Restore the covered text."
TEST_SEED = 900_000
"""Held-out pages: far from any seed that training draws from."""
VCR_STYLE = VCRStyle(
    pages=2_000, font=expand_fonts((FONT,))[0], font_px=FONT_PX, width=WIDTH, lines=1, words=1,
    fraction=0.2, margin=0,
)  # fmt: skip
MAX_NEW_TOKENS = 16
LETTERS = {letter: i + 1 for i, letter in enumerate(string.printable[:94])}
BLANK = 0


@dataclass(frozen=True)
class Asked:
    """A held-out question: page, what is asked, what is right."""

    id: str
    page: Image.Image
    question: str
    answer: str


def held_out_forms(count: int) -> list[Asked]:
    """One question about each of ``count`` forms that no training seed draws."""
    source = held_out_source(count)
    return [
        Asked(r.id, r.images[0], r.question, r.answer or "")  # type: ignore[arg-type]
        for r in (source[i] for i in range(count))
    ]


def held_out_source(count: int) -> RenderSource:
    """The records behind :func:`held_out_forms`."""
    return RenderSource(FORMS, count, seed=TEST_SEED, task="qa")


def characters(page: RenderedPage) -> Tensor:
    """``LETTERS`` of the character in each cell, else ``BLANK``; int64 ``[rows, cols]``."""
    found = torch.full((HEIGHT // CELL, WIDTH // CELL), BLANK)
    for word in page.words:
        row = int((word.box[1] + word.box[3]) / 2 // CELL)
        for letter, x in zip(word.text, word.char_x, strict=True):
            found[row, int((x + 0.5) // CELL)] = LETTERS.get(letter, BLANK)
    return found


def spelled(page: RenderedPage) -> str:
    """The page cell by cell, row by row: a character, or a space where none is."""
    letters = " " + "".join(LETTERS)
    return "".join(letters[int(i)] for i in characters(page).flatten())


def dialogue(seed: int, *, cells: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Text of a form and all its facts, or of a page to be read aloud (one in three).

    Reading aloud teaches a small model to copy sooner than short answers do.

    Args:
        cells: give the page as :func:`spelled` does, not as text.
    """
    rng = np.random.default_rng(seed)
    spec = TEXT if rng.random() < 1 / 6 else FORMS
    page = render_page(spec.model_copy(update={"random_text": 0.3 if spec is TEXT else 0}), seed)
    text = transcript(page.words)
    shown = spelled(page) if cells else text
    if spec is TEXT or rng.random() < 1 / 6:
        return shown, [(READ, text)]
    facts = [(fact.question, fact.answer) for fact in page.facts]
    return shown, [facts[i] for i in rng.permutation(len(facts))]


def random_reading(seed: int, tokenizer: Any) -> tuple[str, list[tuple[str, str]]]:
    """Tokens drawn at random, to be read aloud: nothing helps but copying, token by token.

    A small model that sees only forms learns what values look like long before it looks at the
    page; from these it learns to look within a few hundred steps.
    """
    rng = np.random.default_rng((seed, 1))
    ids = rng.integers(len(tokenizer), size=int(rng.integers(6, 20)))
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()
    return text, [(READ, text)]


# ----------------------------------------------------------------------------------- covered words


def write_passages(folder: Path) -> None:
    """Real text for covered words: every fifth passage is held out."""
    folder.mkdir(parents=True, exist_ok=True)
    passages = builtin_passages()
    for name, own in (
        ("train", [p for i, p in enumerate(passages) if i % 5]),
        ("test", list(passages[::5])),
    ):
        partial = folder / f"{name}.partial"
        partial.write_text("\n\n".join(own) + "\n", encoding="utf-8")
        partial.rename(folder / f"passages-{name}.txt")


def covered_pages(folder: Path, part: str, split: str, count: int) -> list[Asked]:
    """At most ``count`` pages with covered words; ``split`` is ``easy`` or ``hard``."""
    task = VCRTask(folder / f"passages-{part}.txt", split, VCR_STYLE)
    return [
        Asked(task.sample(i).id, task.pages(i)[0], RESTORE, ", ".join(task.sample(i).answers))
        for i in range(min(count, len(task)))
    ]


class CoveredSource:
    """Training pages with covered words, easy and hard in turn."""

    name = "covered"

    def __init__(self, folder: Path) -> None:
        path = folder / "passages-train.txt"
        self.tasks = [VCRTask(path, split, VCR_STYLE) for split in ("easy", "hard")]

    def __len__(self) -> int:
        return 2 * len(self.tasks[0])

    def __getitem__(self, index: int) -> Record:
        task = self.tasks[index % 2]
        sample, page = task.sample(index // 2), task.pages(index // 2)[0]
        answer = ", ".join(sample.answers)
        return make_record(f"covered/{index}", [page], [(RESTORE, answer)], source=self.name)


# --------------------------------------------------------------------------------------- snippets


class SnippetSource:
    """Pages with one short random string somewhere, to be read: nothing but reading helps."""

    name = "snippet"

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng((self.seed, index, 2))
        text = layouts.random_word(rng)
        canvas = Canvas(WIDTH, HEIGHT, font=expand_fonts((FONT,))[0], px=FONT_PX, margin=0,
                        line_spacing=1.0)  # fmt: skip
        row = int(rng.integers(canvas.rows))
        col = int(rng.integers((WIDTH - canvas.measure(text)) // CELL + 1))
        canvas.put(CELL * col, canvas.top + row * canvas.pitch, text)
        page = canvas.page("snippet", [])
        return make_record(
            f"snippet/{self.seed}/{index}", [page.image], [(READ, text)], source=self.name,
            words=[page.words],
        )  # fmt: skip


# -------------------------------------------------------------------------------- look-alike words


@dataclass(frozen=True)
class LookAlike:
    """A rare word one letter away from a common one, each on the same page."""

    common: Asked
    rare: Asked


def look_alikes(count: int) -> list[LookAlike]:
    """Cities that training shows often, and the same with one vowel changed (``Llanengan``)."""
    font = expand_fonts((FONT,))[0]
    pairs = []
    for i in range(count):
        rng = np.random.default_rng(draw(TEST_SEED, i))
        city = str(layouts.pick(rng, [c for c in layouts.CITIES if _vowels(c)]))
        rare = _with_another_vowel(city, rng)
        pair = [
            Asked(f"look-alike/{i}/{word}", _city_page(font, word), "What is the city?", word)
            for word in (city, rare)
        ]
        pairs.append(LookAlike(*pair))
    return pairs


def _vowels(word: str) -> list[int]:
    return [i for i, letter in enumerate(word) if letter in "aeiou"]


def _with_another_vowel(word: str, rng: Any) -> str:
    while True:
        place = layouts.pick(rng, _vowels(word))
        letter = layouts.pick(rng, "aeiou")
        changed = word[:place] + letter + word[place + 1 :]
        if changed not in layouts.CITIES:
            return changed


def _city_page(font: str, word: str) -> Image.Image:
    canvas = Canvas(WIDTH, HEIGHT, font=font, px=FONT_PX, margin=0, line_spacing=1.0)
    canvas.put(canvas.left, canvas.top, f"City: {word}")
    return canvas.page("form", []).image
