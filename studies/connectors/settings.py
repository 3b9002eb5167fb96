"""Which cells there are, what each does, and in which order they are worth running."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

SEEDS = (0, 1, 2)
SWEEP_SEED = 100
"""Learning rates are chosen on it; it is not reported."""
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SIZES = {256: 128, 1024: 256, 4096: 512}
"""Training pages to steps of :data:`BATCH` pages."""
SWEEP_SIZE, SWEEP_STEPS = 1024, 96
BATCH = 16
SIGMAS = (0.5, 1.0, 2.0, 3.0, 5.0)
"""Standard deviations of noise, in those of the features; the paper reports 3."""
LOW_RANK = 16
LOW_RANK_RATE = 5e-4
D_CELL = 144
"""Numbers of a cell: 120 features and 24 that say its place."""
MOST_CELLS = 128


@dataclass(frozen=True)
class Variant:
    """A connector, and how it is trained.

    Attributes:
        connector: keys of the connector's config, ``type`` first.
        rates: whose learning rate it takes; the grid is tried for each of these once.
        grounded: weight of the loss on P_vocab.
        start: ``fitted``: W1, gamma and beta in closed form from the training pages' targets.
        rank: of the language model's low-rank changes; 0: frozen.
    """

    connector: dict[str, Any]
    rates: str
    grounded: float = 0.0
    start: str = ""
    rank: int = 0


_ALIGN: dict[str, Any] = {"type": "align"}
_PERCEIVER = {"type": "perceiver", "num_latents": 64, "depth": 2}
VARIANTS: dict[str, Variant] = {
    "align": Variant(_ALIGN, "align"),
    "mlp": Variant({"type": "mlp"}, "mlp"),
    "ovis": Variant({"type": "ovis"}, "ovis"),
    "perceiver": Variant(_PERCEIVER, "perceiver"),
    "text": Variant({"type": "text"}, "text"),
    "align-grounded": Variant(_ALIGN, "align", grounded=1.0),
    "align-fitted": Variant({"type": "align", "gamma": 3.0}, "align-fitted", start="fitted"),
    "align-grounded-random-head": Variant(
        {"type": "align", "init": "random"}, "align", grounded=1.0
    ),
    "align-grounded-no-outer-norm": Variant(
        {"type": "align", "outer_norm": False}, "align", grounded=1.0
    ),
    "align-grounded-gamma-6": Variant({"type": "align", "gamma": 6.0}, "align", grounded=1.0),
    "h_reducer": Variant({"type": "h_reducer"}, "h_reducer"),
    "c_abstractor": Variant(
        {"type": "c_abstractor", "out_rows": 1, "out_cols": 64, "hidden_size": 256, "depth": 1},
        "c_abstractor",
    ),
}
VARIANTS |= {
    f"{name}-low-rank": replace(variant, rank=LOW_RANK)
    for name, variant in VARIANTS.items()
    if name != "text"
}
"""``text`` is the ceiling: the page's true text, behind a trained prompt."""


@dataclass(frozen=True)
class Cell:
    """One model that is trained and measured.

    Attributes:
        rate: peak learning rate; ``None``: the best of the sweep.
        measure_all: also noise, P_vocab and the special parts.
    """

    variant: str
    size: int
    seed: int
    steps: int
    batch: int = BATCH
    rate: float | None = None
    measure_all: bool = True
    needs: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """Of its file."""
        if self.rate is not None:
            return f"sweep-{self.variant}-{self.rate:g}"
        return f"{self.variant}-{self.size}-{self.seed}"

    @property
    def kind(self) -> tuple[bool, int, int]:
        """Cells of one kind can be trained side by side."""
        return VARIANTS[self.variant].rank > 0, self.steps, self.batch

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {k: v for k, v in asdict(self).items() if k != "needs"}


def sweep(variant: str) -> list[Cell]:
    """The grid of learning rates for a variant."""
    return [
        Cell(variant, SWEEP_SIZE, SWEEP_SEED, SWEEP_STEPS, rate=rate, measure_all=False)
        for rate in RATES
    ]


def reported(variant: str, size: int) -> list[Cell]:
    """A variant at a size, all seeds."""
    needs = tuple(cell.name for cell in sweep(VARIANTS[variant].rates))
    whole = size == max(SIZES)
    return [
        Cell(variant, size, seed, SIZES[size], measure_all=whole, needs=needs) for seed in SEEDS
    ]


HEADLINE = ("align", "mlp", "ovis", "perceiver")
PARTS = (
    "align-grounded-random-head-low-rank",
    "align-grounded-no-outer-norm-low-rank",
    "align-grounded-gamma-6-low-rank",
    "align-fitted-low-rank",
)
"""Grounded ALIGN without one of its parts (else it hardly reads), and a start that reads."""


def all_cells() -> list[Cell]:
    """Most valuable first."""
    cells = [cell for variant in HEADLINE for cell in sweep(variant)]
    small, middle, large = SIZES

    def add(variants: tuple[str, ...], size: int) -> None:
        for variant in variants:
            own = VARIANTS[variant].rates
            if own not in {c.variant for c in cells if c.rate is not None}:
                cells.extend(sweep(own))
        # seed by seed would leave pairs incomplete; variant by variant, claims
        by_variant = [reported(variant, size) for variant in variants]
        cells.extend(cell for seeds in zip(*by_variant, strict=True) for cell in seeds)

    adapted = tuple(f"{variant}-low-rank" for variant in HEADLINE)
    add(adapted, large)  # as the paper trains
    add(HEADLINE, large)
    add(adapted, small)
    add(HEADLINE, small)
    add(("align-grounded-low-rank", "text"), large)
    add(("align-grounded", "align-fitted"), large)
    add(("align-grounded-low-rank",), small)
    add(PARTS, small)  # where ALIGN reads, and no further: they run without a card, too
    add(adapted, middle)
    add(("h_reducer-low-rank", "c_abstractor-low-rank"), large)
    add(HEADLINE, middle)
    add(("align-grounded", "align-fitted"), small)
    add(("h_reducer", "c_abstractor"), large)
    return cells


def chosen(cells: list[Cell], asked: str) -> list[Cell]:
    """Cells whose names have one of some comma-separated parts, and what they need; in order.

    >>> [c.name for c in chosen(all_cells(), "sweep-mlp")][:2]
    ['sweep-mlp-0.0001', 'sweep-mlp-0.0003']
    """
    if not asked:
        return cells
    parts = asked.split(",")
    wanted = {cell.name for cell in cells if any(part in cell.name for part in parts)}
    wanted |= {need for cell in cells if cell.name in wanted for need in cell.needs}
    return [cell for cell in cells if cell.name in wanted]
