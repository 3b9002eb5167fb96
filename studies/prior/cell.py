"""One cell of the study, trained and measured, as one JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from .language_model import LanguageModel
from .measures import measure, unseen_loss
from .reader import Reader
from .settings import RATES, VARIANTS, Cell
from .store import Pages
from .train import train


class Bench:
    """What the cells of one process share: pages and the frozen language model."""

    def __init__(self, pages: Path, language_model: Path, device: str) -> None:
        torch.set_float32_matmul_precision("high")
        self.device, self.folder = device, language_model
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.pages = Pages.load(pages)
        self._frozen: LanguageModel | None = None

    def language(self, rank: int) -> LanguageModel:
        """The frozen one is read once."""
        if rank:
            return LanguageModel(self.folder, rank, self.dtype, self.device)
        if self._frozen is None:
            self._frozen = LanguageModel(self.folder, 0, self.dtype, self.device)
        return self._frozen

    def run(self, cell: Cell, results: Path) -> dict[str, Any]:
        """Train and measure a cell; its file is written whole or not at all."""
        started = time.perf_counter()
        torch.manual_seed(cell.seed)
        variant = VARIANTS[cell.variant]
        language = self.language(variant.rank)
        reader = Reader(variant, language, dense=self.device == "cuda")
        reader.connector.to(self.device)
        batcher = reader.batcher(self.pages, self.folder)
        (reader.blank,) = batcher.encode(" ")
        rate = cell.rate or best_rate(results, variant.rates)
        training = train(reader, batcher, cell, rate, self.device)
        reader.requires_grad_(False)
        if cell.rate is None:
            found = measure(reader, batcher, self.device, everything=cell.measure_all)
        else:
            found = unseen_loss(reader, batcher, self.device, cell.seed)
        result = {
            "cell": {**cell.to_dict(), "rate": rate},
            "connector": dict(variant.connector),
            "grounded": variant.grounded,
            "rank": variant.rank,
            "parameters": sum(p.numel() for p in reader.connector.parameters()),
            "training": training,
            **found,
            "seconds": round(time.perf_counter() - started, 2),
            "memory_gib": _memory(self.device),
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
