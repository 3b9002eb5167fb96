"""Tasks over Hugging Face data sets, from a local copy or, if the user gives none, from the hub.

A local copy is a parquet file, a folder of them (``{split}-*.parquet``, perhaps below the
configuration's name or ``data``, as a snapshot of the hub has them), or a folder written by
``save_to_disk``. ``HF_HUB_OFFLINE`` keeps ``datasets`` to what it has in its cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...data.columns import formats
from ...data.hub.rows import is_saved
from ...documents.pictures import open_image
from ...errors import DataError, nearest
from ...processing.image_processor import MAX_PIXELS, to_rgb
from ..metrics import Metric
from .fintabnet import FINTABNET_ACCURACY
from .local_tasks import TABFACT_PROMPT, WTQ_PROMPT
from .task import Sample, Task, announce, metrics_named

SHORT_PROMPT = "{question}\nAnswer the question using a single word or phrase."
"""The prompt that lmms-eval gives models for DocVQA, InfographicVQA and TextVQA."""
FINTABNET_PROMPT = "{question}\nAnswer with a single value or a few words, with its unit if any."
"""FinTabNetQA's answers are amounts with units (``$3,852 million``, ``34.2%``) or few words."""

Answers = Callable[[Any], tuple[str, ...]]


def alternatives(value: Any) -> tuple[str, ...]:
    """Answers that are all right: a list, as it is but for empty ones."""
    values = [value] if isinstance(value, str) else list(value or ())
    return tuple(str(item) for item in values if str(item).strip())


def list_items(value: Any) -> tuple[str, ...]:
    """One list as WikiTableQuestions writes it: items between bars."""
    return tuple(item for item in str("" if value is None else value).split("|") if item.strip())


def yes_or_no(value: Any) -> tuple[str, ...]:
    """TabFact's labels 1 and 0 as the words that the prompt asks for."""
    answer = {"1": "yes", "0": "no", "true": "yes", "false": "no"}.get(str(value).strip().lower())
    return () if answer is None else (answer,)


@dataclass(frozen=True)
class HubSplit:
    """What a split asks and how it is scored."""

    prompt: str
    metrics: tuple[str | Metric, ...]
    max_new_tokens: int
    answers: Answers


@dataclass(frozen=True)
class HubTaskSpec:
    """A data set on the hub as a task; ``columns`` maps our names to the set's columns.

    ``hidden`` are splits whose answers are not public.
    """

    hub_id: str
    config: str | None
    split: str
    splits: dict[str, HubSplit]
    columns: dict[str, str]
    group_of: Callable[[str], str] = str
    hidden: tuple[str, ...] = ()

    def open(self, name: str, data: str | Path | None, split: str, **options: Any) -> Task:
        """Open the split.

        Raises:
            DataError: no such split, nothing there, columns missing, or a row that cannot be used.
        """
        if options:
            raise DataError(f"{name}: no option {next(iter(options))!r}: the pages are pictures")
        if split in self.hidden:
            raise DataError(
                f"{name}: the answers of split {split!r} are not public: use {self.split}"
            )
        if split not in self.splits:
            known = ", ".join(self.splits)
            raise DataError(f"{name}: no split {split!r}{nearest(split, self.splits)}; use {known}")
        return HubTask(name, self, split, data)


class HubTask(Task):
    """A split of a data set whose rows hold one picture, one question and its answers.

    Opening it reads every question and looks at the first bytes of every picture; pictures are
    decoded when they are asked for.
    """

    def __init__(
        self, name: str, spec: HubTaskSpec, split: str, data: str | Path | None = None
    ) -> None:
        self.name, self.split, self.spec = name, split, spec
        kind = spec.splits[split]
        self.prompt, self.max_new_tokens = kind.prompt, kind.max_new_tokens
        self.metrics = metrics_named(*kind.metrics)
        self.where = f"{spec.hub_id if data is None else data}[{split}]"
        self._data = open_rows(name, spec, split, data)
        self._check_columns()
        self._images = self._data.select_columns([spec.columns["image"]])
        self._samples = self._read(kind)

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        return self._samples[self._checked(index)]

    def pages(self, index: int) -> list[Image.Image]:
        index = self._checked(index)
        value = self._images[index][self.spec.columns["image"]]
        return [decode(value, f"{self.where}:{index}")]

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for sample in self._samples:
            row = [sample.id, sample.group, sample.question, sample.answers]
            digest.update(json.dumps(row).encode())
        return {
            "data": self.where,
            "labels_sha256": digest.hexdigest(),
            "prompt": self.prompt,
            "pages": {"hub_id": self.spec.hub_id, "config": self.spec.config},
        }

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: index {index} is outside 0-{len(self) - 1}")
        return index

    def _check_columns(self) -> None:
        present = self._data.column_names
        for role, column in self.spec.columns.items():
            if column not in present:
                has = ", ".join(present)
                raise DataError(f"{self.where}: no column {column!r} for {role}; it has {has}")
        if len(self._data) == 0:
            raise DataError(f"{self.where}: no rows")
        from datasets import Image as Pictures

        self._data = self._data.cast_column(self.spec.columns["image"], Pictures(decode=False))

    def _read(self, kind: HubSplit) -> list[Sample]:
        """Every row as a sample; each is checked, its picture as far as the first bytes go."""
        columns = self.spec.columns
        samples, seen = [], {}
        for number, row in enumerate(self._data):
            where = f"{self.where}:{number}"
            question, row_id = row[columns["question"]], str(row[columns["id"]])
            if not isinstance(question, str) or not question.strip():
                raise DataError(f"{where}: empty question")
            if row_id in seen:
                raise DataError(f"{where}: id {row_id!r} is already on row {seen[row_id]}")
            seen[row_id] = number
            answers = kind.answers(row[columns["answers"]])
            if not answers:
                found = f"got {row[columns['answers']]!r:.40}"
                raise DataError(f"{where}: no answer in column {columns['answers']!r}, {found}")
            decode(row[columns["image"]], where, only_header=True)
            group = self.spec.group_of(str(row[columns["group"]]))
            prompt = kind.prompt.format(question=question)
            samples.append(Sample(row_id, group, question, prompt, answers))
        return samples


def open_rows(name: str, spec: HubTaskSpec, split: str, data: str | Path | None) -> Any:
    """Open one split as a ``datasets.Dataset``.

    Raises:
        DataError: the package is missing, or there is no such split at ``data`` or on the hub.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name}: needs the datasets package: pip install datasets") from error
    where = spec.hub_id if data is None else str(data)
    try:
        if data is None:
            announce(name, f"{spec.hub_id} ({spec.config or 'default'}, {split})")
            return datasets.load_dataset(spec.hub_id, spec.config, split=split)
        saved = next(filter(is_saved, (Path(data), Path(data) / name)), None)
        if saved is not None:
            found = datasets.load_from_disk(str(saved))
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise DataError(f"{saved}: no split {split!r}; it has {', '.join(found)}")
                found = found[split]
            return found
        files = [str(path) for path in parquet_files(name, spec, split, Path(data))]
        return datasets.load_dataset("parquet", data_files={split: files}, split=split)
    except DataError:
        raise
    except Exception as error:  # datasets raises every kind of error, each with a usable message
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{name}: cannot read {where} [{split}]: {reason}") from error


def parquet_files(name: str, spec: HubTaskSpec, split: str, root: Path) -> list[Path]:
    """Find a split's parquet files below a folder (or take the file itself).

    Raises:
        DataError: there are none; the message says where it looked.
    """
    if root.is_file():
        if root.suffix != ".parquet":
            raise DataError(f"{name}: cannot read {root}: give a .parquet file or a folder of them")
        return [root]
    if not root.is_dir():
        raise DataError(f"{name}: no such file or folder: {root}")
    bases = [root, root / name]
    folders = [base / sub for base in bases for sub in (spec.config, "data", ".") if sub]
    for folder in folders:
        found = sorted([*folder.glob(f"{split}-*.parquet"), *folder.glob(f"{split}.parquet")])
        if found:
            return found
    present = sorted({path.name.split("-")[0] for path in root.rglob("*.parquet")})
    has = f"; there is {', '.join(present)}" if present else " nor a saved data set"
    raise DataError(f"{name}: no {split}-*.parquet in {root}{has}")


def decode(value: Any, where: str, *, only_header: bool = False) -> Image.Image:
    """Turn ``{"bytes", "path"}`` into an RGB image, or look only at how its bytes start.

    Raises:
        DataError: no picture, or one that cannot be decoded or has too many pixels.
    """
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None and isinstance(value, dict) and value.get("path"):
        try:
            return open_image(value["path"])
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    if not data:
        raise DataError(f"{where}: no image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the size is checked here
        try:
            image = Image.open(io.BytesIO(data), formats=formats())
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"{where}: {width} x {height} pixels is over {MAX_PIXELS} pixels")
            if only_header:
                return image
            image.load()
            return to_rgb(image)
        except DataError:
            raise
        except Exception as error:  # decoders raise every kind of error on damaged bytes
            raise DataError(f"{where}: the image cannot be decoded: {error}") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_VQA = HubSplit(SHORT_PROMPT, ("anls",), 32, alternatives)
_TEXTVQA = HubSplit(SHORT_PROMPT, ("textvqa_accuracy",), 32, alternatives)
_VWTQ = HubSplit(WTQ_PROMPT, ("denotation_accuracy",), 96, list_items)
_COLUMNS = {"image": "image", "question": "question", "answers": "answers"}
_TABLE = {"id": "qa_id", "image": "image", "question": "question", "answers": "gt"}

HUB_TASKS: dict[str, HubTaskSpec] = {
    "docvqa": HubTaskSpec(
        "lmms-lab/DocVQA",
        "DocVQA",
        "validation",
        {"validation": _VQA, "train": _VQA},
        {"id": "questionId", "group": "ucsf_document_id", **_COLUMNS},
        hidden=("test",),
    ),
    "infovqa": HubTaskSpec(
        "lmms-lab/DocVQA",
        "InfographicVQA",
        "validation",
        {"validation": _VQA, "train": _VQA},
        {"id": "questionId", "group": "image_url", **_COLUMNS},
        hidden=("test",),
    ),
    "textvqa": HubTaskSpec(
        "lmms-lab/textvqa",
        None,
        "validation",
        {"validation": _TEXTVQA, "train": _TEXTVQA},
        {"id": "question_id", "group": "image_id", **_COLUMNS},
        hidden=("test",),
    ),
    "tablevqa": HubTaskSpec(
        "terryoo/TableVQA-Bench",
        None,
        "vwtq",
        {
            "vwtq": _VWTQ,
            "vwtq_syn": _VWTQ,
            "vtabfact": HubSplit(TABFACT_PROMPT, ("tabfact_accuracy",), 8, yes_or_no),
            "fintabnetqa": HubSplit(FINTABNET_PROMPT, (FINTABNET_ACCURACY,), 32, alternatives),
        },
        {**_TABLE, "group": "text_html_table"},
        group_of=_digest,
    ),
}
"""Tasks over hub data sets by name.

TableVQA-Bench's own average weighs its four splits by their sizes (750, 250, 250, 250).
"""
