"""Stored examples as batches on a device, and their loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from alignvlm.model.branches import attention, visible

from .shards import KINDS, Arrays

MULTIPLE = 64
"""Batches are as long as a multiple of it: attention kernels want their masks aligned."""


class Batch(NamedTuple):
    """Sequences side by side, each as :class:`.sequences.Sequence4D` has it.

    Attributes:
        ids: int64 ``[b, n]``, the most probable candidates.
        rest: float ``[b, n]``, their probabilities.
        soft: flat places in ``b * n``, ids and probabilities of the other candidates.
        positions, owner: int64 ``[b, n]``.
        labels: int64 ``[b, n]``, -100 where nothing is to be said.
    """

    ids: Tensor
    rest: Tensor
    soft: tuple[Tensor, Tensor, Tensor]
    positions: Tensor
    owner: Tensor
    labels: Tensor

    def embed(self, weight: Tensor) -> Tensor:
        """Mean embeddings ``[b, n, d]``."""
        at, ids, q = self.soft
        inputs = weight[self.ids] * self.rest[..., None].to(weight)
        flat = inputs.flatten(0, 1).index_add(0, at, weight[ids] * q[:, None].to(weight))
        return flat.view_as(inputs)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to the attention's logits ``[b, 1, n, n]``."""
        return attention(visible(self.owner, None), dtype, "sdpa")


class Examples:
    """All stored examples, whole on a device.

    Args:
        files: that :mod:`.shards` wrote.
        device: where they are kept.
        without: names of :data:`.shards.KINDS` that are never given out.
    """

    def __init__(
        self, files: Sequence[Path], device: torch.device, without: Sequence[str] = ()
    ) -> None:
        stored = [dict(np.load(path)) for path in files]
        answers = [
            np.unpackbits(one["answer"])[: int(one["length"].astype(np.int64).sum())]
            for one in stored
        ]
        joined: Arrays = {
            key: np.concatenate([one[key] for one in stored])
            for key in stored[0]
            if key != "answer"
        }
        self.device = device
        self.kind = joined["kind"]
        self.left_out = [KINDS.index(name) for name in (*without, "text")]
        self.length = joined["length"].astype(np.int64)
        self.soft_count = joined["soft_count"].astype(np.int64)
        self._start = np.concatenate([[0], self.length.cumsum()[:-1]])
        self._soft_start = np.concatenate([[0], self.soft_count.cumsum()[:-1]])
        self._first = self._put(joined["first"])
        self._owner = self._put(joined["owner"])
        self._answer = self._put(np.concatenate(answers).astype(np.bool_))
        self._soft = tuple(self._put(joined[key]) for key in ("soft_at", "soft_id", "soft_q"))

    def _put(self, values: Any) -> Tensor:
        wide = values.astype(np.int32) if values.dtype == np.uint16 else values
        return torch.from_numpy(wide).to(self.device)

    def __len__(self) -> int:
        return len(self.kind)

    def batch(self, chosen: Sequence[int]) -> Batch:
        """The examples of those numbers."""
        numbers = np.asarray(chosen)
        length = torch.from_numpy(self.length[numbers]).to(self.device)
        size = -(-int(self.length[numbers].max()) // MULTIPLE) * MULTIPLE
        place = torch.arange(size, device=self.device)
        real = place < length[:, None]
        index = torch.from_numpy(self._start[numbers]).to(self.device)[:, None] + place
        index = index.clamp(max=len(self._first) - 1)
        ids = self._first[index].long() * real
        owner = self._owner[index].long() * real
        labels = torch.where(self._answer[index] & real, ids, -100)
        at, other, q = self._doubts(numbers, size)
        rest = torch.ones(ids.numel(), device=self.device).index_add(0, at, -q)
        return Batch(ids, rest.view_as(ids), (at, other, q), _positions(owner, real), owner, labels)

    def _doubts(self, numbers: Any, size: int) -> tuple[Tensor, Tensor, Tensor]:
        count = self.soft_count[numbers]
        before = np.concatenate([[0], count.cumsum()[:-1]])
        flat = np.repeat(self._soft_start[numbers] - before, count) + np.arange(count.sum())
        row = torch.from_numpy(np.repeat(np.arange(len(numbers)), count)).to(self.device)
        index = torch.from_numpy(flat).to(self.device)
        at, other, level = (values[index].long() for values in self._soft)
        return row * size + at, other, level.float() / 255

    def epoch(self, tokens: int, generator: Any, window: int = 2048) -> Iterator[list[int]]:
        """Every example once but plain text and what is left out, in batches of about so many
        tokens, pads included.

        Neighbours in length go together; the order of the batches is random within a window.

        Args:
            generator: of numpy.
        """
        order = generator.permutation(np.flatnonzero(~np.isin(self.kind, self.left_out)))
        for begin in range(0, len(order), window):
            part = order[begin : begin + window]
            part = part[np.argsort(self.length[part], kind="stable")[::-1]]
            batches, place = [], 0
            while place < len(part):
                longest = -(-int(self.length[part[place]]) // MULTIPLE) * MULTIPLE
                count = max(1, tokens // longest)
                batches.append(part[place : place + count].tolist())
                place += count
            for number in generator.permutation(len(batches)):
                yield batches[number]

    def texts(self) -> Any:
        """Numbers of the pieces of plain text."""
        return np.flatnonzero(self.kind == KINDS.index("text"))


def _positions(owner: Tensor, real: Tensor) -> Tensor:
    """Positions ``[b, n]`` that each branch would have alone, after what all see."""
    place = torch.arange(owner.shape[1], device=owner.device).expand_as(owner)
    prefix = ((owner == 0) & real).sum(1, keepdim=True)
    begins = (owner[:, 1:] != owner[:, :-1]) & (owner[:, 1:] > 0)
    first = torch.where(nn.functional.pad(begins, (1, 0)), place, 0).cummax(1).values
    return torch.where(owner > 0, prefix + place - first, place)


def answer_loss(model: Any, batch: Batch) -> Tensor:
    """Mean over pages of the mean over a page's answers ``[b]``; as :func:`.train.answer_loss`."""
    weight = model.get_input_embeddings().weight.detach()
    hidden = model.model(
        inputs_embeds=batch.embed(weight), position_ids=batch.positions,
        attention_mask=batch.mask(weight.dtype), use_cache=False,
    ).last_hidden_state  # fmt: skip
    page, at = (batch.labels >= 0).nonzero(as_tuple=True)
    logits = model.lm_head(hidden[page, at - 1]).float()
    losses = nn.functional.cross_entropy(logits, batch.labels[page, at], reduction="none")
    branch = page * 256 + batch.owner[page, at]
    pages = len(batch.ids)
    count = torch.bincount(branch, minlength=pages * 256)
    share = count[branch].float().rsqrt()
    whole = torch.zeros(pages, device=losses.device).index_add(0, page, share)
    return torch.zeros_like(whole).index_add(0, page, losses * share) / whole.clamp(min=1e-6)


def drift(model: Any, untouched: Any, batch: Batch) -> Tensor:
    """KL divergence from the untouched model's next token to this one's, mean over a text."""
    real = (batch.labels >= 0).float()
    inputs = batch.embed(untouched.get_input_embeddings().weight.detach())
    with torch.no_grad():
        target = untouched(inputs_embeds=inputs, use_cache=False).logits.float().log_softmax(-1)
    logits = model(inputs_embeds=inputs, use_cache=False).logits.float().log_softmax(-1)
    divergence = nn.functional.kl_div(logits, target, log_target=True, reduction="none").sum(-1)
    return (divergence * real).sum(1) / real.sum(1).clamp(min=1)
