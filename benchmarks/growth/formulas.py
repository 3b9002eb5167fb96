"""GPUs and clusters: the formulas of ``alignvlm plan``, drawn against what grows.

Nothing is measured here. Everything is one stage of a recipe of the paper in which all parts train,
at the share of the peak rate that the plan assumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

from alignvlm.model.generation import AlignVLMForConditionalGeneration
from alignvlm.train.estimate import meta_model, stage_sizes
from alignvlm.train.plan import GIB, GPUS, sample_flops, stage_memory
from alignvlm.train.recipe import Recipe, load_recipe

from .published import MFU

RECIPE, GPU = "paper/llama-3.2-1b", "h100"
CELLS = 729
"""Visual tokens of a tile of 384 x 384 px."""
SAMPLES = 1_000_000


class Curve(NamedTuple):
    """What a million samples or one GPU take, against one quantity.

    Attributes:
        subject: as a sentence goes on after "the".
        axis: in the plural.
        unit: of the ys.
        xs, ys: points of the formula.
        inverse: the fit is to 1/x.
    """

    subject: str
    axis: str
    unit: str
    xs: Sequence[float]
    ys: Sequence[float]
    inverse: bool = False


def _hours(flops: float, gpus: int = 8) -> float:
    return SAMPLES * flops / (gpus * GPUS[GPU].tflops * 1e12 * MFU) / 3600


def _made(changes: Sequence[str] = ()) -> tuple[Recipe, AlignVLMForConditionalGeneration]:
    recipe = load_recipe(RECIPE, ["stages.0.max_length=1000000", *changes])
    return recipe, meta_model(recipe)


def _against(key: str, xs: Sequence[int]) -> list[float]:
    """Hours of a page of nine tiles with each value of a key of the recipe."""
    found = []
    for x in xs:
        recipe, model = _made([change.format(x, x // 64, 4 * x) for change in key.split("|")])
        found.append(_hours(sample_flops(recipe.stages[0], model, 9 * CELLS, 9)))
    return found


WIDTH_KEYS = (
    "model.text_config.hidden_size={0}|model.text_config.num_attention_heads={1}"
    "|model.text_config.num_key_value_heads={1}|model.text_config.intermediate_size={2}"
)


@cache
def curves() -> tuple[Curve, ...]:
    """All curves of the page."""
    recipe, model = _made()
    stage = recipe.stages[0]

    def pages(count: int) -> float:
        return _hours(sample_flops(stage, model, count * CELLS, count))

    def memory(gpus: int) -> float:
        sizes = stage_sizes(stage, model, 9 * CELLS)
        return sum(stage_memory(sizes, stage, model, gpus, "fsdp2").values())

    def activations(tiles: int) -> float:
        return 2 * stage_sizes(stage, model, tiles * CELLS).activations / GIB

    one_page = sample_flops(stage, model, 9 * CELLS, 9)
    tiles, many = (1, 2, 4, 9, 16, 36), (1, 4, 16, 64, 200)
    gpus, batch = (2, 8, 64, 512), (1, 2, 4, 8)
    vocab, widths = (3400, 12800, 49152, 128256), (1024, 2048, 4096, 8192)

    def each(found: Callable[[int], float], xs: Sequence[int]) -> list[float]:
        return [found(x) for x in xs]

    samples = "Time of a million samples on 8 H100"
    return (
        Curve(samples, "tiles of a page", "h", tiles, each(pages, tiles)),
        Curve(samples, "pages of a tile each", "h", many, each(pages, many)),
        Curve("Time of a million steps on 8 H100", "samples a GPU", "h", batch,
              each(lambda n: n * 8 * _hours(one_page), batch)),
        Curve(samples, "vocabulary rows that ALIGN keeps", "h", vocab,
              _against("model.connector.kept_tokens={0}", vocab)),
        Curve(samples, "columns of width", "h", widths, _against(WIDTH_KEYS, widths)),
        Curve(samples.replace("8 H100", "H100s"), "GPUs", "h", gpus,
              each(lambda n: _hours(one_page, n), gpus), inverse=True),
        Curve("Memory of one of the GPUs, FSDP2,", "GPUs", "GiB", gpus,
              each(memory, gpus), inverse=True),
        Curve("Memory of a sample's activations", "tiles of a page", "GiB", tiles,
              each(activations, tiles)),
    )  # fmt: skip
