"""Yes-or-no answers: TabFact accuracy and the POPE scores."""

from __future__ import annotations

import re

from ...errors import DataError
from .metric import Answers, Verdict, alternatives, ratio

YES = frozenset(("yes", "true", "supported", "entailed", "correct", "1"))
NO = frozenset(("no", "false", "refuted", "unsupported", "incorrect", "0"))
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


def read_yes_no(text: str) -> bool | None:
    """Read a free-text answer as yes (True), no (False) or neither (None).

    The first word decides if it says yes or no ("Yes, it is", "No.", "TRUE", "1"). Otherwise the
    words of the whole text decide if only one side occurs in it and nothing negates ("the
    statement is false"; but "not true" and "true or false" are neither).
    """
    words = [word.lower() for word in _WORD.findall(text)]
    if not words:
        return None
    if words[0] in YES | NO:
        return words[0] in YES
    says_yes, says_no = not YES.isdisjoint(words), not NO.isdisjoint(words)
    negated = any(w in ("not", "never", "cannot") or w.endswith(("n't", "n’t")) for w in words)
    return None if negated or says_yes == says_no else says_yes


def tabfact_accuracy(prediction: str, answers: Answers) -> float:
    """1.0 if the answer says what the label says, else 0.0; unreadable answers are wrong.

    TabFact (Chen et al. 2020) reports accuracy over labels; what a free text says is decided by
    :func:`read_yes_no`. On the label words alone this equals the accuracy that the DUE benchmark
    obtains as F1.

    Raises:
        DataError: the reference answer is not a yes or a no.
    """
    label = _label(answers, "tabfact_accuracy")
    return float(read_yes_no(prediction) is label)


def read_pope(text: str) -> bool:
    """Read an answer as POPE does: no if its first sentence has "No", "no" or "not", else yes.

    Li et al. 2023, AoiDragon/POPE ``evaluate.py``. Anything else, also an empty answer, is a yes:
    look at the yes ratio. "NO", "No!" and "no" before a line break are a yes there too.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope_verdict(prediction: str, answers: Answers) -> Verdict:
    """Count one POPE answer as ``tp``, ``fp``, ``tn`` or ``fn``; "yes" is the positive class.

    Raises:
        DataError: the reference answer is not a yes or a no.
    """
    label, found = _label(answers, "pope"), read_pope(prediction)
    return {
        "tp": float(label and found),
        "fp": float(not label and found),
        "tn": float(not label and not found),
        "fn": float(label and not found),
    }


pope_accuracy = ratio(["tp", "tn"], ["tp", "fp", "tn", "fn"])
pope_yes_ratio = ratio(["tp", "fp"], ["tp", "fp", "tn", "fn"])


def _label(answers: Answers, metric: str) -> bool:
    label = read_yes_no(alternatives(answers, metric)[0])
    if label is None:
        raise DataError(f"{metric}: the reference answer {answers[0]!r:.40} is not a yes or a no")
    return label
