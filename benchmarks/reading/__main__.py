"""A page reader beside RapidOCR: reading, time, memory.

python -m benchmarks.reading --model runs/reader          # all six tables, two hours of two cores
python -m benchmarks.reading --tables 1,3 --pages 3       # a smoke run; kept in a temporary folder
python -m benchmarks.reading --only rapidocr --tables 1 --pages 2 --show 2
python -m benchmarks.reading report                       # Markdown of what is stored

Tables: 1 receipts, 2 contracts, 3 drawn pages, 4 time of a page, 5 memory of a large page, 6 page
to the first token of an answer. Each is written as one JSON file, which replaces an earlier one;
the last three once for each number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignvlm.errors import AlignVLMError
from benchmarks import measure as m

from . import cost, metrics, pages, quality, readers, report

TABLES = dict(enumerate(report.ABOUT, start=1))
QUALITY = ("receipts", "contracts", "rendered")
RESULTS = m.RESULTS / "reading"


def groups_of(
    table: str, found: dict[str, readers.Contestant], asked: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure one table."""
    if table == "receipts":
        return quality.receipts(found, asked.data, asked.pages, asked.show)
    if table == "contracts":
        return quality.contracts(found, asked.data, asked.pages, asked.show)
    if table == "rendered":
        return quality.rendered(found, asked.language_model, asked.pages, asked.show)
    if table == "time":
        return cost.time_of_a_page(found, asked.data, asked.pages, asked.rounds)
    if table == "first-token":
        return cost.first_token(found, asked.data, asked.pages, asked.rounds)
    return cost.memory(asked.only, asked.model, asked.language_model, asked.threads, asked.rounds)


def save(
    table: str, groups: list[dict[str, Any]], asked: argparse.Namespace, out: Path, command: str
) -> Path:
    """Write a table beside its place, then move it there."""
    result = {
        "table": table,
        "command": command,
        "environment": m.environment("cpu", asked.threads),
        "versions": readers.versions(),
        "seeds": {"drawn pages from": pages.SEED, "bootstrap": metrics.SEED},
        "settings": {
            "model": asked.model,
            "language model": asked.language_model,
            "rounds": asked.rounds,
            "dpi": pages.DPI,
            "width": pages.WIDTH,
            "height": pages.HEIGHT,
            "resamples": metrics.RESAMPLES,
        },
        "groups": groups,
    }
    name = table if table in QUALITY else f"{table}-{asked.threads}"
    out.mkdir(parents=True, exist_ok=True)
    file, partial = out / f"{name}.json", out / f"{name}.partial"
    partial.write_text(json.dumps(result, ensure_ascii=False) + "\n", "utf-8")
    os.replace(partial, file)
    return file


def table_numbers(text: str) -> list[int]:
    """``1,3`` as numbers of tables."""
    numbers = [int(part) for part in text.split(",")]
    if not numbers or not set(numbers) <= set(TABLES):
        raise ValueError(text)
    return numbers


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="?", choices=("run", "report"), default="run")
    add("--tables", type=table_numbers, default=list(TABLES), help="such as 1,3; default: all")
    add("--only", nargs="+", choices=readers.NAMES, default=readers.NAMES, help="these readers")
    add("--model", help="the composed model to read with")
    add("--language-model", default="smollm2", help="tokens of table 3, answers of table 6")
    add("--data", type=Path, default=Path("../shared/data"), help="has sroie/ and deepform/")
    add("--pages", type=int, help="at most so many of each kind; a smoke run, not a result")
    add("--rounds", type=int, default=3, help="times each page is timed")
    add("--threads", type=int, default=2)
    add("--show", type=int, default=0, help="print so many pages of each kind and their readings")
    add("--out", type=Path, help="folder of the JSON files; a smoke run keeps none by default")
    add("--results", type=Path, default=RESULTS, help="what the report is made from")
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.pages is not None and not 1 <= asked.pages <= pages.MOST:
        parser.error(f"--pages: 1 to {pages.MOST}")
    if asked.rounds < 1 or asked.threads < 1:
        parser.error("--rounds and --threads: at least 1")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = options(words)
    if asked.worker is not None:
        return m.serve(cost.work, asked.worker)
    try:
        if asked.what == "report":
            print(report.write(asked.results))
            return 0
        command = shlex.join(["python", "-m", "benchmarks.reading", *words])
        smoke = m.out_folder(asked.out, asked.pages is not None)
        out = RESULTS if smoke == m.RESULTS else smoke
        chosen = [TABLES[number] for number in asked.tables]
        found: dict[str, readers.Contestant] = {}
        if set(chosen) != {"memory"}:
            found = readers.contestants(
                asked.only, asked.model, asked.threads, asked.language_model
            )
        for table in chosen:
            file = save(table, groups_of(table, found, asked), asked, out, command)
            print(f"written: {file}", flush=True)
            print("\n".join(report.section(json.loads(file.read_text("utf-8")))), flush=True)
    except (AlignVLMError, NotImplementedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
