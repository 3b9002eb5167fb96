"""Vision-language models of transformers with ALIGN in place of their own connector.

Each class here *is* the host's class with one module replaced; processor, ``generate``, ``Trainer``
and peft see the host. The classes are known under model types of their own (``alignvlm_llava``
...), so that a saved model loads with the Auto classes, and a program that does not know ALIGN
stops instead of putting an untrained connector in (docs/adr/0007).
"""

from __future__ import annotations

from .host_config import (
    AlignVLMIdefics3Config,
    AlignVLMLlavaConfig,
    AlignVLMOvis2Config,
    AlignVLMSmolVLMConfig,
)
from .host_models import (
    CONVERTED,
    AlignVLMIdefics3ForConditionalGeneration,
    AlignVLMIdefics3Model,
    AlignVLMLlavaForConditionalGeneration,
    AlignVLMLlavaModel,
    AlignVLMOvis2ForConditionalGeneration,
    AlignVLMOvis2Model,
    AlignVLMSmolVLMForConditionalGeneration,
    AlignVLMSmolVLMModel,
)

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
]
