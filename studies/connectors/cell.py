"""Cells of the study, trained and measured; each is one JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .batches import Batcher
from .language_model import LanguageModel
from .measures import measure, unseen_loss
from .reader import Reader
from .settings import RATES, VARIANTS, Cell
from .store import Pages
from .train import Trainee, timed


class Bench:
    """What the cells of one process share: pages and the frozen language model.

    Args:
        few: pages of each part; 0: all.
    """

    def __init__(self, pages: Path, language_model: Path, device: str, few: int = 0) -> None:
        torch.set_float32_matmul_precision("high")
        self.device, self.folder = device, language_model
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.pages = Pages.load(pages)
        if few:
            self.pages = self.pages.few(few)
        self.language = LanguageModel(language_model, dtype, device)
        self.batchers: dict[Any, Batcher] = {}

    def trainee(self, cell: Cell, results: Path, dense: bool | None = None) -> Trainee:
        """A cell before its first step.

        Args:
            dense: compute P_vocab as a whole matrix; by default on a GPU.
        """
        dense = self.device == "cuda" if dense is None else dense
        variant = VARIANTS[cell.variant]
        torch.manual_seed(cell.seed)
        reader = Reader(variant, self.language, dense)
        reader.connector.to(self.device)
        if reader.layout not in self.batchers:
            self.batchers[reader.layout] = reader.batcher(self.pages, self.folder)
        batcher = self.batchers[reader.layout]
        (reader.blank,) = batcher.encode(" ")
        return Trainee(cell, reader, batcher, cell.rate or best_rate(results, variant.rates))

    def run(self, cells: Sequence[Cell], results: Path) -> list[dict[str, Any]]:
        """Train cells side by side and measure each; a file is written whole or not at all.

        They have one rank, number of steps and batch size (:attr:`Cell.kind`).
        """
        started = time.perf_counter()
        rank = VARIANTS[cells[0].variant].rank
        self.language.adapt(rank, [cell.seed for cell in cells])
        trainees = [self.trainee(cell, results) for cell in cells]
        training = timed(trainees, self.language, self.device)
        memory = _memory(self.device)
        found = []
        for number, (one, trained) in enumerate(zip(trainees, training, strict=True)):
            if rank:
                self.language.only = number
            found.append(self.measured(one, trained, memory, started, results))
        return found

    def measured(
        self, one: Trainee, training: dict[str, Any], memory: float, started: float, results: Path
    ) -> dict[str, Any]:
        """What is measured on a trained cell, also in its file."""
        cell, variant = one.cell, VARIANTS[one.cell.variant]
        if cell.rate is None:
            found = measure(one.reader, one.batcher, self.device, everything=cell.measure_all)
        else:
            found = unseen_loss(one.reader, one.batcher, self.device, cell.seed)
        result = {
            "cell": {**cell.to_dict(), "rate": one.rate},
            "connector": dict(variant.connector),
            "grounded": variant.grounded,
            "rank": variant.rank,
            "parameters": sum(p.numel() for p in one.reader.connector.parameters()),
            "training": training,
            **found,
            "seconds": round(time.perf_counter() - started, 2),
            "memory_gib": memory,
            "versions": {"torch": torch.__version__, "device": _device(self.device)},
        }
        write_json(results / f"{cell.name}.json", result)
        return result


def best_rate(results: Path, variant: str) -> float:
    """Of the grid the learning rate with the lowest loss on unseen pages, both tasks alike."""
    found = {}
    for rate in RATES:
        stored = json.loads((results / f"sweep-{variant}-{rate:g}.json").read_text("utf-8"))
        loss = stored["reading"]["loss"] + stored["asking"]["loss"]
        found[rate] = loss if loss == loss else float("inf")
    return min(found, key=lambda rate: found[rate])


def write_json(path: Path, value: Any) -> None:
    """Beside, then renamed: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)


def _memory(device: str) -> float:
    if device != "cuda":
        return 0.0
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(most, 2)


def _device(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
