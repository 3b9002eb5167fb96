"""Bars on a terminal's standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Told = Callable[[int, int], None]
"""Called with the lines read and their number."""


@contextmanager
def lines_bar(watch: Callable[[Told | None], None], text: str = "reading") -> Iterator[None]:
    """A bar of the lines that a reader reads meanwhile, if a person is looking.

    Args:
        watch: takes what is to be told of progress, and ``None`` at the end.
        text: stands before the bar.
    """
    from tqdm import tqdm

    if not sys.stderr.isatty():
        yield
        return
    with tqdm(desc=text, unit="line", file=sys.stderr, leave=False) as bar:

        def show(done: int, lines: int) -> None:
            bar.total, bar.n = lines, done
            bar.refresh()

        watch(show)
        try:
            yield
        finally:
            watch(None)
