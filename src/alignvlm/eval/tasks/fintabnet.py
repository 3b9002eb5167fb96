"""The score of TableVQA-Bench's FinTabNetQA (Kim et al., 2024, naver-ai/tablevqabench).

Its ``evaluate_fintabnet`` calls a prediction right if it equals the answer after both lost their
currency signs, brackets, thousands separators and units, as text or number, with the scale
(thousand, million, billion, %) counted or left out on either side.
"""

from __future__ import annotations

import re

from ..metrics import Metric
from ..metrics.denotation import normalize
from ..metrics.metric import Answers, alternatives, mean_score, scored

_UNITS = re.compile(
    r"\b(dollar|gallons|square feet|shares|mbtu|mbpd|mbbls|mmbtu|unit|gwh|year|mmcf|mile|mboe)s?\b"
)
_SCALES = (
    (r" ?\bthousand\b", "e3"),
    (r" ?\bmillion\b", "e6"),
    (r" ?\bbillion\b", "e9"),
    (r" ?%", "e-2"),
)


def readings(text: str) -> set[str | float]:
    """Return what an amount may mean: with its scale, and without."""
    plain = _UNITS.sub("", re.sub(r"[$(),]", "", normalize(text)))
    scaled, bare = plain, plain
    for pattern, power in _SCALES:
        scaled, bare = re.sub(pattern, power, scaled), re.sub(pattern, "", bare)
    try:
        return {float(scaled), float(bare)}
    except ValueError:
        return {scaled, bare}


def fintabnet_accuracy(prediction: str, answers: Answers) -> float:
    """1.0 if a reading of the prediction is a reading of an answer, else 0.0.

    Raises:
        DataError: ``answers`` is empty.
    """
    found = readings(prediction)
    known = alternatives(answers, "fintabnet_accuracy")
    return float(any(not found.isdisjoint(readings(answer)) for answer in known))


FINTABNET_ACCURACY = Metric("fintabnet_accuracy", scored(fintabnet_accuracy), mean_score)
