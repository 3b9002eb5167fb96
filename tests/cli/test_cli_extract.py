"""``extract`` from the shell, with a tiny model and pages that are given as read."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
import typer
from tests.inference.test_span_decoding import a_page
from typer.testing import CliRunner, Result

from alignvlm.cli.answers import ask
from alignvlm.cli.extraction import extract
from alignvlm.cli.training_commands import finetune
from alignvlm.errors import AlignVLMError
from alignvlm.finetune.field_table import FieldTable
from alignvlm.inference import ask as ask_module
from alignvlm.inference import extract as module
from alignvlm.inference.ask import encode_pages
from alignvlm.inference.page_spans import PageSpans

# capitals, and too few letters for a space: a random model can say them in one way only
LINES = {56: "136.94", 57: "NAIRO", 59: ""}
"""What is read on a page so wide."""


def encoded(model: Any, processor: Any, pages: list[Any]) -> Any:
    """A page's width says what is read on it."""
    lines = [LINES[page.width] for page in pages]
    read = [a_page(line) if line else a_page() for line in lines]
    return encode_pages(model, processor, pages)._replace(pages=read)


def give_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are read by :func:`encoded`, in this process."""
    monkeypatch.setattr(module, "encode_pages", encoded)
    monkeypatch.setattr(PageSpans, "absent", "")  # a tiny model would say that
    monkeypatch.setattr(ask_module, "encode_pages", encoded)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """The verb."""
    give_readings(monkeypatch)
    transformers.logging.disable_progress_bar()  # as app.py does
    app = typer.Typer()
    app.command()(extract)
    app.command()(ask)
    app.command()(finetune)

    def call(*arguments: Any, verb: str = "extract") -> Result:
        return CliRunner().invoke(app, [verb, *map(str, arguments)])

    yield call
    transformers.logging.enable_progress_bar()


@pytest.fixture
def folder(make_image, tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    make_image(56, 28, 1).save(path / "a.png")
    make_image(57, 28, 2).save(path / "b.png")
    return path


def refused(result: Result, *words: str) -> None:
    assert isinstance(result.exception, AlignVLMError), (result.exception, result.output)
    for word in words:
        assert word in str(result.exception)


def test_a_row_a_document_as_jsonl(run, tiny_model_dir, folder):
    result = run(tiny_model_dir, folder, "--fields", "x:number", "--format", "jsonl")
    assert result.exit_code == 0, result.exception
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["file"] == str(folder / "a.png")
    value = first["values"]["x"]
    assert (value["value"], value["text"], value["page"]) == (136.94, "136.94", 1)
    assert 0 < value["confidence"] <= 1
    ((x0, y0, x1, y1),) = value["boxes"]
    assert x0 < x1 and y0 < y1
    assert second["values"]["x"]["text"] == "NAIRO"
    assert second["values"]["x"]["note"] == "'NAIRO' is no number"


def test_a_table_on_the_screen(run, tiny_model_dir, folder):
    lines = run(tiny_model_dir, folder, "--fields", "x:number").stdout.splitlines()
    assert lines[0].split() == ["file", "x"]
    assert "136.94 (0." in lines[1]
    assert lines[2].endswith(" -")
    assert lines[3] == f"{folder / 'b.png'}: x: 'NAIRO' is no number"


def test_a_rerun_goes_on_and_a_bad_file_costs_its_row(run, tiny_model_dir, folder, tmp_path):
    out = tmp_path / "x.csv"
    (folder / "bad.png").write_bytes(b"no picture")
    given = (tiny_model_dir, folder, "--fields", "x", "--out", out)
    result = run(*given)
    assert result.stdout == f"{out}: 3 rows written (1 errors)\n"
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert [row["x"] for row in rows] == ["136.94", "NAIRO", ""]
    assert "bad.png" in rows[2]["error"]
    assert list(rows[0])[:2] == ["file", "x"]
    assert len(rows[0]["x_boxes"].split()) == 4

    text = out.read_text(encoding="utf-8")
    torn = text.splitlines(keepends=True)
    out.write_text("".join(torn[:2]) + torn[2][:9], encoding="utf-8")
    again = run(*given)
    assert again.stdout == f"{out}: 2 rows written (1 errors), 1 were there\n"
    assert out.read_text(encoding="utf-8") == text
    assert run(*given).stdout == f"{out}: 0 rows written (0 errors), 3 were there\n"


KILLED = """
import os, signal, sys
here, torn, *arguments = sys.argv[1:]
sys.path.insert(0, here)
import pytest
from alignvlm.cli import extraction
from alignvlm.cli.app import main
from tests.cli.test_cli_extract import give_readings

write, rows = extraction._write, []

def dies(row, form, columns, file):
    rows.append(row)
    if len(rows) < 4:
        return write(row, form, columns, file)
    if torn == "torn":
        file.write(row["file"][:5])
        file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

extraction._write = dies
give_readings(pytest.MonkeyPatch())
sys.argv = ["alignvlm", "extract", *arguments]
main()
"""


@pytest.mark.parametrize(("name", "torn"), [("x.csv", "torn"), ("x.jsonl", "whole")])
def test_sigkill_loses_no_row(run, tiny_model_dir, folder, tmp_path, monkeypatch, name, torn):
    """Killed while the fourth of six rows is written: the rest is done by the same command."""
    for number in range(4):
        shutil.copy(folder / f"{'ab'[number % 2]}.png", folder / f"{number}.png")
    out = tmp_path / name
    given = [str(part) for part in (tiny_model_dir, folder, "--fields", "x", "--out", out)]
    here = str(Path(__file__).parents[2])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, here, torn, *given],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = out.read_text(encoding="utf-8")
    assert left.endswith("\n") == (torn == "whole")
    asked: list[str] = []
    real = module.Extractor.__call__
    monkeypatch.setattr(
        module.Extractor, "__call__", lambda own, p: (asked.extend(p.files), real(own, p))[1]
    )
    assert run(*given).stdout == f"{out}: 3 rows written (0 errors), 3 were there\n"
    files = [str(folder / f"{stem}.png") for stem in "0123ab"]
    assert asked == files[3:]  # nothing is asked twice
    whole = tmp_path / f"whole-{name}"
    assert run(*given[:-1], whole).exit_code == 0
    assert out.read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")


def test_other_questions_are_refused(run, tiny_model_dir, folder, tmp_path):
    out = tmp_path / "x.jsonl"
    given = (tiny_model_dir, folder, "--out", out)
    assert run(*given, "--fields", "x").exit_code == 0
    before = out.read_text(encoding="utf-8")
    refused(run(*given, "--fields", "x,y"), "x.jsonl", "other fields")
    refused(run(*given, "--fields", "x", "--dpi", 100), "other dpi")
    refused(run(*given, "--fields", "x", "--min-confidence", 0.5), "other min confidence")
    assert out.read_text(encoding="utf-8") == before
    mine = tmp_path / "mine.csv"
    mine.write_text("a,b\n")
    refused(run(tiny_model_dir, folder, "--fields", "x", "--out", mine), "not written by extract")
    assert mine.read_text() == "a,b\n"


def test_a_blank_page_is_said(run, tiny_model_dir, make_image, tmp_path):
    path = tmp_path / "blank.png"
    make_image(59, 28, 3).save(path)
    result = run(tiny_model_dir, path, "--fields", "x", "--format", "jsonl")
    assert result.stderr == f"note: nothing was read on {path} page 1\n"
    value = json.loads(result.stdout)["values"]["x"]
    assert (value["value"], value["text"], value["page"]) == (None, "", None)


def test_a_schema_and_a_calibration(run, make_model, make_processor, folder, tmp_path):
    model = tmp_path / "model"
    own = make_model("align")
    own.save_pretrained(model)
    make_processor(own.config).save_pretrained(model)
    (model / "calibration.json").write_text('{"slope": 0.0, "intercept": 0.0}')
    schema = tmp_path / "invoice.json"
    schema.write_text(json.dumps({
        "type": "object", "properties": {"sum": {"type": "number", "description": "How much?"}},
    }))  # fmt: skip
    result = run(model, folder / "a.png", "--schema", schema, "--format", "jsonl")
    value = json.loads(result.stdout)["values"]["sum"]
    assert (value["value"], value["confidence"]) == (136.94, 0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--fields", "--schema"]),
        (["--fields", "a", "--schema", "s.json"], ["either"]),
        (["--fields", ","], ["no fields"]),
        (["--fields", "file"], ["'file'", "column"]),
        (["--fields", "a,a_text"], ["'a_text'", "column"]),
        (["--fields", "a", "--out", "x.xls"], ["'xls'", "csv or jsonl"]),
        (["--fields", "a", "--format", "tabel"], ["did you mean 'table'"]),
        (["--fields", "a", "--dates", "ymd"], ["--dates", "dmy or mdy"]),
        (["--fields", "a", "--address", "auto"], ["--address needs --out"]),
        (["--fields", "a", "--actors", "2"], ["--address"]),
        (["--fields", "a", "--json", "--format", "csv"], ["one line", "choose one"]),
        (["--schema", "missing.json"], ["missing.json", "no such file"]),
    ],
)
def test_bad_input_is_one_line(run, tiny_model_dir, folder, options, words):
    refused(run(tiny_model_dir, folder, *options), *words)


def test_nothing_that_could_be_read_is_an_error(run, tiny_model_dir, tmp_path):
    refused(run(tiny_model_dir, tmp_path / "no.png", "--fields", "a"), "no.png")


def test_ask_can_be_held_to_the_words_of_the_page(run, tiny_model_dir, folder, make_image):
    given = (tiny_model_dir, folder / "b.png", "Where?", "--extractive")
    lines = run(*given, "--boxes", verb="ask").stdout.splitlines()
    assert lines[:2] == ["NAIRO", f"source: {folder / 'b.png'} page 1 (NAIRO)"]
    assert lines[2].startswith("  NAIRO: page 1, ")
    assert lines[2].endswith("score 0.95")
    data = json.loads(run(*given, "--json", verb="ask").stdout)
    assert data["answer"] == "NAIRO"
    make_image(59, 28, 3).save(folder / "blank.png")
    blank = run(tiny_model_dir, folder / "blank.png", "Where?", "--extractive", verb="ask")
    assert blank.stdout == "\nsource: not on this page\n"


def test_a_corrected_table_goes_straight_back_in(run, tiny_model_dir, folder, tmp_path):
    """Extract, correct, fine-tune: the questions trained are those that were asked."""
    out = tmp_path / "x.csv"
    assert run(tiny_model_dir, folder, "--fields", "x:number,y", "--out", out).exit_code == 0
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["y"] = "New York"
    rows[1] |= {"y": "", "y_note": ""}
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    small = ("--steps", 1, "--batch-size", 1, "--max-questions", 1, "--max-new-tokens", 2)
    done = run(tiny_model_dir, "--data", out, "--out", tmp_path / "run", *small, verb="finetune")
    assert done.exit_code == 0, (done.exception, done.output)
    # b.png's x is no number: extract left it empty, and so nobody knows
    assert f"3 values of {out}; left out: 1 values that extract left empty" in done.stdout
    assert "questions: 2 to train on, 1 held out, of 2 documents" in done.stdout
    found = FieldTable(out)
    assert [one.answer for one in found.taught] == ["136.94", "New York", "not on this page"]
    asked = json.loads((tmp_path / "x.csv.asked.json").read_text("utf-8"))["fields"]
    assert {one.question for one in found.taught} == {one["question"] for one in asked}
    refused(
        run(tiny_model_dir, "--data", "qa.jsonl", "--images", folder, "--out", tmp_path / "no",
            verb="finetune"), "--images is for a CSV",
    )  # fmt: skip
