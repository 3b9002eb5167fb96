"""The five local tasks on tiny copies of the official layouts; the real ones in a slow test."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignvlm.data.benchmarks.tables import TabFactSource
from alignvlm.errors import DataError
from alignvlm.eval.metrics import METRICS
from alignvlm.eval.tasks import TASKS, Sample, Task, load_task

LOCAL = ("chartqa", "wtq", "tabfact", "sroie", "deepform")
DEFAULT = {"chartqa": "val", "wtq": "dev", "tabfact": "val", "sroie": "val", "deepform": "val"}


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def picture(path: Path, color: str = "red", size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def chartqa(root: Path, split: str) -> None:
    for part, name in (("human", "a.png"), ("augmented", "b.png")):
        item = {"imgname": name, "query": f"How much {{x}} ({part})?", "label": "4.5"}
        put(root / split / f"{split}_{part}.json", [item, {**item, "label": "Yes"}])
        picture(root / split / "png" / name, "red" if part == "human" else "blue")


def wtq(root: Path, split: str) -> None:
    name = "pristine-unseen-tables" if split == "test" else f"random-split-1-{split}"
    rows = [
        "id\tutterance\tcontext\ttargetValue",
        f"{split}-0\twhich city?\tcsv/1-csv/0.csv\tParis",
        f"{split}-1\twhich years?\tcsv/1-csv/1.csv\t1999|2001",
        f"{split}-2\twhich year?\tcsv/1-csv/0.csv\t1999",
    ]
    put(root / f"data/{name}.tsv", "\n".join(rows) + "\n")
    for number in range(2):
        put(root / f"csv/1-csv/{number}.csv", f'"Year","City"\n"1999","Paris {number}"\n')


def tabfact(root: Path, split: str) -> None:
    table = f"{split}.csv"
    examples = {table: [["the city be paris", "the city be rome"], [1, 0], "cities"]}
    put(root / f"tokenized_data/{split}_examples.json", examples)
    put(root / f"data/all_csv/{table}", "year#city\n1999#paris\n")
    put(root / f"data/{split}_id.json", [table])


def sroie(root: Path, split: str) -> None:
    put(root / split / "key/X1.json", {"company": "ACME", "date": "1/2/18", "total": "9.00"})
    put(root / split / "box/X1.csv", "1,1,9,1,9,5,1,5,ACME")
    picture(root / split / "img/X1.jpg")


def deepform(root: Path, split: str) -> None:
    put(
        root / split / "labels.csv",
        "file_id,contract_num,advertiser,gross_amount,flight_from,flight_to\n"
        f"{split}-f1,77,Jo,$5.00,,5/2/20\n",
    )
    (root / split / "pdfs").mkdir(parents=True)
    pages = [Image.new("RGB", (72, 72), color) for color in ("red", "blue", "red", "blue")]
    pages[0].save(root / split / f"pdfs/{split}-f1.pdf", save_all=True, append_images=pages[1:])


LAYOUTS = {"chartqa": chartqa, "wtq": wtq, "tabfact": tabfact, "sroie": sroie, "deepform": deepform}


def opened(name: str, tmp_path: Path, split: str, **options: Any) -> Task:
    LAYOUTS[name](tmp_path / name, split)
    return load_task(name, tmp_path, split, **options)


@pytest.mark.parametrize("split", ["own", "test"])
@pytest.mark.parametrize("name", LOCAL)
def test_contract(name: str, split: str, tmp_path: Path) -> None:
    split = DEFAULT[name] if split == "own" else split
    task = opened(name, tmp_path, split)
    samples = [task.sample(i) for i in range(len(task))]
    assert (task.name, task.split) == (name, split)
    assert all(metric is METRICS[metric.name] for metric in task.metrics)
    assert len({sample.id for sample in samples}) == len(samples) >= 2
    for index, sample in enumerate(samples):
        assert isinstance(sample, Sample)
        assert sample.question in sample.prompt
        assert sample.prompt == task.settings()["prompt"].format(question=sample.question)
        pages = task.pages(index)
        assert pages
        assert all(page.mode == "RGB" for page in pages)
        # the reference itself is a right answer for every metric
        for metric in task.metrics if sample.answers else ():
            verdict = metric.verdict("|".join(sample.answers), sample.answers)
            assert metric.aggregate([verdict]) == 1.0
    assert json.loads(json.dumps(task.settings())) == task.settings()
    with pytest.raises(IndexError):
        task.sample(len(task))
    # the folder itself does as well, and is the default split
    again = load_task(name, tmp_path / name, split)
    assert [again.sample(i) for i in range(len(again))] == samples
    assert TASKS[name].split == DEFAULT[name]


@pytest.mark.parametrize("name", LOCAL)
def test_pages_do_not_depend_on_the_order(name: str, tmp_path: Path) -> None:
    task = opened(name, tmp_path, DEFAULT[name])
    forward = [[p.tobytes() for p in task.pages(i)] for i in range(len(task))]
    for index in reversed(range(len(task))):
        for page in task.pages(index):
            page.paste("green", (0, 0, *page.size))  # a caller may draw on what it got
    again = load_task(name, tmp_path)
    backward = [[p.tobytes() for p in again.pages(i)] for i in reversed(range(len(task)))]
    assert (
        forward
        == backward[::-1]
        == [[p.tobytes() for p in task.pages(i)] for i in range(len(task))]
    )


def test_what_is_asked(tmp_path: Path) -> None:
    charts = opened("chartqa", tmp_path, "val")
    assert [charts.sample(i).id for i in range(4)] == [
        "val_human/0",
        "val_human/1",
        "val_augmented/0",
        "val_augmented/1",
    ]
    assert charts.sample(2).group == "b.png"
    assert "How much {x} (human)?\nAnswer with" in charts.sample(0).prompt
    tables = opened("wtq", tmp_path, "dev")
    assert [tables.sample(i).answers for i in range(3)] == [("Paris",), ("1999", "2001"), ("1999",)]
    assert tables.sample(0).group == tables.sample(2).group != tables.sample(1).group
    facts = opened("tabfact", tmp_path, "val")
    assert facts.sample(1).question == "the city be rome"
    assert facts.sample(1).prompt == TabFactSource.prompt.format("the city be rome")
    assert facts.sample(1).answers == ("no",)
    receipts = opened("sroie", tmp_path, "val")
    assert [receipts.sample(i).id for i in range(len(receipts))] == [
        f"X1/{field}" for field in ("company", "date", "total")
    ]


def test_deepform_asks_for_missing_fields(tmp_path: Path) -> None:
    task = opened("deepform", tmp_path, "val")
    assert len(task) == 5
    sample = task.sample(3)
    assert sample.id.endswith("/flight_from")
    assert sample.answers == ()
    (metric,) = task.metrics
    assert metric.verdict("None", sample.answers) == {"tp": 0, "fp": 0, "fn": 0}
    assert metric.verdict("5/1/20", sample.answers)["fp"] == 1


def test_options_make_the_pages_and_are_in_the_settings(tmp_path: Path) -> None:
    task = opened("deepform", tmp_path, "val")
    assert len(task.pages(0)) == task.settings()["pages"]["max_pages"] == 3
    task = load_task("deepform", tmp_path, max_pages=1, dpi=36)
    (page,) = task.pages(0)
    assert page.width == 36
    assert task.settings()["pages"] == {"max_pages": 1, "dpi": 36}
    table = opened("wtq", tmp_path, "dev")
    assert table.settings()["pages"]["font_px"] == 24
    assert table.settings()["pages"]["font_path"] in ("DejaVuSans.ttf", "pillow:default")
    small = load_task("wtq", tmp_path, font_px=12)
    assert small.pages(0)[0].width < table.pages(0)[0].width
    assert small.settings()["pages"]["font_px"] == 12
    with pytest.raises(DataError, match=r"deepform: .*maxpages"):
        load_task("deepform", tmp_path, maxpages=1)


def test_settings_know_the_labels(tmp_path: Path) -> None:
    before = opened("chartqa", tmp_path, "val").settings()
    path = tmp_path / "chartqa/val/val_human.json"
    path.write_text(path.read_text().replace("4.5", "4.6"))
    assert load_task("chartqa", tmp_path).settings()["labels_sha256"] != before["labels_sha256"]


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no task 'chartaq' \(did you mean 'chartqa'\?\); there"):
        load_task("chartaq", tmp_path)
    with pytest.raises(DataError, match="wtq: needs --data"):
        load_task("wtq")
    with pytest.raises(DataError, match="wtq: no such folder"):
        load_task("wtq", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"wtq: neither .* nor .*/wtq has csv"):
        load_task("wtq", tmp_path)
    chartqa(tmp_path, "val")
    with pytest.raises(DataError, match=r"no split 'vall' \(did you mean 'val'\?\)"):
        load_task("chartqa", tmp_path, "vall")


@pytest.mark.parametrize(
    ("name", "file", "content", "reason"),
    [
        ("chartqa", "val/png/a.png", b"", r"val_human\.json:1: .*a\.png: the file is empty"),
        ("chartqa", "val/png/b.png", b"GIF", r"val_augmented\.json:1: .*b\.png: not an image"),
        ("chartqa", "val/png/b.png", None, r"val_augmented\.json:1: image not found"),
        ("chartqa", "val/val_human.json", b"[{]", r"val_human\.json:1: not valid JSON"),
        ("wtq", "csv/1-csv/1.csv", b"", r"dev\.tsv:3: .*1\.csv: row 1"),
        ("sroie", "val/img/X1.jpg", b"\xff\xd8\xff", r"X1\.json: company: .*X1\.jpg: not an image"),
        ("sroie", "val/key/X1.json", b"{,}", r"X1\.json:1: not valid JSON"),
        (
            "deepform",
            "val/pdfs/val-f1.pdf",
            b"%PDF-1.4",
            r"labels\.csv:2: .*f1\.pdf: not a PDF",
        ),
    ],
)
def test_damaged_folders_stop_at_once(
    name: str, file: str, content: bytes | None, reason: str, tmp_path: Path
) -> None:
    opened(name, tmp_path, DEFAULT[name])
    path = tmp_path / name / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        load_task(name, tmp_path)


def real_data() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("ALIGNVLM_DATA", default))
    if not path.is_dir():
        pytest.skip("no real data: set ALIGNVLM_DATA to a folder with wtq, tabfact, ...")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "samples", "groups"),
    [
        ("chartqa", 194, 194),
        ("wtq", 2_831, 346),
        ("tabfact", 12_792, 1_696),
        ("sroie", 252, 63),
        ("deepform", 300, 60),
    ],
)
def test_real_validation_data(name: str, samples: int, groups: int) -> None:
    start = time.perf_counter()
    task = load_task(name, real_data())
    assert time.perf_counter() - start < 30
    found = [task.sample(i) for i in range(len(task))]
    assert len(found) == len({sample.id for sample in found}) == samples
    assert len({sample.group for sample in found}) == groups
    for index in range(0, samples, samples // 4):
        assert all(np.asarray(page).std() > 0 for page in task.pages(index))
