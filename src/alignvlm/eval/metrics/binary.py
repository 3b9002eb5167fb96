"""Yes-or-no answers: TabFact accuracy."""

from __future__ import annotations

import re

from ...errors import DataError
from .metric import Answers, alternatives

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
    label = read_yes_no(alternatives(answers, "tabfact_accuracy")[0])
    if label is None:
        raise DataError(f"tabfact_accuracy: the answer {answers[0]!r:.40} is not a yes or a no")
    return float(read_yes_no(prediction) is label)
