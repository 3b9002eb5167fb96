"""Fields of documents by workers: the rows that one process gives, whatever dies."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.cli.test_cli_extract import LINES, give_readings
from typer.testing import CliRunner

from alignvlm.batch import documents
from alignvlm.batch.documents import (
    Extracting,
    FieldsWorker,
    document_row,
    earlier_rows,
    extract_rows,
)
from alignvlm.batch.pool import Pool, answered
from alignvlm.batch.requests import Unit
from alignvlm.batch.worker import Job
from alignvlm.errors import ConfigError, DataError

ASKED = Extracting(["x:number", "y", "z:date"], {"day_first": None, "decimal": None})


class ReadingWorker(FieldsWorker):
    """In a process of its own, with pages that are given as read."""

    def __init__(self, job: Job) -> None:
        give_readings(pytest.MonkeyPatch())
        super().__init__(job)


def on_ray(units: Sequence[Unit], job: Job, pool: Pool) -> Iterator[int]:
    return answered(units, replace(job, worker=ReadingWorker), pool)


def in_process(
    units: Sequence[Unit], job: Job, pool: Pool, *, die_after: int | None = None
) -> Iterator[int]:
    worker = job.worker(job)  # type: ignore[call-arg]
    for number, unit in enumerate(units):
        if number == die_after:
            raise KeyboardInterrupt
        yield worker({"unit": [unit.to_json()]})["rows"][0]


@pytest.fixture
def files(tmp_path: Path, make_image: Callable[..., Image.Image]) -> list[str]:
    """Five documents; the third cannot be read, and on the fifth nothing stands."""
    for number, width in enumerate((56, 57, 56, 57, 59)):
        make_image(width, 28, number).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    assert LINES[59] == ""
    return [str(tmp_path / f"{number}.png") for number in range(5)]


@pytest.fixture
def here(monkeypatch, tiny_model_dir, files) -> list[dict[str, Any]]:
    """What one process gives."""
    give_readings(monkeypatch)
    extractor = ASKED.load(str(tiny_model_dir))
    return [document_row(extractor, ASKED.pages_of(file), file) for file in files]


def test_workers_give_the_rows_of_one_process(here, files, tiny_model_dir, tmp_path):
    rows = extract_rows(
        str(tiny_model_dir), files, tmp_path / "work", ASKED, Pool(), run=in_process
    )
    assert rows == here  # Decimals, dates and boxes too
    assert [("error" in row, "notes" in row) for row in rows] == [
        (False, False), (False, False), (True, False), (False, False), (False, True),
    ]  # fmt: skip


def test_what_dies_costs_what_was_not_written(here, files, tiny_model_dir, tmp_path):
    work, model = tmp_path / "work", str(tiny_model_dir)
    with pytest.raises(KeyboardInterrupt):
        extract_rows(model, files, work, ASKED, Pool(), run=partial(in_process, die_after=3))
    assert list(earlier_rows(files, work, ASKED).values()) == here[:3]
    asked: list[str] = []

    def counted(units: Sequence[Unit], job: Job, pool: Pool) -> Iterator[int]:
        asked.extend(unit.file for unit in units)
        return in_process(units, job, pool)

    assert extract_rows(model, files, work, ASKED, Pool(), run=counted) == here
    assert asked == files[3:]
    Path(files[0]).write_bytes(b"another")  # of the same name
    assert files[0] not in earlier_rows(files, work, ASKED)
    assert not earlier_rows(files, work, Extracting(["x"]))


def test_a_folder_in_use_is_refused(here, files, tiny_model_dir, tmp_path):
    from filelock import FileLock

    (tmp_path / "work").mkdir()
    with FileLock(tmp_path / "work" / ".lock"), pytest.raises(DataError, match="another run"):
        extract_rows(str(tiny_model_dir), files, tmp_path / "work", ASKED, Pool(), run=in_process)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """``extract``, whose workers are in this process."""
    import transformers
    import typer

    from alignvlm.cli.extraction import extract

    give_readings(monkeypatch)
    transformers.logging.disable_progress_bar()  # as app.py does
    app = typer.Typer()
    app.command()(extract)
    yield lambda *given: CliRunner().invoke(app, [str(one) for one in given])
    transformers.logging.enable_progress_bar()


def test_the_same_table_with_an_address(verb, files, tiny_model_dir, tmp_path, monkeypatch):
    """A killed run's rows are collected by the next one, on a cluster or here."""
    given = (tiny_model_dir, *files, "--fields", "x:number,y")
    one, two, three = (tmp_path / name for name in ("one.csv", "two.csv", "three.csv"))
    assert verb(*given, "--out", one).exit_code == 0
    workers = partial(extract_rows, run=in_process)
    monkeypatch.setattr(documents, "extract_rows", workers)
    done = verb(*given, "--out", two, "--address", "auto")
    assert done.stdout == f"{two}: 5 rows written (1 errors)\n"
    assert f"note: nothing was read on {files[4]} page 1" in done.stderr
    assert two.read_text("utf-8") == one.read_text("utf-8")
    assert not (tmp_path / "two.csv.workers").exists()
    killed = partial(extract_rows, run=partial(in_process, die_after=3))
    monkeypatch.setattr(documents, "extract_rows", killed)
    assert verb(*given, "--out", three, "--address", "auto").exit_code != 0
    assert (tmp_path / "three.csv.workers").is_dir()
    asked: list[str] = []
    real = documents.document_row
    monkeypatch.setattr(
        documents, "document_row", lambda e, p, name: (asked.append(name), real(e, p, name))[1]
    )
    assert verb(*given, "--out", three).exit_code == 0
    assert asked == files[3:]
    assert three.read_text("utf-8") == one.read_text("utf-8")
    with open(one, encoding="utf-8", newline="") as table:
        assert [row["x"] for row in csv.DictReader(table)] == ["136.94", "", "", "", ""]


def test_no_cluster_is_one_line(verb, files, tiny_model_dir, tmp_path):
    given = (tiny_model_dir, *files, "--fields", "x", "--out", tmp_path / "x.csv")
    done = verb(*given, "--address", "127.0.0.1:1")
    assert isinstance(done.exception, ConfigError), done
    assert "no Ray cluster at '127.0.0.1:1'" in str(done.exception)


def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's processes find the tests."""
    root = str(Path(__file__).parents[2])
    found = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
