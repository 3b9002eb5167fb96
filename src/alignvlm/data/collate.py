"""Samples to batches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.losses import IGNORE

PADDED = {"attention_mask": 0, "labels": IGNORE}


class Collator:
    """Pad text on the left, lay all images' tiles one after another.

    Args:
        pad_token_id: fills ``input_ids``.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Keys as in the samples; ``[B, L]`` for text, concatenated over tiles for images."""
        batch: dict[str, Tensor] = {}
        keys = dict.fromkeys(key for sample in samples for key in sample)
        for key in keys:
            values = [sample[key] for sample in samples if key in sample]
            if key == "input_ids" or key in PADDED:
                batch[key] = self._pad(values, PADDED.get(key, self.pad_token_id))
            else:
                batch[key] = torch.cat(values)
        return batch

    @staticmethod
    def _pad(rows: list[Tensor], value: int) -> Tensor:
        length = max(len(row) for row in rows)
        padded = rows[0].new_full((len(rows), length), value)
        for target, row in zip(padded, rows, strict=True):
            target[length - len(row) :] = row
        return padded
