"""AlignVLM: vision features as distributions over the language model's vocabulary.

Importing this package registers its classes with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.models.auto import modeling_auto

from . import transplant as transplant  # registers the converted models
from .compose import shipped as shipped  # lets resolve() find what comes with the project
from .connectors import CONNECTORS, build_connector
from .errors import AlignVLMError
from .model.config import AlignVLMConfig
from .model.generation import AlignVLMForConditionalGeneration
from .model.modeling import AlignVLMModel
from .ops import vocab_mixture
from .processing.image_processor import AlignVLMImageProcessor
from .processing.processor import AlignVLMProcessor
from .reader import ReaderConfig, ReaderModel

__version__ = "0.1.0"

__all__ = [
    "CONNECTORS",
    "AlignVLMConfig",
    "AlignVLMError",
    "AlignVLMForConditionalGeneration",
    "AlignVLMImageProcessor",
    "AlignVLMModel",
    "AlignVLMProcessor",
    "ReaderConfig",
    "ReaderModel",
    "build_connector",
    "vocab_mixture",
]

AutoConfig.register("alignvlm", AlignVLMConfig, exist_ok=True)
AutoModel.register(AlignVLMConfig, AlignVLMModel, exist_ok=True)
AutoModelForImageTextToText.register(
    AlignVLMConfig, AlignVLMForConditionalGeneration, exist_ok=True
)
AutoModelForMultimodalLM.register(AlignVLMConfig, AlignVLMForConditionalGeneration, exist_ok=True)
AutoImageProcessor.register(
    AlignVLMConfig, image_processor_classes={"pil": AlignVLMImageProcessor}, exist_ok=True
)
AutoProcessor.register(AlignVLMConfig, AlignVLMProcessor, exist_ok=True)
# pipelines and `transformers serve` look classes up by name in these tables
for _table in (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
):
    _names = getattr(modeling_auto, _table, None)
    if _names is not None:
        _names["alignvlm"] = "AlignVLMForConditionalGeneration"
