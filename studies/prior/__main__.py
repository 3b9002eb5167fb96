"""The study's one command.

::

    python -m studies.prior.prepare --language-model DIR --receipts DIR   # once: the features
    python -m studies.prior run --language-model DIR                      # resumable
    python -m studies.prior run --language-model DIR --device cuda --parallel 3 --side-by-side 8
    python -m studies.prior cost --language-model DIR                     # seconds of a step
    python -m studies.prior report                                        # docs/study.md
    python -m studies.prior list --cells align,mlp
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .cell import Bench
from .cost import measure_cost
from .questions import write as write_questions
from .settings import all_cells, chosen
from .workers import run_cells


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m studies.prior")
    parser.add_argument("what", choices=["run", "list", "cost", "questions", "report"])
    parser.add_argument("--cells", default="", help="parts of cell names, comma-separated")
    parser.add_argument("--pages", type=Path, default=Path("runs/study/pages.npz"))
    parser.add_argument("--language-model", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/study/prior"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--parallel", type=int, default=1, help="worker processes")
    parser.add_argument("--side-by-side", type=int, default=1, help="cells a worker trains at once")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop everything after that")
    parser.add_argument("--smoke", action="store_true", help="two steps a cell, to see it run")
    asked = parser.parse_args()
    cells = chosen(all_cells(), asked.cells)
    if asked.what == "list":
        for cell in cells:
            done = (asked.results / f"{cell.name}.json").exists()
            print(f"{'x' if done else ' '} {cell.name}: {cell.steps} steps of {cell.batch}")
        return
    if asked.what == "questions":
        print(write_questions(asked.pages, asked.results))
        return
    if asked.what == "report":
        from . import report  # scores need packages that a machine with a card may lack

        print(report.write(asked.results, Path("docs/study.md")))
        return
    if asked.language_model is None:
        parser.error(f"{asked.what} needs --language-model")
    if asked.what == "cost":
        bench = Bench(asked.pages, asked.language_model, asked.device)
        print(measure_cost(bench, asked.results).read_text("utf-8"))
        return
    run_cells(
        cells, asked.pages, asked.language_model, asked.results, asked.device,
        asked.parallel, asked.side_by_side, asked.seconds, smoke=asked.smoke,
    )  # fmt: skip


if __name__ == "__main__":
    main()
