"""The model's config."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from transformers import AutoConfig, PreTrainedConfig

from ..connectors.configs import ConnectorConfigBase, connector_config
from ..errors import ConfigError
from ..tiling import Grid, fit_scale


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
