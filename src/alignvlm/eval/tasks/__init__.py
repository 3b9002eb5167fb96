"""Evaluation tasks: what is asked about which pages, and how the replies are scored.

Another one is an entry of :mod:`.hub_tasks`, or of :mod:`.local_tasks` where it is read from the
files that its authors publish; metrics are in :mod:`alignvlm.eval.metrics`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import DataError, nearest
from .hub_tasks import HUB_TASKS, HubTaskSpec
from .local_tasks import LOCAL_TASKS, LocalTask
from .task import Sample, Task
from .vcr import VCR, VCRSpec

__all__ = ["TASKS", "Sample", "Task", "load_task"]

TASKS: dict[str, LocalTask | HubTaskSpec | VCRSpec] = {**LOCAL_TASKS, **HUB_TASKS, "vcr": VCR}
"""Every task by name; ``TASKS[name].split`` is its default split, ``.splits`` all of them."""


def load_task(
    name: str, data: str | Path | None = None, split: str | None = None, **options: Any
) -> Task:
    """Open a split of a benchmark and check it, before any model is loaded.

    Args:
        name: a key of :data:`TASKS`.
        data: the benchmark's folder or the folder that holds it (``data/name``); for hub data sets
            a local copy, or ``None`` to read the hub; for ``vcr`` a plain text file.
        split: ``None`` is the task's default.
        options: how pages are made: ``max_pages`` and ``dpi`` of PDFs, options of
            :func:`alignvlm.data.synthetic.render.render_table`, fields of
            :class:`alignvlm.data.synthetic.covered.VCRStyle`. They are part of ``task.settings()``.

    Raises:
        DataError: unknown task, split or option, or data that cannot be used, with file and row.
    """
    if name not in TASKS:
        raise DataError(f"no task {name!r}{nearest(name, TASKS)}; there are {', '.join(TASKS)}")
    task = TASKS[name]
    return task.open(name, data, split or task.split, **options)
