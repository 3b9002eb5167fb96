"""``read`` from the shell, with the reader that comes with the project and drawn pages."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from tests import drawn
from tests.cli.test_command_line import documented
from tests.command import Result, Run
from tests.documents.test_pages import pdf

from alignvlm.cli import reading
from alignvlm.cli.progress import Told, lines_bar
from alignvlm.documents.opening import pdf_words

LETTER = "".join(piece.text + "\n" for piece in drawn.LETTER)
SECOND = [drawn.Piece("Second page", 40, 40)]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "letter.png"
    drawn.page().save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A picture, a PDF of two pages in a folder of its own, and what is no picture."""
    path = tmp_path / "in"
    (path / "scans").mkdir(parents=True)
    drawn.page().save(path / "letter.png")
    second = drawn.page(SECOND)
    drawn.page().save(path / "scans" / "two.pdf", save_all=True, append_images=[second],
                      resolution=144)  # fmt: skip
    (path / "bad.png").write_bytes(b"no picture")
    return path


def refused(done: Result, *words: str) -> None:
    assert done.code == 2 and done.out == "", done
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in done.err
    for word in words:
        assert word in last, last


def told(done: Result) -> dict[str, Any]:
    assert done.code == 0 and done.out.count("\n") == 1, done
    return json.loads(done.out)


def test_text_on_standard_output(command: Run, page):
    done = command("read", "reader", page)
    assert (done.code, done.out, done.err) == (0, LETTER, "")


def test_json_is_one_line_with_the_documented_keys(command: Run, page):
    data = told(command("read", "reader", page, "--json"))
    files, lines = documented("read")
    assert set(data) == lines == {"documents"}
    (document,) = data["documents"]
    assert set(document) == {"file", "pages"} and document["file"] == str(page)
    assert [line["text"] for line in document["pages"][0]["lines"]] == LETTER.splitlines()
    out = page.with_suffix(".md")
    assert set(told(command("read", "reader", page, "--json", "--out", out))) == files
    assert out.read_text("utf-8").startswith("# Annual Report\n")


def test_a_file_of_several_documents(command: Run, page, folder):
    """Boxes of a PDF are px of its picture, whose scale is told."""
    out = page.with_name("all.jsonl")
    done = command("read", "reader", page, folder, "--out", out)
    assert (done.code, done.out) == (0, f"{out}: 4 documents read (1 errors)\n")
    assert done.err.count("note: ") == 1 and "bad.png" in done.err
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [Path(row["file"]).name for row in rows] == [
        "letter.png", "bad.png", "letter.png", "two.pdf",
    ]  # fmt: skip
    assert "not an image" in rows[1]["error"] and "pages" not in rows[1]
    first, second = rows[3]["pages"]
    assert (first["page"], second["page"], second["scale"]) == (1, 2, 2.0)
    assert second["lines"][0]["text"] == "Second page"
    assert first["lines"][0]["box"] == pytest.approx(rows[0]["pages"][0]["lines"][0]["box"], abs=2)

    hocr = page.with_name("all.hocr")
    assert command("read", "reader", page, folder, "--out", hocr).code == 0
    root = ElementTree.fromstring(hocr.read_text("utf-8"))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(ids)) == len(ids)
    assert sum(element.get("class") == "ocr_page" for element in root.iter()) == 4
    both = command("read", "reader", page, folder / "scans", "--format", "text")
    assert both.out == f"{LETTER}\f\n{LETTER}\f\nSecond page\n"


def test_a_folder_of_results_is_gone_on_with_and_a_bad_file_costs_its_row(
    command: Run, folder, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    given = ("read", "reader", folder, "--out", out)
    done = command(*given)
    assert (done.code, done.out) == (0, f"{out}: 3 documents read (1 errors)\n")
    assert (out / "letter.png.txt").read_text("utf-8") == LETTER
    assert (out / "scans" / "two.pdf.txt").read_text("utf-8") == f"{LETTER}\f\nSecond page\n"
    rows = [json.loads(line) for line in (out / "read.jsonl").read_text("utf-8").splitlines()]
    assert rows[2] == {
        "file": str(folder / "scans" / "two.pdf"), "out": "scans/two.pdf.txt", "pages": 2,
    }  # fmt: skip
    assert set(rows[0]) == {"file", "error"}

    # as a run leaves it that was killed while it wrote a row
    whole = (out / "read.jsonl").read_text("utf-8")
    torn = whole.splitlines(keepends=True)
    (out / "read.jsonl").write_text("".join(torn[:2]) + torn[2][:9], "utf-8")
    assert command(*given).out == f"{out}: 1 documents read (0 errors), 2 were there\n"
    assert (out / "read.jsonl").read_text("utf-8") == whole
    with monkeypatch.context() as patched:
        patched.setattr(reading, "_rows", lambda *_: pytest.fail("nothing is left to read"))
        assert command(*given).out == f"{out}: 0 documents read (0 errors), 3 were there\n"
    refused(command(*given, "--dpi", 100), "read.jsonl", "other dpi")
    refused(command(*given, "--format", "hocr"), "other format")
    (tmp_path / "with.dot").mkdir()
    assert (
        command("read", "reader", folder / "letter.png", "--out", tmp_path / "with.dot").code == 0
    )
    assert (tmp_path / "with.dot" / "letter.png.txt").is_file()


def test_results_that_would_take_one_place_are_refused(command: Run, page, tmp_path):
    other = tmp_path / "other" / page.name
    other.parent.mkdir()
    drawn.page(SECOND).save(other)
    refused(command("read", "reader", page, other, "--out", tmp_path / "out"), "two folders")
    assert not (tmp_path / "out").exists()


def test_pages_are_chosen(command: Run, folder):
    two = folder / "scans" / "two.pdf"
    assert command("read", "reader", two, "--pages", "2").out == "Second page\n"
    first = command("read", "reader", two, "--max-pages", 1)
    assert first.out == LETTER and "page 2" in first.err
    refused(command("read", "reader", two, "--pages", "3"), "two.pdf", "outside 1-2")


def test_a_blank_page_is_told(command: Run, tmp_path):
    drawn.page([]).save(tmp_path / "blank.png")
    done = command("read", "reader", "blank.png")
    assert (done.code, done.out) == (0, "\n")
    assert done.err == "note: nothing was read on blank.png page 1\n"


def test_standard_input(command: Run, page, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(page.read_bytes())))
    data = told(command("read", "reader", "-", "--json"))
    assert data["documents"][0]["file"] == "stdin"


def test_what_cannot_be_done_is_one_line(command: Run, page, tiny_model_dir, tmp_path):
    refused(command("read", tiny_model_dir, page), "does not read lines", "name reader")
    refused(command("read", "reader", page, "--format", "hoc"), "did you mean 'hocr'?")
    refused(command("read", "reader", page, "--out", "x.pdf"), "no format is called '.pdf'")
    refused(command("read", "reader", page, "--tokens"), "--tokens is for --format json")
    refused(command("read", "reader", page, "--json", "--format", "text"), "choose one")
    refused(command("read", "reader", page, "--json", "--tokens"), "no language model is in it")
    refused(command("read", "reader", "none.png"), "none.png: no such file")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    refused(command("read", "reader", "none.png", "bad.png"), "none.png: no such file")
    before = page.with_suffix(".txt")
    before.write_text("as it was")
    refused(command("read", "reader", "none.png", "--out", before), "none.png")
    assert before.read_text() == "as it was"


def test_an_encrypted_pdf_opens_with_its_password(command: Run, tmp_path):
    (tmp_path / "locked.pdf").write_bytes(pdf(1, password="open sesame"))
    refused(command("read", "reader", "locked.pdf"), "encrypted", "or give it with --password")
    opened = command("read", "reader", "locked.pdf", "--password", "open sesame")
    assert opened.code == 0, opened


def test_a_person_sees_the_lines_that_are_read(monkeypatch, capsys):
    watched: list[Told | None] = []
    with lines_bar(watched.append):
        pass
    assert not watched and capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with lines_bar(watched.append, "2/3 a.pdf page 1"):
        assert watched[0] is not None
        watched[0](3, 12)
    assert watched[1] is None
    assert "2/3 a.pdf page 1:  25%" in capsys.readouterr().err


def test_a_pdf_is_read_where_its_own_words_stand(command: Run, tmp_path):
    """A PDF with a text layer says where its words are."""
    matplotlib = pytest.importorskip("matplotlib.figure")
    figure = matplotlib.Figure(figsize=(5, 2))
    figure.text(0.1, 0.7, "Invoice 4711", fontsize=18)
    figure.text(0.1, 0.3, "Total due: 95.20", fontsize=14)
    path = tmp_path / "invoice.pdf"
    figure.savefig(path)
    (document,) = told(command("read", "reader", path, "--json"))["documents"]
    words = [word for line in document["pages"][0]["lines"] for word in line["words"]]
    for word, own in zip(words, pdf_words(path, 0, dpi=144), strict=True):
        assert word["text"] == own.text
        assert word["box"] == pytest.approx(own.box, abs=8)
