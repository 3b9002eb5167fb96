"""Visual Caption Restoration (VCR-wiki, Zhang et al. 2024, arXiv 2406.06462), English.

An image has several covered texts; the prediction is one text for all. For each covered text the
most similar stretch of the prediction with as many tokens is compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import SequenceMatcher

from .metric import Answers, Verdict, alternatives, ratio

REFUSALS = ("I can't", "I cannot", "无法", "抱歉")
_CLITIC = r"['’](?:s|re|ve|ll|d|m)\b"
_TOKEN = re.compile(
    rf"""(?:[^\W\d_]\.){{2,}} | \b[A-Z]\.          # U.S., initials
      | \b(?:mr|mrs|ms|dr|st|jr|sr|prof|gen|gov|rev|vs|v|inc|co|corp|ltd|bros|mt
            |jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec)\.
      | \bcan(?=not\b) | (?<=can)not\b
      | [^\W_]+?(?=n['’]t\b) | n['’]t\b | {_CLITIC}     # do|n't, it|'s
      | [^\W_]+(?:(?:(?<=\d)[-–.,:/](?=\d) | (?<=\d)[-–](?=\w) | [-–](?=\d)
                  | ['’](?!(?:s|re|ve|ll|d|m)\b))[^\W_]+)*   # words, 1,234.50, L-39, O'Neil
      | \.{{2,}} | [^\w\s] | _ """,
    re.VERBOSE | re.IGNORECASE,
)
Tokenize = Callable[[str], list[str]]


def english_tokens(text: str) -> list[str]:
    """Split into words, numbers, clitics and punctuation marks, close to spaCy's English rules."""
    return _TOKEN.findall(text)


def best_stretch(needle: list[str], text: str, tokens: list[str]) -> list[str]:
    """Return the stretch of ``tokens``, as long as ``needle``, most similar to ``text``.

    Only stretches that share a token with the needle count; the first of equally similar ones.
    """
    size, best, score = len(needle), [], 0.0
    wanted = set(needle)
    for start in range(len(tokens) - size + 1):
        stretch = tokens[start : start + size]
        if wanted.isdisjoint(stretch):
            continue
        similarity = SequenceMatcher(None, " ".join(stretch), text).ratio()
        if similarity > score:
            best, score = stretch, similarity
    return best


def vcr_verdict(prediction: str, answers: Answers, tokenize: Tokenize = english_tokens) -> Verdict:
    """Return ``exact`` and ``jaccard``, each summed over the covered texts, and their number.

    As ``evaluation_metrics.py`` of tianyu-z/VCR, which splits texts with spaCy's en_core_web_sm:
    pass ``tokenize=lambda t: [str(x) for x in spacy.blank("en")(t)]`` to use the same rules.
    A refusal ("I can't", "I cannot", "sorry" anywhere) scores 0 as it does there.

    Args:
        prediction: the model's text for the whole image.
        answers: the covered texts of the image, all of them asked for.
        tokenize: text to tokens.

    Raises:
        DataError: ``answers`` is empty.
    """
    exact = jaccard = 0.0
    refused = "sorry" in prediction.lower() or any(word in prediction for word in REFUSALS)
    tokens = [] if refused else tokenize(prediction)
    for answer in alternatives(answers, "vcr"):
        needle = tokenize(answer)
        stretch = best_stretch(needle, answer, tokens)
        if stretch:
            exact += stretch == needle
            jaccard += len(set(stretch) & set(needle)) / len(set(stretch) | set(needle))
    return {"exact": exact, "jaccard": jaccard, "texts": float(len(answers))}


vcr_exact_match = ratio("exact", "texts")
vcr_jaccard = ratio("jaccard", "texts")
