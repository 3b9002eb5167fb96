"""Bootstrap intervals and paired tests over groups of samples.

Questions about one document are not independent, so documents (groups) are resampled, not
questions: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 8; Good,
Permutation, Parametric and Bootstrap Tests of Hypotheses (2005) for the sign-flip test; McNemar,
Psychometrika 12 (1947), in its exact binomial form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Verdict = dict[str, float]
Aggregate = Callable[[Sequence[Verdict]], float]

LEVEL = 0.95
RESAMPLES = 2_000
PERMUTATIONS = 10_000
EXACT_GROUPS = 13
"""With so few groups all sign flips are tried."""
_BLOCK = 2_000_000


class Resampler:
    """Scores of many selections of groups.

    Where the aggregate is the mean of ``score``, or depends on sums of counts only (F1), each group
    is summed once and a selection costs a few additions; else its verdicts are put together.

    Args:
        groups: of each verdict.
        verdicts: of each sample, all with the same keys.
        aggregate: the metric's.
    """

    def __init__(
        self, groups: Sequence[str], verdicts: Sequence[Verdict], aggregate: Aggregate
    ) -> None:
        if not verdicts or len(groups) != len(verdicts):
            raise ValueError(f"{len(groups)} groups for {len(verdicts)} verdicts")
        self.aggregate = aggregate
        self.score = float(aggregate(verdicts))
        names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
        self.count = len(names)
        self.members: list[list[Verdict]] = [[] for _ in names]
        for group, verdict in zip(groups, verdicts, strict=True):
            self.members[names[group]].append(verdict)
        self.keys = sorted(verdicts[0])
        self.totals = np.array(
            [[*(sum(v[k] for v in own) for k in self.keys), len(own)] for own in self.members],
            dtype=np.float64,
        )
        self.additive = math.isclose(
            self._of_totals(self.totals.sum(0)), self.score, rel_tol=1e-9, abs_tol=1e-12
        )

    def _of_totals(self, totals: NDArray) -> float:
        if self.keys == ["score"]:
            return float(totals[0] / totals[1])
        row = dict(zip(self.keys, totals.tolist(), strict=False))
        return float(self.aggregate([row]))

    def scores(self, picks: NDArray) -> NDArray:
        """Scores ``[R]`` of ``R`` selections ``[R, n]`` of group numbers."""
        if not self.additive:
            return np.array(
                [self.aggregate([v for g in row for v in self.members[g]]) for row in picks]
            )
        sums = self.totals[picks].sum(1)
        if self.keys == ["score"]:
            return sums[:, 0] / sums[:, 1]
        return np.array([self._of_totals(row) for row in sums])


def _blocks(total: int, groups: int) -> list[int]:
    size = max(1, min(total, _BLOCK // groups))
    return [min(size, total - start) for start in range(0, total, size)]


def _bounds(values: NDArray) -> tuple[float, float]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_interval(
    groups: Sequence[str],
    verdicts: Sequence[Verdict],
    aggregate: Aggregate,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Percentile interval of a score when documents are drawn again, with replacement."""
    sample = Resampler(groups, verdicts, aggregate)
    rng = np.random.default_rng(seed)
    values = [
        sample.scores(rng.integers(0, sample.count, (rows, sample.count)))
        for rows in _blocks(resamples, sample.count)
    ]
    return _bounds(np.concatenate(values))


class Paired:
    """Two systems on the same samples.

    Args:
        groups: of each sample.
        first, second: their verdicts, sample by sample.
        aggregate: the metric's.
    """

    def __init__(
        self,
        groups: Sequence[str],
        first: Sequence[Verdict],
        second: Sequence[Verdict],
        aggregate: Aggregate,
    ) -> None:
        if len(first) != len(second):
            raise ValueError(f"{len(first)} and {len(second)} verdicts are not pairs")
        # group g of the second system is group g + n of both together
        names = [*((0, group) for group in groups), *((1, group) for group in groups)]
        self.both = Resampler(names, [*first, *second], aggregate)  # type: ignore[arg-type]
        self.groups = self.both.count // 2
        self.difference = float(aggregate(second)) - float(aggregate(first))

    def _differences(self, first: NDArray, second: NDArray) -> NDArray:
        return self.both.scores(second) - self.both.scores(first)

    def interval(self, *, seed: int = 0) -> tuple[float, float]:
        """Percentile interval of second minus first; both get the same documents."""
        rng = np.random.default_rng(seed)
        values = []
        for rows in _blocks(RESAMPLES, self.groups):
            picks = rng.integers(0, self.groups, (rows, self.groups))
            values.append(self._differences(picks, picks + self.groups))
        return _bounds(np.concatenate(values))

    def sign_flip(self, *, seed: int = 0) -> float:
        """Two-sided p-value of "which system said what does not matter": in each document the two
        are swapped or not. All swaps where documents are few, else :data:`PERMUTATIONS` drawn."""
        own = np.arange(self.groups)
        exact = self.groups <= EXACT_GROUPS
        if exact:
            drawn = [np.arange(2**self.groups)[:, None] >> own & 1]
        else:
            rng = np.random.default_rng(seed)
            blocks = _blocks(PERMUTATIONS, self.groups)
            drawn = (rng.integers(0, 2, (rows, self.groups)) for rows in blocks)
        hits, total = 0, 0
        bound = abs(self.difference) - 1e-12
        for flips in drawn:
            picks = own + self.groups * flips
            other = own + self.groups * (1 - flips)
            hits += int((np.abs(self._differences(picks, other)) >= bound).sum())
            total += len(flips)
        return hits / total if exact else (hits + 1) / (total + 1)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Samples only the first, and only the second, got right; exact two-sided p-value.

    It takes samples as independent; where a document has several questions trust the sign flips.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    total = only_first + only_second
    term = tail = 1
    for k in range(min(only_first, only_second)):
        term = term * (total - k) // (k + 1)
        tail += term
    # integers first: 2**total is beyond a float from 1,024 on
    return only_first, only_second, min(1.0, 2 * tail / 2**total)
