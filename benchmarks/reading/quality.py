"""Tables 1 to 3: how much of a page is read right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

from . import metrics, pages
from .pages import TruePage
from .readers import Contestant, PageText

Score = Callable[[TruePage, PageText], dict[str, metrics.Count]]
"""Counts of one page by the name of the measure."""
DRAWN = 12
"""Pages of each kind and size, unless the command says otherwise."""
COLUMN = 72
"""Letters a line where pages are shown."""


def measure(
    found: Iterable[TruePage], readers: Mapping[str, Contestant], score: Score, show: int = 0
) -> list[dict[str, Any]]:
    """Read every page with every reader, one page after the other, and score all of it.

    Args:
        found: the pages.
        readers: by name.
        score: counts of a page; the same measures for every page.
        show: print so many of the pages beside their readings.

    Returns:
        One group a measure: ids of the pages, counts of each reader, scores, differences.
    """
    ids: list[str] = []
    counts: dict[str, dict[str, list[metrics.Count]]] = {}
    for number, page in enumerate(found):
        ids.append(page.name)
        readings = {name: reader.read(page.image) for name, reader in readers.items()}
        for name, reading in readings.items():
            for kind, count in score(page, reading).items():
                counts.setdefault(kind, {}).setdefault(name, []).append(count)
        if number < show:
            print(shown(page, readings), flush=True)
    return [
        {"measure": kind, "ids": ids, "counts": own, **compared(own)}
        for kind, own in counts.items()
    ]


def compared(counts: Mapping[str, list[metrics.Count]]) -> dict[str, Any]:
    """Scores of all readers, and the first's less each other's, with intervals."""
    first, *others = counts
    return {
        "scores": {name: metrics.share(own) for name, own in counts.items()},
        "differences": {
            name: metrics.difference(counts[first], counts[name])
            for name in others
            if first == "alignvlm"
        },
    }


def shown(page: TruePage, readings: Mapping[str, PageText]) -> str:
    """A page's true lines beside each reading, for a person to look at."""
    parts = []
    for name, reading in readings.items():
        true, read = (
            [piece for line in lines for piece in wrap(line, COLUMN) or [""]]
            for lines in (page.lines, reading.lines)
        )
        head = [f"\n{page.name}: the truth".ljust(COLUMN + 1) + f" | {name}"]
        pairs = zip_longest(true, read, fillvalue="")
        parts += head + [f"{left:<{COLUMN}} | {right}" for left, right in pairs]
    return "\n".join(parts)


# --- the tables ----------------------------------------------------------------------------------


def receipt_lines(page: TruePage, reading: PageText) -> dict[str, metrics.Count]:
    """Transcribed lines that were read."""
    return {
        "lines, spaces and case ignored": metrics.lines_found(
            page.lines, reading.lines, metrics.squeezed
        ),
        "lines, case ignored": metrics.lines_found(page.lines, reading.lines, metrics.spaced),
    }


def contract_words(page: TruePage, reading: PageText) -> dict[str, metrics.Count]:
    """Words of the text layer against words that were read."""
    return {"words, F1": metrics.words_f1(page.lines, reading.lines)}


def token_score(encode: Callable[[str], list[int]]) -> Score:
    """Tokens of a page's lines, joined with spaces, against those of the reading's."""

    def tokens(lines: list[str]) -> list[int]:
        return encode(" " + " ".join(" ".join(lines).split()))  # a first word as any other

    def score(page: TruePage, reading: PageText) -> dict[str, metrics.Count]:
        wanted, got = tokens(page.lines), tokens(reading.lines)
        return {
            "tokens in order": metrics.tokens_in_order(wanted, got),
            "tokens in any order": metrics.tokens_in_any_order(wanted, got),
        }

    return score


def receipts(
    readers: Mapping[str, Contestant], data: Path, count: int | None, show: int
) -> list[dict[str, Any]]:
    """Table 1."""
    return measure(pages.receipts(data, count), readers, receipt_lines, show)


def contracts(
    readers: Mapping[str, Contestant], data: Path, count: int | None, show: int
) -> list[dict[str, Any]]:
    """Table 2; words do not depend on how pieces are joined to rows."""
    own = {name: reader for name, reader in readers.items() if reader.encode is not None}
    return measure(pages.contracts(data, count), own, contract_words, show)


def rendered(
    readers: Mapping[str, Contestant], language_model: str, count: int | None, show: int
) -> list[dict[str, Any]]:
    """Table 3."""
    from transformers import AutoTokenizer

    from alignvlm.weights.resolve import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve(language_model))
    score = token_score(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    groups = []
    for kind in pages.KINDS:
        for px in pages.SIZES:
            made = measure(pages.drawn(kind, px, count or DRAWN), readers, score, show)
            groups += [{"kind": kind, "px": px, **group} for group in made]
            scores = made[0]["scores"].items()
            print(f"{kind}, {px} px:", *(f"{n} {s.value:.3f}" for n, s in scores), flush=True)
    return groups
