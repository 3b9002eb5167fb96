"""Metrics as pure functions, and the registry that pairs them with their aggregations.

What each agrees with, and where it does not, is in docs/evaluation-metrics.md.
"""

from __future__ import annotations

from .binary import read_yes_no, tabfact_accuracy
from .denotation import denotation_accuracy
from .fields import field_verdict, sroie_verdict
from .metric import Answers, Metric, Verdict, mean_score, micro_f1, scored
from .strings import anls, relaxed_accuracy
from .vcr_overlap import vcr_exact_match, vcr_jaccard, vcr_verdict
from .vqa import textvqa_accuracy

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("anls", scored(anls), mean_score),
        Metric("relaxed_accuracy", scored(relaxed_accuracy), mean_score),
        Metric("textvqa_accuracy", scored(textvqa_accuracy), mean_score),
        Metric("denotation_accuracy", scored(denotation_accuracy), mean_score),
        Metric("tabfact_accuracy", scored(tabfact_accuracy), mean_score),
        Metric("field_f1", field_verdict, micro_f1),
        Metric("sroie_f1", sroie_verdict, micro_f1),
        Metric("vcr_exact_match", vcr_verdict, vcr_exact_match),
        Metric("vcr_jaccard", vcr_verdict, vcr_jaccard),
    )
}
"""Every metric by name; scores are 0..1."""

__all__ = [
    "METRICS",
    "Answers",
    "Metric",
    "Verdict",
    "anls",
    "denotation_accuracy",
    "field_verdict",
    "read_yes_no",
    "relaxed_accuracy",
    "sroie_verdict",
    "tabfact_accuracy",
    "textvqa_accuracy",
    "vcr_verdict",
]
