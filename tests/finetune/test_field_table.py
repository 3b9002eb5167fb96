"""A corrected table as questions: what is taught, what is not, and which rows are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.documents.test_documents import make_pdf, text_at

from alignvlm.errors import DataError
from alignvlm.finetune.field_table import FieldTable
from alignvlm.finetune.own_data import document_of_question
from alignvlm.inference.field_schema import field_questions
from alignvlm.inference.page_spans import ABSENT

Table = Callable[..., FieldTable]


@pytest.fixture
def table(tmp_path: Path, make_image) -> Table:
    for seed, name in enumerate(("a.png", "b.png")):
        make_image(56, 28, seed).save(tmp_path / name)
    make_pdf(tmp_path / "two.pdf", [text_at((20, 150, "one")), text_at((20, 150, "two"))])

    def made(*lines: str, **options: Path) -> FieldTable:
        (tmp_path / "x.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return FieldTable(tmp_path / "x.csv", **options)

    return made


def answers(found: FieldTable) -> list[str]:
    return [one.answer for one in found.taught]


def test_a_plain_table(table, tmp_path):
    found = table("file,company,invoice_date", "a.png,Novak Deli,", "b.png, Spar  AG ,3 May 2018")
    assert answers(found) == ["Novak Deli", ABSENT, "Spar AG", "3 May 2018"]
    asked = [one.question for one in field_questions(["company", "invoice_date"])]
    assert [one.question for one in found.taught] == asked * 2
    assert [document_of_question(found[n]) for n in range(4)] == found.documents()
    record = found[0]
    assert (record.question, record.answer) == (asked[0], "Novak Deli")
    with Image.open(tmp_path / "a.png") as page:
        assert record.images[0].tobytes() == page.convert("RGB").tobytes()
    assert found.documents() == [
        str(tmp_path / name) for name in ("a.png", "a.png") + ("b.png",) * 2
    ]


HEAD = "file,total,due_date,total_text,total_page,due_date_text,due_date_note,error"


@pytest.mark.parametrize(
    ("row", "taught"),
    [
        ("a.png,1234.5,,'RM 1,234.50',1,,,", ["RM 1,234.50", ABSENT]),  # the page's own words
        ("a.png,1234.8,,'RM 1,234.50',1,,,", ["1234.8", ABSENT]),  # corrected
        ("a.png,,2018-04-03,,,03/04/2018,,", [ABSENT, "03/04/2018"]),
        ("a.png,,2018-03-04,,,03/04/2018,,", [ABSENT, "03/04/2018"]),
        ("a.png,,2018-03-05,,,03/04/2018,,", [ABSENT, "2018-03-05"]),
        ("a.png,7,,,,03/04/2018,could be two days,", ["7"]),  # extract left it empty
        ("a.png,7,,,,03/04/2018,,", ["7", ABSENT]),  # somebody did
        ("a.png,,,,,,,no such file", None),
    ],
)
def test_which_words_are_taught(table, row, taught):
    lines = [HEAD, row.replace("'", '"')]
    if taught is None:
        with pytest.raises(DataError, match=r"no value .*; left out: 1 documents with an error"):
            table(*lines)
    else:
        assert answers(table(*lines)) == taught


def test_pages_of_documents(table):
    found = table("file,a,b,c,a_page,b_page", "two.pdf,x,y,,2,")
    assert [(one.page, one.answer) for one in found.taught] == [(2, "x"), (1, ABSENT)]
    assert found.left_out == {"values without their page": 1}
    assert found[0].images[0].size == found[1].images[0].size
    assert found[0].images[0].tobytes() != found[1].images[0].tobytes()
    assert table("file,a,a_page", "two.pdf,x,1.0").taught[0].page == 1


def test_the_questions_are_those_that_were_asked(table, tmp_path):
    row = {"name": "a", "question": "How much is due?", "kind": "number"}
    (tmp_path / "x.csv.asked.json").write_text(json.dumps({"fields": [row]}))
    found = table("file,a,b", "a.png,1,2")
    assert [one.question for one in found.taught] == ["How much is due?", "What is the b?"]
    (tmp_path / "x.csv.asked.json").write_text('{"fields": [{}]}')
    with pytest.raises(DataError, match=r"asked\.json: damaged"):
        table("file,a,b", "a.png,1,2")


def test_where_files_are_looked_for(table, tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "scans" / "a.png")
    with pytest.raises(DataError, match=r"x\.csv:2: .*old/a\.png: no such file; --images"):
        table("file,a", "old/a.png,1")
    assert table("file,a", "old/a.png,1", images=tmp_path / "scans").taught[0].file.is_file()
    assert table("file,a", "scans/a.png,1").taught[0].file.is_file()
    (tmp_path / "scans" / "x").mkdir()
    monkeypatch.chdir(tmp_path / "scans" / "x")  # as extract named it, where it ran
    assert table("file,a", "../a.png,1").taught[0].file.is_file()


def test_what_spreadsheets_make_of_it(table, tmp_path):
    found = table("\ufefffile;a;b", "a.png;1,5;", ";;", "b.png;2;3")
    assert answers(found) == ["1,5", ABSENT, "2", "3"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["name,a", "a.png,1"], "no column 'file'"),
        (["file,error", "a.png,"], "no column of a field"),
        (["file,a,a", "a.png,1,2"], "two columns are called 'a'"),
        (["file,a", "a.png,1", "b.png,1,2"], r"x\.csv:3: not as many cells"),
        (["file,a,b", "a.png,1"], r"x\.csv:2: not as many cells"),
        (["file,a", ",1"], r"x\.csv:2: no file is named"),
        (["file,a,a_page", "a.png,1,2"], r"x\.csv:2: a\.png has 1 pages, there is no '2'"),
        (["file,a,a_page", "a.png,1,inf"], "no 'inf'"),
        (["file,a"], "no value that could be taught"),
    ],
)
def test_tables_that_cannot_be_used(table, lines, words):
    with pytest.raises(DataError, match=words):
        table(*lines)


def test_no_table(tmp_path):
    with pytest.raises(DataError, match=r"x\.csv: no such file"):
        FieldTable(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes("file,a\nä.png,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        FieldTable(tmp_path / "x.csv")
