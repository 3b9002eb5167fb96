"""Information extraction: one field of one document a sample, F1 over all of them."""

from __future__ import annotations

from .metric import Answers, Verdict

ABSENT = "NONE"
"""A prediction that says the document lacks the field (any case), like an empty one."""


def field_verdict(prediction: str, answers: Answers) -> Verdict:
    """Count one field of DeepForm or Kleister Charity as ``tp``, ``fp`` and ``fn``.

    F1 of the DUE benchmark (Borchmann et al. 2021, due-benchmark/evaluator ``fscorer.py`` with
    ``--ignore-case``, as it asks for these two): the value must equal the reference or one of its
    variants in upper case. A wrong value costs a ``fp`` and a ``fn``, a missing one a ``fn``. As
    in the evaluation of DocOwl 1.5, surrounding whitespace does not count and "None" is no value.

    Args:
        prediction: the value, or an empty text or "None" where there is none.
        answers: the reference and its variants; empty if the document lacks the field.
    """
    found, wanted = prediction.strip().upper(), [answer.strip().upper() for answer in answers]
    if found == ABSENT and ABSENT not in wanted:
        found = ""
    return _counts(found, wanted)


def sroie_verdict(prediction: str, answers: Answers) -> Verdict:
    """Count one SROIE field as ``tp``, ``fp`` and ``fn``.

    Task 3 of ICDAR 2019 SROIE (Huang et al. 2019): exact match, here after runs of whitespace
    became single spaces; case and punctuation count.
    """
    wanted = [" ".join(answer.split()) for answer in answers]
    return _counts(" ".join(prediction.split()), wanted)


def _counts(found: str, wanted: list[str]) -> Verdict:
    hit = bool(found) and found in wanted
    return {
        "tp": float(hit),
        "fp": float(bool(found) and not hit),
        "fn": float(bool(wanted) and not hit),
    }
