"""ALIGN into a vision-language model that exists: the connector is replaced, the rest stays.

W2 starts as the host's language-model head (arXiv 2502.01341, section 3.1), W1 new. See
docs/convert.md, and docs/adr/0007 for why the result has a model type of its own.
"""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from ..connectors.configs import AlignConfig, connector_config
from ..errors import ConfigError
from ..files import new_folder
from ..weights.folder import loaded
from ..weights.resolve import resolve
from . import CONVERTED
from .host_config import text_rows
from .host_connector import TransplantedConnector
from .host_models import without_visual_head

HOSTS = {
    config.model_type.removeprefix("alignvlm_"): (config, head) for config, _, head in CONVERTED
}
"""Host model type -> config and class of the converted model."""
DROPPED = {
    "llava": ("multi_modal_projector",),
    "idefics3": ("connector",),
    "smolvlm": ("connector",),
    "ovis2": ("vision_tower.head_linear", "vision_tower.head_norm", "visual_embeddings_table"),
}
"""What each host loses, below ``model.``; Ovis2 keeps the table's indicator rows."""
OTHER_FILES = {".json", ".txt", ".model", ".jinja"}
"""Suffixes of processor and tokenizer files."""


@dataclass(frozen=True)
class Conversion:
    """What a conversion replaced.

    Attributes:
        host: model type of the host.
        replaced: modules that went.
        connector: module that came.
        parameters_before, parameters_after: of the whole model.
        connector_before, connector_after: of what went, and of what came.
        vocabulary: rows of the table that P_vocab covers.
        table_rows: rows of the language model's embedding table, shared by reference.
        tied: the language-model head is that table.
        tokens_per_tile: visual tokens of one tile (image crop), before and after; ``None`` if the
            encoder takes images of any size.
    """

    host: str
    replaced: tuple[str, ...]
    connector: str
    parameters_before: int
    parameters_after: int
    connector_before: int
    connector_after: int
    vocabulary: int
    table_rows: int
    tied: bool
    tokens_per_tile: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        tokens = "as many as before" if self.tokens_per_tile is None else self.tokens_per_tile
        return "\n".join(
            (
                f"host: {self.host}",
                f"replaced: {', '.join(self.replaced)} ({self.connector_before:,} parameters)",
                f"by: ALIGN at {self.connector} ({self.connector_after:,} parameters)",
                f"parameters: {self.parameters_before:,} before, {self.parameters_after:,} after",
                f"P_vocab covers {self.vocabulary:,} of {self.table_rows:,} rows of the embedding "
                f"table, which is shared, not copied ({'tied' if self.tied else 'untied'} head)",
                f"visual tokens a tile: {tokens}, unchanged",
            )
        )


def convert(
    model: Any,
    connector: AlignConfig | dict[str, Any] | str | None = None,
    *,
    vocab_size: int | None = None,
) -> Any:
    """Put ALIGN into a LLaVA, Idefics3, SmolVLM or Ovis2 model.

    The result is a new model of a subclass of the host's class. All parts but the connector are the
    host's own modules, not copies: training one model trains the other, so let go of the old one.

    Args:
        model: a ``...ForConditionalGeneration`` of a supported host.
        connector: config of ALIGN, its dict, or ``"align"``. ``gamma`` above 1 lets P_vocab
            sharpen sooner.
        vocab_size: rows of the embedding table that P_vocab covers, from the first. Default: the
            text vocabulary, see :func:`.host_config.text_rows`.

    Raises:
        ConfigError: unsupported host, already converted, or a connector that does not fit.
    """
    align = _align(connector)
    config = _config(model, align, vocab_size)
    _, kind = HOSTS[model.config.model_type]
    with torch.device("meta"):  # only the connector is made; the other parts are moved in
        new = kind(config)
    _move_parts(model, new)
    _start_connector(new, model.lm_head.weight, align)
    for key in config.sub_configs:
        # as in the host, a part and the whole read one config: resizing writes through it
        setattr(config, key, getattr(model.config, key))
    new.tie_weights()
    if model.generation_config is not None:
        new.generation_config = copy.deepcopy(model.generation_config)
    return new.train(model.training)


def _align(connector: AlignConfig | dict[str, Any] | str | None) -> AlignConfig:
    align = connector_config("align" if connector is None else connector)
    if not isinstance(align, AlignConfig):
        raise ConfigError(f"only 'align' can be transplanted, not {align.type!r}")
    if align.kept_tokens is not None:
        raise ConfigError("kept_tokens is for trained connectors; leave it out of a conversion")
    return align


def check_host(model_type: str) -> None:
    """Raise a ConfigError unless models of this type can be converted."""
    if model_type.startswith("alignvlm"):
        raise ConfigError(f"a {model_type!r} model has an ALIGN connector already")
    if model_type not in HOSTS:
        raise ConfigError(
            f"cannot put a connector into a {model_type!r} model; supported: {', '.join(HOSTS)}"
        )


def _config(model: Any, align: AlignConfig, vocab_size: int | None) -> Any:
    old = getattr(model, "config", None)
    check_host(str(getattr(old, "model_type", type(model).__name__)))
    assert old is not None
    kind, head = HOSTS[old.model_type]
    if not isinstance(model, (stock := head.__bases__[1])):  # after the mixin
        raise ConfigError(
            f"{type(model).__name__} cannot be converted; load it as {stock.__name__}"
        )
    if not model.lm_head.weight.is_floating_point():
        raise ConfigError("W2 starts as the language-model head, and this one is quantized")
    rows = old.text_config.vocab_size
    if vocab_size is not None and not 0 < vocab_size <= rows:
        raise ConfigError(f"vocab_size={vocab_size} is not between 1 and the table's {rows} rows")
    data = old.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        data.pop(key, None)
    config = kind(**data, connector_config=align.model_dump(), connector_vocab_size=vocab_size)
    config._attn_implementation = old._attn_implementation
    config.name_or_path = old.name_or_path
    return config


def _move_parts(old: Any, new: Any) -> None:
    dropped = DROPPED[old.config.model_type]
    for name, part in old.model.named_children():
        if name not in dropped:
            setattr(new.model, name, part)
    new.lm_head = old.lm_head
    if old.config.model_type == "ovis2":
        tower = copy.copy(old.model.vision_tower)  # the host keeps its head
        tower._modules = dict(tower._modules)
        without_visual_head(tower)
        new.model.vision_tower = tower
        rows = old.model.visual_embeddings_table.weight[-tower.num_visual_indicator_tokens :]
        table = nn.Embedding(*rows.shape, device="meta")
        frozen = not old.model.visual_embeddings_table.weight.requires_grad
        table.weight = nn.Parameter(rows.detach().clone(), requires_grad=not frozen)
        new.model.visual_indicators = table


def _start_connector(new: Any, lm_head: torch.Tensor, align: AlignConfig) -> None:
    core = new.model
    empty: TransplantedConnector = getattr(core, core.connector_name)
    connector = empty.to_empty(device=lm_head.device).to(lm_head.dtype)
    connector.apply(new._init_weights)
    if align.init == "lm_head":
        connector.align.init_from_lm_head(lm_head)


def tokens_per_tile(config: Any) -> int | None:
    """Visual tokens of one tile (image crop) of a host or of a converted model.

    As the hosts' code has it (transformers ``models/llava``, ``idefics3``, ``ovis2``); ``None`` if
    the encoder takes images of any size.
    """
    vision, host = config.vision_config, config.model_type.removeprefix("alignvlm_")
    if vision.model_type == "pixtral":
        return None
    size, patch = (
        value if isinstance(value, int) else value[0]
        for value in (vision.image_size, vision.patch_size)
    )
    side = size // patch
    if host == "ovis2":
        return math.ceil(side / vision.hidden_stride) ** 2
    if host == "llava":
        class_token = vision.model_type == "clip_vision_model"
        return side**2 + class_token - (config.vision_feature_select_strategy == "default")
    return side**2 // config.scale_factor**2


def describe(old: Any, new: Any) -> Conversion:
    """What :func:`convert` replaced, from the model before and after."""
    host, core = old.config.model_type, new.model
    embedding = core.get_input_embeddings().weight
    gone = sum(_count(old.model.get_submodule(name)) for name in DROPPED[host])
    if host == "ovis2":
        gone -= _count(core.visual_indicators)  # those rows stay
    connector = getattr(core, core.connector_name)
    return Conversion(
        host=host,
        replaced=tuple(f"model.{name}" for name in DROPPED[host]),
        connector=f"model.{core.connector_name}",
        parameters_before=_count(old),
        parameters_after=_count(new),
        connector_before=gone,
        connector_after=_count(connector),
        vocabulary=connector.align.vocab_size,
        table_rows=len(embedding),
        tied=new.lm_head.weight is embedding,
        tokens_per_tile=tokens_per_tile(old.config),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def convert_folder(
    reference: str,
    out: Path | None,
    connector: AlignConfig | dict[str, Any] | str | None = None,
    *,
    vocab_size: int | None = None,
) -> Conversion:
    """Convert a saved model; processor and tokenizer files are copied as they are.

    Args:
        reference: folder or hub id of the host.
        out: folder of the converted model, which must not exist; ``None`` reads the host's config
            only and says what would be replaced.
        connector, vocab_size: see :func:`convert`. With a tokenizer beside the host, P_vocab ends
            where its own vocabulary does: added tokens and padding rows stay out.

    Raises:
        ConfigError: as :func:`convert`; ``out`` exists.
        WeightsError: the host cannot be read.
    """
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already; choose another folder")
    align = _align(connector)
    folder = resolve(reference)
    config = loaded(AutoConfig, folder)
    check_host(config.model_type)
    if vocab_size is None:
        vocab_size = _tokenizer_rows(folder, config)
    if out is None:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        return describe(model, convert(model, align, vocab_size=vocab_size))
    model = loaded(AutoModelForImageTextToText, folder, dtype="auto")
    new = convert(model, align, vocab_size=vocab_size)
    _write(new, folder, out)
    return describe(model, new)


def _write(model: Any, host: Path, out: Path) -> None:
    """Model, and the host's processor and tokenizer files, beside ``out``; then all at once."""
    with new_folder(out) as partial:
        model.save_pretrained(partial)
        for file in sorted(host.iterdir()):
            other = file.suffix in OTHER_FILES and not file.name.endswith(".index.json")
            if other and file.is_file() and not (partial / file.name).exists():
                shutil.copy(file, partial / file.name)


def _tokenizer_rows(folder: Path, config: Any) -> int | None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    return min(loaded(AutoTokenizer, folder).vocab_size, text_rows(config))
