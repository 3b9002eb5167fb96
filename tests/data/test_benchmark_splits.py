"""Labels of another split and damaged pages, on the tiny layouts of ``test_benchmarks``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.data.test_benchmarks import LABELS, LAYOUTS, put

from alignvlm.data.benchmarks.tables import BENCHMARKS, WTQSource
from alignvlm.errors import DataError


def copy_split(root: Path, key: str) -> None:
    """Make ``val`` (or dev) of a layout by copying the labels of train, but not its pages."""
    pairs = {
        "wtq": [("data/random-split-1-train.tsv", "data/random-split-1-dev.tsv")],
        "tabfact": [("tokenized_data/train_examples.json", "tokenized_data/val_examples.json")],
        "chartqa": [("train/train_human.json", "val/val_human.json")],
        "sroie": [("train/key/001.json", "val/key/001.json")],
        "deepform": [("train/labels.csv", "val/labels.csv")],
    }
    for old, new in pairs[key]:
        put(root / new, (root / old).read_text())
    for folder in ("png", "img", "pdfs"):
        (root / "val" / folder).mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("key", LAYOUTS)
def test_labels_copied_from_another_split(key: str, tmp_path: Path) -> None:
    LAYOUTS[key](tmp_path)
    copy_split(tmp_path, key)
    with pytest.raises(DataError, match=r"belong to split 'train'\?"):
        BENCHMARKS[key](tmp_path, "dev" if key == "wtq" else "val")


def test_rows_of_another_split(tmp_path: Path) -> None:
    """A label file that is no mere copy still shows where its rows come from."""
    for layout in LAYOUTS.values():
        layout(tmp_path)
    dev = (tmp_path / "data/random-split-1-train.tsv").read_text().replace("nt-0", "nt-9")
    put(tmp_path / "data/random-split-1-dev.tsv", dev)
    source = WTQSource(tmp_path, "dev")
    with pytest.raises(DataError, match=r"dev\.tsv:3: id 'nt-1' is in .*split 'train'\?"):
        source.check_files()
    put(tmp_path / "tokenized_data/val_examples.json", {"t1.csv": [["x"], [1], ""]})
    with pytest.raises(DataError, match=r"table 't1.csv' is in .*train_examples.*'train'\?"):
        BENCHMARKS["tabfact"](tmp_path, "val").check_files()
    put(tmp_path / "data/train_id.json", ["t1.csv"])
    with pytest.raises(DataError, match=r"'t1.csv': on the list data/train_id\.json.*'train'\?"):
        BENCHMARKS["tabfact"](tmp_path, "val")
    copy_split(tmp_path, "chartqa")
    put(tmp_path / "val/val_human.json", [{"imgname": "a.png", "query": "q", "label": "1"}])
    with pytest.raises(
        DataError, match=r"human\.json:1: image not found: .*train/png/a\.png.*'train'"
    ):
        BENCHMARKS["chartqa"](tmp_path, "val")
    put(tmp_path / "val/labels.csv", LABELS + "f1,1,a,1,1,1\n")
    with pytest.raises(
        DataError, match=r"labels\.csv:2: PDF not found: .*train/pdfs/f1\.pdf.*'train'"
    ):
        BENCHMARKS["deepform"](tmp_path, "val")


@pytest.mark.parametrize(
    ("key", "file", "where"),
    [
        ("chartqa", "train/png/a.png", r"train_human\.json:1"),
        ("sroie", "train/img/001.jpg", r"001\.json: company"),
        ("deepform", "train/pdfs/f1.pdf", r"labels\.csv:2"),
        ("wtq", "csv/1-csv/0.csv", r"train\.tsv:2"),
        ("tabfact", "data/all_csv/t1.csv", r"table 't1\.csv': statement 1"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"\x00\xff not this"])
def test_damaged_pages_are_found(
    key: str, file: str, where: str, content: bytes, tmp_path: Path
) -> None:
    LAYOUTS[key](tmp_path)
    BENCHMARKS[key](tmp_path, "train").check_files()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{where}: .*{re.escape(file)}"):
        BENCHMARKS[key](tmp_path, "train").check_files()
