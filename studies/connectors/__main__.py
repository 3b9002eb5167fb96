"""The study's one command.

::

    python -m studies.connectors run --receipts SROIE_TRAIN     # pages, cells, docs/study.md
    python -m studies.connectors run --device cuda --parallel 3 --side-by-side 8 --seconds 480
    python -m studies.connectors run --smoke --out DIR          # two steps a cell
    python -m studies.connectors cost                           # seconds of a step
    python -m studies.connectors list --cells align,mlp
    python -m studies.connectors report                         # docs/study.md from what is stored

What is stored is never run again, so a run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .settings import all_cells, chosen

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "study"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m studies.connectors")
    found.add_argument("what", choices=["run", "list", "cost", "report"])
    found.add_argument("--cells", default="", help="parts of cell names, comma-separated")
    found.add_argument("--receipts", type=Path, help="SROIE's training split; once, for the pages")
    found.add_argument("--pages", type=Path, default=ROOT / "runs" / "study" / "pages.npz")
    found.add_argument("--language-model", type=Path, help="folder; default: smollm2")
    found.add_argument("--results", type=Path, default=RESULTS)
    found.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    found.add_argument("--parallel", type=int, default=1, help="worker processes")
    found.add_argument("--side-by-side", type=int, default=1, help="cells a worker trains at once")
    found.add_argument("--seconds", type=float, default=1e9, help="stop everything after that")
    found.add_argument("--smoke", action="store_true", help="two steps a cell, to see it run")
    return found


def main() -> None:
    """Do what is asked."""
    asked = parser().parse_args()
    cells = chosen(all_cells(), asked.cells)
    if asked.what == "list":
        for cell in cells:
            done = (asked.results / f"{cell.name}.json").exists()
            print(f"{'x' if done else ' '} {cell.name}: {cell.steps} steps of {cell.batch}")
        return
    if asked.what == "report":
        _report(asked.results)
        return
    language_model = asked.language_model or _smollm2()
    if not asked.pages.exists():
        if asked.receipts is None:
            parser().error(f"{asked.pages} is not there yet: --receipts FOLDER makes it")
        from .prepare import prepare

        prepare(asked.pages.parent, language_model, asked.receipts, ROOT / "models" / "reader")
    if asked.what == "cost":
        from .cost import measure_cost

        print(measure_cost(asked.pages, language_model, asked.device, asked.results).read_text())
        return
    from .workers import run_cells

    run_cells(
        cells, asked.pages, language_model, asked.results, asked.device,
        asked.parallel, asked.side_by_side, asked.seconds, smoke=asked.smoke,
    )  # fmt: skip
    if asked.results == RESULTS and not asked.smoke:
        from .questions import write

        write(asked.pages, asked.results)
        _report(asked.results)


def _report(results: Path) -> None:
    from . import report  # scores need packages that a machine with a card may lack

    print(report.write(results, ROOT / "docs" / "study.md"))


def _smollm2() -> Path:
    from alignvlm.weights.resolve import resolve

    return Path(resolve("smollm2"))


if __name__ == "__main__":
    main()
