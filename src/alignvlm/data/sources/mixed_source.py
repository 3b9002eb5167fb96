"""Sources made of others: several mixed by weight, or some records of one."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from ...errors import DataError
from ..records import Record
from .source import Source, check_index


class MixedSource:
    """Several sources as one, in proportion to weights; ``mixed[i]`` depends on the seed alone.

    Of ``size`` records, source k gives ``size * weight_k / sum(weights)``, exact to within 1, at
    places shuffled by the seed. Within a source, every record comes once before any comes again;
    each pass has its own order.

    ``weights`` are positive; ``None`` weighs sources by their lengths. ``size`` is the sum of the
    lengths by default.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float] | None = None,
        size: int | None = None,
        seed: int = 0,
        *,
        name: str = "mixed",
    ) -> None:
        self.sources, self.seed, self.name = list(sources), seed, name
        if not self.sources:
            raise DataError(f"{name}: needs at least one source")
        lengths = [len(source) for source in self.sources]
        weights = lengths if weights is None else list(weights)
        if len(weights) != len(self.sources):
            raise DataError(f"{name}: {len(self.sources)} sources but {len(weights)} weights")
        for source, length, weight in zip(self.sources, lengths, weights, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise DataError(f"{name}: weight of {source.name!r} must be positive, not {weight}")
            if length < 1:
                raise DataError(f"{name}: source {source.name!r} is empty")
        size = sum(lengths) if size is None else size
        if size < 1:
            raise DataError(f"{name}: size must be at least 1, not {size}")
        counts = _shares(weights, size)
        which = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._which = np.random.default_rng([seed % 2**64, 0]).permutation(which)
        self._turn = np.empty(size, dtype=np.int64)  # how often this source came before
        for k, count in enumerate(counts):
            self._turn[self._which == k] = np.arange(count)

    def __len__(self) -> int:
        return len(self._which)

    def locate(self, index: int) -> tuple[int, int]:
        """Return which source record ``index`` comes from, and its index there."""
        index = check_index(index, len(self), self.name)
        k = int(self._which[index])
        epoch, place = divmod(int(self._turn[index]), len(self.sources[k]))
        return k, int(_order(self.seed, k, epoch, len(self.sources[k]))[place])

    def __getitem__(self, index: int) -> Record:
        """Return the record of the source that comes ``index``-th."""
        k, inner = self.locate(index)
        return self.sources[k][inner]


@functools.lru_cache(maxsize=64)
def _order(seed: int, k: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed % 2**64, 1, k, epoch]).permutation(size)


def _shares(weights: Sequence[float], size: int) -> list[int]:
    """Split ``size`` by weights: round down, then one more to the largest remainders."""
    exact = [size * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    order = sorted(range(len(exact)), key=lambda k: (counts[k] - exact[k], k))
    for k in order[: size - sum(counts)]:
        counts[k] += 1
    return counts


class Subset:
    """Some records of a source, by index, in the given order."""

    def __init__(self, source: Source, indices: Sequence[int], *, name: str | None = None) -> None:
        self.source, self.name = source, name or source.name
        self.indices = [check_index(int(i), len(source), source.name) for i in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        """Return the record at place ``index`` of the chosen ones."""
        return self.source[self.indices[check_index(index, len(self), self.name)]]


def limit(source: Source, count: int | None) -> Source:
    """Keep the first ``count`` records."""
    if count is None or count >= len(source):
        return source
    if count < 1:
        raise DataError(f"{source.name}: limit must be at least 1, not {count}")
    return Subset(source, range(count))
