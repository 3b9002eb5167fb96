"""A batch without a cluster: what is asked, what is written, what a rerun does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, TiffImagePlugin

from alignvlm.batch import worker as batch_worker
from alignvlm.batch.driver import BatchSummary, batch
from alignvlm.batch.pool import Pool
from alignvlm.batch.requests import Asking, Unit, list_units
from alignvlm.batch.worker import Job, Worker
from alignvlm.errors import ConfigError, DataError, WeightsError
from alignvlm.inference.ask import ask, load_model

SHORT = Asking(question="What is the total?", max_new_tokens=4, repetition_guard=False)
OUTSIDE = Path("/no/such/folder")
SUBFILE_TYPE = 254
"""TIFF's tag that is 1 for a smaller copy of another frame."""
# a PDF without a page tree that says so in its trailer: PDFium finds that it wants a password
ENCRYPTED = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n" + (
    b"2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n"
    b"3 0 obj<</Filter/Standard/V 1/R 2/O<"
    + b"41" * 32
    + b">/U<"
    + b"42" * 32
    + b">/P -4>>endobj\n"
    b"trailer<</Root 1 0 R/Encrypt 3 0 R/ID[<41><41>]/Size 4>>\n%%EOF"
)


@pytest.fixture
def docs(tmp_path: Path, make_image: Callable[..., Image.Image]) -> Path:
    """Four good pages in three files, and three bad documents."""
    folder = tmp_path / "docs"
    (folder / "more").mkdir(parents=True)
    pages = [make_image(seed=seed) for seed in range(4)]
    pages[0].save(folder / "a.png")
    pages[1].save(folder / "b.pdf", save_all=True, append_images=[pages[2]])
    pages[3].save(folder / "more" / "c.jpg")
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "corrupt.pdf").write_bytes(b"%PDF-1.4 and nothing else")
    (folder / "locked.pdf").write_bytes(ENCRYPTED)
    (folder / "notes.txt").write_text("not a document")
    return folder


def here(units: Sequence[Unit], job: Job, pool: Pool) -> Iterator[int]:
    """The real worker with the real model, in this process."""
    worker = Worker(job)
    for start in range(0, len(units), pool.batch_size):
        texts = [unit.to_json() for unit in units[start : start + pool.batch_size]]
        yield sum(worker({"unit": texts})["rows"])


def nothing(units: Sequence[Unit], job: Job, pool: Pool) -> Iterator[int]:
    raise AssertionError(f"asked again: {[unit.id for unit in units]}")
    yield 0


def rows_of(summary: BatchSummary) -> list[dict[str, Any]]:
    return [json.loads(line) for line in summary.results.read_text("utf-8").splitlines()]


def run(model: Path, source: Path, out: Path, **keys: Any) -> BatchSummary:
    return batch(model, source, out, **{"asking": SHORT, "run": here, **keys})


# --- what is asked -----------------------------------------------------------------------------


def test_every_page_of_a_folder_is_a_unit(docs):
    units = list_units(docs, SHORT, without=docs / "out")
    good = [(u.id, u.file, u.page) for u in units if u.error is None]
    assert good == [
        ("a.png", "a.png", 1), ("b.pdf:1", "b.pdf", 1), ("b.pdf:2", "b.pdf", 2),
        ("bad.png", "bad.png", 1), ("more/c.jpg", "more/c.jpg", 1),
    ]  # fmt: skip
    bad = {u.id: u.error for u in units if u.error is not None}
    assert set(bad) == {"corrupt.pdf", "locked.pdf"}
    assert "encrypted" in bad["locked.pdf"]
    assert [u.index for u in units] == list(range(7))
    assert {u.question for u in units} == {"What is the total?"}
    assert all(Unit.from_json(u.to_json()) == u for u in units)


def test_a_tiff_has_a_unit_a_page(tmp_path, make_image):
    make_image().save(tmp_path / "x.tiff", save_all=True, append_images=[make_image(seed=1)])
    assert [u.id for u in list_units(tmp_path, SHORT, without=OUTSIDE)] == ["x.tiff:1", "x.tiff:2"]


def test_a_thumbnail_in_a_tiff_is_no_unit(tmp_path, make_image):
    small = TiffImagePlugin.ImageFileDirectory_v2()
    small[SUBFILE_TYPE] = 1
    thumbnail = Image.new("RGB", (6, 8))
    thumbnail.encoderinfo = {"tiffinfo": small}
    make_image().save(tmp_path / "x.tif", save_all=True, append_images=[thumbnail])
    assert [u.id for u in list_units(tmp_path, SHORT, without=OUTSIDE)] == ["x.tif:1"]


def test_the_output_may_lie_in_the_input(docs):
    shutil.copytree(docs / "more", docs / "out" / "more")
    assert not [u for u in list_units(docs, SHORT, without=docs / "out") if "out" in u.id]


def test_records(docs):
    records = [
        {"id": "one", "image": "a.png", "question": "Who?", "answer": "ignored"},
        {"image": "b.pdf", "question": "Both pages?"},
        {"id": 3, "image": "b.pdf", "page": 2},
        {"id": "two images", "images": ["a.png", "more/c.jpg"],
         "messages": [{"role": "user", "content": "Same?"}]},
    ]  # fmt: skip
    file = docs / "asked.jsonl"
    file.write_text("\n\n".join(json.dumps(r) for r in records))
    units = list_units(file, SHORT, without=docs / "out")
    assert [(u.id, u.page, u.question) for u in units] == [
        ("one", None, "Who?"), ("asked.jsonl:3", None, "Both pages?"),
        ("3", 2, "What is the total?"), ("two images", None, "Same?"),
    ]  # fmt: skip
    assert units[3].file == "a.png, more/c.jpg"
    assert [len(batch_worker.load_unit(u, 144)) for u in units] == [1, 2, 1, 2]


BAD_RECORDS = {
    "not json": ("{", "not valid JSON"),
    "a list": ("[1]", "expected an object"),
    "no file": ({"image": "gone.png", "question": "?"}, r"not found: .*gone\.png"),
    "no question": ({"images": ["a.png"]}, "missing key 'messages'"),
    "unknown key": ({"image": "a.png", "questoin": "?"}, "did you mean 'question'"),
    "page": ({"image": "a.png", "page": 0}, "'page' must be a whole number"),
    "page of two": (
        {"images": ["a.png", "a.png"], "page": 1, "messages": [{"role": "user", "content": "?"}]},
        "exactly one file",
    ),
    "two questions": (
        {"images": ["a.png"], "messages": [
            {"role": role, "content": "x"} for role in ("user", "assistant", "user")]},
        "one question a record",
    ),
    "image after text": (
        {"images": ["a.png"], "messages": [{"role": "user", "content": [
            {"type": "text", "text": "x"}, {"type": "image"}]}]},
        "must come before the text",
    ),
    "twice": ({"id": "good", "image": "a.png"}, "id 'good' is already on row 1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_a_bad_record_costs_its_own_unit(docs, kind):
    bad, message = BAD_RECORDS[kind]
    good = {"id": "good", "image": "a.png"}
    lines = [json.dumps(good), bad if isinstance(bad, str) else json.dumps(bad)]
    (docs / "r.jsonl").write_text("\n".join([*lines, json.dumps({**good, "id": "last"})]))
    units = list_units(docs / "r.jsonl", SHORT, without=OUTSIDE)
    assert [u.id for u in units] == ["good", "r.jsonl:2", "last"]
    assert units[0].error is None and units[2].error is None
    with pytest.raises(DataError, match=message):
        raise DataError(units[1].error)


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone", "no such folder"), ("notes.txt", "folder of documents or a .jsonl"),
     ("empty.jsonl", "no records"), ("none", "no file that ends in")],
)  # fmt: skip
def test_an_input_without_anything_to_ask(docs, name, message):
    (docs / "empty.jsonl").touch()
    (docs / "none").mkdir()
    with pytest.raises(DataError, match=message):
        list_units(docs / name, SHORT, without=OUTSIDE)


def test_an_empty_question(docs):
    with pytest.raises(ConfigError, match="the question is empty"):
        list_units(docs, Asking(question=" "), without=OUTSIDE)


# --- a whole batch -----------------------------------------------------------------------------


def test_answers_and_one_row_a_bad_document(docs, tiny_model_dir, tmp_path):
    summary = run(tiny_model_dir, docs, tmp_path / "out", pool=Pool(batch_size=2))
    rows = rows_of(summary)
    assert [row["id"] for row in rows] == [
        "a.png", "b.pdf:1", "b.pdf:2", "bad.png", "corrupt.pdf", "locked.pdf", "more/c.jpg",
    ]  # fmt: skip
    assert (summary.rows, summary.answers, summary.errors, summary.reused) == (7, 4, 3, 0)
    assert {row["id"] for row in rows if "error" in row} == {"bad.png", "corrupt.pdf", "locked.pdf"}
    assert all(("answer" in row) != ("error" in row) for row in rows)
    model, processor = load_model(tiny_model_dir)
    with Image.open(docs / "a.png") as image:
        said = ask(model, processor, [image], SHORT.question, max_new_tokens=4)
    assert rows[0]["answer"] == said.text
    assert rows[0]["visual_tokens"] == said.visual_tokens
    assert rows[0]["answer_ms"] > 0 and rows[0]["load_ms"] > 0
    assert rows[6]["file"] == "more/c.jpg" and rows[2]["page"] == 2
    assert "7 rows (4 answers, 3 errors)" in summary.to_text()
    names = {path.name for path in (tmp_path / "out").iterdir()} - {".lock"}
    assert names == {"job.json", "parts", "results.jsonl"}


def test_a_finished_batch_is_left_alone(docs, tiny_model_dir, tmp_path):
    out = tmp_path / "out"
    first = run(tiny_model_dir, docs, out)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.rglob("*.json*")}
    again = run(tiny_model_dir, docs, out, run=nothing)
    assert (again.rows, again.reused) == (first.rows, first.rows)
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in out.rglob("*.json*")}


def test_only_what_is_new_is_asked(docs, tiny_model_dir, tmp_path):
    asked: list[str] = []

    def noting(units: Sequence[Unit], *rest: Any) -> Iterator[int]:
        asked.extend(unit.id for unit in units)
        return here(units, *rest)

    out = tmp_path / "out"
    run(tiny_model_dir, docs, out)
    shutil.copy(docs / "a.png", docs / "z.png")
    shutil.copy(docs / "a.png", docs / "bad.png")  # mended
    (docs / "more" / "c.jpg").unlink()
    summary = run(tiny_model_dir, docs, out, run=noting)
    assert sorted(asked) == ["bad.png", "z.png"]
    assert [row["id"] for row in rows_of(summary)][-2:] == ["locked.pdf", "z.png"]
    assert "answer" in next(row for row in rows_of(summary) if row["id"] == "bad.png")
    # another question is another request: every page is asked again, and can be taken back
    asked.clear()
    other = Asking(question="Who?", max_new_tokens=4, repetition_guard=False)
    summary = run(tiny_model_dir, docs, out, asking=other, run=noting)
    assert len(asked) == 5 and summary.reused == 0
    assert {row["question"] for row in rows_of(summary)} == {"Who?"}
    summary = run(tiny_model_dir, docs, out, run=nothing)
    assert {row["question"] for row in rows_of(summary)} == {SHORT.question}


def test_errors_are_asked_again_when_told(docs, tiny_model_dir, tmp_path, monkeypatch):
    real = batch_worker.load_unit

    def flaky(unit: Unit, *given: Any) -> list[Any]:
        if unit.id == "a.png":
            raise OSError("stale file handle")
        return real(unit, *given)

    monkeypatch.setattr(batch_worker, "load_unit", flaky)
    out = tmp_path / "out"
    assert run(tiny_model_dir, docs, out).errors == 4
    monkeypatch.undo()
    assert run(tiny_model_dir, docs, out, run=nothing).errors == 4
    summary = run(tiny_model_dir, docs, out, retry_errors=True)
    assert (summary.errors, summary.reused) == (3, 3)


def test_an_interrupted_batch_goes_on(docs, tiny_model_dir, tmp_path):
    def stops(units: Sequence[Unit], job: Job, pool: Pool) -> Iterator[int]:
        counts = here(units, job, pool)
        yield next(counts)
        raise KeyboardInterrupt

    out, one = tmp_path / "out", Pool(batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model_dir, docs, out, run=stops, pool=one)
    assert not (out / "results.jsonl").exists()
    (out / "parts" / "cut.jsonl.abc.partial").write_text('{"id": "ha')
    summary = run(tiny_model_dir, docs, out, pool=one)
    assert (summary.rows, summary.reused) == (7, 3)  # one page and the two files not opened
    assert [p.name for p in (out / "parts").iterdir()] == ["merged.jsonl"]


def test_rows_that_are_missing_are_not_passed_over(docs, tiny_model_dir, tmp_path):
    with pytest.raises(DataError, match=r"5 rows are missing, 'a\.png' first; run the same"):
        run(tiny_model_dir, docs, tmp_path / "out", run=lambda *_: (n for n in [5]))


# --- refusals ----------------------------------------------------------------------------------


def test_another_model_is_refused(docs, tiny_model_dir, tmp_path):
    out = tmp_path / "out"
    run(tiny_model_dir, docs, out)
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    assert run(other, docs, out, run=nothing).reused == 7  # the same weights in another place
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, other / "model.safetensors")
    with pytest.raises(DataError, match=r"holds answers of another model.*choose another --out"):
        run(other, docs, out, run=nothing)


def test_folders_of_something_else(docs, tiny_model_dir, tmp_path):
    with pytest.raises(DataError, match="not a batch's folder"):
        run(tiny_model_dir, docs, docs / "more")
    assert [p.name for p in (docs / "more").iterdir()] == ["c.jpg"]
    with pytest.raises(DataError, match="cannot create"):
        run(tiny_model_dir, docs, docs / "a.png" / "out")
    with pytest.raises(WeightsError):
        run(tmp_path / "no-model", docs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files_of_the_batch(docs, tiny_model_dir, tmp_path):
    out = tmp_path / "out"
    run(tiny_model_dir, docs, out)
    (out / "parts" / "x.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"x\.jsonl:1 is damaged"):
        run(tiny_model_dir, docs, out)
    (out / "job.json").write_text("{}")
    with pytest.raises(DataError, match=r"job\.json is damaged"):
        run(tiny_model_dir, docs, out)


def test_two_batches_do_not_share_a_folder(docs, tiny_model_dir, tmp_path):
    def second(*args: Any) -> Iterator[int]:
        with pytest.raises(DataError, match="another batch is writing there"):
            run(tiny_model_dir, docs, tmp_path / "out", run=nothing)
        return here(*args)

    assert run(tiny_model_dir, docs, tmp_path / "out", run=second).answers == 4


@pytest.mark.parametrize("keys", [{"batch_size": 0}, {"actors": 0}, {"num_gpus": -1}])
def test_an_impossible_pool(keys):
    with pytest.raises(ConfigError, match="must be"):
        Pool(**keys)
