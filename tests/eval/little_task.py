"""A task in memory, for the tests of runner and answerers."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignvlm.eval.metrics import METRICS
from alignvlm.eval.tasks import Sample, Task
from alignvlm.inference.answerers import ModelAnswerer, Query, Reply

SIZES = ((40, 24), (56, 28), (28, 56), (9, 9))


class LittleTask(Task):
    """``size`` questions, two a page; pages differ in size and so in their number of tiles."""

    def __init__(self, size: int = 8, metrics: tuple[str, ...] = ("anls", "field_f1")) -> None:
        self.name, self.split, self.max_new_tokens, self.size = "little", "val", 3, size
        self.metrics = tuple(METRICS[name] for name in metrics)
        self.opened: list[int] = []

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int) -> Sample:
        question = f"What is number {index}?" + " Please." * (index % 3)
        answers = (f"answer {index}",) if index % 4 else ("the same", "alike")
        return Sample(f"s{index}", f"doc{index // 2}", question, question, answers)

    def pages(self, index: int) -> list[Image.Image]:
        self.opened.append(index)
        width, height = SIZES[index // 2 % 4]
        pixels = np.random.default_rng(index // 2).integers(0, 256, (height, width, 3), np.uint8)
        return [Image.fromarray(pixels)] * (1 + index % 2)

    def settings(self) -> dict[str, Any]:
        return {"made": "in memory"}


class Echo:
    """Answers right every other time; ``log`` gets the ids that were asked."""

    name = "echo"
    needs_pages = True

    def __init__(self, log: Path | None = None, **keys: Any) -> None:
        self.log, self.keys, self.asked = log, keys, 0

    def settings(self) -> dict[str, Any]:
        return {"answers": "every other", **self.keys}

    def answer(self, queries: list[Query]) -> list[Reply]:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write("".join(query.id + "\n" for query in queries))
        self.asked += len(queries)
        right = [f"answer {q.id[1:]}" if int(q.id[1:]) % 2 else "né 中" for q in queries]
        return [
            Reply(text, visual_tokens=4, new_tokens=len(text), details={"seen": len(q.pages)})
            for text, q in zip(right, queries, strict=True)
        ]


class Logged(ModelAnswerer):
    """A model that notes whom it answers in the file ``log``; killed after ``die`` samples."""

    def __init__(self, loaded: tuple[Any, Any], log: str | Path, die: int | None = None) -> None:
        super().__init__(*loaded, noise=0.5)
        self.log, self.die, self.asked = log, die, 0

    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        if self.die is not None and self.asked >= self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.log, "a") as file:
            file.write("".join(f"{query.id}\n" for query in queries))
        self.asked += len(queries)
        return super().answer(queries)
