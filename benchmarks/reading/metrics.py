"""What is counted on a page, and what follows over pages: pure functions.

A :data:`Count` says how much of a page was right and how much there was; a score is the ratio of
the two sums over pages. Intervals are 95 % percentile bootstraps that draw pages anew, always with
the same seed, so two readers of the same pages get the same draws.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

Count = tuple[float, float]
"""What was right on a page, of how much."""
SEED = 0
RESAMPLES = 2_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A number over pages and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


# --- one page ------------------------------------------------------------------------------------


def squeezed(text: str) -> str:
    """Text without any white space, in lower case."""
    return "".join(text.split()).lower()


def spaced(text: str) -> str:
    """Text with single spaces, none at its ends, in lower case."""
    return " ".join(text.split()).lower()


def lines_found(wanted: Iterable[str], lines: Iterable[str], form: Callable[[str], str]) -> Count:
    """Count the true lines that the reading contains, both sides in the same form.

    Args:
        wanted: true lines; those without a character are left out.
        lines: what was read, in reading order. It is joined with spaces, so that a true line may
            go on from one line of the reading to the next.
        form: :func:`squeezed` or :func:`spaced`.
    """
    page = form(" ".join(lines))
    formed = [line for line in map(form, wanted) if line]
    return float(sum(line in page for line in formed)), float(len(formed))


def words_of(lines: Iterable[str]) -> list[str]:
    """Words between white space, after Unicode's NFKC; upper and lower case stay."""
    return [word for line in lines for word in unicodedata.normalize("NFKC", line).split()]


def shared(wanted: Iterable[Hashable], got: Iterable[Hashable]) -> int:
    """How many items two multisets have in common."""
    return (Counter(wanted) & Counter(got)).total()


def words_f1(wanted: Iterable[str], lines: Iterable[str]) -> Count:
    """F1 of two multisets of words as a count: twice what they share, of all words of both."""
    true, read = words_of(wanted), words_of(lines)
    return 2.0 * shared(true, read), float(len(true) + len(read))


def tokens_in_order(wanted: Sequence[int], got: Sequence[int]) -> Count:
    """True tokens less the edit distance to what was read, at least none, of all true tokens."""
    return max(0.0, float(len(wanted) - Levenshtein.distance(wanted, got))), float(len(wanted))


def tokens_in_any_order(wanted: Sequence[int], got: Sequence[int]) -> Count:
    """True tokens that were read somewhere, of all true tokens."""
    return float(shared(wanted, got)), float(len(wanted))


# --- over pages ----------------------------------------------------------------------------------


def bootstrap(pages: int, statistic: Callable[[NDArray[np.int64]], NDArray]) -> Estimate:
    """A statistic of all pages and its interval.

    Args:
        pages: how many there are.
        statistic: numbers of pages ``[R, pages]`` to values ``[R]``.
    """
    drawn = np.random.default_rng(SEED).integers(0, pages, (RESAMPLES, pages))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(statistic(drawn), (tail, 1 - tail))
    return Estimate(float(statistic(np.arange(pages)[None])[0]), float(low), float(high))


def _shares(counts: Sequence[Count], picks: NDArray[np.int64]) -> NDArray:
    sums = np.asarray(counts, dtype=np.float64)[picks].sum(1)
    return sums[:, 0] / sums[:, 1]


def share(counts: Sequence[Count]) -> Estimate:
    """What was right of how much, over all pages."""
    return bootstrap(len(counts), lambda picks: _shares(counts, picks))


def difference(first: Sequence[Count], second: Sequence[Count]) -> Estimate:
    """Share of the first less share of the second, on the same pages."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} pages are not pairs")
    return bootstrap(len(first), lambda p: _shares(first, p) - _shares(second, p))


def median(rounds: Sequence[Sequence[float]]) -> Estimate:
    """Median over pages of each page's median over rounds."""
    pages = np.array([np.median(page) for page in rounds])
    return bootstrap(len(pages), lambda picks: np.median(pages[picks], axis=1))


def ratio(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Estimate:
    """Median ratio of the first to the second, measured in the same round of the same page."""
    pairs = zip(first, second, strict=True)
    return median([[a / b for a, b in zip(*pair, strict=True)] for pair in pairs])
