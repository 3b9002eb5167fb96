"""Stored cells, and means with intervals over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .settings import VARIANTS

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, two-sided 95 %, by degrees of freedom; beyond the table 2.262, a little too wide."""
Cell = dict[str, Any]
Value = Callable[[Cell], float | None]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds and the half-width of its 95 % t-interval (``nan`` for one seed)."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Of some values; ``None`` of none."""
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

    def text(self, places: int = 3, factor: float = 1.0) -> str:
        """``0.512 ± 0.034``; without an interval for one seed."""
        mean = f"{factor * self.mean:.{places}f}"
        return mean if math.isnan(self.half) else f"{mean} ± {factor * self.half:.{places}f}"


@dataclass
class Study:
    """All stored cells: ``cells[variant][seed]``."""

    cells: dict[str, dict[int, Cell]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read ``VARIANT-SEED.json``; names that are not of the study are left alone."""
        study = cls()
        for variant in VARIANTS:
            for file in sorted(folder.glob(f"{variant}-*.json")):
                seed = file.stem[len(variant) + 1 :]
                if seed.isdigit():
                    cell = json.loads(file.read_text("utf-8"))
                    study.cells.setdefault(variant, {})[int(seed)] = cell
        return study

    @property
    def count(self) -> int:
        """Stored cells."""
        return sum(len(seeds) for seeds in self.cells.values())

    def any(self) -> Cell | None:
        """Some cell, for what all share."""
        return next((c for seeds in self.cells.values() for c in seeds.values()), None)

    def values(self, variant: str, value: Value) -> dict[int, float]:
        """A number of each seed that has it."""
        found = {s: value(c) for s, c in sorted(self.cells.get(variant, {}).items())}
        return {s: v for s, v in found.items() if v is not None}

    def estimate(self, variant: str, value: Value) -> Estimate | None:
        """Mean and interval over seeds."""
        return Estimate.of(list(self.values(variant, value).values()))

    def difference(self, first: str, second: str, value: Value) -> Estimate | None:
        """First minus second, seed by seed (same pages in the same order)."""
        one, two = self.values(first, value), self.values(second, value)
        return Estimate.of([one[s] - two[s] for s in one if s in two])


# ---------------------------------------------------------------------------- numbers of one cell


def anls(cell: Cell) -> float:
    """ANLS on held-out forms."""
    return cell["scores"]["anls"]


def exact(cell: Cell) -> float:
    """Exact matches on held-out forms."""
    return cell["scores"]["exact"]


def blind(cell: Cell) -> float:
    """ANLS of the same questions about a white page."""
    return cell["blind"]["anls"]


def above_blind(cell: Cell) -> float:
    """What reading the page adds."""
    return anls(cell) - blind(cell)


def at_fraction(fraction: float, key: str = "anls") -> Value:
    """A number of the learning curve at that fraction of all samples (the nearest point)."""

    def value(cell: Cell) -> float | None:
        wanted = fraction * cell["settings"]["samples"]
        points = cell["curve"]
        if not points:
            return None
        return min(points, key=lambda point: abs(point["samples"] - wanted))[key]

    return value


def noise_at(place: str, sigma: float, key: str) -> Value:
    """A number of the noise sweep."""

    def value(cell: Cell) -> float | None:
        return next((row[key] for row in cell["noise"][place] if row["sigma"] == sigma), None)

    return value


def retained(place: str) -> Value:
    """ANLS under noise over ANLS without, averaged over the sweep's σ above 0."""

    def value(cell: Cell) -> float | None:
        rows = cell["noise"][place]
        clean = next(row["anls"] for row in rows if row["sigma"] == 0)
        noisy = [row["anls"] / clean for row in rows if row["sigma"] > 0] if clean else []
        return math.fsum(noisy) / len(noisy) if noisy else None

    return value


def of_vocabulary(key: str) -> Value:
    """A number of the averaged P_vocab; other connectors have none."""

    def value(cell: Cell) -> float | None:
        use = cell.get("vocabulary_use")
        return None if use is None else use[key]

    return value


def pruning_change(cell: Cell) -> float | None:
    """ANLS with the ids that hold 99 % of the mass, minus ANLS with all."""
    if "pruning" not in cell:
        return None
    rows = {row["kept"]: row["anls"] for row in cell["pruning"]}
    kept = cell["vocabulary_use"]["for_99"]
    return None if kept not in rows else rows[kept] - rows[cell["vocabulary_use"]["vocabulary"]]
