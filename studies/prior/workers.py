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

SMOKE_STEPS, SMOKE_BATCH = 2, 2


def run_cells(
    cells: list[Cell],
    pages: Path,
    language_model: Path,
    results: Path,
    device: str,
    parallel: int,
    seconds: float,
    *,
    smoke: bool = False,
) -> None:
    """Run the cells whose files are not there, in order, each when what it needs is there.

    Args:
        seconds: then no cell starts, and running ones are ended: their files are not written.
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
            target=_work, args=(theirs, pages, language_model, results, device), daemon=True
        )
        process.start()
        theirs.close()
        workers[ours] = process
    ready: list[Connection] = []
    busy: dict[Connection, Cell] = {}
    try:
        while (todo or busy) and time.perf_counter() - started < seconds:
            for line in list(ready):
                cell = _next(todo, results)
                if cell is None:
                    break
                ready.remove(line)
                todo.remove(cell)
                busy[line] = cell
                line.send(cell)
            left = seconds - (time.perf_counter() - started)
            for line in wait(list(workers), timeout=min(1.0, max(0.0, left))):
                _hear(line, busy, ready, workers, started)  # type: ignore[arg-type]
            if not workers:
                break
            if not busy and len(ready) == len(workers) and _next(todo, results) is None:
                break
    finally:
        for process in workers.values():
            process.terminate()
    missing = [cell.name for cell in [*busy.values(), *todo]]
    print(f"{time.perf_counter() - started:.0f} s; not run: {', '.join(missing) or 'none'}")


def _next(todo: list[Cell], results: Path) -> Cell | None:
    """The first cell whose needs are there."""
    there = {file.stem for file in results.glob("sweep-*.json")}
    return next((cell for cell in todo if there.issuperset(cell.needs)), None)


def _hear(
    line: Connection,
    busy: dict[Connection, Cell],
    ready: list[Connection],
    workers: dict[Connection, Any],
    started: float,
) -> None:
    """A worker is ready, or has died."""
    try:
        said = line.recv()
    except EOFError:
        cell = busy.pop(line, None)
        workers.pop(line)
        print(f"a worker ended at {cell.name if cell else 'its start'}", flush=True)
        return
    busy.pop(line, None)
    ready.append(line)
    print(f"{time.perf_counter() - started:6.1f} s  {said}", flush=True)


def _work(line: Connection, pages: Path, language_model: Path, results: Path, device: str) -> None:
    from .cell import Bench  # after the process has started: it imports everything

    if device == "cuda":
        torch.set_num_threads(1)
    bench = Bench(pages, language_model, device)
    bench.language(0)
    line.send("worker ready")
    while True:
        cell = line.recv()
        try:
            found = bench.run(cell, results)
            line.send(
                f"{cell.name}: reading {found['reading']['loss']:.3f} nats, asking "
                f"{found['asking']['loss']:.3f}, {found['training']['seconds']} s training, "
                f"{found['seconds']} s, {found['memory_gib']} GiB"
            )
        except Exception:
            line.send(f"{cell.name} failed: {traceback.format_exc()}")
