"""What is being done, on a terminal: one line on standard error for all that takes longer."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import get_terminal_size
from threading import Event, Thread
from typing import Any

from .progress import lines_bar

AFTER, EVERY = 2.0, 0.5
"""Seconds: what is done sooner needs no line, and how often it is written."""
CLEAR = "\r\x1b[K"
"""Takes the line away on a terminal."""


class Doing:
    """Within, a terminal's standard error says what is done and for how many seconds.

    Example:
        >>> with Doing("loading smol") as doing:
        ...     doing.say("reading a.png")
    """

    def __init__(self, what: str) -> None:
        self._what, self._since, self._ended = what, time.monotonic(), Event()
        self._thread = Thread(target=self._show, daemon=True)

    def __enter__(self) -> Doing:
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def say(self, what: str) -> None:
        """What is done from now on."""
        self._what, self._since = what, time.monotonic()

    def end(self) -> None:
        """Take the line away; it stays away."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _show(self) -> None:
        begun, shown = time.monotonic(), ""
        while not self._ended.wait(EVERY):
            now = time.monotonic()
            if now - begun >= AFTER:
                time_taken = f": {now - self._since:.0f} s"
                room = max(get_terminal_size().columns - len(time_taken) - 1, 0)
                shown = f"{CLEAR}{self._what[:room]}{time_taken}"
                print(shown, end="", file=sys.stderr, flush=True)
        if shown:
            print(CLEAR, end="", file=sys.stderr, flush=True)


def load(reference: str) -> Any:
    """A model and its processor, as :func:`alignvlm.inference.loading.load_model`."""
    with Doing(f"loading {reference}"):
        from ..inference.loading import load_model

        return load_model(reference)


@contextmanager
def reading(model: Any) -> Iterator[None]:
    """Within, a terminal shows how many lines of a page are read; or that it reads, where an
    encoder knows no lines."""
    vision = model.model.vision_model
    bar = (
        lines_bar(lambda told: setattr(vision, "progress", told))
        if hasattr(vision, "progress")
        else Doing("reading")
    )
    with bar:
        yield
