"""Work that waits until transformers is imported, so that ``import alignvlm`` need not import it.

transformers finds a model's classes by name: tables in ``transformers.models.auto`` name them, and
they are looked up in the module ``transformers.models.<model type>`` when first needed. The names
are entered as those tables are made, and that module is this package, whose ``__getattr__``
imports what is looked up.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

Action = Callable[[Any], None]
AUTO = "transformers.models.auto"
PARTS = ("Config", "Model", "ForConditionalGeneration")
CLASSES = {
    "alignvlm": tuple(f"AlignVLM{part}" for part in PARTS),
    **{
        f"alignvlm_{host.lower()}": tuple(f"AlignVLM{host}{part}" for part in PARTS)
        for host in ("Llava", "Idefics3", "SmolVLM", "Ovis2")
    },
}
"""Names of config, model and model with head of every model type of ours."""
HEADS = {model_type: head for model_type, (_, _, head) in CLASSES.items()}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "configuration_auto": {"CONFIG_MAPPING_NAMES": {key: c for key, (c, _, _) in CLASSES.items()}},
    "modeling_auto": {
        "MODEL_MAPPING_NAMES": {key: core for key, (_, core, _) in CLASSES.items()},
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": HEADS,
        "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": HEADS,
    },
    "processing_auto": {"PROCESSOR_MAPPING_NAMES": {"alignvlm": "AlignVLMProcessor"}},
    "image_processing_auto": {
        "IMAGE_PROCESSOR_MAPPING_NAMES": {"alignvlm": {"pil": "AlignVLMImageProcessor"}}
    },
}
"""What is entered in which table of which module of ``transformers.models.auto``."""

_waiting: defaultdict[str, list[Action]] = defaultdict(list)


class _Loader(SourceFileLoader):
    """Runs a module, and then what has waited for it."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for action in _waiting.pop(module.__name__, []):
            action(module)


class _Finder:
    """Finds the modules that something waits for, each where Python would find it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _waiting:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


_finder = _Finder()


def after_import(name: str, action: Action) -> None:
    """Call ``action(module)`` once the module is imported; at once where it already is."""
    if name in sys.modules:
        action(sys.modules[name])
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _waiting[name].append(action)


def register_auto_classes(package: ModuleType) -> None:
    """Make transformers' Auto classes find the classes that are attributes of ``package``."""
    for model_type in CLASSES:
        sys.modules[f"transformers.models.{model_type}"] = package
    for name in TABLES:
        after_import(f"{AUTO}.{name}", _enter)


def _enter(module: ModuleType) -> None:
    for table, names in TABLES[module.__name__.rpartition(".")[2]].items():
        getattr(module, table).update(names)
    configs = {config: model_type for model_type, (config, _, _) in CLASSES.items()}
    for mapping in vars(module).values():  # those that were made before the names were entered
        if hasattr(type(mapping), "_load_attr_from_module"):
            mapping._reverse_config_mapping.update(configs)
