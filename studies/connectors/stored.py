"""Stored cells as numbers, and means with intervals over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .scores import Cell, scored
from .settings import SEEDS, SIZES, VARIANTS

QUESTIONS, COST = "questions.json", "cost.json"
LARGE = max(SIZES)
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, two-sided 95 %, by degrees of freedom; beyond the table 2.262, a little too wide."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds and the half-width of its 95 % t-interval (``nan`` for one seed)."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Of some values; ``None`` of none.

        >>> Estimate.of([1.0, 2.0, 3.0]).text()
        '2.000 ± 2.484'
        """
        n = len(values)
        if not n:
            return None
        mean = math.fsum(values) / n
        if n == 1:
            return cls(mean, math.nan, 1)
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
        return cls(mean, T_95.get(n - 1, T_95[9]) * deviation / math.sqrt(n), n)

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half

    def text(self, places: int = 3) -> str:
        """``0.512 ± 0.034``; without an interval for one seed."""
        mean = f"{self.mean:.{places}f}"
        return mean if math.isnan(self.half) else f"{mean} ± {self.half:.{places}f}"


@dataclass
class Study:
    """All stored cells but the sweep's: ``numbers[variant, size][seed][name]``.

    Attributes:
        cost: seconds of a step with each connector, or nothing.
    """

    numbers: dict[tuple[str, int], dict[int, dict[str, float]]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read and score ``VARIANT-SIZE-SEED.json``; other files are left alone."""
        study = cls()
        if not (folder / QUESTIONS).exists():
            return study
        if (folder / COST).exists():
            study.cost = json.loads((folder / COST).read_text("utf-8"))
        questions = json.loads((folder / QUESTIONS).read_text("utf-8"))
        for variant in VARIANTS:
            for size in SIZES:
                for seed in SEEDS:
                    file = folder / f"{variant}-{size}-{seed}.json"
                    if file.exists():
                        cell = json.loads(file.read_text("utf-8"))
                        own = study.numbers.setdefault((variant, size), {})
                        own[seed] = scored(cell, questions)
                        study.cells.append(cell)
        return study

    def seeds(self, variant: str, size: int = LARGE) -> int:
        """How many there are of a variant."""
        return len(self.numbers.get((variant, size), {}))

    def devices(self, variant: str, size: int = LARGE) -> str:
        """What a variant's cells ran on."""
        cells = (
            c for c in self.cells if (c["cell"]["variant"], c["cell"]["size"]) == (variant, size)
        )
        return ", ".join(sorted({cell["versions"]["device"] for cell in cells}))

    def values(self, variant: str, name: str, size: int = LARGE) -> dict[int, float]:
        """A number of each seed that has it."""
        own = self.numbers.get((variant, size), {})
        return {seed: numbers[name] for seed, numbers in sorted(own.items()) if name in numbers}

    def estimate(self, variant: str, name: str, size: int = LARGE) -> Estimate | None:
        """Mean and interval over seeds."""
        return Estimate.of(list(self.values(variant, name, size).values()))

    def difference(
        self, first: str, second: str, name: str, size: int = LARGE, second_name: str = ""
    ) -> Estimate | None:
        """First minus second, seed by seed (same pages in the same order).

        Args:
            second_name: another number of the second.
        """
        one = self.values(first, name, size)
        two = self.values(second, second_name or name, size)
        return Estimate.of([one[seed] - two[seed] for seed in one if seed in two])
