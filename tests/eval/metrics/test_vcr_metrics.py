"""Visual Caption Restoration."""

from __future__ import annotations

import pytest

from alignvlm.errors import DataError
from alignvlm.eval.metrics import METRICS, vcr_verdict
from alignvlm.eval.metrics.vcr_overlap import best_stretch, english_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's Dr O'Neil's", ["It", "'s", "Dr", "O'Neil", "'s"]),
        ("don’t, can't", ["do", "n’t", ",", "ca", "n't"]),
        ("1,234.50 U.S. well-known", ["1,234.50", "U.S.", "well", "-", "known"]),
        ("“café”", ["“", "café", "”"]),
        ("", []),
    ],
)
def test_english_tokens(text, tokens):
    assert english_tokens(text) == tokens


def test_the_covered_text_is_found_in_a_longer_answer():
    verdict = vcr_verdict("The text says: the quick brown fox.", ("quick brown", "lazy dog"))
    assert verdict == {"exact": 1.0, "jaccard": 1.0, "texts": 2.0}


def test_a_near_miss_counts_by_its_tokens():
    verdict = vcr_verdict("the quick brawn fox", ("the quick brown fox",))
    assert verdict == {"exact": 0.0, "jaccard": pytest.approx(3 / 5), "texts": 1.0}


def test_order_counts_for_the_match_only():
    verdict = vcr_verdict("fox brown", ("brown fox",))
    assert (verdict["exact"], verdict["jaccard"]) == (0.0, 1.0)


@pytest.mark.parametrize("text", ["", "fox", "I can't read brown fox", "Sorry: brown fox", "xx yy"])
def test_nothing_to_compare(text):
    verdict = vcr_verdict(text, ("brown fox",))
    assert verdict == {"exact": 0.0, "jaccard": 0.0, "texts": 1.0}


def test_scores_are_over_texts_not_images():
    verdicts = [vcr_verdict("a", ("a",)), vcr_verdict("b", ("x", "y", "z"))]
    assert METRICS["vcr_exact_match"].aggregate(verdicts) == 0.25
    assert METRICS["vcr_jaccard"].aggregate(verdicts) == 0.25


def test_the_first_of_equally_similar_stretches():
    assert best_stretch(["a", "b"], "a b", ["a", "c", "a", "d"]) == ["a", "c"]
    with pytest.raises(DataError):
        vcr_verdict("a", ())


def test_tokens_can_be_given():
    assert vcr_verdict("ab", ("b",), tokenize=list)["exact"] == 1.0
