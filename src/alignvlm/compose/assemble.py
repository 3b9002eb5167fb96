"""A model and its processor from a vision encoder, a language model and a connector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)

from ..connectors import AlignConnector, build_connector
from ..connectors.configs import ConnectorConfigBase, connector_config
from ..errors import ConfigError, WeightsError
from ..model.config import AlignVLMConfig
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.image_processor import AlignVLMImageProcessor
from ..processing.processor import AlignVLMProcessor, reserved_image_token, space_token_id
from ..reader import ReaderConfig, ReaderModel
from ..weights.folder import loaded
from ..weights.resolve import resolve

READER_CONNECTOR = {"type": "align", "init": "keys", "gamma": 3.0}
"""ALIGN for an encoder that reads, unless another connector is asked for."""
READER_TILING = {"max_tiles": 256}
ENCODER = "model.vision_model."
"""Prefix of the page encoder's weights in a whole model's folder."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load_tokenizer(text: str | Path) -> Any:
    """The language model's tokenizer, padding on the left.

    The side goes to the constructor: set as an attribute it would be lost on saving.
    """
    return _loaded(AutoTokenizer, text, padding_side="left")


def _loaded(loader: Any, reference: Any, **keys: Any) -> Any:
    return loaded(loader, resolve(reference), **keys)


def load_pretrained(
    folder: Path, dtype: torch.dtype | Literal["auto"]
) -> tuple[AlignVLMForConditionalGeneration, AlignVLMProcessor]:
    """A saved model and its processor.

    Raises:
        WeightsError: corrupt files, or another kind of model.
    """
    model = _loaded(AutoModelForImageTextToText, folder, dtype=dtype)
    if not isinstance(model, AlignVLMForConditionalGeneration):
        raise WeightsError(f"{folder}: a {model.config.model_type!r} model, not an alignvlm model")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = getattr(model.generation_config, name)
        ids = given if isinstance(given, list) else [given]
        if not all(i is None or (isinstance(i, int) and abs(i) < 2**31) for i in ids):
            raise WeightsError(f"{folder}: generation_config.json: {name} is no token id: {given}")
    processor = _loaded(AutoProcessor, folder)
    try:  # settings that do not fit show when they are used
        processor(images=[Image.new("RGB", (8, 8), "white")], text=processor.image_token)
    except Exception as error:
        line = (str(error).strip().splitlines() or [repr(error)])[0]
        raise WeightsError(f"{folder}: its processor does not work: {line}") from None
    return model, processor


def load_reader(folder: Path, dtype: torch.dtype) -> tuple[ReaderModel, AlignVLMImageProcessor]:
    """The page encoder of a saved model, and what cuts its pages; the connector and the language
    model are not loaded. The folder may also hold such an encoder alone.

    Raises:
        ConfigError: its encoder is of a kind that does not read.
        WeightsError: corrupt or missing files.
    """
    config = vision_config(folder)
    if not isinstance(config, ReaderConfig):
        raise ConfigError(
            f"{folder}: its page encoder is {config.model_type!r}, which does not read lines; name "
            "reader, smol, or a model that was composed with --vision reader"
        )
    names = {"^" + re.escape(ENCODER): ""}
    model, found = _loaded(
        AutoModel, folder, config=config, dtype=dtype, key_mapping=names, output_loading_info=True
    )
    if found["missing_keys"]:
        raise WeightsError(f"{folder}: it has no weights for {min(found['missing_keys'])}")
    if any((folder / name).is_file() for name in PROCESSOR_FILES):
        return model, _loaded(AutoImageProcessor, folder)
    height, width = config.image_size
    size = {"height": height, "width": width}
    return model, AlignVLMImageProcessor(size=size, enlarge=False, **READER_TILING)


def vision_config(vision: str | Path | dict[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """Config of a vision encoder: from a dict with ``model_type``, or from pretrained weights (the
    vision half of a two-tower checkpoint)."""
    if isinstance(vision, PreTrainedConfig):
        return vision
    if isinstance(vision, dict):
        data = dict(vision)
        data.pop("weights", None)  # where the encoder starts from, not part of its config
        kind = data.pop("model_type", "siglip_vision_model")
        try:
            return AutoConfig.for_model(kind, **data)
        except ValueError as error:
            raise ConfigError(f"vision encoder: {str(error).splitlines()[0]}") from None
    config = _loaded(AutoConfig, vision)
    return getattr(config, "vision_config", config)


def build_config(
    vision: PreTrainedConfig,
    text: PreTrainedConfig,
    connector: ConnectorConfigBase | dict[str, Any] | str,
    tokenizer: Any,
    **options: Any,
) -> AlignVLMConfig:
    """The model config for these parts; token ids come from the tokenizer.

    ``options``: further keys of :class:`AlignVLMConfig`.
    """
    image_token = options.pop("image_token", None) or reserved_image_token(tokenizer)
    if image_token not in tokenizer.get_vocab():
        raise ConfigError(f"image token {image_token!r} is not in the tokenizer's vocabulary")
    config = connector_config(connector)
    if config.token_grid(1, 1) is None:
        options.setdefault("token_order", "tile")
    return AlignVLMConfig(
        vision_config=vision,
        text_config=text,
        connector_config=config,
        image_token_id=tokenizer.convert_tokens_to_ids(image_token),
        blank_token_id=_blank_id(tokenizer, options.pop("blank_token", None)),
        # rows beyond the tokenizer's ids are padding of the table and stay out of P_vocab
        connector_vocab_size=min(len(tokenizer), text.vocab_size),
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _blank_id(tokenizer: Any, token: str | None) -> int:
    """Id of the token that means "nothing starts here": the space, or one the model reserves."""
    if token is None:
        return space_token_id(tokenizer)
    if token not in tokenizer.get_vocab():
        raise ConfigError(f"blank token {token!r} is not in the tokenizer's vocabulary")
    return tokenizer.convert_tokens_to_ids(token)


def end_of_text(tokenizer: Any) -> str:
    """The token that stands for blank cells of an encoder that reads: no page spells it, and the
    language model has learned it, so that its row of the head is like no other.

    Raises:
        ConfigError: the tokenizer has none; set ``blank_token`` by hand.
    """
    for token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token):
        if token is not None:
            return token
    raise ConfigError("the tokenizer has no end-of-text token: set blank_token by hand")


def compose(
    vision: str | Path | dict[str, Any] | PreTrainedConfig,
    text: str | Path,
    connector: ConnectorConfigBase | dict[str, Any] | str = "align",
    *,
    token_ids: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    chat_template: str | None = None,
    tiling: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[AlignVLMForConditionalGeneration, AlignVLMProcessor]:
    """Put a model together: pretrained language model, vision encoder, new connector.

    Args:
        vision: pretrained weights (hub id or folder), or a config (then the encoder is new).
        text: the language model, anything :func:`alignvlm.weights.resolve.resolve` takes.
        connector: connector config, its dict, or its type.
        token_ids: which vocabulary to keep, for ALIGN with ``kept_tokens``.
        dtype: of all weights.
        chat_template: default: chosen by the tokenizer's format.
        tiling: settings of :class:`AlignVLMImageProcessor` (``max_tiles``, ``thumbnail``, ...).
        options: further keys of :class:`AlignVLMConfig`, and ``blank_token``: a reserved token for
            blank cells, so that spaces between numbers stay; default: the space.

    Raises:
        ConfigError: the parts do not fit together.
        WeightsError: weights cannot be found.
    """
    tokenizer = load_tokenizer(text)
    language_model = _loaded(AutoModelForCausalLM, text, dtype=dtype)
    vision_settings = vision_config(vision)
    if isinstance(vision_settings, ReaderConfig):
        vision_settings.hidden_size = language_model.config.hidden_size
        tiling = {**READER_TILING, **(tiling or {})}
        if isinstance(connector, ConnectorConfigBase):
            connector = connector.model_dump(exclude_unset=True) | {"type": connector.type}  # type: ignore[attr-defined]
        if isinstance(connector, str):
            connector = {"type": connector}
        if connector.get("type") == "align":
            connector = {**READER_CONNECTOR, **connector}
        options = {"enlarge": False, "blank_token": end_of_text(tokenizer), **options}
        if connector_config(connector).type == "align":
            options = {"blank_threshold": 0.5, **options}
    config = build_config(vision_settings, language_model.config, connector, tokenizer, **options)
    # only the new parts are initialised; the language model is moved in as loaded
    with torch.device("meta"):
        model = AlignVLMForConditionalGeneration(config)
    core = model.model
    core.language_model = language_model.base_model
    model.lm_head = language_model.get_output_embeddings()
    core.vision_model = _vision_model(vision, vision_settings).to(dtype)
    if isinstance(core.vision_model, ReaderModel):
        core.vision_model.compose(tokenizer, config.text_config.hidden_size)
        config.vision_config = core.vision_model.config
    core.connector = build_connector(
        config.connector,
        config.vision_hidden_size,
        config.text_config.hidden_size,
        config.connector_vocab_size,
        config.feature_grid,
    ).to(dtype)
    core.connector.apply(model._init_weights)
    if isinstance(core.connector, AlignConnector) and config.connector.init != "random":
        core.connector.init_from_lm_head(model.lm_head.weight, token_ids)
        if config.connector.init == "keys":
            core.connector.init_keys()
    elif token_ids is not None and isinstance(core.connector, AlignConnector):
        core.connector.get_buffer("token_ids").copy_(torch.sort(token_ids).values)
    model.tie_weights()
    model.generation_config = language_model.generation_config
    processor = AlignVLMProcessor.for_config(
        config, tokenizer, chat_template=chat_template, **(tiling or {})
    )
    return model, processor


def _vision_model(vision: Any, config: PreTrainedConfig) -> torch.nn.Module:
    if isinstance(vision, dict) and "weights" in vision:
        # parts that the weights lack are new
        return _loaded(AutoModel, vision["weights"], config=config)
    if isinstance(vision, dict | PreTrainedConfig):
        return AutoModel.from_config(config, trust_remote_code=False)
    whole = _loaded(AutoModel, vision)
    return getattr(whole, "vision_model", whole)
