"""What a training step costs with each connector, alone on the device."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from .batches import training_order
from .cell import Bench, write_json
from .settings import BATCH, HEADLINE, LOW_RANK, Cell
from .stored import COST
from .train import Trainee, clip, make_optimizer, step_losses

ROUNDS, WARM, STEPS = 5, 4, 12


def measure_cost(pages: Path, language_model: Path, device: str, results: Path) -> Path:
    """Seconds of a step and peak memory of each connector, in rounds that take turns.

    ALIGN and Ovis run the package's op as it comes (``impl: auto``). Low-rank changes are trained.
    """
    bench = Bench(pages, language_model, device)
    seconds: dict[str, list[float]] = {name: [] for name in HEADLINE}
    memory: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name in HEADLINE:
            bench.language.adapt(LOW_RANK)
            cell = Cell(f"{name}-low-rank", 4096, 0, WARM + STEPS, BATCH, rate=1e-3)
            one = bench.trainee(cell, results, dense=False)
            took, memory[name] = _steps(bench, one)
            seconds[name].append(took)
    found = {
        "seconds": {name: statistics.median(own) for name, own in seconds.items()},
        "rounds": seconds,
        "memory_gib": memory,
        "batch": BATCH,
        "device": torch.cuda.get_device_name() if bench.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    write_json(results / COST, found)
    return results / COST


def _steps(bench: Bench, one: Trainee) -> tuple[float, float]:
    """Mean seconds of a step after the first ones, and GiB."""
    language, cuda = bench.language, bench.device == "cuda"
    optimizer = make_optimizer([one], language, bench.device)
    cell = one.cell
    order = training_order(bench.pages, cell.size, cell.steps, cell.batch, cell.seed)
    batches = [one.batcher.batch(asked).to(bench.device) for asked in order]
    started = 0.0
    for number, batch in enumerate(batches):
        if number == len(batches) - STEPS:
            _wait(cuda)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
        loss = step_losses([one], [batch], language).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip([one], language)
        optimizer.step()
    _wait(cuda)
    took = (time.perf_counter() - started) / STEPS
    return took, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()
