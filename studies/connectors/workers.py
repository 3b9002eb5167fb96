"""Cells on worker processes that share a device: short steps leave it idle otherwise."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from .settings import Cell

SMOKE_STEPS, SMOKE_BATCH, SMOKE_PAGES = 2, 2, 10


def run_cells(
    cells: list[Cell],
    pages: Path,
    language_model: Path,
    results: Path,
    device: str,
    parallel: int,
    side_by_side: int,
    seconds: float,
    *,
    smoke: bool = False,
) -> None:
    """Run the cells whose files are not there, in order, each when what it needs is there.

    Args:
        parallel: worker processes.
        side_by_side: cells that a worker trains at once, at most.
        seconds: then running cells are ended, and their files not written; none is begun that
            would, as fast as those before it, not end in time.
    """
    started = time.perf_counter()
    todo = [cell for cell in cells if not (results / f"{cell.name}.json").exists()]
    if smoke:
        todo = [replace(cell, steps=SMOKE_STEPS, batch=SMOKE_BATCH) for cell in todo]
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, Any] = {}
    for _ in range(min(parallel, len(todo))):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, pages, language_model, results, device, smoke), daemon=True
        )
        process.start()
        theirs.close()
        workers[ours] = process
    ready: list[Connection] = []
    busy: dict[Connection, tuple[float, list[Cell]]] = {}
    a_step = 0.0
    try:
        while (todo or busy) and time.perf_counter() - started < seconds:
            left = seconds - (time.perf_counter() - started)
            for line in list(ready):
                group = next_group(todo, results, side_by_side, left / a_step if a_step else None)
                if not group:
                    break
                ready.remove(line)
                todo = [cell for cell in todo if cell not in group]
                busy[line] = time.perf_counter(), group
                line.send(group)
            for line in wait(list(workers), timeout=min(1.0, max(0.0, left))):
                begun, group = busy.get(line, (0.0, []))  # type: ignore[call-overload]
                _hear(line, busy, ready, workers, started)  # type: ignore[arg-type]
                if group and line in workers:
                    took = time.perf_counter() - begun
                    a_step = max(a_step, took / sum(cell.steps for cell in group))
            if not workers:
                break
            if not busy and len(ready) == len(workers):
                left = seconds - (time.perf_counter() - started)
                if not next_group(todo, results, side_by_side, left / a_step if a_step else None):
                    break
    finally:
        for process in workers.values():
            process.terminate()
    missing = [cell.name for _, group in busy.values() for cell in group]
    missing += [cell.name for cell in todo]
    print(f"{time.perf_counter() - started:.0f} s; not run: {', '.join(missing) or 'none'}")


def next_group(
    todo: list[Cell], results: Path, most: int, most_steps: float | None = None
) -> list[Cell]:
    """The first cells of one kind whose needs are there.

    Args:
        most: cells of a group.
        most_steps: that there is time for, all cells' together.
    """
    there = {file.stem for file in results.glob("sweep-*.json")}
    ready = [cell for cell in todo if there.issuperset(cell.needs)]
    for first in ready:
        room = most if most_steps is None else min(most, int(most_steps // first.steps))
        if room:
            return [cell for cell in ready if cell.kind == first.kind][:room]
    return []


def _hear(
    line: Connection,
    busy: dict[Connection, tuple[float, list[Cell]]],
    ready: list[Connection],
    workers: dict[Connection, Any],
    started: float,
) -> None:
    """A worker is ready, or has died."""
    try:
        said = line.recv()
    except EOFError:
        _, group = busy.pop(line, (0.0, []))
        workers.pop(line)
        print(f"a worker ended at {group[0].name if group else 'its start'}", flush=True)
        return
    busy.pop(line, None)
    ready.append(line)
    print(f"{time.perf_counter() - started:6.1f} s  {said}", flush=True)


def _work(
    line: Connection, pages: Path, language_model: Path, results: Path, device: str, smoke: bool
) -> None:
    from .cell import Bench  # after the process has started: it imports everything

    if device == "cuda":
        torch.set_num_threads(1)
    bench = Bench(pages, language_model, device, SMOKE_PAGES if smoke else 0)
    line.send("worker ready")
    while True:
        cells = line.recv()
        try:
            found = bench.run(cells, results)
            line.send("\n".join(map(_said, cells, found)))
        except Exception:
            names = ", ".join(cell.name for cell in cells)
            line.send(f"{names} failed: {traceback.format_exc()}")


def _said(cell: Cell, found: dict[str, Any]) -> str:
    return (
        f"{cell.name}: reading {found['reading']['loss']:.3f} nats, asking "
        f"{found['asking']['loss']:.3f}, {found['training']['seconds']} s training, "
        f"{found['seconds']} s, {found['memory_gib']} GiB"
    )
