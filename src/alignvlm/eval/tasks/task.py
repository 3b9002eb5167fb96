"""What a task is: numbered samples, their pages, and the metrics that score the replies."""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics import METRICS, Metric

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Sample:
    """One question of a task; no page is opened to make it.

    Attributes:
        id: unique within the task and split, and the same on every day.
        group: the page, table or document it asks about; samples of a group are not independent.
        question: the benchmark's own question or statement.
        prompt: what a model is asked: the question and the form of the answer.
        answers: what the task's metrics compare with (alternatives, or the items of one list);
            empty where the right reply is that the document has no such value.
    """

    id: str
    group: str
    question: str
    prompt: str
    answers: tuple[str, ...]


class Task(ABC):
    """A split of a benchmark with prompts and metrics (docs/adr/0005-evaluation.md).

    ``sample(i)`` and ``pages(i)`` depend on the data and ``i`` alone, never on what was asked
    before. The first of ``metrics`` is the task's score.
    """

    name: str
    split: str
    metrics: tuple[Metric, ...]
    max_new_tokens: int

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """Return sample ``index``; raises IndexError past the end."""

    @abstractmethod
    def pages(self, index: int) -> list[Image.Image]:
        """Load or render the RGB pages of sample ``index``; the caller may change them."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return everything that made prompts and pages, as JSON can hold it."""


def metrics_named(*metrics: str | Metric) -> tuple[Metric, ...]:
    """Return metrics, those given by name from the registry."""
    return tuple(METRICS[metric] if isinstance(metric, str) else metric for metric in metrics)


def announce(name: str, hub_id: str) -> None:
    """Say on stderr which data set is about to be read from the hub."""
    print(f"{name}: reading {hub_id} from the Hugging Face hub (no --data)", file=sys.stderr)


def digest_files(paths: Iterable[Path]) -> str:
    """SHA-256 of files one after the other, each with its name and length."""
    digest = hashlib.sha256()
    for path in paths:
        data = path.read_bytes()
        digest.update(f"{path.name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()
