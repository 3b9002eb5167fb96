"""What the language model learns from: pages of training splits, and its own answers.

Shares are of pages. Real readings are taken where they are stored (:mod:`.readings`), else true
text is read with the reader's mistakes (:mod:`.mistakes`).
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from alignvlm.data.benchmarks.benchmark import ANSWER_SEPARATOR, NO_VALUE, Benchmark
from alignvlm.data.benchmarks.tables import (
    ChartQASource,
    DeepFormSource,
    SROIESource,
    TabFactSource,
    WTQSource,
)
from alignvlm.data.synthetic.layouts import FIELDS
from alignvlm.data.synthetic.render import RenderSpec, render_page, render_table
from alignvlm.documents.opening import pdf_page_count, pdf_words
from alignvlm.errors import ConfigError, DataError
from alignvlm.inference.page_spans import ABSENT
from alignvlm.reader.characters import Characters

from . import wording
from .augment import another, other_digits, without
from .excerpt import holds, rows_of, shorten
from .mistakes import Mistakes
from .store import Readings

SHARES = {
    "sroie": 0.54, "form": 0.10, "receipt": 0.08, "deepform": 0.09, "wtq": 0.07, "tabfact": 0.02,
    "chartqa": 0.03, "instruct": 0.04, "text": 0.03,
}  # fmt: skip
LONG_SHARES = {
    "sroie": 0.30, "form": 0.14, "receipt": 0.10, "deepform": 0.09, "wtq": 0.17, "tabfact": 0.09,
    "chartqa": 0.07, "text": 0.04,
}  # fmt: skip
"""Of a run long enough to see each document many times."""
SOURCES_OF = {"receipts": ("sroie", "receipt"), "contracts": ("deepform",)}
"""Kinds of document that a run can be kept from, to see how it learns one it has never seen."""
QUESTIONS = {"wtq": 5, "tabfact": 6, "chartqa": 5, "form": 5, "receipt": 6, "instruct": 4}
LONGEST = {"wtq": 1200, "tabfact": 1000}
"""Characters of a table; longer ones are left out."""
TEXT_TOKENS, HELD_OUT = 192, 10
"""Length of a piece of plain text; so many of the last lines of the corpus are never seen."""
SEED = 17


def shares_without(kind: str) -> dict[str, float]:
    """:data:`SHARES` without the sources of a kind; the others keep their proportions."""
    left = {name: share for name, share in SHARES.items() if name not in SOURCES_OF[kind]}
    return {name: share / sum(left.values()) for name, share in left.items()}


class Example(NamedTuple):
    """A page, or none, with questions; or ``text`` alone."""

    kind: str
    pages: list[list[Characters]]
    turns: list[tuple[str, str]]
    text: str = ""


class Mix:
    """Draws examples in an order that depends on the seed alone.

    Args:
        data: the folder of the benchmarks.
        runs: the folder with readings, mistakes and instructions; each is used as far as it is
            there, and what is added while training runs is used as well.
        shares: of each kind, of pages.
        variety: share of the pages that are changed (:mod:`.augment`) or asked for what they lack.
    """

    def __init__(
        self, data: Path, runs: Path, shares: dict[str, float] = SHARES, variety: float = 0.0
    ) -> None:
        self.data, self.runs, self.shares, self.variety = data, runs, shares, variety
        self.mistakes = Mistakes.load(runs / "mistakes.json")
        self.sources: dict[str, Benchmark] = {
            "sroie": SROIESource(data / "sroie", "train"),
            "wtq": WTQSource(data / "wtq", "train"),
            "tabfact": TabFactSource(data / "tabfact", "train"),
            "deepform": DeepFormSource(data / "deepform", "train"),
            "chartqa": ChartQASource(data / "chartqa", "train"),
        }
        self.rows: dict[str, dict[str, list[int]]] = {}
        for name, source in self.sources.items():
            groups = self.rows.setdefault(name, defaultdict(list))
            for index, row in enumerate(source.rows):
                groups[row.key].append(index)
        folder = runs / "readings"
        self.readings = {
            name: Readings(folder / f"{name}-train.jsonl")
            for name in ("sroie", "deepform", "chartqa")
        }
        self.lines = (data / "rendering/enwiki.txt").read_text("utf-8").splitlines()[:-HELD_OUT]
        self._pdfs: dict[str, list[list[str]]] = {}
        self.drawn = 0
        self.used: dict[str, list[str]] = {name: [] for name in self.sources}

    def state(self) -> dict[str, Any]:
        """Where the drawing stands."""
        return {"drawn": self.drawn, "used": self.used}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.drawn, self.used = state["drawn"], state["used"]

    def draw(self) -> Example:
        """The next example."""
        while True:
            rng = random.Random(SEED * 1_000_003 + self.drawn)
            self.drawn += 1
            (kind,) = rng.choices(list(self.shares), list(self.shares.values()))
            try:
                example = self._draw(kind, rng)
            except (DataError, ConfigError):  # a table too wide for its page, a damaged PDF
                continue
            if example is not None and (example.turns or example.text):
                return example

    def _draw(self, kind: str, rng: random.Random) -> Example | None:
        if kind == "text":
            line = rng.choice(self.lines)
            start = rng.randrange(max(1, len(line) - 1500))
            return Example(kind, [], [], line[start : start + 1500].split(" ", 1)[-1])
        if kind == "instruct":
            return self._instructions(rng)
        if kind in ("form", "receipt"):
            return self._rendered(kind, rng)
        name = self._next(kind, rng)
        return None if name is None else getattr(self, f"_{kind}")(name, rng)

    def _next(self, kind: str, rng: random.Random) -> str | None:
        """A document that was not used yet, read ones first; all again once all were used."""
        everything, used = self.rows[kind], set(self.used[kind])
        real = None
        if kind in self.readings:
            self.readings[kind].refresh()
            stored = set(self.readings[kind].ids())
            real = [k for k in everything if k in stored or Path(k).stem in stored]
            if kind == "chartqa" and not real:
                return None
        for names in (real or (), () if kind == "chartqa" else everything):
            left = [name for name in names if name not in used]
            if left:
                chosen = rng.choice(left)
                self.used[kind].append(chosen)
                return chosen
        self.used[kind] = []
        return self._next(kind, rng)

    def _read(self, kind: str, key: str) -> list[list[Characters]] | None:
        stored = self.readings[kind]
        return stored.get(key) or stored.get(Path(key).stem)

    def _simulated(self, pages: list[list[str]], rng: random.Random, scale: float) -> Any:
        return [self.mistakes.page(page, rng, scale) for page in pages]

    def _receipt_page(self, key: str, rng: random.Random) -> tuple[list[Characters], dict]:
        """Rows of a receipt and its answers by field."""
        source = self.sources["sroie"]
        rows = [source.row(i) for i in self.rows["sroie"][key]]
        pages = self._read("sroie", key)
        if pages is None or rng.random() < 0.4 * self.variety:
            words = source[self.rows["sroie"][key][0]].words
            assert words is not None
            pages = self._simulated([rows_of(words[0])], rng, 1.0)
        return pages[0], {row.id.rpartition("/")[2]: row.answers[0] for row in rows}

    def _sroie(self, key: str, rng: random.Random) -> Example:
        questions = {
            row.id.rpartition("/")[2]: wording.task("sroie", row.question)
            for row in map(self.sources["sroie"].row, self.rows["sroie"][key])
        }
        page, answers = self._receipt_page(key, rng)
        lost = None
        if rng.random() < self.variety:
            page, answers, lost = self._varied(page, answers, rng)
        texts = [row.text for row in page]
        keep = {i for answer in answers.values() for i in holds(texts, answer)}
        budget = 900 if rng.random() < 0.5 else 2400
        pages = [[page[i] for i in shorten(texts, keep, budget, rng)]]
        turns = [(questions[name], answer) for name, answer in answers.items()]
        for name in rng.sample(list(answers), min(1, len(answers))):
            turns.append((wording.field(name, rng), answers[name]))
        if lost is not None:
            turns.append((wording.named(rng.choice(wording.NAMES[lost]), rng), ABSENT))
        return Example("sroie", pages, turns)

    def _varied(
        self, page: list[Characters], answers: dict[str, str], rng: random.Random
    ) -> tuple[list[Characters], dict[str, str], str | None]:
        """A receipt that nobody printed, and the field that was taken from it, if one was."""
        for name in ("company", "address"):
            if name in answers and rng.random() < 0.5:
                other, theirs = self._receipt_page(rng.choice(list(self.rows["sroie"])), rng)
                made = another(page, answers[name], other, theirs.get(name, ""))
                if made is not None:
                    page, answers = made, answers | {name: theirs[name]}
        if rng.random() < 0.6:
            page, answers = other_digits(page, answers, "date", rng)
        if answers and rng.random() < 0.15:
            name = rng.choice(list(answers))
            made = without(page, answers, name)
            if made is not None:
                return made, {k: v for k, v in answers.items() if k != name}, name
        return page, answers, None

    def _deepform(self, key: str, rng: random.Random) -> Example:
        source = self.sources["deepform"]
        rows = [source.row(i) for i in self.rows["deepform"][key]]
        pages = self._read("deepform", key) or self._simulated(self._pdf(key), rng, 0.5)
        flat = [(number, row) for number, page in enumerate(pages) for row in page]
        texts = [row.text for _, row in flat]
        places = {row.id: holds(texts, row.answers[0]) for row in rows}
        keep = {i for found in places.values() for i in found[:2]}
        budget = rng.choice((1500, 6000)) if self.variety else 1500
        chosen = shorten(texts, keep, budget, rng)
        made: list[list[Characters]] = []
        last = None
        for i in chosen:
            number, row = flat[i]
            if number != last:
                made.append([])
                last = number
            made[-1].append(row)
        turns = []
        for row in rows:
            there = set(places[row.id]) & set(chosen)
            if there:
                turns.append((wording.task("deepform", row.question), row.answers[0]))
                if rng.random() < 0.2:
                    turns.append((wording.field(row.id.rpartition("/")[2], rng), row.answers[0]))
        absent = set(DeepFormSource.questions.values())
        absent -= {row.question for row in rows}
        turns += [(wording.task("deepform", q), NO_VALUE) for q in sorted(absent)]
        return Example("deepform", made, turns)

    def _pdf(self, key: str) -> list[list[str]]:
        if key not in self._pdfs:
            path = self.data / "deepform" / "train" / "pdfs" / key
            count = min(3, pdf_page_count(path))
            self._pdfs[key] = [rows_of(pdf_words(path, page)) for page in range(count)]
        pages = [page for page in self._pdfs[key] if page]
        if not pages:
            raise DataError(f"{key}: no text layer")
        return pages

    def _table(self, kind: str, key: str, rng: random.Random) -> Example | None:
        source = self.sources[kind]
        numbers = self.rows[kind][key]
        table = source.table(numbers[0])  # type: ignore[attr-defined]
        if sum(len(cell) for row in table.rows for cell in row) > LONGEST[kind]:
            return None
        rows = rows_of(render_table(table).words)
        asked = [source.row(i) for i in rng.sample(numbers, min(QUESTIONS[kind], len(numbers)))]
        turns = [
            (wording.task(kind, row.question), ANSWER_SEPARATOR.join(row.answers)) for row in asked
        ]
        return Example(kind, self._simulated([rows], rng, rng.choice((0, 0.2, 0.5))), turns)

    def _wtq(self, key: str, rng: random.Random) -> Example | None:
        return self._table("wtq", key, rng)

    def _tabfact(self, key: str, rng: random.Random) -> Example | None:
        return self._table("tabfact", key, rng)

    def _chartqa(self, key: str, rng: random.Random) -> Example:
        source = self.sources["chartqa"]
        numbers = self.rows["chartqa"][key][: QUESTIONS["chartqa"]]
        rows = [source.row(i) for i in numbers]
        turns = [(wording.task("chartqa", row.question), row.answers[0]) for row in rows]
        return Example("chartqa", self._read("chartqa", key) or [], turns)

    def _rendered(self, layout: Any, rng: random.Random) -> Example:
        size = rng.randint(18, 28)
        spec = RenderSpec(
            layout=layout, width=rng.choice((400, 500, 600, 700)),
            height=rng.choice((200, 300, 400, 600)), font_px=(size, size),
            margin=rng.randint(4, 20), random_text=0.1 if rng.random() < 0.3 else 0.0,
        )  # fmt: skip
        page = render_page(spec, rng.randrange(1 << 31))
        rows = rows_of(page.words)
        facts = rng.sample(page.facts, min(QUESTIONS[layout], len(page.facts)))
        turns = [(wording.reworded(f.question, rows, rng), f.answer) for f in facts]
        if layout == "form" and rng.random() < self.variety:
            text = " ".join(rows).lower()
            lacks = [n for n, (labels, _) in FIELDS.items() if not _any_in((n, *labels), text)]
            few = rng.sample(lacks, min(1, len(lacks)))
            turns += [(wording.named(name, rng), ABSENT) for name in few]
        return Example(layout, self._simulated([rows], rng, rng.choice((0, 0.1, 0.3))), turns)

    def _instructions(self, rng: random.Random) -> Example | None:
        path = self.runs / "instructions.jsonl"
        if not path.is_file():
            return None
        entries = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        chosen = rng.sample(entries, min(QUESTIONS["instruct"], len(entries)))
        return Example("instruct", [], [(e["prompt"], e["answer"]) for e in chosen])


def _any_in(labels: tuple[str, ...], text: str) -> bool:
    return any(label.lower() in text for label in labels)
