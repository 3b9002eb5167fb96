"""One frozen config per connector; which class takes it says ``CONNECTORS`` in ``__init__``.

Each answers two questions that processor and model both need, so that the number of visual tokens
is computed in exactly one place: ``token_grid(rows, cols)`` and ``num_tokens(rows, cols)``, where
``rows x cols`` is the vision encoder's feature grid of one tile.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError, describe_validation_error, nearest


class ConnectorConfigBase(BaseModel):
    """What all connector configs share: frozen, strict, a name, and a token count."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    type: Any  # the literal that names it

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
            (:mod:`alignvlm.connectors.closed_form`).
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
        keep_logits_gib: GiB that the op may take to keep its logits for the backward pass;
            ``None``: an eighth of the device's free memory.
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
    keep_logits_gib: float | None = Field(
        None, ge=0, description="memory for kept logits, see alignvlm.ops.vocab_mixture"
    )

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
    keep_logits_gib: float | None = Field(
        None, ge=0, description="memory for kept logits, see alignvlm.ops.vocab_mixture"
    )


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


CONFIGS = {c.model_fields["type"].default: c for c in ConnectorConfigBase.__subclasses__()}
CONNECTOR_TYPES = tuple(CONFIGS)
if TYPE_CHECKING:  # what the union holds is known only when it runs; pydantic needs it then
    ConnectorConfig = ConnectorConfigBase
else:
    ConnectorConfig = Annotated[reduce(or_, CONFIGS.values()), Field(discriminator="type")]


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
        return CONFIGS[kind].model_validate(data)
    except ValidationError as error:
        problem = describe_validation_error(error, CONFIGS[kind].model_fields)
        raise ConfigError(f"connector {kind!r}: {problem}") from None
