"""Training cells: several of one length at once, side by side in one batch of the language model.

Steps are so short that starting kernels is most of what one cell costs on a GPU. Cells share the
frozen weights; connectors, low-rank changes, gradients' norms and data are each cell's own, so the
numbers are those of training alone, but for rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import Batch, Batcher, training_order
from .language_model import LanguageModel
from .reader import AlignConnector, Reader, fit
from .settings import LOW_RANK_RATE, VARIANTS, Cell

WARM_UP = 0.05
CLIP = 1.0


@dataclass(frozen=True)
class Trainee:
    """A cell with what it is trained with.

    Attributes:
        rate: the connector's peak learning rate.
    """

    cell: Cell
    reader: Reader
    batcher: Batcher
    rate: float


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: up over the first steps, then along a cosine to 0.

    >>> rate_at(100, 100)
    0.0
    """
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(trainees: Sequence[Trainee], language: LanguageModel, device: str) -> list[list[float]]:
    """Train cells of one number of steps and one batch size; returns each one's losses on the way.

    ``language`` has low-rank changes for each of them, in this order, or none.
    """
    for one in trainees:
        if VARIANTS[one.cell.variant].start == "fitted":
            start_fitted(one, device)
    optimizer = make_optimizer(trainees, language, device)
    steps, losses = trainees[0].cell.steps, []
    orders = [
        training_order(one.batcher.pages, one.cell.size, steps, one.cell.batch, one.cell.seed)
        for one in trainees
    ]
    for step, questions in enumerate(zip(*orders, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_at(step, steps)
        shared: dict[tuple[int, int, bool], Batch] = {}
        batches = []
        for one, asked in zip(trainees, questions, strict=True):
            key = (one.cell.seed, one.cell.size, *one.reader.layout)
            if key not in shared:
                shared[key] = one.batcher.batch(asked).to(device)
            batches.append(shared[key])
        own = step_losses(trainees, batches, language)
        optimizer.zero_grad(set_to_none=True)
        own.sum().backward()
        clip(trainees, language)
        optimizer.step()
        losses.append(own.detach())
    return torch.stack(losses, 1).float().tolist()


def make_optimizer(
    trainees: Sequence[Trainee], language: LanguageModel, device: str
) -> torch.optim.AdamW:
    """One for all: each connector with its own rate, the low-rank changes with theirs."""
    groups: list[dict[str, Any]] = [
        {"params": list(one.reader.connector.parameters()), "peak": one.rate} for one in trainees
    ]
    if language.rank:
        groups.append({"params": [language.changes], "peak": LOW_RANK_RATE})
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=device == "cuda"
    )


def step_losses(
    trainees: Sequence[Trainee], batches: Sequence[Batch], language: LanguageModel
) -> Tensor:
    """Each cell's loss, ``[cells]``: one forward pass of the language model for all."""
    inputs = []
    for one, batch in zip(trainees, batches, strict=True):
        grounded = VARIANTS[one.cell.variant].grounded
        inputs.append(one.reader.inputs(batch, targets=batch.targets if grounded else None))
    width = max(x.shape[1] for x, _, _ in inputs)
    padded = [F.pad(x, (0, 0, 0, width - x.shape[1])) for x, _, _ in inputs]
    if len(trainees) == 1 and padded[0].device.type == "cpu":
        hidden: Sequence[Tensor] = [language.by_length(padded[0], batches[0].ends + inputs[0][1])]
    else:
        hidden = language(torch.cat(padded)).chunk(len(trainees))
    losses = []
    for one, batch, (_, shift, log_p), own in zip(trainees, batches, inputs, hidden, strict=True):
        loss = F.cross_entropy(one.reader.logits_of(own, shift, batch), batch.wanted)
        if log_p is not None:
            grounded = VARIANTS[one.cell.variant].grounded
            loss = loss + grounded * one.reader.cells_loss(batch, log_p)
        losses.append(loss)
    return torch.stack(losses)


@torch.no_grad()
def clip(trainees: Sequence[Trainee], language: LanguageModel) -> None:
    """Scale each cell's gradients to a norm of at most :data:`CLIP`."""
    grads = [
        [p.grad for p in one.reader.connector.parameters() if p.grad is not None]
        for one in trainees
    ]
    norms = [torch.stack(torch._foreach_norm(own)).square().sum() for own in grads]
    squares = torch.stack(norms)
    if language.rank:
        squares = squares + language.changes.grad.square().sum(1)
    scale = (CLIP / (squares.sqrt() + 1e-6)).clamp_max(1.0)
    for own, factor in zip(grads, scale.unbind(), strict=True):
        torch._foreach_mul_(own, factor)
    if language.rank:
        language.changes.grad.mul_(scale[:, None])


def start_fitted(one: Trainee, device: str) -> None:
    """Closed form from the cell's own training pages."""
    cell, batcher = one.cell, one.batcher
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
    assert isinstance(one.reader.connector, AlignConnector)
    fit(one.reader.connector, cells, targets.long().to(device))


def timed(
    trainees: Sequence[Trainee], language: LanguageModel, device: str
) -> list[dict[str, Any]]:
    """Train; for each cell sixteen mean losses, and the seconds that all took together."""
    started = time.perf_counter()
    losses = train(trainees, language, device)
    seconds = round(time.perf_counter() - started, 2)
    found = []
    for own in losses:
        chunks = torch.tensor(own).split(max(1, len(own) // 16))
        means = [round(chunk.mean().item(), 4) for chunk in chunks]
        found.append({"losses": means, "seconds": seconds, "side_by_side": len(trainees)})
    return found
