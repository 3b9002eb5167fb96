"""The study's figures: svg, the same picture from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import stored as s
from .settings import ABLATIONS, CONNECTORS, SIGMAS
from .stored import Study

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3")


@contextmanager
def drawing(name: str, file: Path, columns: int) -> Iterator[Any]:
    """Axes side by side, saved at the end without a date and with fixed ids."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4 * columns, 3.2), layout="constrained")
        yield figure.subplots(1, columns, squeeze=False)[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


def line(axis: Any, label: str, colour: str, points: list[tuple[float, s.Estimate]]) -> None:
    """Means as a line; the interval as a band where there is one."""
    x = [place for place, _ in points]
    axis.plot(x, [e.mean for _, e in points], marker="o", markersize=3, label=label, color=colour)
    if not any(math.isnan(e.half) for _, e in points):
        low, high = [e.low for _, e in points], [e.high for _, e in points]
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def curves(study: Study, file: Path) -> bool:
    """ANLS and loss against samples seen, connectors left and ALIGN's variants right."""
    cell = study.any()
    if cell is None:
        return False
    seen = [point["samples"] for point in cell["curve"]]
    with drawing("curves", file, 2) as axes:
        for axis, names in zip(axes, (CONNECTORS, ABLATIONS), strict=True):
            for variant, colour in zip(names, COLOURS, strict=False):
                points = []
                for samples in seen:
                    value = s.at_fraction(samples / cell["settings"]["samples"])
                    if (found := study.estimate(variant, value)) is not None:
                        points.append((samples, found))
                if points:
                    line(axis, variant, colour, points)
            axis.set_xscale("log", base=2)
            axis.set_xlabel("samples seen")
            axis.set_ylabel("ANLS, unseen forms")
            axis.set_ylim(bottom=0)
            axis.legend(frameon=False)
    return True


def noise(study: Study, file: Path) -> bool:
    """ANLS against σ, on features and on pixels."""
    if study.any() is None:
        return False
    with drawing("noise", file, 2) as axes:
        for axis, place in zip(axes, ("features", "pixels"), strict=True):
            for variant, colour in zip(CONNECTORS, COLOURS, strict=False):
                points = []
                for sigma in SIGMAS:
                    found = study.estimate(variant, s.noise_at(place, sigma, "anls"))
                    if found is not None:
                        points.append((sigma, found))
                if points:
                    line(axis, variant, colour, points)
            unit = "standard deviations" if place == "features" else "-1 to 1"
            axis.set_xlabel(f"σ of the noise on {place} ({unit})")
            axis.set_ylabel("ANLS")
            axis.set_ylim(bottom=0)
            axis.legend(frameon=False)
    return True


def vocabulary(study: Study, file: Path) -> bool:
    """Score against kept ids, and the used embeddings among all (one seed)."""
    cell = next(iter(study.cells.get("align", {}).values()), None)
    if cell is None:
        return False
    with drawing("vocabulary", file, 2) as (left, right):
        for variant, colour in zip(ABLATIONS, COLOURS, strict=False):
            points = []
            for kept in _halvings(cell["vocabulary"]):
                found = study.estimate(variant, lambda c, k=kept: _pruned(c, k))
                if found is not None:
                    points.append((kept, found))
            if points:
                line(left, variant, colour, points)
        left.set_xscale("log", base=2)
        left.set_xlabel("ids kept in P_vocab")
        left.set_ylabel("ANLS")
        left.set_ylim(bottom=0)
        left.legend(frameon=False)
        points, used = cell["pca"]["points"], set(cell["pca"]["used"])
        groups = (("other ids", "#bbbbbb", False), ("ids with 99 % of the mass", COLOURS[3], True))
        for label, colour, inside in groups:
            own = [p for i, p in enumerate(points) if (i in used) is inside]
            right.scatter([p[0] for p in own], [p[1] for p in own], s=4, color=colour, label=label)
        right.set_xlabel("first component")
        right.set_ylabel("second component")
        right.legend(frameon=False)
    return True


def _halvings(size: int) -> list[int]:
    found = []
    while size >= 16:
        found.append(size)
        size //= 2
    return found


def _pruned(cell: s.Cell, kept: int) -> float | None:
    return next((r["anls"] for r in cell.get("pruning", ()) if r["kept"] == kept), None)
