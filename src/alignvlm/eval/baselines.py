"""The floors: the most frequent answer, and an answer drawn by chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.benchmarks.benchmark import ANSWER_SEPARATOR, NO_VALUE
from ..errors import DataError
from ..inference.answerers import Query, Reply
from ..inference.noise import sample_seed
from .tasks import Task, load_task

MIN_ASKED = 10
"""A prompt asked less often has no answers of its own: where a split's questions are all different
they would be the very answers that are looked for."""


@dataclass(frozen=True)
class KnownAnswers:
    """Answers that a floor may give.

    Attributes:
        by_prompt: answers to this very prompt, if a split asks it again and again, as for a form's
            fields.
        overall: all answers, for every other prompt.
        origin: where they come from, ``"sroie train"``.
    """

    by_prompt: dict[str, list[str]]
    overall: list[str]
    origin: str

    @classmethod
    def of(cls, task: Task) -> KnownAnswers:
        """All answers of a split; of alternatives the first, of a list all items."""
        by_prompt: dict[str, list[str]] = {}
        overall = []
        for index in range(len(task)):
            sample = task.sample(index)
            text = answer_text(task, sample.answers)
            by_prompt.setdefault(sample.prompt, []).append(text)
            overall.append(text)
        often = {prompt: own for prompt, own in by_prompt.items() if len(own) >= MIN_ASKED}
        return cls(often, overall, f"{task.name} {task.split}")

    def to(self, prompt: str) -> list[str]:
        """The answers to choose from for a prompt."""
        return self.by_prompt.get(prompt, self.overall)


def answer_text(task: Task, answers: Sequence[str]) -> str:
    """How a sample is answered right: the first alternative, all items of a list, or that there is
    no such value."""
    if not answers:
        return NO_VALUE
    listed = task.metrics[0].name == "denotation_accuracy"
    return ANSWER_SEPARATOR.join(answers) if listed else answers[0]


def training_task(task: Task, data: str | Path | None) -> Task:
    """The task's train split, or the task itself where there is none.

    Args:
        data: the benchmark's folder; ``None``: from the hub, whose train split is not fetched for
            this.
    """
    if data is not None and task.split != "train":
        with suppress(DataError):
            return load_task(task.name, data, "train")
    return task


class MajorityAnswerer:
    """The most frequent answer to the same prompt, or overall; of equals the first met."""

    name = "majority"
    needs_pages = False

    def __init__(self, known: KnownAnswers) -> None:
        self.known = known
        self._best = {p: _most_frequent(answers) for p, answers in known.by_prompt.items()}
        self._overall = _most_frequent(known.overall)

    def settings(self) -> dict[str, Any]:
        return {"answers_from": self.known.origin}

    def answer(self, queries: list[Query]) -> list[Reply]:
        return [Reply(self._best.get(query.prompt, self._overall)) for query in queries]


def _most_frequent(answers: Sequence[str]) -> str:
    return Counter(answers).most_common(1)[0][0]


class RandomAnswerer:
    """An answer drawn from those to the same prompt, or from all; seeded by the sample's id."""

    name = "random"
    needs_pages = False

    def __init__(self, known: KnownAnswers, *, seed: int = 0) -> None:
        self.known, self.seed = known, seed

    def settings(self) -> dict[str, Any]:
        return {"answers_from": self.known.origin, "seed": self.seed}

    def answer(self, queries: list[Query]) -> list[Reply]:
        return [Reply(self._draw(query)) for query in queries]

    def _draw(self, query: Query) -> str:
        answers = self.known.to(query.prompt)
        rng = np.random.default_rng(sample_seed(self.seed, query.id))
        return answers[int(rng.integers(len(answers)))]
