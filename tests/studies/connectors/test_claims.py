"""The study's scores, rules and page."""

from __future__ import annotations

import pytest
from studies.connectors.__main__ import RESULTS
from studies.connectors.settings import HEADLINE, SEEDS
from studies.connectors.stored import LARGE, Estimate, Study

from studies.connectors import claims, report, scores

BESIDE = {"white": 0.1, "common words": 0.5, "rare as common": 0.3, "kept under noise": 0.5}


def made_up(size: int = LARGE, study: Study | None = None, **values: tuple[float, ...]) -> Study:
    """``align=(0.5, 0.6, 0.55)``: ANLS of each seed; ``_`` stands for ``-``."""
    study = study or Study()
    for name, own in values.items():
        cells = {seed: {**BESIDE, "test": value} for seed, value in enumerate(own)}
        study.numbers[name.replace("_", "-"), size] = cells
    return study


def test_an_interval_by_hand():
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.303 / 3**0.5)
    assert found.text(1) == "2.0 ± 2.5" and Estimate.of([2.0]).text(1) == "2.0"
    assert Estimate.of([]) is None


@pytest.mark.parametrize(
    ("align", "mlp", "outcome", "says"),
    [
        ((0.60, 0.62, 0.61), (0.40, 0.43, 0.42), claims.YES, "above 0"),
        ((0.40, 0.43, 0.42), (0.60, 0.62, 0.61), claims.NO, "the opposite"),
        ((0.60, 0.40, 0.50), (0.40, 0.60, 0.50), claims.NO, "no difference"),
        ((0.60, 0.62), (0.40, 0.43), claims.PENDING, "2 of 3 seeds"),
        ((0.14, 0.14, 0.14), (0.1, 0.1, 0.1), claims.UNTESTABLE, "above the white page's"),
    ],
)
def test_the_rule_for_a_difference(align, mlp, outcome, says):
    verdict = claims.better("align", "mlp")(made_up(align=align, mlp=mlp), "")
    assert verdict.outcome == outcome and says in verdict.evidence


def test_a_claim_may_be_measured_in_one_setting_alone():
    study = made_up(align=(0.6, 0.6, 0.6), mlp=(0.1, 0.2, 0.1))
    better = claims.better("align", "mlp")
    assert claims.in_settings(better)(study, "").outcome == claims.UNTESTABLE
    assert claims.in_settings(better)(study, "-low-rank").outcome == claims.PENDING
    assert claims.in_settings(better, better)(study, "").outcome == claims.YES


def test_with_few_pages_the_floor_is_the_own_one_or_that_of_all_pages():
    few = claims.SMALL
    study = made_up(few, align=(0.5, 0.5, 0.5), mlp=(0.2, 0.2, 0.2))
    better = claims.better("align", "mlp", size=few)
    assert better(study, "").outcome == claims.YES
    for numbers in study.numbers["align", few].values():
        numbers["white"] = 0.49
    assert better(study, "").outcome == claims.YES  # the other one reads
    for numbers in study.numbers["mlp", few].values():
        del numbers["white"]
    assert better(study, "").outcome == claims.UNTESTABLE
    made_up(study=study, mlp=(0.2, 0.2, 0.2))  # whose floor is 0.1
    assert better(study, "").outcome == claims.YES


def test_seeds_are_paired():
    # each seed differs by 0.05, though the seeds themselves differ by far more
    study = made_up(align_low_rank=(0.35, 0.55, 0.951), mlp_low_rank=(0.30, 0.50, 0.90))
    assert claims.better("align", "mlp")(study, "-low-rank").outcome == claims.YES
    assert claims.better("align", "mlp")(study, "").outcome == claims.PENDING


def test_low_resource_needs_a_gap_that_shrinks():
    large = {"align": (0.60, 0.61, 0.62), "mlp": (0.60, 0.61, 0.62)}
    study = made_up(claims.SMALL, made_up(**large), align=(0.2, 0.2, 0.2), mlp=(0.2, 0.2, 0.2))
    assert claims.low_resource(study, "").outcome == claims.NO
    study = made_up(claims.SMALL, study, align=(0.40, 0.41, 0.43))
    assert claims.low_resource(study, "").outcome == claims.YES


def test_where_align_does_not_read_grounded_align_is_looked_at():
    judge = claims.both_read("kept under noise", "share kept")
    study = made_up(align=(0.1, 0.1, 0.1), mlp=(0.6, 0.6, 0.6))
    assert "With grounding" not in judge(study, "").evidence
    study = made_up(study=study, align_grounded=(0.6, 0.6, 0.6))
    for seed, cell in study.numbers["align-grounded", LARGE].items():
        cell["kept under noise"] = 0.7 + 0.01 * seed
    found = judge(study, "")
    assert found.outcome == claims.UNTESTABLE
    assert "With grounding it would be reproduced: share kept, align-grounded" in found.evidence
    study = made_up(study=study, align=(0.6, 0.6, 0.6))
    assert judge(study, "").outcome == claims.NO


def test_the_rules_about_the_vocabulary():
    study = made_up(align=(0.6, 0.6, 0.6))
    use = {"largest": 0.01, "whitespace": 0.2, "above": 80, "vocabulary": 1024, "for_99": 300,
           "pruned": 0.002, "narrowest": 1.0}  # fmt: skip
    own = study.numbers["align", LARGE]
    for cell in own.values():
        cell.update(use)
    judges = [
        claims.of_align(judge)
        for judge in (
            claims.dense, claims.white_space, claims.few_tokens, claims.pruning, claims.spans
        )
    ]  # fmt: skip
    assert [judge(study, "").outcome for judge in judges] == [claims.YES] * 5
    for cell in own.values():
        cell.update(largest=0.3, whitespace=0.01, above=900, pruned=-0.1, narrowest=0.5)
    assert [judge(study, "").outcome for judge in judges] == [claims.NO] * 5
    for cell in own.values():
        cell["for_99"] = 600
    assert judges[4](study, "").outcome == claims.UNTESTABLE


def test_look_alikes_and_cost():
    study = made_up(align=(0.6, 0.6, 0.6), mlp=(0.5, 0.5, 0.5))
    assert claims.look_alikes(study, "").outcome == claims.NO
    for seed, cell in study.numbers["align", LARGE].items():
        cell["rare as common"] = 0.6 + 0.01 * seed
    assert claims.look_alikes(study, "").outcome == claims.YES
    study.numbers["mlp", LARGE][1]["common words"] = -1
    assert claims.look_alikes(study, "").outcome == claims.UNTESTABLE
    assert claims.cost(study, "-low-rank").outcome == claims.PENDING
    study.cost = {"rounds": {"mlp": [1.0, 1.0, 2.0], "align": [9.0, 1.2, 2.1]}, "batch": 16,
                  "device": "x", "memory_gib": {"align": 2.0, "mlp": 1.0}}  # fmt: skip
    assert claims.cost(study, "-low-rank").outcome == claims.YES
    study.cost["rounds"]["align"][2] = 2.6
    assert claims.cost(study, "-low-rank").outcome == claims.NO


def test_answers_are_scored_by_what_they_are_about():
    asked = [{"group": g, "answer": a} for g, a in ((1, "A"), (1, "A"), (2, "B"), (2, "B"))]
    assert scores.consistency(["x", "X ", "B", "C"], asked) == 0.5
    pages = [{"scanned": s, "answer": "abcd"} for s in (False, True, False, True)]
    assert scores.scans(["abcd", "zzzz", "abcd", "abcd"], pages) == {
        "clean pages": 1.0, "scanned pages": 0.5
    }  # fmt: skip
    pair = {"common": "Lyon", "rare": "Lyin"}
    words = [{**pair, "answer": a} for a in ("Lyon", "Lyin", "Lyin")]
    assert scores.look_alikes(["Lyon", "Lyon", "Lyin"], words) == {
        "common words": 1.0, "rare words": 0.5, "rare as common": 0.5
    }  # fmt: skip
    assert scores.mean_anls(["abcd"], [{"answer": "abcd"}, {"answer": "left out"}]) == 1.0


def test_the_page_is_that_of_the_stored_cells(tmp_path):
    study = Study.load(RESULTS)
    for behind in claims.SETTINGS.values():
        for variant in HEADLINE:
            assert study.seeds(variant + behind) == len(SEEDS), "the headline is complete"
    page = report.write(RESULTS, tmp_path / "study.md")
    stored = (RESULTS.parents[2] / "docs" / "study.md").read_text("utf-8")
    assert page.read_text("utf-8") == stored
    assert stored.count("*Rule:*") == stored.count("- *frozen:*")
    figures = {file.name for file in (tmp_path / "assets" / "study").iterdir()}
    assert figures == {"sizes.svg", "noise.svg"}


def test_without_cells_the_page_says_so(tmp_path):
    text = report.write(tmp_path, tmp_path / "study.md").read_text("utf-8")
    assert "Nothing yet: 0 of" in text and "not run yet" in text
