"""The study's figures: svg, the same picture from the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .claims import SETTINGS
from .settings import HEADLINE, SIGMAS, SIZES
from .stored import Estimate, Study

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3")
SHOWN = (*HEADLINE, "align-grounded")


@contextmanager
def drawing(name: str, file: Path, columns: int) -> Iterator[Any]:
    """Axes side by side, saved at the end without a date and with fixed ids."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4 * columns, 3.2), layout="constrained")
        yield figure.subplots(1, columns, squeeze=False, sharey=True)[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


def line(axis: Any, label: str, colour: str, points: list[tuple[float, Estimate]]) -> None:
    """Means as a line; the interval as a band where there is one."""
    x = [place for place, _ in points]
    axis.plot(x, [e.mean for _, e in points], marker="o", markersize=3, label=label, color=colour)
    if not any(math.isnan(e.half) for _, e in points):
        low, high = [e.low for _, e in points], [e.high for _, e in points]
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def sizes(study: Study, file: Path) -> None:
    """ANLS against training pages, both settings."""
    with drawing("sizes", file, len(SETTINGS)) as axes:
        for axis, (name, behind) in zip(axes, SETTINGS.items(), strict=True):
            for variant, colour in zip(SHOWN, COLOURS, strict=True):
                found = [(n, study.estimate(variant + behind, "test", n)) for n in sorted(SIZES)]
                if points := [(float(n), e) for n, e in found if e is not None]:
                    line(axis, variant, colour, points)
            axis.set_xscale("log", base=4)
            axis.set_xticks(sorted(SIZES), [f"{n:,}" for n in sorted(SIZES)])
            _labelled(axis, f"training pages; language model {name}")


def noise(study: Study, file: Path) -> None:
    """ANLS against σ, both settings."""
    with drawing("noise", file, len(SETTINGS)) as axes:
        for axis, (name, behind) in zip(axes, SETTINGS.items(), strict=True):
            for variant, colour in zip(SHOWN, COLOURS, strict=True):
                found = [
                    (s, study.estimate(variant + behind, f"noise {s:g}")) for s in (0.0, *SIGMAS)
                ]
                if points := [(s, e) for s, e in found if e is not None]:
                    line(axis, variant, colour, points)
            _labelled(axis, f"σ, standard deviations of the features; language model {name}")


def _labelled(axis: Any, below: str) -> None:
    axis.set_xlabel(below)
    axis.set_ylabel("ANLS, held-out pages")
    axis.set_ylim(bottom=0)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False)
