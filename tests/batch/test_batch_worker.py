"""The worker of a batch: what one bad document costs, and what is done twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from alignvlm.batch import requests as batch_requests
from alignvlm.batch.parts import as_lines, part_name, read_parts
from alignvlm.batch.requests import Asking, list_units, load_unit
from alignvlm.batch.worker import Job, Worker
from alignvlm.errors import DataError
from alignvlm.inference.answerers import Query, Reply

SHORT = Asking(question="What is the total?", max_new_tokens=4, repetition_guard=False)
OUTSIDE = Path("/no/such/folder")


@pytest.fixture
def docs(tmp_path: Path, make_image: Callable[..., Image.Image]) -> Path:
    """Four good pages in three files, and a truncated picture."""
    folder = tmp_path / "docs"
    (folder / "more").mkdir(parents=True)
    pages = [make_image(seed=seed) for seed in range(4)]
    pages[0].save(folder / "a.png")
    pages[1].save(folder / "b.pdf", save_all=True, append_images=[pages[2]])
    pages[3].save(folder / "more" / "c.jpg")
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:200])
    return folder


class Echo:
    """Says the prompt; ``refuses`` are ids it cannot answer, in a batch or alone."""

    name, needs_pages = "echo", True

    def __init__(self, refuses: Sequence[str] = (), error: Exception | None = None) -> None:
        self.refuses, self.error, self.batches = refuses, error, []

    def settings(self) -> dict[str, Any]:
        return {}

    def answer(self, queries: list[Query]) -> list[Reply]:
        self.batches.append([query.id for query in queries])
        if any(query.id in self.refuses for query in queries):
            raise self.error or RuntimeError("too long\nfor this model")
        return [Reply(query.prompt) for query in queries]


def worker_for(docs: Path, out: Path, answerer: Any) -> tuple[Worker, list[str]]:
    out.mkdir(exist_ok=True)
    (out / "job.json").touch()
    units = [u for u in list_units(docs, SHORT, without=out) if u.error is None]
    return Worker(Job("unused", str(out), SHORT, Worker), answerer), [u.to_json() for u in units]


def test_a_page_that_the_model_cannot_take_costs_one_row(docs, tmp_path):
    echo = Echo(refuses=["b.pdf:2"])
    worker, texts = worker_for(docs, tmp_path / "out", echo)
    worker({"unit": texts})
    rows = {row["id"]: row for row in read_parts(tmp_path / "out").values()}
    assert len(rows) == 5
    assert rows["b.pdf:2"]["error"] == "RuntimeError: too long for this model"
    assert "truncated" in rows["bad.png"]["error"]
    assert all(rows[name]["answer"] == SHORT.question for name in ("a.png", "b.pdf:1"))


def test_a_prompt_that_is_too_long_costs_one_row(docs, tmp_path, tiny_model_dir):
    """Also in a batch with others."""
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    config["text_config"]["max_position_embeddings"] = 60
    (tmp_path / "model" / "config.json").write_text(json.dumps(config), "utf-8")
    asked = tmp_path / "asked.jsonl"
    rows = [{"id": "all", "image": "docs/b.pdf", "question": "1" * 40},
            {"id": "one", "image": "docs/a.png", "question": "Who?"}]  # fmt: skip
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    out = tmp_path / "out"
    out.mkdir()
    (out / "job.json").touch()
    worker = Worker(Job(str(tmp_path / "model"), str(out), SHORT, Worker))
    units = list_units(asked, SHORT, without=out)
    found = {row["id"]: row for row in worker.answer(units)}
    assert found["all"]["error"].startswith("all: the prompt has ")
    assert "the language model reads 60" in found["all"]["error"]
    assert "answer" in found["one"]


def test_more_pages_than_are_held_in_memory_are_refused(docs, monkeypatch):
    """Before any of that file is rendered."""
    pages = [unit for unit in list_units(docs, SHORT, without=OUTSIDE) if unit.file == "b.pdf"]
    whole = replace(pages[0], page=None, paths=2 * pages[0].paths)
    assert len(load_unit(whole, 36)) == 4
    monkeypatch.setattr(batch_requests, "MAX_PAGES", 3)
    with pytest.raises(DataError, match=r"b\.pdf: more than 3 pages are not asked about together"):
        load_unit(whole, 36)
    assert len(load_unit(replace(whole, page=2), 36)) == 2
    assert len(load_unit(pages[1], 36)) == 1


def test_a_lost_device_ends_the_process(docs, tmp_path):
    """Every later row would be an error."""
    worker, texts = worker_for(docs, tmp_path / "out", Echo(["a.png"], torch.AcceleratorError("x")))
    with pytest.raises(torch.AcceleratorError):
        worker({"unit": texts})
    assert not read_parts(tmp_path / "out")


def test_a_batch_that_is_done_is_not_done_again(docs, tmp_path):
    echo = Echo()
    worker, texts = worker_for(docs, tmp_path / "out", echo)
    assert worker({"unit": texts}) == worker({"unit": texts}) == {"rows": [5]}
    assert len(echo.batches) == 1


def test_a_document_that_kills_its_process_costs_one_row(docs, tmp_path):
    """The process ends without a word, as by a signal, wherever it meets one page."""

    class Killed(BaseException):
        pass

    class Deadly(Echo):
        def answer(self, queries: list[Query]) -> list[Reply]:
            if any(query.id == "b.pdf:1" for query in queries):
                raise Killed
            return super().answer(queries)

    deaths = 0
    for _ in range(10):
        worker, texts = worker_for(docs, tmp_path / "out", Deadly())
        try:
            worker({"unit": texts})
            break
        except Killed:
            deaths += 1
    rows = {row["id"]: row for row in read_parts(tmp_path / "out").values()}
    assert deaths == 3
    assert "the process ended 2 times" in rows["b.pdf:1"]["error"]
    assert {name for name, row in rows.items() if "answer" in row} == {
        "a.png", "b.pdf:2", "more/c.jpg",
    }  # fmt: skip


def test_a_machine_without_the_folder_says_so(tmp_path):
    with pytest.raises(DataError, match="not visible on this machine; use a shared file system"):
        Worker(Job("unused", str(tmp_path / "gone"), SHORT, Worker), Echo())


def test_a_part_is_named_by_what_it_answers(docs):
    units = list_units(docs, SHORT, without=OUTSIDE)
    assert part_name(units) == part_name(list_units(docs, SHORT, without=OUTSIDE))
    assert part_name(units) != part_name(units[1:])
    os.utime(docs / "a.png", (1, 1))
    assert part_name(units) != part_name(list_units(docs, SHORT, without=OUTSIDE))
    assert as_lines([{"a": "é"}]) == '{"a": "é"}\n'
