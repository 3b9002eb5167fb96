"""Tasks over benchmarks that lie in a local folder in their official layout.

DeepForm and KLC ask for fields that a document does not have as well: the DUE scorer (Borchmann et
al., 2021, due-benchmark/evaluator ``fscorer.py``) counts a value given for such a field as a false
positive, and no value as nothing. A sample for such a field has no ``answers``; the prompts say to
reply ``None``, which counts as no value. SROIE's receipts have all four fields (two of the 2,504
labels of its public part are empty; they are not asked for).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.benchmarks.benchmark import NO_VALUE, Benchmark
from ...data.benchmarks.klc import KLCSource
from ...data.benchmarks.tables import (
    ChartQASource,
    DeepFormSource,
    SROIESource,
    TabFactSource,
    WTQSource,
)
from ...documents.pictures import open_image
from ...errors import DataError
from .task import Sample, Task, announce, digest_files, metrics_named

CHARTQA_PROMPT = "{question}\nAnswer with a single word, number or short phrase."
"""ChartQA's labels are numbers (``67.72``), years, or the words of a legend."""
WTQ_PROMPT = "{question}\nAnswer with values only; separate several values with |."
"""The official evaluator compares lists of values, written ``a|b`` as in the official files."""
TABFACT_PROMPT = TabFactSource.prompt.replace("{}", "{question}")
"""Yes or no, in the words that training asks it in."""
SROIE_PROMPT = (
    "{question}\nCopy the value as the receipt prints it, an amount without its currency and an "
    "address in one line."
)
"""SROIE's labels are copies from the receipt (dates in any form, totals mostly without RM). No
prompt gives an example value: a small language model answers with the example."""
DEEPFORM_PROMPT = (
    "{question}\nCopy the value as the document prints it, a date as month/day/year, an amount "
    f"with its dollar sign. Answer {NO_VALUE} if it is not there."
)
"""DeepForm's labels are copies from the document, dates month first."""
KLC_PROMPT = "{question}\nAnswer with the value only. " + f"Answer {NO_VALUE} if it is not there."
"""KLC's labels are normalised; the questions for dates and amounts show the form."""

KLC_HUB_ID = "DeepRead/kleister-charity-dev0"
"""The official dev-0 split, PDFs included, on the Hugging Face hub (files, not parquet)."""


class BenchmarkTask(Task):
    """A benchmark source with a prompt and metrics.

    Opening it opens every table, picture and PDF once (pictures are not decoded), so that a damaged
    folder stops a run before a model is loaded.
    """

    def __init__(self, name: str, source: Benchmark, spec: LocalTask) -> None:
        source.check_files()
        self.name, self.split, self.source = name, source.split, source
        self.prompt, self.max_new_tokens = spec.prompt, spec.max_new_tokens
        self.metrics = metrics_named(*spec.metrics)
        self._last: tuple[str, list[Image.Image]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        row = self.source.row(index)
        prompt = self.prompt.format(question=row.question)
        return Sample(row.id, row.key, row.question, prompt, self.source.references(row))

    def pages(self, index: int) -> list[Image.Image]:
        row = self.source.row(index)
        # questions about one page follow each other: it is made once
        last = self._last
        if last is None or last[0] != row.key:
            made = [
                page if isinstance(page, Image.Image) else open_image(page)
                for page in self.source.images(index)
            ]
            last = self._last = (row.key, made)
        return [page.copy() for page in last[1]]

    def settings(self) -> dict[str, Any]:
        return {
            "data": str(self.source.root),
            "labels_sha256": digest_files(self.source.label_files),
            "prompt": self.prompt,
            "pages": self.source.settings(),
        }


@dataclass(frozen=True)
class LocalTask:
    """How to open a local benchmark as a task.

    ``split`` is the default. A folder is the benchmark's if it holds one of ``markers``, where
    ``{split}`` stands for any of the splits.
    """

    source: type[Benchmark]
    split: str
    markers: tuple[str, ...]
    prompt: str
    metrics: tuple[str, ...]
    max_new_tokens: int
    ask_empty: bool = False
    hub_id: str | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """All the benchmark has."""
        return self.source.splits

    def open(self, name: str, data: str | Path | None, split: str, **options: Any) -> Task:
        """Open the split; ``options`` go to the source (``max_pages``, ``dpi``, ``font_px``...).

        Raises:
            DataError: no such folder, or anything in it cannot be used.
        """
        root = find_folder(name, _download(name, self.hub_id) if data is None else data, self)
        try:
            asked = {"ask_empty": True} if self.ask_empty else {}
            source = self.source(root, split, **asked, **options)
        except TypeError as error:
            raise DataError(f"{name}: {error}".replace("__init__() got an ", "")) from error
        return BenchmarkTask(name, source, self)


def find_folder(name: str, data: str | Path, task: LocalTask) -> Path:
    """Return the benchmark's folder: ``data`` itself, or ``data/name`` if that is where it is.

    Raises:
        DataError: neither is it.
    """
    root = Path(data)
    if not root.is_dir():
        raise DataError(f"{name}: no such folder: {root}")
    for folder in (root, root / name):
        if any((folder / marker).exists() for marker in _marks(task, task.splits)):
            return folder
    marks = " or ".join(_marks(task, (task.split,)))
    raise DataError(f"{name}: neither {root} nor {root / name} has {marks}")


def _marks(task: LocalTask, splits: tuple[str, ...]) -> list[str]:
    return [marker.format(split=split) for marker in task.markers for split in splits]


def _download(name: str, hub_id: str | None) -> Path:
    """Fetch a data set's files from the hub, or from the cache when offline."""
    if hub_id is None:
        raise DataError(f"{name}: needs --data: the folder with the benchmark's official files")
    try:
        from huggingface_hub import snapshot_download

        announce(name, hub_id)
        return Path(snapshot_download(hub_id, repo_type="dataset"))
    except Exception as error:  # the hub raises every kind of error, each with a usable message
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{name}: {hub_id} cannot be read from the hub ({reason}); give a copy with --data"
        ) from error


LOCAL_TASKS: dict[str, LocalTask] = {
    "chartqa": LocalTask(
        ChartQASource, "val", ("{split}/png",), CHARTQA_PROMPT, ("relaxed_accuracy",), 32
    ),
    "wtq": LocalTask(WTQSource, "dev", ("csv",), WTQ_PROMPT, ("denotation_accuracy",), 96),
    "tabfact": LocalTask(
        TabFactSource, "val", ("tokenized_data",), TABFACT_PROMPT, ("tabfact_accuracy",), 8
    ),
    "sroie": LocalTask(
        SROIESource, "val", ("{split}/img",), SROIE_PROMPT, ("sroie_f1", "anls"), 96
    ),
    "deepform": LocalTask(
        DeepFormSource,
        "val",
        ("{split}/pdfs",),
        DEEPFORM_PROMPT,
        ("field_f1",),
        32,
        ask_empty=True,
    ),
    "klc": LocalTask(
        KLCSource,
        "dev",
        ("expected.tsv", "{split}", "dev-0", "validation", "test-A"),
        KLC_PROMPT,
        ("field_f1",),
        64,
        ask_empty=True,
        hub_id=KLC_HUB_ID,
    ),
}
"""Local tasks by name."""
