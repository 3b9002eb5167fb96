"""What each stage of a recipe takes on many GPUs: memory of each, operations, hours.

Sizes are those of the dry run (:mod:`.estimate`). On top of them:

- *Memory of one GPU.* Weights, gradients and Adam's two moments are fp32 (4 + 4 + 8 bytes a
  parameter), activations bf16. ``ddp`` holds all of it on every GPU, the gradients once more in the
  buckets in which they are averaged, and a bf16 copy of the weights for the products. ``fsdp2``
  divides the 16 bytes by the number of GPUs and gathers bf16 copies: two decoder layers, the table
  and head, and what stays in the root group (encoder, connector).
- *Operations*, without what checkpointing computes twice: 2 a parameter and token forward, the same
  again for gradients of inputs and of weights where they are needed; 4·n²·d a layer for attention,
  half of that where it is causal; ALIGN's second product with the table.
- *Hours*: operations over GPUs, peak rate and an assumed model-FLOPs utilisation.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..connectors.configs import AlignConfig
from ..data.hub.catalogue import published
from ..data.sources.specs import HubSourceSpec, RenderSourceSpec, VCRSourceSpec, build_source
from ..errors import ConfigError, nearest
from ..model.generation import AlignVLMForConditionalGeneration
from .estimate import TEXT_TOKENS, StageSizes, largest_page, meta_model, stage_sizes
from .recipe import Recipe, StageSpec
from .stages import part_of

GIB = 2**30


class Gpu(NamedTuple):
    """A GPU: memory as ``nvidia-smi`` shows it, and dense bf16 products a second."""

    memory_gib: float
    tflops: float


GPUS = {
    # NVIDIA's data sheets; where they give the rate with sparsity, half of it
    "h100": Gpu(79.6, 989.4),  # H100 SXM5 80 GB: 1,979 TFLOP/s with sparsity
    "h200": Gpu(140.4, 989.4),  # H200 SXM 141 GB: 1,979 with sparsity
    "a100-80": Gpu(80.0, 312.0),  # A100 SXM 80 GB: 312 dense
    "a100-40": Gpu(40.0, 312.0),  # A100 SXM 40 GB: 312 dense
    "l40s": Gpu(45.0, 362.0),  # L40S 48 GB with ECC: 362 dense
    "rtx4090": Gpu(24.0, 165.2),  # GeForce RTX 4090: 165.2 dense with fp32 accumulation
}
USABLE = 0.9
"""Share of a GPU's memory that is planned with; the rest is for the allocator and NCCL."""
STRATEGIES = ("ddp", "fsdp2")


@dataclass(frozen=True)
class StagePlan:
    """One stage on one kind of GPU.

    Attributes:
        name: the stage's.
        steps: optimiser steps.
        batch: samples in a step on all GPUs.
        samples: in the whole stage.
        visual_tokens: of an average page.
        positions: of the language model for such a page (0: it does not run).
        strategy: the cheapest that fits; ``fsdp2`` if none does.
        memory_gib: of one GPU, by what it is for, with pages as large as they get.
        total_gib: their sum.
        fits: whether that is within the usable memory.
        exaflops: 10^18 operations of the whole stage.
        hours: at the assumed utilisation.
        advice: what to change if it does not fit.
    """

    name: str
    steps: int
    batch: int
    samples: int
    visual_tokens: int
    positions: int
    strategy: str
    memory_gib: dict[str, float]
    total_gib: float
    fits: bool
    exaflops: float
    hours: float
    advice: str = ""


@dataclass(frozen=True)
class Plan:
    """A recipe on many GPUs.

    Attributes:
        host_gib: main memory of each process while it puts the model together, fp32.
        tiles: of an average page, on which operations and hours rest.
        assumptions: what the numbers rest on beside the formulas.
    """

    recipe: str
    gpus: int
    gpu: str
    gpu_memory_gib: float
    mfu: float
    parameters: int
    tiles: float
    host_gib: float
    stages: list[StagePlan] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether every stage does."""
        return all(stage.fits for stage in self.stages)

    @property
    def hours(self) -> float:
        """Of all stages."""
        return sum(stage.hours for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "fits": self.fits, "hours": round(self.hours, 2)}

    def to_text(self) -> str:
        """A table for people."""
        lines = [
            f"{self.recipe}: {self.parameters / 1e6:,.1f} M parameters on {self.gpus} x {self.gpu} "
            f"({self.gpu_memory_gib:g} GiB each, {USABLE:.0%} of it planned with)",
            f"{'stage':<14}{'steps':>9}{'batch':>7}{'samples':>13}{'positions':>11}"
            f"{'strategy':>10}{'GiB a GPU':>11}{'exaFLOPs':>11}{'hours':>9}",
        ]
        for s in self.stages:
            lines.append(
                f"{s.name:<14}{s.steps:>9,}{s.batch:>7,}{s.samples:>13,}{s.positions:>11,}"
                f"{s.strategy:>10}{s.total_gib:>11.1f}{s.exaflops:>11,.1f}{s.hours:>9,.1f}"
            )
            parts = ", ".join(f"{name} {value:.1f}" for name, value in s.memory_gib.items())
            lines.append(f"  {'fits' if s.fits else 'DOES NOT FIT'}: {parts} GiB")
            if s.advice:
                lines.append(f"  {s.advice}")
        lines.append(
            f"in all {self.hours:,.1f} hours, {self.hours * self.gpus:,.0f} GPU hours; "
            f"{self.host_gib:.0f} GiB of main memory a process at the start"
        )
        return "\n".join([*lines, *(f"assumed: {text}" for text in self.assumptions)])


def plan(
    recipe: Recipe,
    gpus: int,
    gpu: str,
    *,
    mfu: float = 0.35,
    tiles: float | None = None,
    samples: dict[str, int] | None = None,
) -> Plan:
    """Memory, operations and hours of every stage; loads no weights.

    Args:
        gpus: how many, one process each.
        gpu: a name of :data:`GPUS`.
        mfu: share of the peak rate that the model's operations reach; an assumption.
        tiles: of an average page, for operations and hours; default: the most a page can have.
        samples: of a stage that goes by epochs, where the data set's size is not known.

    Raises:
        ConfigError: an unknown GPU or stage, an impossible number, a size that is not known, or
            one given to a stage that goes by steps.
    """
    if gpu not in GPUS:
        raise ConfigError(f"unknown GPU {gpu!r}{nearest(gpu, GPUS)}; known: {', '.join(GPUS)}")
    if gpus < 1:
        raise ConfigError(f"a plan needs at least one GPU, not {gpus}")
    if not 0 < mfu <= 1:
        raise ConfigError(f"mfu is a share of the peak rate, above 0 and up to 1, not {mfu}")
    samples = samples or {}
    names = [stage.name for stage in recipe.stages]
    for name in samples:
        if name not in names:
            raise ConfigError(f"no stage {name!r}{nearest(name, names)}; the recipe has {names}")
    model = meta_model(recipe)
    visual, most = largest_page(recipe, model)
    if tiles is not None and not 0 < tiles <= most:
        raise ConfigError(f"tiles must be above 0 and at most the recipe's {most}, not {tiles}")
    mean = most if tiles is None else tiles
    total = sum(parameter.numel() for parameter in model.parameters())
    assumed = [
        f"{mfu:.0%} of {GPUS[gpu].tflops:g} dense bf16 TFLOP/s",
        f"{mean:g} tiles a page for operations, {most} for memory; {TEXT_TOKENS} text tokens",
    ]
    result = Plan(
        recipe.name, gpus, gpu, GPUS[gpu].memory_gib, mfu, total, mean, round(4 * total / GIB, 1),
        assumptions=assumed,
    )  # fmt: skip
    for stage in recipe.stages:
        count = _samples(stage, gpus, recipe.seed, samples, assumed)
        sizes = stage_sizes(stage, model, visual)
        memory, strategy = _fitting(sizes, stage, model, gpus, GPUS[gpu])
        page = math.ceil(visual * mean / most)
        operations = count * sample_flops(stage, model, page, mean)
        total_gib = sum(memory.values())
        fits = total_gib <= USABLE * GPUS[gpu].memory_gib
        result.stages.append(
            StagePlan(
                name=stage.name,
                steps=stage.steps or math.ceil(count / (stage.batch * gpus)),
                batch=stage.batch * gpus,
                samples=count,
                visual_tokens=page,
                positions=min(stage.max_length, page + TEXT_TOKENS) if stage.loss.lm else 0,
                strategy=strategy,
                memory_gib={name: round(value, 2) for name, value in memory.items()},
                total_gib=round(total_gib, 2),
                fits=fits,
                exaflops=round(operations / 1e18, 2),
                hours=round(operations / (gpus * GPUS[gpu].tflops * 1e12 * mfu) / 3600, 2),
                advice="" if fits else _advice(stage, memory, gpus),
            )
        )
    return result


def _samples(
    stage: StageSpec, gpus: int, seed: int, given: dict[str, int], assumed: list[str]
) -> int:
    """Samples of a stage on all GPUs."""
    if stage.name in given:
        if stage.steps is not None:
            raise ConfigError(
                f"stage {stage.name}: its {stage.steps} steps say how many samples it takes, so "
                f"--samples {stage.name}=N has no place; set stages.{stage.name}.steps"
            )
        if given[stage.name] < 1:
            raise ConfigError(f"stage {stage.name}: samples must be at least 1")
        return given[stage.name]
    if stage.steps is not None:
        return stage.steps * stage.batch * gpus
    total, counted = 0, set()
    for spec in stage.sources:
        if isinstance(spec, RenderSourceSpec | VCRSourceSpec):
            size = spec.size
        elif not isinstance(spec, HubSourceSpec):
            size = len(build_source(spec, seed))
        elif spec.limit is not None:
            size = spec.limit
        elif (known := published(spec.path)) is not None and known.rows is not None:
            if spec.path in counted:  # another configuration, and its rows are among them
                continue
            counted.add(spec.path)
            size = known.rows
            assumed.append(f"{spec.path} has about {size:,} samples")
        else:
            raise ConfigError(
                f"stage {stage.name}: the size of {spec.path} is not known; pass --samples "
                f"{stage.name}=N"
            )
        total += min(size, spec.limit or size)
    return math.ceil((stage.epochs or 1) * total)


def _fitting(
    sizes: StageSizes,
    stage: StageSpec,
    model: AlignVLMForConditionalGeneration,
    gpus: int,
    gpu: Gpu,
) -> tuple[dict[str, float], str]:
    """The first strategy that fits, with its memory; the last if none does."""
    memory: dict[str, float] = {}
    strategy = ""
    for strategy in STRATEGIES[: 1 if gpus == 1 else 2]:
        memory = stage_memory(sizes, stage, model, gpus, strategy)
        if sum(memory.values()) <= USABLE * gpu.memory_gib:
            break
    return memory, strategy


def stage_memory(
    sizes: StageSizes,
    stage: StageSpec,
    model: AlignVLMForConditionalGeneration,
    gpus: int,
    strategy: str,
) -> dict[str, float]:
    """GiB on one GPU, by what they are for; see the module's text."""
    trains = sum(sizes.trainable.values())
    shards = gpus if strategy == "fsdp2" else 1
    # buckets as large as all gradients, unless DDP is told gradient_as_bucket_view
    held = 2 if strategy == "ddp" and gpus > 1 else 1
    copies = 2 * sizes.weights
    if shards > 1:
        layers = _layer_parameters(model) if stage.loss.lm else 0
        depth = model.config.text_config.num_hidden_layers
        gathered = sizes.weights - layers + 2 * layers // depth
        # the gathered groups' gradients are whole until they are reduced
        root = trains - (layers if sizes.trainable["text"] else 0)
        copies = 2 * (gathered + max(root, 0))
    found = {
        "weights": 4 * sizes.weights / shards,
        "gradients": 4 * held * trains / shards,
        "optimizer": 8 * trains / shards,
        "working copies": copies,
        "activations": 2 * sizes.activations,
    }
    return {name: value / GIB for name, value in found.items()}


def _layer_parameters(model: AlignVLMForConditionalGeneration) -> int:
    """Of the decoder layers: the language model without its table and head."""
    text = sum(p.numel() for n, p in model.named_parameters() if part_of(n).startswith("text."))
    table, head = model.get_input_embeddings().weight, model.lm_head.weight
    return text - table.numel() - (0 if head is table else head.numel())


def sample_flops(
    stage: StageSpec, model: AlignVLMForConditionalGeneration, visual: int, tiles: float
) -> float:
    """Operations of one sample, forward and backward.

    Args:
        visual: its visual tokens.
        tiles: its tiles.
    """
    config, text = model.config, model.config.text_config
    rates = {part: _trains(stage, part) for part in ("vision", "connector", "text")}
    counts = {
        part: sum(p.numel() for n, p in model.named_parameters() if part_of(n).startswith(part))
        for part in ("vision", "connector")
    }
    cells = tiles * config.feature_grid[0] * config.feature_grid[1]
    vision = config.vision_config
    forward = 2 * counts["vision"] * cells
    if hasattr(vision, "num_attention_heads"):
        grid = config.feature_grid[0] * config.feature_grid[1]
        forward += vision.num_hidden_layers * 4 * cells * grid * vision.hidden_size
    flops = forward * (3 if rates["vision"] else 1)
    per_token = 2 * counts["connector"]
    if isinstance(config.connector, AlignConfig):
        rows = config.connector.kept_tokens or config.connector_vocab_size
        per_token += 2 * rows * text.hidden_size
    flops += per_token * visual * (1 + rates["vision"] + rates["connector"])
    if stage.loss.lm:
        length = min(stage.max_length, visual + TEXT_TOKENS)
        width = text.num_attention_heads * getattr(
            text, "head_dim", text.hidden_size // text.num_attention_heads
        )
        forward = 2 * _layer_parameters(model) * length
        attention = text.num_hidden_layers * 2 * length**2 * width
        head = 2 * TEXT_TOKENS * text.vocab_size * text.hidden_size
        flops += (forward + head) * (2 + rates["text"]) + attention * 3
    return flops


def _trains(stage: StageSpec, part: str) -> bool:
    return any(rate and path.split(".")[0] == part for path, rate in stage.train.items())


def _advice(stage: StageSpec, memory: dict[str, float], gpus: int) -> str:
    """The change that saves most."""
    fixed = memory["weights"] + memory["gradients"] + memory["optimizer"]
    if memory["activations"] > fixed + memory["working copies"]:
        if not stage.gradient_checkpointing:
            return f"set stages.{stage.name}.gradient_checkpointing=true"
        if stage.batch_size > 1:
            return f"lower stages.{stage.name}.batch_size, raise gradient_accumulation instead"
        return "lower model.tiling.max_tiles, or take a GPU with more memory"
    if fixed > memory["working copies"]:
        return f"take more GPUs: {fixed:.0f} GiB of a GPU's part shrink as their number grows" + (
            "" if gpus > 1 else " (one GPU cannot shard)"
        )
    return "take a GPU with more memory, or a smaller language model"
