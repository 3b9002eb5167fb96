"""Vision-language models of transformers with ALIGN in place of their own connector.

Each class here *is* the host's class with one module replaced; processor, ``generate``, ``Trainer``
and peft see the host. Importing this package registers the classes under model types of their own
(``alignvlm_llava`` ...), so that a saved model loads with the Auto classes, and a program that does
not know ALIGN stops instead of putting an untrained connector in (docs/adr/0007).
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)
from transformers.models.auto import modeling_auto

from .host_models import CONVERTED

__all__ = ["CONVERTED"]

for _config, _core, _head in CONVERTED:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _core, exist_ok=True)
    AutoModelForImageTextToText.register(_config, _head, exist_ok=True)
    AutoModelForMultimodalLM.register(_config, _head, exist_ok=True)
    # pipelines and `transformers serve` look classes up by name in these tables
    for _table in (
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    ):
        _names = getattr(modeling_auto, _table, None)
        if _names is not None:
            _names[_config.model_type] = _head.__name__
