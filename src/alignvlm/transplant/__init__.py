"""Vision-language models of transformers with ALIGN in place of their own connector.

Each class here *is* the host's class with one module replaced; processor, ``generate``, ``Trainer``
and peft see the host. The Auto classes know them under model types of their own
(``alignvlm_llava`` ...; :mod:`alignvlm.deferred`), so that a saved model loads, and a program that
does not know ALIGN stops instead of putting an untrained connector in (docs/adr/0007).
"""

from __future__ import annotations

from typing import Any

from .host_config import (
    AlignVLMIdefics3Config,
    AlignVLMLlavaConfig,
    AlignVLMOvis2Config,
    AlignVLMSmolVLMConfig,
    ConvertedConfig,
    text_rows,
)
from .host_connector import TransplantedConnector
from .host_models import (
    AlignVLMIdefics3ForConditionalGeneration,
    AlignVLMIdefics3Model,
    AlignVLMLlavaForConditionalGeneration,
    AlignVLMLlavaModel,
    AlignVLMOvis2ForConditionalGeneration,
    AlignVLMOvis2Model,
    AlignVLMSmolVLMForConditionalGeneration,
    AlignVLMSmolVLMModel,
    ConvertedCore,
    ConvertedHead,
    without_visual_head,
)

CONVERTED: tuple[tuple[Any, Any, Any], ...] = (
    (AlignVLMLlavaConfig, AlignVLMLlavaModel, AlignVLMLlavaForConditionalGeneration),
    (AlignVLMIdefics3Config, AlignVLMIdefics3Model, AlignVLMIdefics3ForConditionalGeneration),
    (AlignVLMSmolVLMConfig, AlignVLMSmolVLMModel, AlignVLMSmolVLMForConditionalGeneration),
    (AlignVLMOvis2Config, AlignVLMOvis2Model, AlignVLMOvis2ForConditionalGeneration),
)
"""Config, model and model with head of each converted host."""

__all__ = [
    "CONVERTED",
    "AlignVLMIdefics3Config",
    "AlignVLMIdefics3ForConditionalGeneration",
    "AlignVLMIdefics3Model",
    "AlignVLMLlavaConfig",
    "AlignVLMLlavaForConditionalGeneration",
    "AlignVLMLlavaModel",
    "AlignVLMOvis2Config",
    "AlignVLMOvis2ForConditionalGeneration",
    "AlignVLMOvis2Model",
    "AlignVLMSmolVLMConfig",
    "AlignVLMSmolVLMForConditionalGeneration",
    "AlignVLMSmolVLMModel",
    "ConvertedConfig",
    "ConvertedCore",
    "ConvertedHead",
    "TransplantedConnector",
    "text_rows",
    "without_visual_head",
]
