"""The worker of a batch: one model that answers units and writes their rows itself."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError
from ..inference.answerers import Answerer, ModelAnswerer, Query
from ..inference.ask import load_model
from .parts import Row, answer_row, as_lines, error_row, part_name, said, write_whole
from .requests import Unit, load_unit

DEATHS = 2
"""A document during which so many processes ended, while it was asked alone, is not tried again."""


@dataclass(frozen=True)
class Job:
    """What workers do; it is sent to them.

    Attributes:
        model: folder or hub id, as every machine can resolve it.
        out: the batch's folder, as every machine sees it.
        asking: how units are asked, as the worker wants to know it.
        worker: what answers them, made with the job alone.
        unit: what one of them is called.
    """

    model: str
    out: str
    asking: Any
    worker: type[RowWriter]
    unit: str = "page"


class RowWriter(ABC):
    """Works on batches of units; what it returns is only a count, the rows are on disk by then.

    Args:
        out: the batch's folder.

    Raises:
        DataError: this machine does not see the folder.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        if not (self.out / "job.json").is_file():
            raise DataError(f"{self.out} is not visible on this machine; use a shared file system")

    @abstractmethod
    def answer(self, units: Sequence[Unit]) -> list[Row]:
        """A row for each unit; one bad document costs its own row and nothing else."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Answer the units in the column ``unit`` (JSON); returns how many rows were written.

        Asked again after a process or a machine was lost, it keeps what is on disk. A batch that
        was begun before is asked unit by unit, so that a document that ends the process costs
        itself alone.
        """
        units = [Unit.from_json(str(text)) for text in batch["unit"]]
        part = self._part(units)
        if not part.exists():
            if len(units) > 1 and self._begin(part.stem) == 1:
                write_whole(part, as_lines(self.answer(units)))
            else:
                for unit in units:
                    self._alone(unit)
        return {"rows": [len(units)]}

    def work(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """The same, by a name that an actor can be asked for."""
        return self(batch)

    def _part(self, units: Sequence[Unit]) -> Path:
        return self.out / "parts" / part_name(units)

    def _begin(self, name: str) -> int:
        """Count a beginning; returns how many there were, this one included."""
        path = self.out / "begun" / name
        path.parent.mkdir(exist_ok=True)
        with open(path, "a") as file:
            file.write("x")
            return file.tell()

    def _alone(self, unit: Unit) -> None:
        part = self._part([unit])
        if part.exists():
            return
        if self._begin(part.stem) > DEATHS:
            why = f"the process ended {DEATHS} times while it read this document"
            rows = [error_row(unit, why)]
        else:
            rows = self.answer([unit])
        write_whole(part, as_lines(rows))


class Worker(RowWriter):
    """Answers one question about each unit.

    Args:
        job: of an :class:`~.requests.Asking`.
        answerer: default: the job's model.

    Raises:
        DataError: this machine does not see the batch's folder.
        WeightsError: this machine cannot load the model.
    """

    def __init__(self, job: Job, answerer: Answerer | None = None) -> None:
        super().__init__(job.out)
        self.asking = job.asking
        self.pdf_pixels = None
        if answerer is None:
            model, processor = load_model(job.model)
            guard = job.asking.repetition_guard
            answerer = ModelAnswerer(model, processor, repetition_guard=guard, check_context=True)
            self.pdf_pixels = processor.image_processor.useful_pixels()
        self.answerer = answerer

    def answer(self, units: Sequence[Unit]) -> list[Row]:
        rows: dict[str, Row] = {}
        asked: list[tuple[Unit, Query, float]] = []
        for unit in units:
            start = time.perf_counter()
            try:
                pages = load_unit(unit, self.asking.dpi, self.pdf_pixels)
            except Exception as error:  # decoders raise every kind of error on damaged bytes
                rows[unit.id] = error_row(unit, said(error), load_ms=_ms(start))
                continue
            query = Query(unit.id, pages, unit.question, self.asking.max_new_tokens)
            asked.append((unit, query, _ms(start)))
        for row in self._ask(asked):
            rows[row["id"]] = row
        return [rows[unit.id] for unit in units]

    def _ask(self, asked: Sequence[tuple[Unit, Query, float]]) -> list[Row]:
        if not asked:
            return []
        start = time.perf_counter()
        try:
            replies = self.answerer.answer([query for _, query, _ in asked])
        except torch.AcceleratorError:
            raise  # the device is lost to this process; another one goes on
        except Exception as error:
            if len(asked) == 1:
                unit, _, load_ms = asked[0]
                return [error_row(unit, said(error), load_ms=load_ms, answer_ms=_ms(start))]
            replies = None
        if replies is None:  # outside the handler, which would hold the failed batch's memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return [row for one in asked for row in self._ask([one])]
        shared = {"answer_ms": _ms(start), "batch": len(asked)}
        return [
            answer_row(
                unit,
                reply.text,
                visual_tokens=reply.visual_tokens,
                kept_visual_tokens=reply.kept_visual_tokens,
                new_tokens=reply.new_tokens,
                load_ms=load_ms,
                **shared,
            )
            for (unit, _, load_ms), reply in zip(asked, replies, strict=True)
        ]


def _ms(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 1)
