"""Metrics as pure functions, and the registry that pairs them with their aggregations.

What each agrees with, and where it does not, is in docs/evaluation-metrics.md.
"""

from __future__ import annotations

from .binary import (
    pope_accuracy,
    pope_verdict,
    pope_yes_ratio,
    read_pope,
    read_yes_no,
    tabfact_accuracy,
)
from .captions import cider_verdict, cider_verdicts
from .denotation import denotation_accuracy
from .fields import field_verdict, sroie_verdict
from .metric import Answers, Metric, Verdict, mean_score, micro_f1, precision, recall, scored
from .strings import anls, relaxed_accuracy
from .vcr_overlap import vcr_exact_match, vcr_jaccard, vcr_verdict
from .vqa import textvqa_accuracy, vqa_accuracy

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("anls", scored(anls), mean_score),
        Metric("relaxed_accuracy", scored(relaxed_accuracy), mean_score),
        Metric("vqa_accuracy", scored(vqa_accuracy), mean_score),
        Metric("textvqa_accuracy", scored(textvqa_accuracy), mean_score),
        Metric("denotation_accuracy", scored(denotation_accuracy), mean_score),
        Metric("tabfact_accuracy", scored(tabfact_accuracy), mean_score),
        Metric("field_f1", field_verdict, micro_f1),
        Metric("sroie_f1", sroie_verdict, micro_f1),
        Metric("vcr_exact_match", vcr_verdict, vcr_exact_match),
        Metric("vcr_jaccard", vcr_verdict, vcr_jaccard),
        Metric("pope_accuracy", pope_verdict, pope_accuracy),
        Metric("pope_f1", pope_verdict, micro_f1),
        Metric("pope_precision", pope_verdict, precision),
        Metric("pope_recall", pope_verdict, recall),
        Metric("pope_yes_ratio", pope_verdict, pope_yes_ratio),
        Metric("cider", cider_verdict, mean_score, cider_verdicts),
    )
}
"""Every metric by name; scores are 0..1 (CIDEr 0..10)."""

__all__ = [
    "METRICS",
    "Answers",
    "Metric",
    "Verdict",
    "anls",
    "cider_verdicts",
    "denotation_accuracy",
    "field_verdict",
    "pope_verdict",
    "read_pope",
    "read_yes_no",
    "relaxed_accuracy",
    "sroie_verdict",
    "tabfact_accuracy",
    "textvqa_accuracy",
    "vcr_verdict",
    "vqa_accuracy",
]
