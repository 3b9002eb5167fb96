"""The labelled receipts that a model is taught with."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from PIL import Image
from tests.documents.test_documents import make_pdf, text_at
from training.smol.calibrate import FIELDS
from training.smol.own_kind import page_of, page_texts, write_table

NAMES = list(FIELDS["sroie"].values())


def receipts(data: Path, count: int) -> None:
    folder = data / "sroie" / "train"
    for name in ("box", "img", "key"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        fields = {name: f"{name} {number}" for name in NAMES}
        if number == 0:
            del fields["total"]
        (folder / "key" / f"{number:03}.json").write_text(json.dumps(fields))
        (folder / "box" / f"{number:03}.csv").write_text("1,1,9,1,9,9,1,9,a\n")
        Image.new("RGB", (10, 10)).save(folder / "img" / f"{number:03}.jpg")


def rows(data: Path, documents: int, draw: int) -> list[dict[str, str]]:
    write_table(data, data / "table.csv", "receipts", documents, draw)
    with (data / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_larger_draw_holds_the_smaller_one_and_only_whole_receipts(tmp_path: Path) -> None:
    receipts(tmp_path, 9)
    few, more = rows(tmp_path, 3, 0), rows(tmp_path, 9, 0)
    assert len(few) == 3 and more[:3] == few
    numbers = [int(Path(row["file"]).stem) for row in more]
    assert sorted(numbers) == list(range(1, 9)) and all(Path(row["file"]).is_file() for row in more)
    assert all(row[name] == f"{name} {n}" for row, n in zip(more, numbers) for name in NAMES)
    assert {row[f"{name}_page"] for row in more for name in NAMES} == {"1"}
    assert rows(tmp_path, 9, 1) != more


def test_a_value_is_taught_on_the_first_page_that_says_it() -> None:
    texts = ["Contract\n268 9", "Gross  amount\n$20,825.00", "gross amount"]
    assert page_of("Gross amount", texts) == 2 and page_of("2689", texts) == 1
    assert page_of("12", texts) == 0 and page_of("12", None) == 1


def test_pages_of_a_pdf_have_their_words(tmp_path: Path) -> None:
    pages = [text_at((20, 150, text)) for text in ("Total 12.50", "Nairobi")]
    assert page_texts(make_pdf(tmp_path / "a.pdf", pages)) == ["Total 12.50", "Nairobi"]
