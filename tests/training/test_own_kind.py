"""The labelled receipts that a model is taught with."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from PIL import Image
from training.smol.own_kind import NAMES, write_table


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
    write_table(data, data / "table.csv", documents, draw)
    with (data / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_larger_draw_holds_the_smaller_one_and_only_whole_receipts(tmp_path: Path) -> None:
    receipts(tmp_path, 9)
    few, more = rows(tmp_path, 3, 0), rows(tmp_path, 9, 0)
    assert len(few) == 3 and more[:3] == few
    assert sorted(row["file"] for row in more) == [f"{n:03}.jpg" for n in range(1, 9)]
    assert all(row[name] == f"{name} {int(row['file'][:3])}" for row in more for name in NAMES)
    assert rows(tmp_path, 9, 1) != more
