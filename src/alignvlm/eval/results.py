"""The result file: one JSON object a task, and the file that grows while it is made."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import __version__ as pillow_version

from .. import __version__
from ..errors import DataError
from ..files import replacing

FORMAT = 1
"""Of result and partial files; a reader refuses others."""


@dataclass(frozen=True)
class Result:
    """What an evaluation gave.

    Attributes:
        score: of the task's first metric, 0 to 1.
        interval: its 95 % bootstrap interval over groups.
        metrics: name to ``{"score", "interval"}``.
        predictions: a dict a sample: id, group, prompt, answers, prediction, verdict (a dict for
            each metric), token counts and the answerer's details.
        settings: everything that decides the numbers; two runs with equal settings agree.
        environment: versions and hardware.
        timing: seconds in all and a sample, loading of pages included.
        found: read from a file, nothing was computed; not in the file.
    """

    score: float
    interval: tuple[float, float]
    metrics: dict[str, dict[str, Any]]
    predictions: list[dict[str, Any]]
    settings: dict[str, Any]
    environment: dict[str, Any]
    timing: dict[str, Any]
    found: bool = field(default=False, compare=False)

    @property
    def task(self) -> dict[str, Any]:
        """The task's part of the settings: name, split, metrics, samples, ..."""
        return self.settings["task"]

    @property
    def answerer(self) -> dict[str, Any]:
        """The answerer's part of the settings: its name and its own settings."""
        return self.settings["answerer"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {"format": FORMAT, **asdict(self), "interval": list(self.interval)}
        del data["found"]
        return data


def write_result(result: Result, out: Path) -> None:
    """Write the file beside its place, then rename it: there is never half a result.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    text = json.dumps(result.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_result(path: str | Path) -> Result:
    """Read a result file.

    Raises:
        DataError: missing, not JSON, or not a result file of this format.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not a result of alignvlm eval: {error}") from None
    names = [own.name for own in fields(Result) if own.name != "found"]
    if not isinstance(data, dict) or not set(names) <= set(data):
        raise DataError(f"{path}: not a result of alignvlm eval")
    if data.get("format") != FORMAT:
        raise DataError(f"{path}: format {data.get('format')!r}, this version reads {FORMAT}")
    known = {name: data[name] for name in names}
    return Result(**{**known, "interval": tuple(known["interval"])})


class Partial:
    """Replies as they come, one JSON line each, so that a killed run goes on where it was.

    The first line holds the settings. A batch is one write, synced to the disk; what a kill tears
    is its last lines, and those are dropped.

    Args:
        path: of the file.
        settings: of this run; a file of other settings is not continued.
        batch_size: whole batches only are continued, since a batch is computed as one.
        ids: of all samples in order.

    Raises:
        DataError: the file is from other settings, or damaged in the middle.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], batch_size: int, ids: Sequence[str]
    ) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        header = (_line({"format": FORMAT, "settings": settings})).encode()
        lines = _whole_lines(path)
        if not lines:
            with path.open("wb") as file:
                file.write(header)
        else:
            self._check_header(lines[0], settings)
            rows = [self._row(number, line) for number, line in enumerate(lines[1:], start=2)]
            for number, (row, name) in enumerate(zip(rows, ids, strict=False), start=2):
                if row.get("id") != name:
                    raise self._damaged(number, f"sample {row.get('id')!r}, expected {name!r}")
            done = len(rows) if len(rows) >= len(ids) else len(rows) // batch_size * batch_size
            self.rows = rows[: min(done, len(ids))]
            size = sum(len(line) + 1 for line in lines[: 1 + len(self.rows)])
            os.truncate(path, size)
        self.file = path.open("ab", buffering=0)

    def _check_header(self, line: bytes, settings: dict[str, Any]) -> None:
        try:
            old = json.loads(line)["settings"]
        except (ValueError, KeyError, TypeError):
            raise self._damaged(1, "no settings") from None
        if differing := differences(old, json.loads(json.dumps(settings))):
            key, was, now = differing[0]
            raise DataError(
                f"{self.path}: begun with {key} = {_short(was)}, now {_short(now)}; use the same "
                "settings to go on, or --overwrite to begin again"
            )

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise self._damaged(number, str(error)) from None
        if not isinstance(row, dict) or not isinstance(row.get("prediction"), str):
            raise self._damaged(number, "no prediction")
        return row

    def _damaged(self, number: int, reason: str) -> DataError:
        return DataError(f"{self.path}:{number}: damaged ({reason}); --overwrite begins again")

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add a batch; it is on the disk when this returns.

        Raises:
            OSError: the disk is full; the batch's torn lines are dropped by the next run.
        """
        data = memoryview("".join(map(_line, rows)).encode())
        while data:
            data = data[self.file.write(data) :]
        os.fsync(self.file.fileno())
        self.rows += rows

    def close(self) -> None:
        """Leave the file for another run."""
        self.file.close()


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"


def _whole_lines(path: Path) -> list[bytes]:
    """Lines that end in a newline; a torn last one is left out."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Keys (``a.b``) in which two nested settings differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        found = []
        for key in keys:
            name = f"{path}.{key}" if path else str(key)
            found += differences(old.get(key), new.get(key), name)
        return found
    return [] if old == new else [(path, old, new)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def environment() -> dict[str, Any]:
    """Versions, git commit and hardware."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "alignvlm": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "pillow": pillow_version,
        "platform": platform.platform(),
        "hardware": gpus or [_processor()],
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout this package runs from, with a ``+`` if files were changed."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip

    try:
        # installed into an environment inside someone's checkout, its commit is not ours
        git("ls-files", "--error-unmatch", "../__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "..") else "")
    except (OSError, subprocess.SubprocessError):
        return None
