"""CIDEr (Vedantam et al. 2015, arXiv 1411.5726) through pycocoevalcap, without Java."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import ConfigError, DataError
from .metric import Answers, Verdict, alternatives

_TOKEN = re.compile(
    r"""[^\W_]+?(?=n['’]t\b) | n['’]t\b | ['’](?:s|re|ve|ll|d|m)\b
      | (?:[^\W\d_]\.){2,} | [^\W_]+(?:[-.,:/][^\W_]+)*""",
    re.VERBOSE,
)


def caption_tokens(text: str) -> str:
    """Return the tokens of a caption, lower case, without punctuation, separated by spaces.

    Stands in for the Java PTB tokenizer of the COCO caption evaluation.
    """
    return " ".join(_TOKEN.findall(text.lower().replace("’", "'")))


def cider_verdicts(predictions: Sequence[str], answers: Sequence[Answers]) -> list[Verdict]:
    """Return ``{"score": CIDEr}`` a sample; 1.0 is what is usually printed as 100.

    Document frequencies come from all references given here, so the scores depend on the whole
    list; a bootstrap over the verdicts keeps those frequencies.

    Raises:
        DataError: a sample has no references, or there are fewer than two samples.
        ConfigError: pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ConfigError("CIDEr needs pycocoevalcap: pip install pycocoevalcap") from error
    if len(predictions) < 2:
        raise DataError("CIDEr needs at least two samples: one gives every n-gram the weight 0")
    keys = range(len(predictions))
    texts = {i: [caption_tokens(a) for a in alternatives(answers[i], "cider")] for i in keys}
    _, scores = Cider().compute_score(texts, {i: [caption_tokens(predictions[i])] for i in keys})
    return [{"score": float(score)} for score in scores]


def cider_verdict(prediction: str, answers: Answers) -> Verdict:
    """Refuse: CIDEr has no score for a sample alone.

    Raises:
        DataError: always.
    """
    raise DataError(
        "CIDEr scores a whole task: call METRICS['cider'].verdicts(predictions, answers)"
    )
