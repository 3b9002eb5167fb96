"""docs/cost.md's tables, sentences and figures: from the csv, the formulas and published runs.

Every sentence that says how something grows is made from a fit (:mod:`.fits`), and the fit is drawn
into the figure beside the points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import measure as m
from benchmarks import plots

from . import published
from .fits import Fit, distance, fit, words
from .formulas import curves
from .sweeps import SWEEPS

PAGE = m.ROOT / "docs" / "cost.md"
FIELDS = (
    *m.ENVIRONMENT,
    *("model", "sweep", "x", "repeats", "cpu_ms", "cpu_median_ms", "wall_ms", "peak_mib"),
    "skipped",
)
SECTIONS = ("reading", "answering", "training", "op")
POINTS, LINE = "#4c72b0", "#dd8452"

Rows = dict[str, list[dict[str, str]]]


class Panel(NamedTuple):
    """Measured points and the curve through them.

    Attributes:
        title, axis: above and below.
        unit: of the ys, ``ms``, ``MiB``, ``h`` or ``GiB``.
        xs, ys: the points.
        curve: through them, of x or of 1/x.
        inverse: of 1/x.
        further: where the curve is drawn out to.
    """

    title: str
    axis: str
    unit: str
    xs: list[float]
    ys: list[float]
    curve: Fit
    inverse: bool = False
    further: float | None = None

    def at(self, x: float) -> float:
        """The curve's height."""
        return self.curve.at(1 / x if self.inverse else x)


def load(results: Path) -> tuple[Path | None, Rows]:
    """The newest csv and its rows by sweep; of equal steps the last row counts."""
    files = sorted(results.glob("growth-cpu-*.csv"))
    if not files:
        return None, {}
    found: dict[str, dict[float, dict[str, str]]] = {}
    for row in m.read_rows(files[-1]):
        found.setdefault(row["sweep"], {})[float(row["x"])] = row
    return files[-1], {name: [own[x] for x in sorted(own)] for name, own in found.items()}


def amount(unit: str) -> Callable[[float], str]:
    """Writes a value of a unit; milliseconds above a second as seconds."""

    def show(value: float) -> str:
        if unit == "ms" and abs(value) >= 1000:
            return f"{plots.number(str(value / 1000))} s"
        if abs(value) < 0.1:
            return f"{value:.2g} {unit}"
        return f"{plots.number(str(value))} {unit}"

    return show


def panels(section: str, rows: Rows) -> list[Panel]:
    """Time and memory of each sweep of a section that has two measured steps or more."""
    made = []
    for sweep in (sweep for sweep in SWEEPS if sweep.section == section):
        for title, column, unit in (
            ("CPU time", "cpu_ms", "ms"),
            ("Peak memory", "peak_mib", "MiB"),
        ):
            pairs = [
                (float(row["x"]), float(row[column]))
                for row in rows.get(sweep.name, ())
                if row[column] and float(row[column]) > 0
            ]
            if len(pairs) < 2:
                continue
            xs, ys = ([pair[place] for pair in pairs] for place in (0, 1))
            made.append(
                Panel(
                    f"{title} of {sweep.subject}",
                    sweep.axis,
                    unit,
                    xs,
                    ys,
                    fit(xs, ys),
                    False,
                    sweep.further,
                )
            )
    return made


def formula_panels() -> list[Panel]:
    """The plan's curves with their fits."""
    made = []
    for c in curves():
        xs, ys = list(map(float, c.xs)), list(map(float, c.ys))
        curve = fit([1 / x for x in xs] if c.inverse else xs, ys)
        made.append(Panel(c.subject, c.axis, c.unit, xs, ys, curve, c.inverse))
    return made


def sentence(panel: Panel) -> str:
    """What the panel's fit says, and where it was drawn out to."""
    axis = f"1 / {panel.axis}" if panel.inverse else panel.axis
    starts_small = not panel.title.startswith("CPU")
    title = panel.title[0].lower() + panel.title[1:] if starts_small else panel.title
    text = f"- The {title} {words(panel.curve, axis, amount(panel.unit))}."
    if panel.further is not None and panel.curve.shape != "none":
        far = amount(panel.unit)(panel.at(panel.further))
        text += (
            f" At {panel.further:g} {panel.axis} that is {far}, extrapolated: the largest measured "
            f"is {panel.xs[-1]:g}."
        )
    return text


def table(section: str, rows: Rows) -> str:
    """The measured steps of a section as Markdown."""
    lines = ["| what grows | x | CPU time, ms | wall time, ms | peak, MiB | rounds |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for sweep in (sweep for sweep in SWEEPS if sweep.section == section):
        for row in rows.get(sweep.name, ()):
            what = f"{sweep.subject}: {sweep.setting}"
            cells = [plots.number(row[key]) for key in ("cpu_ms", "wall_ms", "peak_mib")]
            lines.append(
                f"| {what} | {float(row['x']):,g} {sweep.axis} | "
                + " | ".join(cells)
                + f" | {row['repeats'] or '–'} |"
            )
    return "\n".join(lines)


def figure(name: str, made: Sequence[Panel], file: Path) -> None:
    """Panels two a row: points, the fit as a line, dashed where nothing was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    count = -(-len(made) // 2)
    settings = {"svg.hashsalt": f"growth {name}", "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(settings):
        drawing = Figure(figsize=(8, 2.5 * count), layout="constrained")
        axes = drawing.subplots(count, 2, squeeze=False).flatten()
        for place, panel in zip(axes, made, strict=False):
            _draw(place, panel)
        for place in axes[len(made) :]:
            place.set_visible(False)
        file.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(file, metadata={"Date": None})


def _draw(place: Any, panel: Panel) -> None:
    """One panel, on logarithmic axes where it reaches far."""
    first, last = panel.xs[0], panel.xs[-1]
    end = panel.further or last
    steps = [first * (end / first) ** (n / 60) for n in range(61)]
    inside = [x for x in steps if x <= last * 1.0001] or [first]
    beyond = [inside[-1], *(x for x in steps if x > last)]
    off = f"{panel.curve.shape}, {distance(panel.curve)}"
    place.plot(inside, [panel.at(x) for x in inside], color=LINE, label=off)
    if len(beyond) > 1:
        place.plot(beyond, [panel.at(x) for x in beyond], color=LINE, linestyle="--")
    place.plot(panel.xs, panel.ys, "o", color=POINTS, markersize=4)
    if end / first >= 16:
        place.set_xscale("log")
        place.set_yscale("log")
    else:
        place.set_ylim(bottom=0)
    place.set_title(panel.title, loc="left")
    place.set_xlabel(panel.axis)
    place.set_ylabel(f"{panel.unit}, CPU" if panel.unit == "ms" else panel.unit)
    place.legend(frameon=False)


def measured(section: str, file: Path | None, rows: Rows, figures: Path) -> str:
    """What stands between a measured section's markers."""
    made = panels(section, rows)
    if file is None or not made:
        return plots.NOTHING
    name = f"growth-{section}.svg"
    figure(section, made, figures / name)
    own = [row for sweep in SWEEPS if sweep.section == section for row in rows.get(sweep.name, ())]
    last = own[-1]
    about = (
        f"{last['hardware']}, {last['threads']} of {last['cores']} cores, torch {last['torch']}, "
        f"commit {last['commit'] or 'unknown'}, {last['date']} (`{file.name}`)."
    )
    said = "\n".join(sentence(panel) for panel in made)
    picture = f"![{section}: time and memory with their fits]({plots.FIGURES / name})"
    missing = [
        sweep.name for sweep in SWEEPS if sweep.section == section and sweep.name not in rows
    ]
    left = f"Not measured yet: {', '.join(missing)}.\n\n" if missing else ""
    return f"{picture}\n\n{said}\n\n{about}\n\n{left}{table(section, rows)}\n"


def computed(figures: Path) -> str:
    """What stands between the formulas' markers."""
    made = formula_panels()
    figure("gpu", made, figures / "growth-gpu.svg")
    picture = f"![the plan's formulas with their fits]({plots.FIGURES / 'growth-gpu.svg'})"
    return f"{picture}\n\n" + "\n".join(sentence(panel) for panel in made) + "\n"


def write(results: Path, page: Path) -> None:
    """Fill the page's markers and draw its figures.

    Raises:
        ValueError: the page lacks a pair of markers.
    """
    file, rows = load(results)
    figures = page.parent / plots.FIGURES
    sections = {name: measured(name, file, rows, figures) for name in SECTIONS}
    sections["gpu"] = computed(figures)
    sections["published"] = published.table() + "\n"
    page.write_text(plots.fill(page.read_text("utf-8"), sections), "utf-8")
