"""The functions that the task files name.

lmms-eval gets a task's documents from ``datasets.load_dataset`` and nothing else, and a task file
cannot hold a folder that is only known when it is run. So every task file loads ``stub.json``, a
data set of one row, and replaces it in ``process_docs`` by the task that
:func:`alignvlm.eval.tasks.load_task` reads from the folder ``$ALIGNVLM_DATA``. Pages are loaded
when they are asked for, prompts and metrics are the task's own. The names of the metrics and the
length of an answer stand in the task files too, since lmms-eval wants them there.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from ...errors import AlignVLMError
from ..metrics import METRICS
from ..tasks import TASKS, Task, load_task

DATA = "ALIGNVLM_DATA"
"""Environment variable: the folder that ``load_task`` reads."""
SPLIT = "ALIGNVLM_SPLIT"
"""Environment variable: which split; default: the task's own."""


@functools.cache
def task_of(name: str, data: str | None, split: str) -> Task:
    """The task, read once a process."""
    return load_task(name, data, split)


def documents(name: str, stub: Any = None) -> Any:
    """All samples of the task ``name`` as a ``datasets.Dataset``; pages stay where they are.

    Exits with one line if the data cannot be used: lmms-eval tries five times to load a task, and
    would then report its own error only.
    """
    import datasets

    data, split = os.environ.get(DATA), os.environ.get(SPLIT) or TASKS[name].split
    try:
        task = task_of(name, data, split)
        samples = [task.sample(index) for index in range(len(task))]
    except AlignVLMError as error:
        sys.exit(f"{error} (the folder is ${DATA})")
    rows = [
        {
            "task": name,
            "data": data,
            "split": split,
            "index": index,
            "id": sample.id,
            "group": sample.group,
            "question": sample.question,
            "prompt": sample.prompt,
            "answers": list(sample.answers),
        }
        for index, sample in enumerate(samples)
    ]
    return datasets.Dataset.from_list(rows)


wtq = functools.partial(documents, "wtq")
tabfact = functools.partial(documents, "tabfact")
deepform = functools.partial(documents, "deepform")
sroie = functools.partial(documents, "sroie")
klc = functools.partial(documents, "klc")


def pages(doc: dict[str, Any]) -> list[Any]:
    """``doc_to_visual``: the page images, rendered or read now."""
    return task_of(doc["task"], doc["data"], doc["split"]).pages(doc["index"])


def prompt(doc: dict[str, Any]) -> str:
    """``doc_to_text``."""
    return doc["prompt"]


def answers(doc: dict[str, Any]) -> str:
    """``doc_to_target``: for the log only."""
    return " | ".join(doc["answers"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, dict[str, Any]]:
    """Every metric's verdict on one prediction, by the metric's name.

    ``score`` in a verdict and ``group`` are where lmms-eval looks (``score_key``, ``cluster_key``)
    for standard errors over documents.
    """
    task = task_of(doc["task"], doc["data"], doc["split"])
    prediction, wanted = results[0], tuple(doc["answers"])
    return {
        metric.name: {
            "metric": metric.name,
            "group": doc["group"],
            **metric.verdict(prediction, wanted),
        }
        for metric in task.metrics
    }


def aggregate(items: list[dict[str, Any]]) -> float:
    """A metric's score from what :func:`process_results` said of all samples."""
    metric, names = METRICS[items[0]["metric"]], ("metric", "group")
    return metric.aggregate([{k: v for k, v in item.items() if k not in names} for item in items])
