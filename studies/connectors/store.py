"""The study's pages as one file: features in small steps, places, targets, questions.

Read where only NumPy is there; written by :mod:`.prepare`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 8
"""Steps of a feature within its standard deviation: an error of 3.6 % of that."""
CHANNELS = 120


@dataclass(frozen=True)
class Pages:
    """Pages as cells.

    Attributes:
        features: int8 ``[cells, 120]``, standardised features times :data:`STEPS`.
        places: uint8 ``[cells, 2]``, x and y from 0 to 255 of the page.
        targets: int32 ``[cells]``, the token that starts there.
        starts: int64 ``[pages + 1]``, where each page's cells begin.
        meta: of each page ``name``, ``kind``, ``part``, ``text``, ``facts`` (question, answer) and
            what its part needs.
    """

    features: NDArray[np.int8]
    places: NDArray[np.uint8]
    targets: NDArray[np.int32]
    starts: NDArray[np.int64]
    meta: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.meta)

    def of_part(self, part: str) -> list[int]:
        """Numbers of the pages of ``train``, ``test``, ``receipts``, ..."""
        return [i for i, meta in enumerate(self.meta) if meta["part"] == part]

    def cells(self, page: int) -> slice:
        """Where a page's cells are."""
        return slice(int(self.starts[page]), int(self.starts[page + 1]))

    def few(self, count: int) -> Pages:
        """The first pages of each part alone: to see everything run."""
        numbers = [i for part in dict.fromkeys(meta["part"] for meta in self.meta)
                   for i in self.of_part(part)[:count]]  # fmt: skip
        own = [self.cells(i) for i in numbers]
        lengths = [part.stop - part.start for part in own]
        features, places, targets = (
            np.concatenate([array[part] for part in own])
            for array in (self.features, self.places, self.targets)
        )
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Pages(features, places, targets, starts, [self.meta[i] for i in numbers])

    @classmethod
    def load(cls, file: Path) -> Pages:
        """Read what :meth:`save` wrote."""
        with np.load(file) as stored:
            parts = [stored[name] for name in ("features", "places", "targets", "starts")]
            meta = json.loads(bytes(stored["meta"]).decode())
        return cls(*parts, meta)

    def save(self, file: Path) -> None:
        """Compressed, beside and then renamed."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name("partial-" + file.name)
        meta = np.frombuffer(json.dumps(self.meta, ensure_ascii=False).encode(), np.uint8)
        np.savez_compressed(
            partial, features=self.features, places=self.places, targets=self.targets,
            starts=self.starts, meta=meta,
        )  # fmt: skip
        partial.rename(file)


def quantised(
    features: NDArray[np.float32], mean: NDArray[np.float32], deviation: NDArray[np.float32]
) -> NDArray[np.int8]:
    """Standardised, in steps.

    >>> quantised(np.array([[3.0]]), np.array([1.0]), np.array([2.0]))
    array([[8]], dtype=int8)
    """
    steps = (features.astype(np.float32) - mean) / deviation * STEPS
    return np.clip(np.round(steps), -127, 127).astype(np.int8)


def packed(
    features: Sequence[NDArray[np.float32]],
    places: Sequence[NDArray[np.float32]],
    targets: Sequence[NDArray[np.int64]],
    meta: list[dict[str, Any]],
) -> Pages:
    """Pages from what the encoder gave for each; scaled by the training pages alone."""
    own = [f for f, m in zip(features, meta, strict=True) if m["part"] == "train"]
    seen = np.concatenate(own).astype(np.float32)
    mean, deviation = seen.mean(0), seen.std(0).clip(1e-6)
    counts = [len(f) for f in features]
    return Pages(
        np.concatenate([quantised(f, mean, deviation) for f in features]),
        np.round(np.concatenate(places) * 255).clip(0, 255).astype(np.uint8),
        np.concatenate(targets).astype(np.int32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        meta,
    )
