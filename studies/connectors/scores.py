"""Scores of a stored cell: its answers against what was asked."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from alignvlm.eval.metrics.strings import anls

Cell = dict[str, Any]
Asked = list[dict[str, Any]]


def mean_anls(answers: Sequence[str], asked: Asked) -> float:
    """Mean ANLS; noise is measured on the first questions alone, so there may be fewer answers."""
    return mean([anls(said, (one["answer"],)) for said, one in zip(answers, asked, strict=False)])


def mean(values: Sequence[float]) -> float:
    """Of some; ``nan`` of none."""
    return math.fsum(values) / len(values) if values else math.nan


def scored(cell: Cell, questions: dict[str, Asked]) -> dict[str, float]:
    """All of a cell's numbers, flat, by name."""
    answers = cell["answers"]
    found = {part: mean_anls(answers[part], questions[part]) for part in answers}
    found["exact"] = mean(
        [said == one["answer"] for said, one in zip(answers["test"], questions["test"])]
    )
    found |= {f"reading {name}": cell["reading"][name] for name in ("loss", "tokens_right")} | {
        f"asking {name}": cell["asking"][name] for name in ("loss", "tokens_right")
    }
    test = questions["test"]
    if "several" in cell:
        for k, said in cell["several"].items():
            found[f"several {k}"] = mean_anls(said, questions[f"several-{k}"])
    if "without_changes" in cell:
        found["without changes"] = cell["without_changes"]["tokens_right"]
    if "white" in cell:
        found["white"] = mean_anls(cell["white"]["answers"], test)
        found["white tokens_right"] = cell["white"]["tokens_right"]
    if "noise" in cell:
        found["noise 0"] = mean_anls(answers["test"][: len(cell["noise"][0]["answers"])], test)
    for row in cell.get("noise", ()):
        found[f"noise {row['sigma']:g}"] = mean_anls(row["answers"], test)
        found[f"distance {row['sigma']:g}"] = row["cosine_distance"]
    if "noise" in cell and found["noise 0"] > found["white"]:
        noisy = [found[f"noise {row['sigma']:g}"] - found["white"] for row in cell["noise"]]
        found["kept under noise"] = mean(noisy) / (found["noise 0"] - found["white"])
    if "layouts" in answers:
        found["consistency"] = consistency(answers["layouts"], questions["layouts"])
        found |= scans(answers["scans"], questions["scans"])
        found |= look_alikes(answers["look-alikes"], questions["look-alikes"])
    if "vocabulary_use" in cell:
        use = cell["vocabulary_use"]
        found |= {name: use[name] for name in use if isinstance(use[name], int | float)}
        found["narrowest"] = min(cell["spread"])
        found["pruned"] = mean_anls(cell["pruned"]["answers"], test) - found["test"]
    return found


def consistency(answers: Sequence[str], asked: Asked) -> float:
    """Share of pairs of layouts of the same facts that get the same answer, right or wrong."""
    groups = defaultdict(list)
    for said, one in zip(answers, asked, strict=True):
        groups[one["group"]].append(said.strip().lower())
    return mean([mean([a == b for a, b in combinations(own, 2)]) for own in groups.values()])


def scans(answers: Sequence[str], asked: Asked) -> dict[str, float]:
    """ANLS of pages as they were drawn and of bad scans of the same pages."""
    found = {}
    for name, scanned in (("clean pages", False), ("scanned pages", True)):
        own = [(said, one) for said, one in zip(answers, asked) if one["scanned"] == scanned]
        found[name] = mean_anls([said for said, _ in own], [one for _, one in own])
    return found


def look_alikes(answers: Sequence[str], asked: Asked) -> dict[str, float]:
    """How often cities are read right, and how often an altered one is read as the known one."""
    pairs = list(zip(answers, asked, strict=True))
    common = [said == one["common"] for said, one in pairs if one["answer"] == one["common"]]
    rare = [said for said, one in pairs if one["answer"] == one["rare"]]
    names = [one for _, one in pairs if one["answer"] == one["rare"]]
    return {
        "common words": mean(common),
        "rare words": mean([said == one["rare"] for said, one in zip(rare, names)]),
        "rare as common": mean([said == one["common"] for said, one in zip(rare, names)]),
    }


def ratios(found: dict[str, Any]) -> dict[str, list[float]]:
    """Each connector's step over the MLP's, in each round but the first, which warms up.

    >>> ratios({"rounds": {"mlp": [9.0, 1.0, 2.0], "align": [9.0, 1.5, 2.0]}})["align"]
    [1.5, 1.0]
    """
    mlp = found["rounds"]["mlp"][1:]
    return {
        name: [a / b for a, b in zip(own[1:], mlp, strict=True)]
        for name, own in found["rounds"].items()
    }
