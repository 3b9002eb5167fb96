"""What a model is made of, and what this machine has."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from .. import __version__
from ..errors import WeightsError
from ..model.config import AlignVLMConfig
from ..model.generation import AlignVLMForConditionalGeneration
from ..weights.resolve import home, resolve


def machine_info() -> dict[str, Any]:
    """Versions, device and cache folder, as a bug report needs them."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "alignvlm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "gpu": gpu,
        "cache": str(home()),
    }


def model_info(reference: str) -> dict[str, Any]:
    """Parts, parameters and visual tokens of a saved model; reads its config only.

    Raises:
        WeightsError: not an alignvlm model.
    """
    folder = resolve(reference)
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:
        raise WeightsError(f"{folder}: config.json cannot be read: {error}") from None
    if not isinstance(config, AlignVLMConfig):
        raise WeightsError(f"{folder}: a {config.model_type!r} model, not an alignvlm model")
    with torch.device("meta"):
        model = AlignVLMForConditionalGeneration(config)
    core = model.model

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    rows, cols = config.feature_grid
    return {
        "path": str(folder),
        "vision": config.vision_config.model_type,
        "connector": config.connector.type,
        "text": config.text_config.model_type,
        "parameters": count(model),
        "vision_parameters": count(core.vision_model),
        "connector_parameters": count(core.connector),
        "text_parameters": count(core.language_model),
        "vocabulary": config.connector_vocab_size,
        "kept_tokens": getattr(config.connector, "kept_tokens", None),
        "tile": f"{config.tile_height}x{config.tile_width} px, {rows}x{cols} features",
        "visual_tokens_per_tile": config.tokens_per_tile,
        "token_order": config.token_order,
    }
