"""How sure an answer is: its score, a map from scores to probabilities, and how good it is."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..documents.opening import read_json
from ..errors import DataError
from ..files import write_text

CALIBRATION = "calibration.json"
"""The file beside a model's weights."""


def score(token_log_probabilities: Sequence[float], reading: float = 0.0) -> float:
    """Log-probability of an answer: of its tokens, the end included, and that it was read right.

    Args:
        token_log_probabilities: of each new token, nats.
        reading: log-probability that the page was read right where the answer stands.
    """
    return min(math.fsum(token_log_probabilities) + reading, 0.0)


@dataclass(frozen=True)
class Calibration:
    """Platt's map from scores to probabilities, ``1 / (1 + exp(-slope * score - intercept))``.

    Attributes:
        slope: at least 0, so that a higher score never means a lower probability.
        intercept: log-odds at score 0.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        values = (self.slope, self.intercept)
        if not all(type(v) in (int, float) and math.isfinite(v) for v in values) or self.slope < 0:
            raise DataError(
                f"a calibration needs a slope of at least 0 and an intercept, not {values}"
            )

    def __call__(self, value: float) -> float:
        """The probability that an answer of this score is right."""
        return float(_sigmoid(self.slope * np.float64(value) + self.intercept))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """What :meth:`save` wrote.

        Raises:
            DataError: no such file, or something else in it; names the file.
        """
        data = read_json(Path(path))
        if not isinstance(data, dict) or set(data) != {"slope", "intercept"}:
            raise DataError(f"{path}: a calibration has the keys 'slope' and 'intercept'")
        try:
            return cls(**data)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON; beside a model, under the name :data:`CALIBRATION`, it is applied.

        Raises:
            OSError: the file cannot be written.
        """
        write_text(Path(path), json.dumps(asdict(self)) + "\n")


def calibration_of(folder: Path) -> Calibration | None:
    """The calibration beside a model's weights, if there is one.

    Raises:
        DataError: it cannot be used.
    """
    path = folder / CALIBRATION
    return Calibration.load(path) if path.is_file() else None


def probability(value: float, calibration: Calibration | None = None) -> float:
    """What a score means: calibrated, or as the model has it."""
    return math.exp(value) if calibration is None else calibration(value)


def fit_calibration(scores: ArrayLike, right: ArrayLike, *, steps: int = 100) -> Calibration:
    """The likeliest map, with Platt's targets in place of 0 and 1 against few samples.

    Source: Lin, Lin, Weng 2007, "A note on Platt's probabilistic outputs".

    Args:
        scores: of answers, as :func:`score` gives them, ``[n]``.
        right: whether each was right, ``[n]``.

    Raises:
        DataError: fewer than two answers, all right or all wrong, or scores that are not finite.
    """
    x, y = _pairs(scores, right)
    good, bad = float(y.sum()), float((1 - y).sum())
    if not good or not bad:
        raise DataError("a calibration needs right and wrong answers to be fitted to")
    target = np.where(y > 0, (good + 1) / (good + 2), 1 / (bad + 2))
    spread = float(x.std()) or 1.0  # Newton on standardised scores
    features = np.stack([(x - x.mean()) / spread, np.ones_like(x)], 1)
    weights = np.array([0.0, math.log((good + 1) / (bad + 1))])

    def loss(some: NDArray[np.float64]) -> float:
        z = features @ some
        return float((np.logaddexp(0, z) - target * z).sum())

    for _ in range(steps):
        p = _sigmoid(features @ weights)
        gradient = features.T @ (p - target)
        curvature = (features * (p * (1 - p))[:, None]).T @ features + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step /= 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    slope = float(weights[0]) / spread
    if slope <= 0:  # scores say nothing here: the share of right answers, whatever the score
        return Calibration(0.0, math.log((good + 1) / (bad + 1)))
    return Calibration(slope, float(weights[1]) - slope * float(x.mean()))


def calibration_error(confidence: ArrayLike, right: ArrayLike, *, bins: int = 10) -> float:
    """Expected calibration error: the mean distance of confidence from the share of right answers,
    over equally wide bins weighted by their answers.

    Raises:
        DataError: no answers, or not as many of both.
    """
    p, y = _pairs(confidence, right)
    number = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.bincount(number, p - y, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def risk_coverage(
    confidence: ArrayLike, right: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of answers kept, and share of wrong ones among them, from the surest answer on.

    Returns:
        ``coverage [k]`` rising to 1 and ``risk [k]``; equally sure answers are kept together, so k
        counts the different confidences.

    Raises:
        DataError: no answers, or not as many of both.
    """
    p, y = _pairs(confidence, right)
    order = np.argsort(-p, kind="stable")
    last = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))
    kept = last + 1.0
    return kept / len(p), np.cumsum(1 - y[order])[last] / kept


def _pairs(values: ArrayLike, right: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(values, np.float64), np.asarray(right, bool)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise DataError(f"{x.shape} scores of {y.shape} answers: give one score an answer")
    if not np.isfinite(x).all():
        raise DataError("a score is not a finite number")
    return x, y.astype(np.float64)


def _sigmoid(z: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -z))
