"""The reader's mistakes, fitted on training scans, so that any text can be read without pixels.

    python -m training.smol.mistakes --data ../shared/data

A memory of what was seen: for each true character what the reader said instead of it and what
else it held possible, beside how often it was sure and right. Pages differ, so each page draws the
share of characters that it is unsure of from the pages that were seen. Lost and invented
characters, among them spaces, are entries as any other; whole lines are lost at a rate of their
own.
"""

from __future__ import annotations

import argparse
import difflib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from alignvlm.data.benchmarks.forms import SROIESource
from alignvlm.reader.characters import Characters

from .pages import plain
from .readings import RUNS
from .store import Readings

Seen = tuple[str, list[tuple[str, list[float]]]]
"""What was read at one character: text, and for each of its characters others and ratios."""
ANY = ""
"""Entry of the memory for characters that were seen seldom."""
ENOUGH, MOST = 20, 400
SIMILAR = 0.6
"""Pairs of lines that agree less are no pairs."""


class Mistakes:
    """Draws readings of true text.

    Args:
        right: how often each character was read right and surely.
        other: for each character all else that was read there.
        pages: share of a page's characters that were not sure and right, for each page.
        lost: share of the lines that were not read at all.
    """

    def __init__(
        self,
        right: dict[str, int],
        other: dict[str, list[Seen]],
        pages: list[float],
        lost: float,
    ) -> None:
        self.right, self.other, self.pages, self.lost = right, other, pages, lost
        total = sum(right.values()) + sum(map(len, other.values()))
        self.mean = sum(map(len, other.values())) / max(total, 1)
        everything = [seen for found in other.values() for seen in found]
        self._any = random.Random(0).sample(everything, min(len(everything), 5000))

    @classmethod
    def fit(cls, pages: Iterable[tuple[Sequence[tuple[str, dict[str, Any]]], int]]) -> Mistakes:
        """Learn from pages: pairs of true line and stored row, and how many lines were lost."""
        right: Counter[str] = Counter()
        other: dict[str, list[Seen]] = defaultdict(list)
        shares, lost, lines = [], 0, 0
        for pairs, missing in pages:
            bad = count = 0
            lost, lines = lost + missing, lines + missing + len(pairs)
            for truth, row in pairs:
                for char, seen in compare(truth, row):
                    count += 1
                    if seen == (char, [("", [])]):
                        right[char] += 1
                    else:
                        bad += 1
                        other[char].append(seen)
            if count:
                shares.append(round(bad / count, 4))
        kept = {c: random.Random(0).sample(s, min(len(s), MOST)) for c, s in other.items()}
        scale = {c: MOST / len(s) for c, s in other.items() if len(s) > MOST}
        right_kept = {c: max(1, round(n * scale.get(c, 1.0))) for c, n in right.items()}
        return cls(right_kept, kept, shares, lost / max(lines, 1))

    def save(self, path: Path) -> None:
        """Write the memory as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.__dict__ | {"_any": None}, ensure_ascii=False), "utf-8")

    @classmethod
    def load(cls, path: Path) -> Mistakes:
        """What :meth:`save` wrote."""
        found = json.loads(path.read_text("utf-8"))
        other = {
            c: [(text, [(o, r) for o, r in options]) for text, options in seen]
            for c, seen in found["other"].items()
        }
        return cls(found["right"], other, found["pages"], found["lost"])

    def page(
        self, lines: Sequence[str], rng: random.Random, scale: float = 1.0
    ) -> list[Characters]:
        """A reading of a page; ``scale`` below 1 for pages cleaner than scans."""
        share = rng.choice(self.pages) * scale if self.pages else 0.0
        read = [self.line(line, rng, share) for line in lines if rng.random() >= self.lost * scale]
        return [line for line in read if line.text.strip()]

    def line(self, truth: str, rng: random.Random, share: float) -> Characters:
        """A reading of a line, of a page that is unsure of that share of its characters."""
        factor = share / self.mean if self.mean else 0.0
        text, options = "", []
        for char in truth:
            found = self.other.get(char, [])
            count = len(found) + self.right.get(char, 0)
            rate = len(found) / count if count >= ENOUGH else self.mean
            if rng.random() >= rate * factor:
                text, options = text + char, [*options, ("", [])]
                continue
            known = count >= ENOUGH and found
            said, others = rng.choice(found) if known else self._foreign(rng, char)
            text, options = text + said, [*options, *others]
        return _characters(text, options)

    def _foreign(self, rng: random.Random, char: str) -> Seen:
        """For a character that was seen seldom: right, with somebody else's doubt."""
        if not self._any:
            return char, [("", [])]
        _, others = rng.choice(self._any)
        return char, others[:1] if others else [("", [])]


def _characters(text: str, options: Sequence[tuple[str, list[float]]]) -> Characters:
    width = max((len(ratios) for _, ratios in options), default=0)
    if not width:
        return plain(text)
    log_ratio = torch.full((len(text), width), -torch.inf)
    for place, (_, ratios) in enumerate(options):
        log_ratio[place, : len(ratios)] = torch.tensor(ratios)
    return Characters(text, tuple(o for o, _ in options), log_ratio)


def compare(truth: str, row: dict[str, Any]) -> list[tuple[str, Seen]]:
    """Each true character and what was read there; nothing where the lines do not agree.

    Case is the reading's: transcriptions are in capitals throughout. Characters that were read and
    are not there belong to the one before them.
    """
    text = row["text"]
    places = [tuple(row["options"].get(str(i), ("", []))) for i in range(len(text))]
    match = difflib.SequenceMatcher(None, truth.upper(), text.upper(), autojunk=False)
    if len(truth.upper()) != len(truth) or len(text.upper()) != len(text):
        return []
    if match.ratio() < SIMILAR:
        return []
    result: list[tuple[str, Seen]] = []
    for kind, a, b, c, d in match.get_opcodes():
        if kind == "equal":
            result += [(text[j], (text[j], [places[j]])) for j in range(c, d)]
        elif kind == "insert" and result:
            char, (said, others) = result.pop()
            result.append((char, (said + text[c:d], others + places[c:d])))
        else:
            for i in range(a, b):
                j = c + i - a
                stop = min(j + 1, d) if i < b - 1 else d
                own = slice(min(j, d), max(stop, min(j, d)))
                result.append((truth[i], (text[own], list(places[own]))))
    return [(char, (said, [(o, list(r)) for o, r in others])) for char, (said, others) in result]


def pair_lines(
    boxes: Sequence[tuple[str, list[float], int]], rows: Sequence[dict[str, Any]]
) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """The true lines that stand on each row, left to right, and how many stand on none."""
    own: dict[int, list[tuple[float, str]]] = defaultdict(list)
    missing = 0
    for text, (x0, y0, x1, y1), _ in boxes:
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        best = None
        for number, row in enumerate(rows):
            left, top, right, bottom = row["boxes"][0]
            if top <= y <= bottom and left - 5 <= x <= right + 5:
                distance = abs((top + bottom) / 2 - y)
                best = min(best, (distance, number)) if best else (distance, number)
        if best is None:
            missing += 1
        else:
            own[best[1]].append((x0, text.strip()))
    pairs = [(" ".join(t for _, t in sorted(found)), rows[n]) for n, found in sorted(own.items())]
    return pairs, missing


def fit_on_receipts(data: Path, readings: Path) -> Mistakes:
    """The mistakes of the stored readings of SROIE's training scans."""
    source, stored = SROIESource(data / "sroie", "train"), Readings(readings)
    found = []
    for name in dict.fromkeys(row.key for row in source.rows):
        pages = stored.raw(Path(name).stem)
        if pages and source._words is not None:
            found.append(pair_lines(source._words[name], pages[0]))
    return Mistakes.fit(found)


def main() -> None:
    """Fit and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RUNS)
    asked = parser.parse_args()
    mistakes = fit_on_receipts(asked.data, asked.out / "readings" / "sroie-train.jsonl")
    mistakes.save(asked.out / "mistakes.json")
    print(
        f"{len(mistakes.pages)} pages, {mistakes.mean:.1%} of the characters not sure and right, "
        f"{mistakes.lost:.1%} of the lines lost"
    )


if __name__ == "__main__":
    main()
