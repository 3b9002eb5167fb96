"""Configuration: one frozen config per connector, and the model's config.

Every connector config answers two questions that processor and model both need, so that the
number of visual tokens is computed in exactly one place: ``token_grid(rows, cols)`` and
``num_tokens(rows, cols)``, where ``rows x cols`` is the vision encoder's feature grid of one tile.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from transformers import AutoConfig, PreTrainedConfig

from .errors import ConfigError, nearest
from .tiling import Grid, fit_scale


class ConnectorConfigBase(BaseModel):
    """What all connector configs share: frozen, strict, and a token count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def token_grid(self, rows: int, cols: int) -> tuple[int, int] | None:
        """Layout of one tile's visual tokens for a ``rows x cols`` feature grid.

        ``None`` if the tokens have no place on the page (a resampler's latents).
        """
        return rows, cols

    def num_tokens(self, rows: int, cols: int) -> int:
        """Visual tokens one tile becomes, for a ``rows x cols`` feature grid."""
        grid = self.token_grid(rows, cols)
        assert grid is not None, "a connector without a token grid overrides num_tokens"
        return grid[0] * grid[1]


class AlignConfig(ConnectorConfigBase):
    """ALIGN, Eq. 1-2 of arXiv 2502.01341.

    Attributes:
        init: where W2 starts: ``lm_head`` copies the language model's head (the paper),
            ``random`` draws it (ablation), ``keys`` copies it and sets W1, γ and β in closed form,
            for an encoder that reads: P_vocab is then what it read, untrained
            (:mod:`alignvlm.connectors.keys`).
        outer_norm: the LayerNorm over the vocabulary axis (the paper has it; ablation without).
        gamma: initial value of that LayerNorm's weight. At 1, P_vocab starts almost uniform;
            a larger value lets it sharpen sooner.
        w1_bias: add a bias to W1 (the paper does not).
        kept_tokens: size of a pruned vocabulary, or ``None`` for all of the language model's
            rows. The kept ids are a buffer saved with the weights.
        full_statistics: with ``kept_tokens``: the outer LayerNorm takes mean and variance over the
            whole vocabulary, from buffers saved with the weights, not over the kept rows. Pruning
            a trained connector sets it, so that each kept token's logit stays what it was.
        eps: epsilon of both LayerNorms.
        impl: implementation of the op, see :func:`alignvlm.ops.vocab_mixture`.
    """

    type: Literal["align"] = "align"
    init: Literal["lm_head", "random", "keys"] = "lm_head"
    outer_norm: bool = True
    gamma: float = Field(1.0, gt=0)
    w1_bias: bool = False
    kept_tokens: int | None = Field(None, ge=1)
    full_statistics: bool = False
    eps: float = Field(1e-5, gt=0)
    impl: Literal["auto", "reference", "chunked"] = "auto"

    @model_validator(mode="after")
    def _keys_fit(self) -> AlignConfig:
        if self.init == "keys" and (not self.outer_norm or self.w1_bias):
            raise ValueError("init 'keys' needs outer_norm and no w1_bias")
        return self

    @model_validator(mode="after")
    def _full_statistics_fit(self) -> AlignConfig:
        if self.full_statistics and (self.kept_tokens is None or not self.outer_norm):
            raise ValueError("full_statistics needs kept_tokens and outer_norm")
        return self


class MLPConfig(ConnectorConfigBase):
    """Two linear layers with a GELU between, as LLaVA-1.5 (arXiv 2310.03744)."""

    type: Literal["mlp"] = "mlp"
    hidden_size: int | None = Field(None, ge=1, description="default: the language model's width")


class PerceiverConfig(ConnectorConfigBase):
    """Perceiver Resampler of Flamingo (arXiv 2204.14198): a fixed number of latents per tile."""

    type: Literal["perceiver"] = "perceiver"
    num_latents: int = Field(64, ge=1)
    depth: int = Field(6, ge=1)
    num_heads: int = Field(8, ge=1)
    head_dim: int = Field(64, ge=1)
    ff_mult: int = Field(4, ge=1)

    def token_grid(self, rows: int, cols: int) -> None:
        return None

    def num_tokens(self, rows: int, cols: int) -> int:
        return self.num_latents


class OvisConfig(ConnectorConfigBase):
    """Visual embedding table of Ovis (arXiv 2405.20797): softmax over a new table of its own."""

    type: Literal["ovis"] = "ovis"
    visual_vocab_size: int = Field(16384, ge=2)
    layer_norm: bool = Field(
        False, description="LayerNorm before the softmax, as Ovis's released code has it"
    )
    eps: float = Field(1e-5, gt=0)
    impl: Literal["auto", "reference", "chunked"] = "auto"


class HReducerConfig(ConnectorConfigBase):
    """H-Reducer of mPLUG-DocOwl 1.5 (arXiv 2403.12895): 1x4 convolution, then linear."""

    type: Literal["h_reducer"] = "h_reducer"
    kernel: int = Field(4, ge=1, description="horizontal neighbours merged into one token")

    def token_grid(self, rows: int, cols: int) -> tuple[int, int]:
        return rows, math.ceil(cols / self.kernel)


class CAbstractorConfig(ConnectorConfigBase):
    """C-Abstractor of Honeybee (arXiv 2312.06742): ResNet blocks, adaptive pooling, ResNet blocks.

    ``out_rows x out_cols`` tokens per tile (Honeybee: M = 144 = 12 x 12).
    """

    type: Literal["c_abstractor"] = "c_abstractor"
    out_rows: int = Field(12, ge=1)
    out_cols: int = Field(12, ge=1)
    hidden_size: int = Field(1024, ge=1)
    depth: int = Field(3, ge=1, description="bottleneck blocks on each side of the pooling")
    mlp_depth: int = Field(2, ge=1)
    position_embedding: bool = Field(True, description="learned, added to the encoder's features")

    def token_grid(self, rows: int, cols: int) -> tuple[int, int]:
        return self.out_rows, self.out_cols


ConnectorConfig = Annotated[
    AlignConfig | MLPConfig | PerceiverConfig | OvisConfig | HReducerConfig | CAbstractorConfig,
    Field(discriminator="type"),
]
CONNECTOR_TYPES = ("align", "mlp", "perceiver", "ovis", "h_reducer", "c_abstractor")
_adapter: TypeAdapter[Any] = TypeAdapter(ConnectorConfig)


def connector_config(value: ConnectorConfigBase | dict[str, Any] | str) -> Any:
    """Build a connector config from a config, a dict with ``type``, or a bare type name.

    Raises:
        ConfigError: unknown type or key; the message names the nearest right one.
    """
    if isinstance(value, ConnectorConfigBase):
        return value
    data: dict[str, Any] = {"type": value} if isinstance(value, str) else dict(value)
    kind = data.get("type")
    if kind not in CONNECTOR_TYPES:
        raise ConfigError(
            f"unknown connector type {kind!r}{nearest(str(kind), CONNECTOR_TYPES)}; "
            f"known: {', '.join(CONNECTOR_TYPES)}"
        )
    try:
        return _adapter.validate_python(data)
    except ValidationError as error:
        known = {c.model_fields["type"].default: c for c in ConnectorConfigBase.__subclasses__()}
        problem = describe_validation_error(error, tuple(known[kind].model_fields))
        raise ConfigError(f"connector {kind!r}: {problem}") from None


def describe_validation_error(error: ValidationError, known: tuple[str, ...] = ()) -> str:
    """The first problem of a pydantic error as one line: ``where: what``."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "value"
    if first["type"] == "extra_forbidden":
        hint = nearest(str(first["loc"][-1]), known) if known else ""
        return f"unknown key {where!r}{hint}"
    return f"{where}: {first['msg']}"


class AlignVLMConfig(PreTrainedConfig):
    """Configuration of an AlignVLM model.

    Args:
        vision_config: config of any SigLIP-like vision model that ``AutoModel`` knows.
        text_config: config of any decoder-only language model that ``AutoModelForCausalLM`` knows.
        connector_config: a connector config or its dict form; chosen by the key ``type``.
        image_token_id: id of the placeholder token, one the tokenizer already reserves.
        blank_token_id: id that stands for "nothing starts here" in P_vocab (the space token).
        tile_height, tile_width: pixels of one tile. Default: the vision config's ``image_size``.
        token_order: ``page`` re-assembles the rows of the whole page, ``tile`` keeps tile after
            tile (the paper).
        row_end: write a newline token after each page row (page order only).
        vision_feature_layer: hidden state handed to the connector; -1 is the model's output.
        connector_vocab_size: vocabulary rows that P_vocab covers. Default: the text config's
            ``vocab_size``. Rows a resized embedding gains later, or rows a tokenizer does not use,
            stay outside.
        vocab_loss_weight: weight of the loss on P_vocab where targets are given.
        blank_loss_weight: weight of the blank cells' mean within that loss.
        blank_threshold: visual tokens whose P_vocab gives the blank id more than this leave the
            sequence before the language model; ``None`` keeps all.
        enlarge: whether small pages are scaled up to fill their tiles' canvas, see
            :class:`AlignVLMImageProcessor`.

    Raises:
        ConfigError: unknown connector, or page order with a connector that has no token grid.
    """

    model_type = "alignvlm"
    sub_configs: ClassVar[dict[str, Any]] = {
        "vision_config": AutoConfig,
        "text_config": AutoConfig,
    }

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        connector_config: ConnectorConfigBase | dict[str, Any] | str = "align",
        image_token_id: int = 0,
        blank_token_id: int | None = None,
        tile_height: int | None = None,
        tile_width: int | None = None,
        token_order: Literal["page", "tile"] = "page",
        row_end: bool = True,
        vision_feature_layer: int = -1,
        connector_vocab_size: int | None = None,
        vocab_loss_weight: float = 1.0,
        blank_loss_weight: float = 0.25,
        blank_threshold: float | None = None,
        enlarge: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _sub_config(vision_config, "siglip_vision_model")
        self.text_config = _sub_config(text_config, "llama")
        self.connector_config = _connector(connector_config).model_dump()
        self.image_token_id = image_token_id
        self.blank_token_id = blank_token_id
        height, width = _image_size(self.vision_config)
        self.tile_height = tile_height or height
        self.tile_width = tile_width or width
        if token_order not in ("page", "tile"):
            raise ConfigError(f"token_order {token_order!r} is not 'page' or 'tile'")
        if token_order == "page" and self.connector.token_grid(1, 1) is None:
            raise ConfigError(
                f"connector {self.connector.type!r} has no token grid, so token_order='page' is "
                "not possible; set token_order='tile'"
            )
        self.token_order = token_order
        self.row_end = row_end and token_order == "page"
        self.vision_feature_layer = vision_feature_layer
        self.connector_vocab_size = connector_vocab_size or self.text_config.vocab_size
        self.vocab_loss_weight = vocab_loss_weight
        self.blank_loss_weight = blank_loss_weight
        if blank_threshold is not None and self.connector.type != "align":
            raise ConfigError(
                f"blank_threshold needs the 'align' connector, not {self.connector.type!r}: only "
                "ALIGN's P_vocab says what is blank"
            )
        self.blank_threshold = blank_threshold
        self.enlarge = enlarge
        kwargs.setdefault(
            "tie_word_embeddings", bool(getattr(self.text_config, "tie_word_embeddings", False))
        )
        super().__init__(**kwargs)

    @property
    def connector(self) -> Any:
        """The connector's frozen config."""
        return _connector(self.connector_config)

    @property
    def feature_grid(self) -> tuple[int, int]:
        """Rows and columns of the vision encoder's features for one tile."""
        height, width = vision_stride(self.vision_config)
        return self.tile_height // height, self.tile_width // width

    @property
    def vision_hidden_size(self) -> int:
        """Channels of the vision encoder's features (d_vision)."""
        sizes = getattr(self.vision_config, "hidden_sizes", None)
        return int(sizes[-1] if sizes else self.vision_config.hidden_size)

    def page_scale(self, size: tuple[int, int], grid: Grid) -> float:
        """Px of the tiles for each px of a page of that ``(width, height)`` cut into ``grid``."""
        return fit_scale(*size, grid, self.tile_width, self.tile_height, self.enlarge)

    @property
    def tile_token_grid(self) -> tuple[int, int] | None:
        """Rows and columns of one tile's visual tokens; ``None`` without a spatial layout."""
        return self.connector.token_grid(*self.feature_grid)

    @property
    def tokens_per_tile(self) -> int:
        """Visual tokens of one tile."""
        return self.connector.num_tokens(*self.feature_grid)


_connector = connector_config  # the constructor's argument of that name would hide it


def _sub_config(value: PreTrainedConfig | dict[str, Any] | None, default: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    data = dict(value or {})
    return AutoConfig.for_model(data.pop("model_type", default), **data)


def _image_size(vision_config: PreTrainedConfig) -> tuple[int, int]:
    size = getattr(vision_config, "image_size", 224)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def vision_stride(vision_config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width in px of a feature cell of a vision model.

    A transformer's patch size, or a convolutional encoder's stem stride times its downsampling.

    Raises:
        ConfigError: the config tells neither.
    """
    patch = getattr(vision_config, "patch_size", None)
    if patch is None:
        raise ConfigError(
            f"vision model {vision_config.model_type!r} has no patch_size, so its grid is unknown"
        )
    height, width = (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))
    if vision_config.model_type in ("convnext", "convnextv2"):
        halvings = 2 ** (len(vision_config.depths) - 1)
        return height * halvings, width * halvings
    return height, width
