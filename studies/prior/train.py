"""Training one cell."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from .batches import Batcher, training_order
from .reader import AlignConnector, Reader, fit
from .settings import LOW_RANK_RATE, VARIANTS, Cell

WARM_UP = 0.05
CLIP = 1.0


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: up over the first steps, then along a cosine to 0.

    >>> rate_at(100, 100)
    0.0
    """
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(reader: Reader, batcher: Batcher, cell: Cell, rate: float, device: str) -> dict[str, Any]:
    """Train a cell; returns the losses on the way and what it took.

    Args:
        rate: the connector's peak learning rate.
    """
    variant = VARIANTS[cell.variant]
    if variant.start == "fitted":
        start_fitted(reader, batcher, cell, device)
    low_rank = [p for p in reader.language.parameters() if p.requires_grad]
    groups = [{"params": list(reader.connector.parameters()), "peak": rate}]
    if low_rank:
        groups.append({"params": low_rank, "peak": LOW_RANK_RATE})
    optimizer = torch.optim.AdamW(
        groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=device == "cuda"
    )
    parameters = [p for group in groups for p in group["params"]]
    losses, started = [], time.perf_counter()
    order = training_order(batcher.pages, cell.size, cell.steps, cell.batch, cell.seed)
    for step, questions in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_at(step, cell.steps)
        batch = batcher.batch(questions).to(device)
        loss = reader.loss(batch, variant.grounded)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        optimizer.step()
        losses.append(loss.detach())
    values = torch.stack(losses).float().cpu()
    chunks = values.split(max(1, len(values) // 16))
    return {
        "losses": [round(chunk.mean().item(), 4) for chunk in chunks],
        "seconds": round(time.perf_counter() - started, 2),
    }


def start_fitted(reader: Reader, batcher: Batcher, cell: Cell, device: str) -> None:
    """Closed form from the cell's own training pages."""
    pages = {
        asked.page
        for questions in training_order(batcher.pages, cell.size, cell.size // 8, 16, cell.seed)
        for asked in questions
    }
    own = sorted(pages)
    cells = torch.cat([batcher.cells(page) for page in own]).to(device)
    targets = torch.cat(
        [torch.from_numpy(batcher.pages.targets[batcher.pages.cells(page)]) for page in own]
    )
    assert isinstance(reader.connector, AlignConnector)
    fit(reader.connector, cells, targets.long().to(device))
