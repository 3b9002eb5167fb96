"""TextVQA accuracy: agreement with ten people, after normalisation."""

from __future__ import annotations

import re
from itertools import chain

from .metric import Answers, alternatives

ARTICLES = frozenset(("a", "an", "the"))
_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(value) for value, word in enumerate(_UNITS)} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIODS = 32  # the official scorers pass a flag where re.sub takes the number of replacements
_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")

_CONTRACTED = re.findall(
    r"\S+",
    """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""",
)


def _misspellings(word: str) -> list[str]:
    """Every way to leave out one apostrophe."""
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = dict(
    chain.from_iterable(((wrong, word) for wrong in _misspellings(word)) for word in _CONTRACTED)
) | {"somebody'd": "somebodyd"}  # so in the official table
"""Contraction without one of its apostrophes -> with all of them."""


def textvqa_accuracy(prediction: str, answers: Answers) -> float:
    """Mean over people of min(1, n / 3), n the *other* people who gave the prediction (0..1).

    TextVQA (Singh et al. 2019), normalised as mmf's ``EvalAIAnswerProcessor`` does it: as VQA v2,
    but in lower case from the start, without commas and question marks, and ``'s`` split off.

    Args:
        prediction: the model's answer.
        answers: one answer a person, repetitions included.

    Raises:
        DataError: ``answers`` is empty.
    """
    found = textvqa_normalize(prediction)
    given = [textvqa_normalize(a) for a in alternatives(answers, "textvqa_accuracy")]
    others = [given.count(found) - (answer == found) for answer in given]
    return sum(min(1.0, n / 3) for n in others) / len(given)


def vqa_normalize(text: str) -> str:
    """Normalise punctuation, then number words, articles and contractions, as VQA v2 does."""
    kept = text
    has_comma = _COMMA.search(text) is not None
    for mark in PUNCTUATION:
        loose = has_comma or mark + " " in text or " " + mark in text
        kept = kept.replace(mark, "" if loose else " ")
    kept = _PERIOD.sub("", kept, count=PERIODS)
    words = (NUMBERS.get(word, word) for word in kept.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def textvqa_normalize(text: str) -> str:
    """Normalise as TextVQA does."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa_normalize(text.replace("\n", " ").replace("\t", " ").strip())
