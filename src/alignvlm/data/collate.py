"""Samples to batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..model.losses import IGNORE

PADDED = {"attention_mask": 0, "labels": IGNORE, "turn_ids": 0}


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
        if any("turn_ids" in sample for sample in samples):  # without, it is one turn
            samples = [{"turn_ids": torch.zeros_like(s["input_ids"]), **s} for s in samples]
        keys = dict.fromkeys(key for sample in samples for key in sample)
        for key in keys:
            values = [sample[key] for sample in samples if key in sample]
            if key == "input_ids" or key in PADDED:
                batch[key] = pad_sequence(
                    values,
                    batch_first=True,
                    padding_value=PADDED.get(key, self.pad_token_id),
                    padding_side="left",
                )
            else:
                batch[key] = torch.cat(values)
        return batch
