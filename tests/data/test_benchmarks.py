"""Tiny copies of the official layouts, made here; the real ones in the slow tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.documents.test_documents import make_pdf, text_at

from alignvlm.data.benchmarks.benchmark import Benchmark
from alignvlm.data.benchmarks.forms import DeepFormSource, split_line
from alignvlm.data.benchmarks.tables import BENCHMARKS, WTQSource
from alignvlm.data.records import load_images
from alignvlm.data.sources import Source
from alignvlm.errors import DataError


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def wtq(root: Path) -> None:
    rows = [
        "id\tutterance\tcontext\ttargetValue",
        "nt-0\twhich city?\tcsv/1-csv/0.csv\tParis, \\p France",
        "nt-1\twhich years?\tcsv/1-csv/0.csv\t1999|2001",
    ]
    put(root / "data/random-split-1-train.tsv", "\n".join(rows) + "\n")
    table = '"Year","City"\n"1999","The \\"big\\" Paris, France"\n"2001","Rome"\n'
    put(root / "csv/1-csv/0.csv", table)


def tabfact(root: Path) -> None:
    examples = {"t1.csv": [["the city be paris", "the city be rome"], [1, 0], "cities"]}
    put(root / "tokenized_data/train_examples.json", examples)
    put(root / "data/all_csv/t1.csv", 'year#city\n1999#"paris\n')


def chartqa(root: Path) -> None:
    item = {"imgname": "a.png", "query": "how much?", "label": "4.5"}
    put(root / "train/train_human.json", [item])
    put(root / "train/train_augmented.json", [{**item, "label": 3}])
    (root / "train/png").mkdir()
    Image.new("RGB", (8, 6)).save(root / "train/png/a.png")


def sroie(root: Path) -> None:
    put(root / "train/key/001.json", {"company": "ACME, INC", "date": "1/2/2018", "total": ""})
    put(
        root / "train/box/001.csv", "10,5,110,5,110,25,10,25,ACME, INC.\n0,30,40,30,40,50,0,50,8.00"
    )
    (root / "train/img").mkdir()
    Image.new("RGB", (120, 60)).save(root / "train/img/001.jpg")


LABELS = "file_id,contract_num,advertiser,gross_amount,flight_from,flight_to\n"


def deepform(root: Path) -> None:
    put(root / "train/labels.csv", LABELS + 'f1,77,"Smith, Jo","$5.00",,5/2/20\n')
    (root / "train/pdfs").mkdir()
    make_pdf(root / "train/pdfs/f1.pdf", [text_at((20, 100, f"page {i}")) for i in range(5)])


LAYOUTS = {"wtq": wtq, "tabfact": tabfact, "chartqa": chartqa, "sroie": sroie, "deepform": deepform}


@pytest.fixture(params=LAYOUTS)
def benchmark_source(request: pytest.FixtureRequest, tmp_path: Path) -> Benchmark:
    LAYOUTS[request.param](tmp_path)
    return BENCHMARKS[request.param](tmp_path, "train")


def test_every_benchmark_keeps_the_contract(benchmark_source: Benchmark) -> None:
    source = benchmark_source
    assert isinstance(source, Source)
    assert len({source[i].id for i in range(len(source))}) == len(source)
    for i in range(len(source)):
        record = source[i]
        assert record.source == source.name == f"{source.key}-train"
        assert record.answer == "|".join(source.row(i).answers)
        images = load_images(record)
        for image, words in zip(images, record.words or [[]] * len(images), strict=True):
            for word in words:
                x0, y0, x1, y1 = word["box"]
                assert 0 <= x0 <= x1 <= image.width
                assert 0 <= y0 <= y1 <= image.height
                assert len(word["char_x"]) == len(word["text"])
    assert source[0].messages == source[0].messages
    with pytest.raises(IndexError):
        source[len(source)]


@pytest.mark.parametrize("key", BENCHMARKS)
def test_missing_folder_split_and_files(key: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        BENCHMARKS[key](tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no split 'trian'.*did you mean 'train'"):
        BENCHMARKS[key](tmp_path, "trian")
    with pytest.raises(DataError, match=str(tmp_path)):
        BENCHMARKS[key](tmp_path, "train")


def test_wtq(tmp_path: Path) -> None:
    wtq(tmp_path)
    source = BENCHMARKS["wtq"](tmp_path, "train")
    assert source.row(0).answers == ("Paris, | France",)
    assert source.row(1).answers == ("1999", "2001")
    assert source.table(0).rows[0] == ("1999", 'The "big" Paris, France')
    small = BENCHMARKS["wtq"](tmp_path, "train", font_px=12)
    assert small[0].images[0].width < source[0].images[0].width
    path = tmp_path / "data/random-split-1-train.tsv"
    good = path.read_text()
    put(tmp_path / "data/pristine-unseen-tables.tsv", good.replace("nt-", "nu-"))
    assert len(BENCHMARKS["wtq"](tmp_path, "test")) == 2
    for bad, reason in [
        (good.replace("utterance", "question"), ":1: the columns must be"),
        (good + "nt-1\tq\tcsv/1-csv/0.csv\ta\n", ":4: id 'nt-1' is already on row 3"),
        (good + "nt-2\tq\tcsv/1-csv/9.csv\ta\n", ":4: table not found"),
        (good + "nt-2\tq\tcsv/1-csv/0.csv\n", ":4: 3 columns"),
        (good + "nt-2\tq\tcsv/1-csv/0.csv\t\n", ":4: empty question or answer"),
        (good.split("\n")[0], "no questions"),
    ]:
        path.write_text(bad)
        with pytest.raises(DataError, match=reason):
            BENCHMARKS["wtq"](tmp_path, "train")


def test_tabfact(tmp_path: Path) -> None:
    tabfact(tmp_path)
    source = BENCHMARKS["tabfact"](tmp_path, "train")
    assert [source.row(i).answers for i in range(2)] == [("yes",), ("no",)]
    question = source[0].question
    assert question.startswith("Is this statement supported by the table? the city be paris ")
    assert question.endswith("Answer yes or no.")
    assert source.table(0).rows == (("1999", '"paris'),)
    assert source.table(0).title == "cities"
    path = tmp_path / "tokenized_data/train_examples.json"
    for bad, reason in [
        ('{"a": ', "not valid JSON"),
        ("[]", "expected an object"),
        ('{"t1.csv": [[], [], ""], "t1.csv": [[], [], ""]}', "'t1.csv' is there twice"),
        ({"t1.csv": [["x"], [1]]}, "table 't1.csv': expected"),
        ({"t1.csv": [["x"], [1, 0], ""]}, "1 statements, 2 labels"),
        ({"t1.csv": [["x"], [2], ""]}, "statement 1: needs"),
        ({"t9.csv": [["x"], [1], ""]}, "table 't9.csv': not found"),
    ]:
        put(path, bad)
        with pytest.raises(DataError, match=reason) as caught:
            BENCHMARKS["tabfact"](tmp_path, "train")
        assert str(path) in str(caught.value)


def test_chartqa(tmp_path: Path) -> None:
    chartqa(tmp_path)
    source = BENCHMARKS["chartqa"](tmp_path, "train")
    assert [source[i].id for i in range(2)] == ["train_human/0", "train_augmented/0"]
    assert source.row(1).answers == ("3",)
    (tmp_path / "train/train_human.json").unlink()
    assert len(BENCHMARKS["chartqa"](tmp_path, "train")) == 1
    path = tmp_path / "train/train_augmented.json"
    item = {"imgname": "a.png", "query": "q", "label": "4"}
    for bad, reason in [
        ("[", "json:1: not valid JSON"),
        ({}, "expected a list"),
        ([item, {**item, "imgname": "b.png"}], "json:2: image not found: .*b.png"),
        ([{**item, "query": ""}], "json:1: 'query' must be"),
        ([item, "x"], "json:2: 'imgname' must be"),
    ]:
        put(path, bad)
        with pytest.raises(DataError, match=reason):
            BENCHMARKS["chartqa"](tmp_path, "train")


def test_sroie(tmp_path: Path) -> None:
    sroie(tmp_path)
    source = BENCHMARKS["sroie"](tmp_path, "train")
    assert [r.id for r in source.rows] == ["001/company", "001/date"]  # empty fields not asked
    (words,) = source[0].words
    assert [(w["text"], w["line"]) for w in words] == [("ACME,", 0), ("INC.", 0), ("8.00", 1)]
    assert words[0]["box"] == (10, 5, 60, 25)
    assert words[1]["box"] == (70, 5, 110, 25)
    assert words[1]["char_x"] == (70, 80, 90, 100)
    box = tmp_path / "train/box/001.csv"
    for bad, reason in [("1,2,3,4,5,6,7,x,A", "csv:1: could not"), ("\n1,2,3", "csv:2: 3 values")]:
        box.write_text(bad)
        with pytest.raises(DataError, match=reason):
            BENCHMARKS["sroie"](tmp_path, "train")
    box.unlink()
    with pytest.raises(DataError, match=r"box/001\.csv is missing"):
        BENCHMARKS["sroie"](tmp_path, "train")
    (tmp_path / "train/img/001.jpg").unlink()
    with pytest.raises(DataError, match=r"key/001\.json: image not found"):
        BENCHMARKS["sroie"](tmp_path, "train")


def test_sroie_keys(tmp_path: Path) -> None:
    sroie(tmp_path)
    key = tmp_path / "train/key/001.json"
    for bad, reason in [
        ("{", "not valid JSON"),
        ([], "expected an object"),
        ({"date": 3}, "string"),
    ]:
        put(key, bad)
        with pytest.raises(DataError, match=r"001\.json.*" + reason):
            BENCHMARKS["sroie"](tmp_path, "train")


def test_sroie_as_the_challenge_has_it(tmp_path: Path) -> None:
    sroie(tmp_path)
    for part, ending in (("key", "json"), ("box", "csv")):
        path = tmp_path / f"train/{part}/001.{ending}"
        path.rename(path.with_suffix(".txt"))
    assert len(BENCHMARKS["sroie"](tmp_path, "train")[0].words[0]) == 3
    (tmp_path / "train/box/001.txt").unlink()
    (tmp_path / "train/box").rmdir()
    assert BENCHMARKS["sroie"](tmp_path, "train")[0].words is None


def test_split_line_of_blanks() -> None:
    assert split_line("  ", [0, 0, 10, 10], 0) == []


def test_deepform(tmp_path: Path) -> None:
    deepform(tmp_path)
    source = BENCHMARKS["deepform"](tmp_path, "train")
    fields = ["contract_num", "advertiser", "gross_amount", "flight_to"]
    assert [row.id for row in source.rows] == [f"f1/{field}" for field in fields]
    assert source[1].answer == "Smith, Jo"
    record = BENCHMARKS["deepform"](tmp_path, "train", max_pages=2, dpi=72)[0]
    assert [image.size for image in record.images] == [(300, 200)] * 2
    assert [[w["text"] for w in page] for page in record.words] == [["page", "0"], ["page", "1"]]
    path = tmp_path / "train/labels.csv"
    good = path.read_text()
    for bad, reason in [
        (good.replace("advertiser", "sponsor"), ":1: no column 'advertiser'"),
        (good + "f1,1,a,1,1,1\n", ":3: id 'f1' is already on row 2"),
        (good + "f2,1,a,1,1,1\n", r":3: PDF not found: .*f2\.pdf"),
        (good + "f2,1\n", ":3: not as many columns"),
        (good + "f2,1,a,1,1,1,1\n", ":3: not as many columns"),
        (good + ",1,a,1,1,1\n", ":3: empty id"),
        (good + '"f2" x,1,a,1,1,1\n', "labels.csv:3: "),
        (LABELS, "no questions"),
    ]:
        path.write_text(bad)
        with pytest.raises(DataError, match=reason):
            BENCHMARKS["deepform"](tmp_path, "train")
    with pytest.raises(DataError, match="max_pages"):
        BENCHMARKS["deepform"](tmp_path, "train", max_pages=0)


def test_deepform_asks_for_empty_fields(tmp_path: Path) -> None:
    deepform(tmp_path)
    source = DeepFormSource(tmp_path, "train", ask_empty=True)
    assert [row.id.split("/")[1] for row in source.rows] == list(source.questions)
    assert source.row(3).answers == ()
    assert source[3].answer == "None"


def test_wtq_canonical_values(tmp_path: Path) -> None:
    wtq(tmp_path)
    plain = WTQSource(tmp_path, "train")
    assert plain.references(plain.row(1)) == ("1999", "2001")
    lines = ["id\ttargetValue\ttargetCanon", "nt-0\tx\tParis, \\p France", "nt-1\tx\t1999.0|2001.0"]
    path = put(tmp_path / "tagged/data/random-split-1-train.tagged", "\n".join(lines) + "\n")
    source = WTQSource(tmp_path, "train")
    assert source.references(source.row(1)) == ("1999\t1999.0", "2001\t2001.0")
    assert source.row(1).answers == ("1999", "2001")
    assert source[1].answer == "1999|2001"
    path.write_text("\n".join(lines).replace("1999.0|", ""))
    with pytest.raises(DataError, match=r"train\.tsv:3: 2 items, 1 in targetCanon"):
        WTQSource(tmp_path, "train").check_files()


# real data


def shared() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("ALIGNVLM_DATA", default))
    if not path.is_dir():
        pytest.skip("no real data: set ALIGNVLM_DATA to a folder with wtq, tabfact, ...")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "split", "rows", "pages"),
    [
        ("wtq", "train", 11_321, 1_333),
        ("wtq", "dev", 2_831, 346),
        ("tabfact", "train", 92_283, 13_182),
        ("tabfact", "val", 12_792, 1_696),
        ("chartqa", "train", 1_000, 999),
        ("chartqa", "val", 194, 194),
        ("sroie", "train", 2_250, 563),
        ("sroie", "val", 252, 63),
        ("deepform", "train", 747, 150),
        ("deepform", "val", 300, 60),
    ],
)
def test_real_benchmarks(key: str, split: str, rows: int, pages: int) -> None:
    source = BENCHMARKS[key](shared() / key, split)
    assert len(source) == rows
    assert len({row.key for row in source.rows}) == pages
    assert len({row.id for row in source.rows}) == rows
    source.check_files()
    for index in range(0, rows, max(1, rows // 5)):
        record = source[index]
        images = load_images(record)
        for image, words in zip(images, record.words or [], strict=False):
            assert len(words) > 3
            inside = [w["box"][2] <= image.width + 2 and w["box"][3] <= image.height for w in words]
            assert sum(inside) >= 0.9 * len(words)


@pytest.mark.slow
def test_real_deepform_words_hold_answers() -> None:
    source = BENCHMARKS["deepform"](shared() / "deepform", "val", max_pages=None, dpi=72)
    rows = [i for i, row in enumerate(source.rows) if row.id.endswith("/contract_num")][:20]
    found = 0
    for index in rows:
        record = source[index]
        found += record.answer in " ".join(w["text"] for page in record.words for w in page)
    assert found >= 18
