"""Load a model to be asked, and the one choice of device and dtype."""

from __future__ import annotations

import os

import torch

from ..compose.assemble import load_pretrained
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from ..weights.resolve import resolve


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bf16 on a GPU that has it, else fp32."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32


def load_model(
    reference: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[AlignVLMForConditionalGeneration, AlignVLMProcessor]:
    """A trained model and its processor, ready to be asked.

    Args:
        reference: folder or hub id.
        dtype: of the weights; default: :func:`default_dtype`.
        device: default: :func:`default_device`.

    Raises:
        WeightsError: no such model, corrupt files, or another kind of model.
    """
    device = default_device() if device is None else device
    model, processor = load_pretrained(resolve(reference), dtype or default_dtype(device))
    model.eval().to(device)  # type: ignore[arg-type]
    model.hasten()
    return model, processor
