"""What a recipe will take, before anything is loaded: parameters, tokens, memory.

The model is built on the ``meta`` device. Memory is an estimate of one process without sharding:
weights, gradients, Adam's two moments, and activations (a transformer layer keeps about
``ACTIVATIONS`` values of its width a token; with gradient checkpointing only one layer does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedConfig

from ..compose.assemble import vision_config
from ..errors import AlignVLMError, ConfigError
from ..model.config import AlignVLMConfig
from ..model.generation import AlignVLMForConditionalGeneration
from ..tiling import Grid, token_row_lengths
from ..weights.folder import loaded
from ..weights.resolve import resolve
from .recipe import ModelSpec, Recipe, StageSpec
from .stages import learning_rate, part_of, set_trainable, trains_in_bf16

ACTIVATIONS = 18
"""Values of the layer's width that one transformer layer keeps a token (attention and MLP)."""
TEXT_TOKENS = 128
"""Text tokens assumed beside the visual ones in a sample."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage of a recipe.

    Attributes:
        name: the stage's.
        steps: optimiser steps, if the recipe says.
        samples: per optimiser step on one process.
        trainable: parameters of each part that train.
        tokens: positions of the language model a sample, largest page.
        peak_gib: estimated peak memory of one process, no sharding.
        packing: whether short samples share rows; a micro-batch of the largest pages takes as
            much as without.
    """

    name: str
    steps: int | None
    samples: int
    trainable: dict[str, int]
    tokens: int
    peak_gib: float
    packing: bool = False


@dataclass(frozen=True)
class Estimate:
    """A recipe's parameters and each stage's needs."""

    recipe: str
    parameters: dict[str, int]
    visual_tokens: int
    dtype: str
    stages: list[StageEstimate]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "stages": [vars(stage) for stage in self.stages]}

    def to_text(self) -> str:
        """A table for people."""
        total = sum(self.parameters.values())
        parts = ", ".join(f"{part} {count / 1e6:,.1f} M" for part, count in self.parameters.items())
        lines = [
            f"{self.recipe}: {total / 1e6:,.1f} M parameters ({parts})",
            f"up to {self.visual_tokens:,} visual tokens a page; memory for {self.dtype} weights",
            f"{'stage':<16}{'steps':>9}{'batch':>7}{'trainable':>14}{'tokens':>9}{'peak GiB':>10}",
        ]
        for stage in self.stages:
            steps = "epochs" if stage.steps is None else f"{stage.steps:,}"
            trainable = f"{sum(stage.trainable.values()) / 1e6:,.1f} M"
            lines.append(
                f"{stage.name:<16}{steps:>9}{stage.samples:>7}{trainable:>14}"
                f"{stage.tokens:>9,}{stage.peak_gib:>10.1f}"
            )
            detail = ", ".join(f"{p} {c / 1e6:,.1f} M" for p, c in stage.trainable.items() if c)
            packs = ", packs short samples" if stage.packing else ""
            lines.append(f"  trains {detail}{packs}")
        return "\n".join(lines)


def text_config(spec: ModelSpec) -> PreTrainedConfig:
    """Config of the recipe's language model; its own ``text_config`` first, so that a dry run
    needs no download."""
    if spec.text_config is not None:
        data = dict(spec.text_config)
        return AutoConfig.for_model(data.pop("model_type", "llama"), **data)
    try:
        return loaded(AutoConfig, resolve(spec.text))
    except AlignVLMError as error:
        raise ConfigError(f"{error} (or give the recipe a model.text_config)") from None


def meta_model(recipe: Recipe) -> AlignVLMForConditionalGeneration:
    """The recipe's model without storage."""
    spec = recipe.model
    try:
        config = AlignVLMConfig(
            vision_config=vision_config(spec.vision_config or spec.vision),
            text_config=text_config(spec),
            connector_config=spec.connector,
            **spec.config_options(),
        )
        with torch.device("meta"):
            return AlignVLMForConditionalGeneration(config)
    except AlignVLMError:
        raise
    except Exception as error:  # configs and models of other libraries raise many kinds
        raise ConfigError(f"the model's parts do not fit: {' '.join(str(error).split())}") from None


def estimate(recipe: Recipe) -> Estimate:
    """Parameters, tokens a sample and peak memory of every stage; loads no weights.

    Raises:
        ConfigError: the parts do not fit, or a config is neither in the recipe nor local.
    """
    model = meta_model(recipe)
    counts = parameter_counts(model)
    visual = largest_page(recipe, model)[0]
    stages = [_stage(stage, model, visual) for stage in recipe.stages]
    return Estimate(recipe.name, counts, visual, "bf16" if trains_in_bf16() else "fp32", stages)


def parameter_counts(model: AlignVLMForConditionalGeneration) -> dict[str, int]:
    """Parameters of each part."""
    counts: dict[str, int] = dict.fromkeys(("vision", "connector", "text"), 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name).split(".")[0]] += parameter.numel()
    return counts


def largest_page(recipe: Recipe, model: AlignVLMForConditionalGeneration) -> tuple[int, int]:
    """Visual tokens and tiles of a page cut into as many tiles as the recipe allows."""
    config, tiling = model.config, recipe.model.tiling
    rows, cols = config.tile_token_grid or (1, config.tokens_per_tile)
    grid = Grid(1, tiling.max_tiles)
    thumbnail = tiling.thumbnail and grid.tiles > 1
    visual = sum(token_row_lengths(grid, thumbnail, rows, cols, config.token_order))
    return visual, grid.tiles + thumbnail


class StageSizes(NamedTuple):
    """What one process holds, in values rather than bytes.

    Attributes:
        weights: parameters that the stage runs.
        trainable: parameters of each part that train.
        tokens: positions of the language model a sample (visual tokens without it).
        activations: of one optimiser micro-batch.
    """

    weights: int
    trainable: dict[str, int]
    tokens: int
    activations: int


def stage_sizes(
    stage: StageSpec, model: AlignVLMForConditionalGeneration, visual: int
) -> StageSizes:
    """Sizes of a stage whose samples are one page of ``visual`` tokens."""
    trainable = set_trainable(model, stage.train)
    runs_text = stage.loss.lm > 0
    tokens = min(stage.max_length, visual + TEXT_TOKENS) if runs_text else visual
    config = model.config
    weights = sum(
        p.numel() for n, p in model.named_parameters() if runs_text or not n.startswith(TEXT)
    )
    text, vision = config.text_config, config.vision_config
    activations = 0
    if runs_text:
        layers = 1 if stage.gradient_checkpointing else text.num_hidden_layers
        kept = text.num_hidden_layers if stage.gradient_checkpointing else 0
        activations += tokens * text.hidden_size * (ACTIVATIONS * layers + kept)
        activations += TEXT_TOKENS * text.vocab_size * 2
    if any(learning_rate(n, stage.train) for n, _ in model.named_parameters() if VISION in n):
        depth = getattr(vision, "num_hidden_layers", 4)
        layers = 1 if stage.gradient_checkpointing else depth
        activations += visual * config.vision_hidden_size * ACTIVATIONS * layers
    return StageSizes(weights, trainable, tokens, stage.batch_size * activations)


def _stage(stage: StageSpec, model: AlignVLMForConditionalGeneration, visual: int) -> StageEstimate:
    sizes = stage_sizes(stage, model, visual)
    # gradients and Adam's two moments
    state = 3 * sum(sizes.trainable.values())
    gib = 4 * (sizes.weights + state + sizes.activations) / 2**30
    return StageEstimate(
        stage.name,
        stage.steps,
        stage.batch,
        sizes.trainable,
        sizes.tokens,
        round(gib, 2),
        stage.packing,
    )


TEXT = ("model.language_model", "lm_head")
VISION = "model.vision_model"
