"""AlignVLM: vision features as distributions over the language model's vocabulary.

Importing this package makes its classes known to transformers' Auto classes, in either order.
Neither torch nor transformers is imported before something is used.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .deferred import CLASSES, register_auto_classes
from .errors import AlignVLMError

if TYPE_CHECKING:
    from .connectors import CONNECTORS, build_connector
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

_MODULES = {name: "transplant" for names in CLASSES.values() for name in names} | {
    "CONNECTORS": "connectors",
    "AlignVLMConfig": "model.config",
    "AlignVLMForConditionalGeneration": "model.generation",
    "AlignVLMImageProcessor": "processing.image_processor",
    "AlignVLMModel": "model.modeling",
    "AlignVLMProcessor": "processing.processor",
    "ReaderConfig": "reader",
    "ReaderModel": "reader",
    "build_connector": "connectors",
    "vocab_mixture": "ops",
}
"""Where a name is defined; imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_auto_classes(sys.modules[__name__])
