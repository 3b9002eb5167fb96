"""docs/performance.md's tables and figures from the stored csv files.

    python -m benchmarks.plots

For each benchmark and device the newest csv of ``benchmarks/results/`` counts, and in it the last
row of each configuration. Only what stands between the page's markers is replaced.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import measure as m

PAGE = m.ROOT / "docs" / "performance.md"
FIGURES = Path("assets") / "performance"
"""Beside the page."""
KINDS = ("vocab_mixture", "connectors", "end_to_end")
NOTHING = "No measurement is stored yet.\n"
NAME = re.compile(r"(?P<kind>\w+)-(?P<device>[a-z]+)-(?P<date>\d{4}-\d\d-\d\d)\.csv")
CONFIGURATION = {
    "vocab_mixture": (
        *("n", "v", "d", "dtype", "activations", "setting", "affine", "impl", "chunk_size"),
        *("phase", "threads"),
    ),
    "connectors": (
        *("language_model", "dtype", "tiles", "table", "threads", "connector", "phase"),
    ),
    "end_to_end": (
        *("language_model", "weights", "dtype", "visual_tokens", "threads", "connector", "phase"),
    ),
}
"""Columns that tell configurations apart; of equal ones the last row counts."""
GROUP = {
    "vocab_mixture": ("n", "v", "d", "dtype", "setting", "affine", "activations", "threads"),
    "connectors": ("language_model", "v", "d", "dtype", "tiles", "table", "threads"),
    "end_to_end": ("language_model", "weights", "dtype", "threads"),
}
"""Columns that make one table."""
SHARED_COLUMNS = {"time, ms": "median_ms", "20 to 80 %": "q20_ms", "time ratio": "ratio"}

Row = dict[str, str]


def newest(results: Path) -> dict[tuple[str, str], Path]:
    """The newest csv for each benchmark and device."""
    found: dict[tuple[str, str], tuple[str, Path]] = {}
    for file in sorted(results.glob("*.csv")):
        match = NAME.fullmatch(file.name)
        if match and match["kind"] in KINDS:
            key = (match["kind"], match["device"])
            found[key] = max(found.get(key, ("", file)), (match["date"], file))
    return {key: file for key, (_, file) in sorted(found.items())}


def load(kind: str, file: Path) -> list[Row]:
    """Rows of a csv without those that a later run replaced, in order of first appearance."""
    rows: dict[tuple[str, ...], Row] = {}
    for row in m.read_rows(file):
        rows[tuple(row[key] for key in CONFIGURATION[kind])] = row
    measured = {_subject(kind, row) for row in rows.values() if row["median_ms"]}
    # a skip of an earlier run says nothing once there are numbers
    return [r for r in rows.values() if r["median_ms"] or _subject(kind, r) not in measured]


def _subject(kind: str, row: Row) -> tuple[str, ...]:
    # a skipped row has no phase, and may lack what is only known after loading
    unknown = ("phase", "visual_tokens", "kept_tokens")
    return tuple(row[key] for key in CONFIGURATION[kind] if key not in unknown)


def groups(kind: str, rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Rows of one table each, with one row that names it."""
    tables: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        tables.setdefault(tuple(row[key] for key in GROUP[kind]), []).append(row)
    for table in tables.values():
        yield table[0], table


def title(kind: str, device: str, row: Row) -> str:
    """One line that says what a table holds."""
    if kind == "vocab_mixture":
        size = f"N={row['n']}, V={row['v']}, D={row['d']}, {row['setting']}"
        size += "" if row["affine"] == "yes" else ", no γ and β"
        size += ", a model's activations" if row["activations"] == "model" else ""
    elif kind == "connectors":
        size = f"{row['language_model']} (V={row['v']}, D={row['d']}), {row['tiles']} tile(s), "
        size += f"E {row['table']}"
    else:
        random = f"{row['language_model']}, random weights, a page of noise"
        size = random if row["language_model"] else row["weights"]
    threads = f", {row['threads']} threads" if device == "cpu" else ""
    return f"{size}, {row['dtype']}{threads}"


def number(text: str, digits: int = 3) -> str:
    """Three significant digits, no exponent; a dash for nothing."""
    if not text:
        return "–"
    value = float(text)
    places = max(0, digits - 1 - (len(str(int(abs(value)))) - 1 if abs(value) >= 1 else 0))
    return f"{value:,.{places}f}"


def table(kind: str, rows: Sequence[Row]) -> str:
    """A Markdown table; what was skipped follows as a list."""
    who = "impl" if kind == "vocab_mixture" else "connector"
    extra = {
        "vocab_mixture": {
            "of matmul rate": "roofline",
            "GEMM efficiency": "gemm_efficiency",
            "TFLOP/s": "tflops",
            "peak, MiB": "peak_mib",
            "beyond gradients": "peak_beyond_gradients_mib",
        },
        "connectors": {
            "visual tokens": "visual_tokens",
            "peak, MiB": "peak_mib",
            "beyond gradients": "peak_beyond_gradients_mib",
        },
        "end_to_end": {
            "compared with": "baseline",
            "a second": "per_second",
            "peak, MiB": "peak_mib",
        },
    }[kind]
    columns = {**SHARED_COLUMNS, **extra}
    lines = [f"| {who} | phase | " + " | ".join(columns) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(columns))
    skipped = []
    for row in rows:
        if row["skipped"]:
            phase = f" {row['phase']}" if row["phase"] else ""
            skipped.append(f"- {row[who]}{phase}: {row['skipped']}")
        if not row["median_ms"]:
            continue
        cells = [row[who], row["phase"]]
        for column in columns.values():
            if column == "q20_ms":
                cells.append(f"{number(row['q20_ms'])} to {number(row['q80_ms'])}")
            elif column in ("visual_tokens", "baseline"):
                cells.append(row[column])
            else:
                cells.append(number(row[column]))
        lines.append("| " + " | ".join(cells) + " |")
    body = "\n".join(lines) if len(lines) > 2 else ""
    left = "Skipped or not measured:\n\n" + "\n".join(dict.fromkeys(skipped)) if skipped else ""
    return "\n\n".join(part for part in (body, left) if part) + "\n"


def section(kind: str, files: dict[tuple[str, str], Path], figures: Path) -> str:
    """What stands between a benchmark's markers."""
    parts = []
    for (found, device), file in files.items():
        if found != kind:
            continue
        rows = load(kind, file)
        if not rows:
            continue
        last = rows[-1]
        name = f"{kind}-{device}.svg"
        if figure(kind, device, rows, figures / name):
            parts.append(f"![{kind} on {device}: time and peak memory]({FIGURES / name})\n")
        parts.append(
            f"{last['hardware']}, {last['cores']} cores, torch {last['torch']}, "
            f"commit {last['commit'] or 'unknown'}, {last['date']} (`{file.name}`).\n"
        )
        for head, members in groups(kind, rows):
            parts.append(f"**{title(kind, device, head)}**\n")
            parts.append(table(kind, members))
    return "\n".join(parts) or NOTHING


def figure(kind: str, device: str, rows: Sequence[Row], file: Path) -> bool:
    """Time and peak memory as bars, two panels a table; ``False`` if there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    who = "impl" if kind == "vocab_mixture" else "connector"
    shown = ("both", "first token", "training step")
    panels = []
    for head, members in groups(kind, rows):
        own = [r for r in members if r["median_ms"] and r[who] != "matmul"]
        bars = [r for r in own if r["phase"] in shown] or own
        if bars:
            panels.append((title(kind, device, head), bars))
    if not panels:
        return False
    heights = [0.28 * len(bars) + 0.9 for _, bars in panels]
    with matplotlib.rc_context({"svg.hashsalt": kind, "svg.fonttype": "none", "font.size": 8}):
        drawing = Figure(figsize=(8, sum(heights)), layout="constrained")
        axes = drawing.subplots(len(panels), 2, squeeze=False, height_ratios=heights)
        for (left, right), (name, bars) in zip(axes, panels, strict=True):
            several = len({r["phase"] for r in bars}) > 1
            labels = [f"{r[who]}, {r['phase']}" if several else r[who] for r in bars]
            middle = [float(r["median_ms"]) for r in bars]
            low = [mid - float(r["q20_ms"]) for mid, r in zip(middle, bars, strict=True)]
            high = [float(r["q80_ms"]) - mid for mid, r in zip(middle, bars, strict=True)]
            left.barh(labels, middle, xerr=[low, high], color="#4c72b0", ecolor="#333333")
            right.barh(labels, [float(r["peak_mib"] or 0) for r in bars], color="#dd8452")
            left.set_title(name, loc="left")
            left.set_xlabel("ms, forward and backward" if bars[0]["phase"] == "both" else "ms")
            right.set_xlabel("peak memory over the inputs, MiB")
            for side in (left, right):
                side.invert_yaxis()
            right.tick_params(labelleft=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(file, metadata={"Date": None})
    return True


def fill(page: str, sections: dict[str, str]) -> str:
    """Replace what stands between ``<!-- results: KIND -->`` and ``<!-- end: KIND -->``.

    Raises:
        ValueError: the page lacks a pair of markers.
    """
    for kind, text in sections.items():
        start, end = f"<!-- results: {kind} -->", f"<!-- end: {kind} -->"
        head, found, rest = page.partition(start)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the page lacks {start} or {end}")
        page = f"{head}{start}\n\n{text}\n{end}{tail}"
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plots", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--results", type=Path, default=m.RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    files = newest(options.results)
    figures = options.page.parent / FIGURES
    sections = {kind: section(kind, files, figures) for kind in KINDS}
    text = options.page.read_text("utf-8")
    options.page.write_text(fill(text, sections), "utf-8")
    for file in files.values():
        print(f"from {file}")
    print(f"written: {options.page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
