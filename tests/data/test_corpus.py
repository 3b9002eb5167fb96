"""Passages and tables that every machine has, and those a user brings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alignvlm.data.synthetic.corpus import (
    MAX_CHARS,
    MIN_CHARS,
    Table,
    builtin_passages,
    builtin_tables,
    passages_from,
    table_from_csv,
)
from alignvlm.data.synthetic.fonts import default_fonts
from alignvlm.errors import DataError


def test_builtin_passages_are_clean_prose() -> None:
    passages = builtin_passages()
    assert len(passages) > 100
    assert len(set(passages)) == len(passages)
    for passage in passages:
        assert MIN_CHARS <= len(passage) <= MAX_CHARS
        assert passage.isascii()
        assert not re.search(r"https?:|www\.|[`<>{}|\\\n\[\]*_#=]|  ", passage), passage


def test_builtin_passages_do_not_depend_on_the_cache() -> None:
    assert builtin_passages.__wrapped__() == builtin_passages()


def test_builtin_tables_are_rectangular_and_stay_the_same() -> None:
    tables = builtin_tables()
    assert len(tables) >= 10
    for table in tables:
        assert len(table.rows) >= 2
        assert all(len(row) == len(table.header) for row in table.rows)
    assert builtin_tables.__wrapped__() == tables
    http = next(table for table in tables if table.title == "HTTP status codes")
    assert "Not Found" in next(row for row in http.rows if row[0] == "404")


def test_default_fonts_are_bundled_ones() -> None:
    fonts = default_fonts()
    assert fonts[-1] == "pillow:default"
    assert list(fonts[:-1]) == sorted(set(fonts[:-1]))
    assert all("matplotlib" in font for font in fonts[:-1])
    assert not any("Display" in font for font in fonts)  # these lack ASCII


def test_passages_from_a_file_keep_sentences_whole(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    sentence = "The quick brown fox jumps over the lazy dog while it rains. "
    file.write_text(sentence * 50 + "\n\nToo short.\n", encoding="utf-8")
    passages = passages_from(file)
    assert passages
    for passage in passages:
        assert MIN_CHARS - 1 <= len(passage) <= MAX_CHARS
        assert passage.startswith("The")
        assert passage.endswith("rains.")


def test_passages_from_cuts_endless_sentences(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("word " * 1000 + "\n" + "x" * 2000, encoding="utf-8")
    passages = passages_from(file)
    assert all(MIN_CHARS <= len(passage) <= MAX_CHARS for passage in passages)
    assert any(set(passage) == {"x"} for passage in passages)


@pytest.mark.parametrize("content", [None, b"", b"short", b"\xff\xfe\xfa" * 50])
def test_unusable_text_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"text\.txt: "):
        passages_from(file)


def test_wikitablequestions_csv(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('"Name","Said"\n"A, B","he said \\"no\\""\n"two\nlines"\n', encoding="utf-8")
    table = table_from_csv(file, title="T")
    rows = (("A, B", 'he said "no"'), ("two lines", ""))
    assert table == Table(("Name", "Said"), rows, "T")


def test_tabfact_csv(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('a#b\n"x#1\ny\u2028z#2#3\n', encoding="utf-8")
    table = table_from_csv(file, delimiter="#")
    assert table.header == ("a", "b", "")
    assert table.rows == (('"x', "1", ""), ("y z", "2", "3"))


@pytest.mark.parametrize(
    ("content", "row"),
    [
        (b'"a","b"\n"1","2"\n"3,4\n5,6\n', "row 3"),
        (b"a,b\n1,2\n3," + b"x" * 200_000, "row 3"),
        (b'"a","b"\n"1","2\n', "row 2"),
        (b"a,b\n", "row 2"),
        (b"", "row 1"),
        (b"a,b\n\xff,1\n", "not UTF-8"),
    ],
)
def test_bad_csv_names_file_and_row(tmp_path: Path, content: bytes, row: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.csv: .*{row}|bad\.csv: {row}"):
        table_from_csv(file)
