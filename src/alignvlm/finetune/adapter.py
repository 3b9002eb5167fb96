"""Adapters in peft's format: what trains, and an adapter put back onto its base."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoProcessor
from transformers.pytorch_utils import Conv1D

from ..compose.assemble import load_pretrained
from ..errors import ConfigError, WeightsError
from ..files import replacing
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from ..weights.folder import check_folder, loaded
from ..weights.resolve import resolve

TEXT = "model.language_model"
CONNECTOR = "model.connector"
VISION = "model.vision_model"
ADAPTER = "adapter_model.safetensors"


def require_peft() -> Any:
    """The peft library. Raises :class:`ConfigError` where it is not installed."""
    try:
        import peft
    except ImportError:
        raise ConfigError("adapters need peft: pip install 'alignvlm[train]'") from None
    return peft


def text_linears(model: nn.Module) -> str:
    """A pattern, as ``target_modules`` takes it, for every linear layer of the language model.

    The head is not among them, nor are the encoder's layers of the same names.

    Raises:
        ConfigError: the language model has none.
    """
    prefix = TEXT + "."
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear | Conv1D)
    }
    if not names:
        raise ConfigError("the language model has no linear layers for LoRA; use --lora-rank 0")
    return rf"{re.escape(TEXT)}\.(?:.*\.)?(?:{'|'.join(sorted(map(re.escape, names)))})"


def lora_config(
    model: nn.Module, rank: int, *, train_vision: bool = False, train_connector: bool = True
) -> Any:
    """peft's config: LoRA on the language model, the connector trained and saved whole.

    Args:
        rank: of LoRA; 0: none, the connector alone. The scale alpha / rank is 2.
        train_vision: train and save the vision encoder whole as well.
        train_connector: else it stays as it is and is not saved.
    """
    require_peft()
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    return LoraConfig(
        r=max(rank, 1),
        lora_alpha=2 * max(rank, 1),
        # peft's word for "no layer": it refuses an empty list
        target_modules=text_linears(model) if rank else DUMMY_TARGET_MODULES,
        modules_to_save=[CONNECTOR] * train_connector + [VISION] * train_vision or None,
    )


def wrap(model: AlignVLMForConditionalGeneration, config: Any) -> Any:
    """peft's model around this one; only what ``config`` names trains."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft asks for what transformers has renamed
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return get_peft_model(model, config)


@contextmanager
def unwrapped(model: Any) -> Iterator[AlignVLMForConditionalGeneration]:
    """The model inside peft's, LoRA in place, and the connector (and the encoder) that train where
    peft has put something around them; for what asks for the parts of a model itself."""
    inner = model.get_base_model()
    wrappers = {}
    for name in (CONNECTOR, VISION):
        name = name.removeprefix("model.")
        module = getattr(inner.model, name)
        if hasattr(module, "modules_to_save"):
            wrappers[name] = module
            setattr(inner.model, name, module.modules_to_save["default"])
    try:
        yield inner
    finally:
        for name, module in wrappers.items():
            setattr(inner.model, name, module)


def save_adapter(wrapped: Any, processor: AlignVLMProcessor, base: str, folder: Path) -> None:
    """Write adapter and processor, whole or not at all; ``base`` is what the adapter says it
    belongs to."""
    wrapped.peft_config["default"].base_model_name_or_path = base
    with replacing(folder) as partial:
        # the embedding never changes; "auto" may ask the hub whether it did
        wrapped.save_pretrained(partial, save_embedding_layers=False)
        processor.save_pretrained(partial)


def base_of(folder: Path) -> str:
    """The model that an adapter was trained on: a folder or a hub id.

    Raises:
        WeightsError: no adapter, or it does not say.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise WeightsError(f"{folder}: not an adapter, it has no adapter_config.json")
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        raise WeightsError(f"{file}: not readable as JSON") from None
    if not base:
        raise WeightsError(f"{file} names no base model; give it with --base")
    return base


def load_adapted(
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    merge: bool = True,
) -> tuple[AlignVLMForConditionalGeneration, AlignVLMProcessor]:
    """A base model with an adapter, and the processor.

    Args:
        folder: the adapter, as this package, peft or TRL wrote it.
        base: its model, if not the one that it names.
        dtype: of the weights.
        merge: add LoRA into the weights, and put the trained connector in place; else peft's own
            model is returned, which computes the two apart.

    Raises:
        WeightsError: no adapter, no base model, or they do not fit.
    """
    require_peft()
    from peft import PeftModel

    folder = Path(folder).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / ADAPTER).is_file():
        raise WeightsError(f"{folder}: no {ADAPTER} in it (pickled weights are never loaded)")
    check_folder(folder)
    named = base_of(folder) if base is None else os.fspath(base)
    try:
        root = resolve(named)
    except WeightsError as error:
        raise WeightsError(f"{folder}: its base model: {error}") from None
    model, processor = load_pretrained(root, dtype)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
            wrapped = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # peft raises many kinds for a damaged or foreign adapter
        lines = str(error).strip().splitlines() or [repr(error)]
        raise WeightsError(f"{folder} does not fit {named}: {lines[0]}") from None
    if (folder / "processor_config.json").is_file():
        processor = loaded(AutoProcessor, folder)
    adapted: Any = wrapped.merge_and_unload() if merge else wrapped  # type: ignore[operator]
    return adapted.eval(), processor
