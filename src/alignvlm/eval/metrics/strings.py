"""Scores that compare one short text with accepted alternatives: ANLS and relaxed accuracy."""

from __future__ import annotations

import math

from rapidfuzz.distance import Levenshtein

from .metric import Answers, alternatives

ANLS_THRESHOLD = 0.5
RELATIVE_TOLERANCE = 0.05


def anls(prediction: str, answers: Answers, threshold: float = ANLS_THRESHOLD) -> float:
    """Normalised Levenshtein similarity to the closest answer, 0 below ``threshold``.

    Biten et al. 2019 (arXiv 1907.00490, Eq. 1), in the form of the scorer of the DocVQA and
    InfographicVQA challenges (Robust Reading Competition), which differs from the equation:

    - case and runs of whitespace do not count in the distance, but the distance is divided by the
      length of the longer text *as it was given* (so whitespace to spare raises a score);
    - a similarity of exactly ``threshold`` is kept; the equation gives it 0.

    Two empty texts are equal. Averaged over questions it is "ANLS".

    Raises:
        DataError: ``answers`` is empty.
    """
    best = 0.0
    found = _plain(prediction)
    for answer in alternatives(answers, "anls"):
        # upper() before measuring as the official scorer does: it makes "ß" two characters long
        length = max(len(answer.upper()), len(prediction.upper()))
        distance = Levenshtein.distance(_plain(answer), found)
        best = max(best, 1.0 - (distance / length if length else 0.0))
    return best if best >= threshold else 0.0


def _plain(text: str) -> str:
    return " ".join(text.strip().lower().split())


def relaxed_accuracy(
    prediction: str, answers: Answers, tolerance: float = RELATIVE_TOLERANCE
) -> float:
    """1.0 if the prediction is within 5 % of a numeric answer, or equals an answer, else 0.0.

    ChartQA (Masry et al. 2022, section 5.1) as computed by pix2struct (``metrics.py``,
    ``relaxed_correctness``): a number is what ``float`` reads, with an optional ``%`` sign at the
    end that divides by 100. Thousands separators and units make a text, and texts must be equal
    but for case and surrounding whitespace. An answer of 0 must be matched as text: "0.0" is not
    "0". Here "nan" and "inf" are words, not numbers.

    Raises:
        DataError: ``answers`` is empty.
    """
    return float(any(_relaxed(prediction, a, tolerance) for a in alternatives(answers, "relaxed")))


def _relaxed(prediction: str, answer: str, tolerance: float) -> bool:
    prediction, answer = prediction.strip(), answer.strip()
    found, target = _number(prediction), _number(answer)
    if found is not None and target:
        return abs(found - target) / abs(target) <= tolerance
    return prediction.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
