"""Two result files side by side, and many as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest
from .intervals import LEVEL, Aggregate, Paired, mcnemar
from .metrics import METRICS
from .results import Result, differences, read_result
from .shown import SHOWN


@dataclass(frozen=True)
class Comparison:
    """B minus A on the same samples.

    Attributes:
        metric: which score.
        samples, groups: how many.
        a, b: the scores.
        difference: ``b - a``.
        interval: 95 %, documents drawn again for both alike.
        p: two-sided, sign flips over documents.
        mcnemar: for right-or-wrong scores: samples only A and only B got right, and p of McNemar's
            exact test, which takes samples as independent.
        settings: keys of the settings that differ, with both values.
    """

    metric: str
    samples: int
    groups: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    p: float
    mcnemar: dict[str, float] | None
    settings: list[tuple[str, Any, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """For people: scores in per cent."""
        low, high = self.interval
        lines = [
            f"{self.metric} on {self.samples} samples in {self.groups} groups",
            f"A {100 * self.a:.2f} %   B {100 * self.b:.2f} %",
            f"B - A: {100 * self.difference:+.2f} points, {LEVEL:.0%} interval "
            f"[{100 * low:+.2f}, {100 * high:+.2f}]; sign-flip p = {self.p:.2g}",
        ]
        if self.mcnemar is not None:
            lines.append(
                f"only A right: {self.mcnemar['only_a']:.0f}, only B right: "
                f"{self.mcnemar['only_b']:.0f}; McNemar p = {self.mcnemar['p']:.2g}"
            )
        lines += [f"{key}: {_short(a)} | {_short(b)}" for key, a, b in self.settings]
        return "\n".join(lines)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def compare(
    a: str | Path | Result, b: str | Path | Result, *, metric: str | None = None, seed: int = 0
) -> Comparison:
    """Paired difference of two results with interval and test.

    Args:
        a, b: results, or their files.
        metric: default: the task's score.
        seed: of the resampling.

    Raises:
        DataError: the files are of different tasks, samples, prompts or pages, or lack the metric.
    """
    first, second = (x if isinstance(x, Result) else read_result(x) for x in (a, b))
    _check(first, second)
    name = metric or next(iter(first.metrics))
    for result in (first, second):
        if name not in result.metrics:
            known = ", ".join(result.metrics)
            raise DataError(f"no metric {name!r}{nearest(name, result.metrics)}; there are {known}")
    groups = [row["group"] for row in first.predictions]
    mine = [row["verdict"][name] for row in first.predictions]
    theirs = [row["verdict"][name] for row in second.predictions]
    pair = Paired(groups, mine, theirs, aggregate_of(name))
    return Comparison(
        metric=name,
        samples=len(groups),
        groups=pair.groups,
        a=first.metrics[name]["score"],
        b=second.metrics[name]["score"],
        difference=pair.difference,
        interval=pair.interval(seed=seed),
        p=pair.sign_flip(seed=seed),
        mcnemar=_mcnemar(mine, theirs),
        settings=differences(first.settings, second.settings),
    )


def _check(first: Result, second: Result) -> None:
    for key in ("name", "split"):
        if first.task[key] != second.task[key]:
            raise DataError(f"different {key}s: {first.task[key]!r} and {second.task[key]!r}")
    mine, theirs = first.predictions, second.predictions
    if len(mine) != len(theirs):
        raise DataError(f"different samples: {len(mine)} and {len(theirs)} of them")
    for x, y in zip(mine, theirs, strict=True):
        if x["id"] != y["id"]:
            raise DataError(f"different samples: {x['id']!r} and {y['id']!r} at the same place")
        for key in ("prompt", "answers", "group"):
            if x[key] != y[key]:
                raise DataError(
                    f"sample {x['id']!r} has different {key.removesuffix('s')}s: "
                    f"{_short(x[key])!r} and {_short(y[key])!r}"
                )
        if SHOWN in x and SHOWN in y and x[SHOWN] != y[SHOWN]:  # text-only was shown none
            raise DataError(f"sample {x['id']!r} was asked about different pages")


def _mcnemar(mine: Sequence[dict], theirs: Sequence[dict]) -> dict[str, float] | None:
    if any(list(v) != ["score"] or v["score"] not in (0, 1) for v in [*mine, *theirs]):
        return None
    right = ([v["score"] == 1 for v in verdicts] for verdicts in (mine, theirs))
    only_a, only_b, p = mcnemar(*right)
    return {"only_a": only_a, "only_b": only_b, "p": p}


def aggregate_of(metric: str) -> Aggregate:
    """The aggregation of a metric, by its name in a result file.

    Raises:
        DataError: no metric of that name.
    """
    if metric not in METRICS:
        raise DataError(f"this version has no metric {metric!r}{nearest(metric, METRICS)}")
    return METRICS[metric].aggregate


def table(files: Sequence[str | Path | Result]) -> str:
    """Results as a markdown table: a row a task, a column an answerer, ``score [interval]``.

    Scores are in per cent. Files of one task with other sample counts get rows of their own.

    Raises:
        DataError: a file is no result, or two stand for the same cell.
    """
    results = [f if isinstance(f, Result) else read_result(f) for f in files]
    labels = _labels(results)
    rows: dict[tuple[str, str, str, int], dict[str, str]] = {}
    for file, result, label in zip(files, results, labels, strict=True):
        metric = next(iter(result.metrics))
        key = (result.task["name"], result.task["split"], metric, len(result.predictions))
        low, high = result.interval
        cell = f"{100 * result.score:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        if label in rows.setdefault(key, {}):
            raise DataError(f"{file}: a second result of {label} on {key[0]} {key[1]}")
        rows[key][label] = cell
    columns = list(dict.fromkeys(labels))
    lines = [
        "| task | split | metric | n | " + " | ".join(columns) + " |",
        "| --- | --- | --- | ---: |" + " ---: |" * len(columns),
    ]
    for (task, split, metric, count), cells in rows.items():
        shown = [cells.get(column, "") for column in columns]
        lines.append(f"| {task} | {split} | {metric} | {count} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _labels(results: Sequence[Result]) -> list[str]:
    """What tells the answerers apart: name, and where it differs weights, noise and pruning."""
    references: dict[str, set[str]] = {}
    for result in results:
        references.setdefault(result.answerer["name"], set()).add(_reference(result))
    labels = []
    for result in results:
        name = result.answerer["name"]
        parts = [name]
        if len(references[name]) > 1 and _reference(result):
            parts.append(_reference(result))
        if noise := result.answerer.get("noise"):
            parts.append(f"noise {noise:g}")
        if prune := result.answerer.get("prune"):
            parts.append(f"{prune['kept']} ids")
        labels.append(", ".join(parts))
    return labels


def _reference(result: Result) -> str:
    return (result.answerer.get("model") or {}).get("reference", "")
