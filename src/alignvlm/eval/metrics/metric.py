"""What a metric is: a verdict for each sample and an aggregation of verdicts (ADR 5).

A verdict is a small dict of numbers, so it can be stored beside its prediction, read by a person
and resampled: every aggregation takes any list of verdicts, with repetitions, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import DataError

Verdict = dict[str, float]
"""``{"score": x}`` with x in 0..1, or counts that are summed."""
Answers = tuple[str, ...]
"""Accepted alternatives; for the WikiTableQuestions metric the items of one list answer."""


@dataclass(frozen=True)
class Metric:
    """A per-sample function with its aggregation."""

    name: str
    verdict: Callable[[str, Answers], Verdict]
    aggregate: Callable[[Sequence[Verdict]], float]

    def verdicts(self, predictions: Sequence[str], answers: Sequence[Answers]) -> list[Verdict]:
        """Return one verdict a sample.

        Raises:
            DataError: the two lists differ in length, or a sample has no accepted answer.
        """
        if len(predictions) != len(answers):
            raise DataError(
                f"{self.name}: {len(predictions)} predictions for {len(answers)} samples"
            )
        return [self.verdict(p, a) for p, a in zip(predictions, answers, strict=True)]


def scored(function: Callable[[str, Answers], float]) -> Callable[[str, Answers], Verdict]:
    """Turn ``f(prediction, answers) -> x`` into a verdict ``{"score": x}``."""

    def verdict(prediction: str, answers: Answers) -> Verdict:
        return {"score": float(function(prediction, answers))}

    return verdict


def alternatives(answers: Answers, metric: str) -> Answers:
    """Return ``answers``; raise DataError when there are none to compare with."""
    if not answers:
        raise DataError(f"{metric}: the sample has no accepted answer; leave it out of the task")
    return answers


def total(verdicts: Sequence[Verdict], key: str) -> float:
    """Sum one count over verdicts, exactly whatever their order."""
    if not verdicts:
        raise DataError("no verdicts to aggregate; the task has no samples")
    return math.fsum(v[key] for v in verdicts)


def mean_score(verdicts: Sequence[Verdict]) -> float:
    """Mean of ``score`` (0..1)."""
    return total(verdicts, "score") / len(verdicts)


def ratio(numerator: str, denominator: str) -> Callable[[Sequence[Verdict]], float]:
    """Return an aggregation: a count's sum over another's, 0 where the latter is 0."""

    def aggregate(verdicts: Sequence[Verdict]) -> float:
        below = total(verdicts, denominator)
        return total(verdicts, numerator) / below if below else 0.0

    return aggregate


def micro_f1(verdicts: Sequence[Verdict]) -> float:
    """F1 of the summed ``tp``, ``fp``, ``fn``: 2 tp / (2 tp + fp + fn), 0 without any tp."""
    tp, wrong = total(verdicts, "tp"), total(verdicts, "fp") + total(verdicts, "fn")
    return 2 * tp / (2 * tp + wrong) if tp else 0.0
