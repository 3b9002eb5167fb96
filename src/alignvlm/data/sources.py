"""Sources: a data set as numbered records.

A map-style source is deterministic: ``source[i]`` is the same record in every process and on every
day, so a run resumes by remembering one number. :class:`MixedSource` mixes several by weight under
the same promise.
"""

from __future__ import annotations

import functools
import json
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import DataError, nearest
from .json_list import is_json_list, list_entries
from .records import Record, make_record, transcript, validate_record
from .source import Source, check_index, named

if TYPE_CHECKING:
    from .synthetic.render import RenderedPage, RenderSpec

TRANSCRIBE_QUESTION = "Read the text on the page."


def draw(*key: int) -> int:
    """Hash integers to a 64-bit integer that is the same everywhere (a seeded random draw)."""
    return int(np.random.SeedSequence([k % 2**64 for k in key]).generate_state(1, np.uint64)[0])


class JsonlSource:
    """One JSON object per line, or a JSON list of them, in any form that
    :mod:`alignvlm.data.records` accepts.

    Opening only notes where records start; each is validated when it is read. Image paths are
    relative to the file's folder. Errors name ``file:row`` with the line number an editor shows; of
    a list, the number of the entry.

    Raises:
        DataError: no such file, or a file without a single record.
    """

    def __init__(
        self, path: str | Path, *, require_answer: bool = True, name: str | None = None
    ) -> None:
        self.path = Path(path)
        self.name = name or self.path.stem
        self.require_answer = require_answer
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        self._offsets, self._ends, self._rows = array("Q"), array("Q"), array("Q")
        if is_json_list(self.path):
            self._offsets, self._ends = list_entries(self.path)
            self._rows = array("Q", range(1, len(self._offsets) + 1))
        else:
            self._note_lines()
        if not self._rows:
            raise DataError(f"{self.path}: no records (the file is empty)")

    def _note_lines(self) -> None:
        with open(self.path, "rb") as file:
            offset = 0
            for row, line in enumerate(file, start=1):
                if line.strip(b" \t\r\n\xef\xbb\xbf"):
                    self._offsets.append(offset)
                    self._ends.append(offset + len(line))
                    self._rows.append(row)
                offset += len(line)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """Read and validate one record; raises DataError that starts with ``file:row``."""
        index = check_index(index, len(self), self.name)
        where = f"{self.path}:{self._rows[index]}"
        with open(self.path, "rb") as file:  # opened per read: safe in forked workers
            file.seek(self._offsets[index])
            line = file.read(self._ends[index] - self._offsets[index])
        try:
            obj = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 text: {error}") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON: {error}") from error
        record = validate_record(
            obj, where=where, base_dir=self.path.parent, require_answer=self.require_answer
        )
        return named(record, self.name)


class RenderSource:
    """Pages drawn on demand with known words: record ``i`` is ``render_page`` of a seed from ``i``.

    The page's own seed is ``seed * 1_000_003 + i``. ``task="qa"`` asks for one fact of the page,
    ``"transcribe"`` for its whole text line by line, ``"both"`` tosses a fair coin per record.
    """

    def __init__(
        self,
        spec: RenderSpec,
        size: int,
        seed: int = 0,
        task: Literal["qa", "transcribe", "both"] = "qa",
    ) -> None:
        if task not in ("qa", "transcribe", "both"):
            hint = nearest(task, ("qa", "transcribe", "both"))
            raise DataError(f"render: task {task!r} is not qa, transcribe or both{hint}")
        if size < 1:
            raise DataError(f"render: size must be at least 1, not {size}")
        self.spec, self.size, self.seed, self.task = spec, size, seed, task
        self.name = f"render-{spec.layout}"

    def __len__(self) -> int:
        return self.size

    def page(self, index: int) -> RenderedPage:
        """Draw the page of record ``index``."""
        from .synthetic.render import render_page

        return render_page(self.spec, self.seed * 1_000_003 + check_index(index, self.size, "page"))

    def __getitem__(self, index: int) -> Record:
        """Draw the page and write its question and answer."""
        index = check_index(index, self.size, self.name)
        page, random = self.page(index), draw(self.seed, index)
        task = ("qa", "transcribe")[random % 2] if self.task == "both" else self.task
        if task == "qa":
            if not page.facts:
                raise DataError(f"{self.name}: layout {page.layout!r} has no facts to ask for")
            fact = page.facts[random // 2 % len(page.facts)]
            turn = (fact.question, fact.answer)
        else:
            turn = (TRANSCRIBE_QUESTION, transcript(page.words))
        record_id = f"{self.name}/{self.seed}/{index}"
        return make_record(record_id, [page.image], [turn], source=self.name, words=[page.words])


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
