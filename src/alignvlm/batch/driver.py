"""Ask a model about many documents, on one machine or many: ``alignvlm batch``.

The work is a list of units (:mod:`.requests`). Workers (:mod:`.worker`, spread by
:mod:`.pool`) answer them and write the rows themselves (:mod:`.parts`), so whatever dies
costs only what was not yet written, and the same command goes on from there.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .parts import (
    as_lines,
    claimed,
    error_row,
    keep_only,
    merge,
    part_name,
    read_parts,
    write_whole,
)
from .pool import Pool, answered
from .requests import Asking, Unit, list_units
from .worker import Job, Worker

Run = Callable[[Sequence[Unit], Job, Pool], Iterator[int]]


@dataclass(frozen=True)
class BatchSummary:
    """What a batch gave.

    Attributes:
        results: the JSONL file, a row a unit in the order of the input.
        rows, answers, errors: how many.
        reused: rows that an earlier run had written.
        seconds: of this run.
    """

    results: Path
    rows: int
    answers: int
    errors: int
    reused: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "results": str(self.results)}

    def to_text(self) -> str:
        """One line."""
        earlier = f", {self.reused} of them from an earlier run" if self.reused else ""
        return (
            f"{self.results}: {self.rows} rows ({self.answers} answers, {self.errors} errors)"
            f"{earlier}; {self.seconds:.1f} s"
        )


def batch(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    asking: Asking | None = None,
    pool: Pool | None = None,
    retry_errors: bool = False,
    progress: bool = False,
    run: Run = answered,
) -> BatchSummary:
    """Ask about every page of a folder, or every record of a JSONL file.

    Called again, it asks only what has no row yet: a row counts as long as the question, the
    settings and the files (size and time of change) are the same. ``out/results.jsonl`` appears
    when every row is there.

    Args:
        model: folder or hub id of a trained model.
        source: a folder of PDFs and pictures, or a ``.jsonl`` file of records
            (:mod:`alignvlm.data.records`) whose images may be PDFs; ``page`` picks one page.
        out: folder of the batch; on a cluster, every machine must see it and the documents.
        asking, pool: see there; default: read the text of every page, on this machine.
        retry_errors: ask again what ended in an error row.
        progress: show a bar on stderr.
        run: what spreads the work.

    Raises:
        DataError: nothing to ask, or ``out`` is of another model or of something else.
        WeightsError: no such model.
        ConfigError: Ray cannot be started as asked.
    """
    start = time.perf_counter()
    asking, pool = asking or Asking(), pool or Pool()
    out = Path(os.path.abspath(out))
    units = list_units(Path(source), asking, without=out)
    with claimed(out, model, "batch"):
        if retry_errors:
            _forget_errors(out, units)
        job = Job(where_workers_find(model), str(out), asking, Worker)
        reused = finish_rows(units, job, pool, progress=progress, run=run)
        rows = merge(out, units)
    errors = sum("error" in row for row in rows)
    seconds = round(time.perf_counter() - start, 1)
    return BatchSummary(
        out / "results.jsonl", len(rows), len(rows) - errors, errors, reused, seconds
    )


def where_workers_find(model: str | os.PathLike[str]) -> str:
    """A model's name that holds in every folder."""
    return str(Path(model).resolve()) if Path(model).is_dir() else os.fspath(model)


def finish_rows(units: Sequence[Unit], job: Job, pool: Pool, *, progress: bool, run: Run) -> int:
    """Have every unit without a row answered; returns how many had one."""
    out = Path(job.out)
    done = read_parts(out)
    todo = [unit for unit in units if (unit.id, unit.request) not in done]
    known = [unit for unit in todo if unit.error is not None]
    if known:
        rows = [error_row(unit, unit.error or "") for unit in known]
        write_whole(out / "parts" / part_name(known), as_lines(rows))
    asked = [unit for unit in todo if unit.error is None]
    shutil.rmtree(out / "begun", ignore_errors=True)  # counts of an earlier run
    if asked:
        bar = tqdm(
            total=len(units), initial=len(units) - len(asked), unit=job.unit, disable=not progress
        )
        with bar, closing(run(asked, job, pool)) as counts:
            for count in counts:
                bar.update(count)
    shutil.rmtree(out / "begun", ignore_errors=True)
    return len(units) - len(todo)


def _forget_errors(out: Path, units: Sequence[Unit]) -> None:
    """Drop error rows of this input from the parts."""
    rows = read_parts(out)
    again = {(unit.id, unit.request) for unit in units}
    kept = {key: row for key, row in rows.items() if "answer" in row or key not in again}
    if len(kept) < len(rows):
        keep_only(out, kept)
