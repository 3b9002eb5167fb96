"""Hub data sets as tasks, on tiny local copies with the official column names; and KLC."""

from __future__ import annotations

import io
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignvlm.errors import DataError
from alignvlm.eval.tasks import TASKS, load_task
from alignvlm.eval.tasks.fintabnet import fintabnet_accuracy, readings
from alignvlm.eval.tasks.hub_tasks import HUB_TASKS
from alignvlm.eval.tasks.local_tasks import KLC_HUB_ID


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def png(color: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


PAGES = [png("red"), png("red"), png("blue")]


def columns(name: str, split: str) -> dict[str, list[Any]]:
    """Three rows as the official set has them, on two documents."""
    questions = [f"what is {n}?" for n in ("a", "b", "c")]
    if name == "docvqa":
        return {
            "questionId": ["49153", "24580", "57349"],
            "question": questions,
            "question_types": [["figure"], [], ["table"]],
            "image": PAGES,
            "docId": [4, 4, 9],
            "ucsf_document_id": ["pybv0228", "pybv0228", "nkbl0226"],
            "ucsf_document_page_no": ["1", "2", "1"],
            "answers": [["0.28", ".28"], ["ITC", "itc"], ["Paul"]],
            "data_split": ["val"] * 3,
        }
    if name == "infovqa":
        return {
            "questionId": ["98313", "98314", "98315"],
            "question": questions,
            "answers": [["60%"], ["2", "two"], ["Twitter"]],
            "answer_type": [["single span"]] * 3,
            "image": PAGES,
            "image_url": ["http://a/1.png", "http://a/1.png", "http://a/2.png"],
            "operation/reasoning": [[]] * 3,
            "ocr": ["{}"] * 3,
            "data_split": ["val"] * 3,
        }
    if name == "textvqa":
        return {
            "image_id": ["003a8ae2ef43b901", "003a8ae2ef43b901", "b1"],
            "question_id": [34602, 34603, 34604],
            "question": questions,
            "image": PAGES,
            "answers": [["dakota"] * 9 + ["nous"], ["copenhagen"] * 10, ["stella"] * 10],
            "ocr_tokens": [["a"]] * 3,
        }
    gold = {"vtabfact": ["1", "0", "1"], "fintabnetqa": ["3.14%", "$641.8", "36,701"]}
    return {
        "qa_id": ["nu-1740", "nu-2998", "nu-806"],
        "image": PAGES,
        "question": questions,
        "text_markdown_table": ["|a|", "|a|", "|b|"],
        "text_html_table": ["<table>a</table>", "<table>a</table>", "<table>b</table>"],
        "gt": gold.get(split, ["2", "More", "Joe Straus|Lyle Larson"]),
    }


CASES = [(name, task.split) for name, task in HUB_TASKS.items()]
CASES += [("tablevqa", split) for split in ("vwtq_syn", "vtabfact", "fintabnetqa")]


def write(datasets: Any, root: Path, name: str, split: str, form: str, **changes: Any) -> Path:
    """Save a set in one of the forms that local copies have."""
    table = datasets.Dataset.from_dict({**columns(name, split), **changes})
    table = table.cast_column("image", datasets.Image())
    config = HUB_TASKS[name].config or "data"
    if form == "snapshot":  # as the hub lays it out, in two files
        for number in range(2):
            path = root / config / f"{split}-{number:05d}-of-00002.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table.shard(2, number, contiguous=True).to_parquet(path)
        return root
    if form == "file":
        root.mkdir(exist_ok=True)
        table.to_parquet(root / "any.parquet")
        return root / "any.parquet"
    if form == "saved":
        table.save_to_disk(root / name)
        return root
    datasets.DatasetDict({split: table}).save_to_disk(root)
    return root


@pytest.mark.parametrize("form", ["snapshot", "file", "saved", "dict"])
@pytest.mark.parametrize(("name", "split"), CASES)
def test_contract(datasets: Any, tmp_path: Path, name: str, split: str, form: str) -> None:
    task = load_task(name, write(datasets, tmp_path / "set", name, split, form), split)
    samples = [task.sample(i) for i in range(len(task))]
    given = columns(name, split)
    row_id = given.get("questionId") or given.get("question_id") or given["qa_id"]
    assert [sample.id for sample in samples] == [str(i) for i in row_id]
    assert samples[0].group == samples[1].group != samples[2].group
    for sample, question in zip(samples, given["question"], strict=True):
        assert sample.question == question
        assert sample.prompt == task.settings()["prompt"].format(question=question)
        (metric,) = task.metrics
        whole_list = metric.name == "denotation_accuracy"
        reply = "|".join(sample.answers) if whole_list else sample.answers[0]
        assert metric.aggregate([metric.verdict(reply, sample.answers)]) > 0.8
        assert metric.aggregate([metric.verdict("something else", sample.answers)]) == 0
    colors = [page.getpixel((0, 0)) for i in (2, 0, 1) for page in task.pages(i)]
    assert colors == [(0, 0, 255), (255, 0, 0), (255, 0, 0)]
    assert json.loads(json.dumps(task.settings())) == task.settings()
    with pytest.raises(IndexError):
        task.pages(3)


def test_answers(datasets: Any, tmp_path: Path) -> None:
    def answers(name: str, split: str | None = None) -> list[tuple[str, ...]]:
        split = split or HUB_TASKS[name].split
        task = load_task(name, write(datasets, tmp_path / split / name, name, split, "dict"), split)
        return [task.sample(i).answers for i in range(3)]

    assert answers("docvqa")[0] == ("0.28", ".28")
    assert answers("textvqa")[0] == ("dakota",) * 9 + ("nous",)
    assert answers("tablevqa")[2] == ("Joe Straus", "Lyle Larson")
    assert answers("tablevqa", "vtabfact") == [("yes",), ("no",), ("yes",)]
    assert answers("tablevqa", "fintabnetqa")[1] == ("$641.8",)


def test_settings_know_the_rows(datasets: Any, tmp_path: Path) -> None:
    before = load_task("docvqa", write(datasets, tmp_path / "a", "docvqa", "validation", "dict"))
    changes = {"answers": [["0.29"], ["ITC"], ["Paul"]]}
    path = write(datasets, tmp_path / "b", "docvqa", "validation", "dict", **changes)
    after = load_task("docvqa", path)
    assert before.settings()["labels_sha256"] != after.settings()["labels_sha256"]
    assert before.settings()["pages"] == {"hub_id": "lmms-lab/DocVQA", "config": "DocVQA"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"questionId": ["1", "2", "1"]}, r"\[validation\]:2: id '1' is already on row 0"),
        ({"question": ["a", " ", "c"]}, r"\[validation\]:1: empty question"),
        ({"answers": [["a"], [""], ["c"]]}, r"\[validation\]:1: no answer in column 'answers'"),
        ({"answers": [["a"], ["b"], None]}, r"\[validation\]:2: no answer .* got None"),
        ({"image": [PAGES[0], {"bytes": b"GIF", "path": None}, PAGES[1]]}, ":1: the image cannot"),
        ({"image": [PAGES[0], PAGES[1], None]}, ":2: no image"),
    ],
)
def test_bad_rows_stop_at_once(
    datasets: Any, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = write(datasets, tmp_path / "set", "docvqa", "validation", "dict", **changes)
    with pytest.raises(DataError, match=reason):
        load_task("docvqa", path)


def test_wrong_places(datasets: Any, tmp_path: Path) -> None:
    path = write(datasets, tmp_path / "set", "docvqa", "validation", "snapshot")
    with pytest.raises(DataError, match=r"no split 'validaton' \(did you mean 'validation'\?\)"):
        load_task("docvqa", path, "validaton")
    with pytest.raises(DataError, match=r"split 'test' are not public: use validation"):
        load_task("docvqa", path, "test")
    with pytest.raises(DataError, match=r"no train-\*\.parquet in .*; there is validation"):
        load_task("docvqa", path, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nor a saved data set"):
        load_task("textvqa", tmp_path / "empty")
    with pytest.raises(DataError, match="no such file or folder"):
        load_task("textvqa", tmp_path / "nowhere")
    with pytest.raises(DataError, match="no option 'dpi'"):
        load_task("docvqa", path, dpi=72)
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"give a \.parquet file"):
        load_task("docvqa", tmp_path / "a.csv")
    saved = write(datasets, tmp_path / "saved", "docvqa", "train", "dict")
    with pytest.raises(DataError, match=r"no split 'validation'; it has train"):
        load_task("docvqa", saved)
    other = write(datasets, tmp_path / "other", "textvqa", "validation", "dict")
    with pytest.raises(DataError, match=r"no column 'questionId' for id; it has image_id"):
        load_task("docvqa", other)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "validation.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"docvqa: cannot read .*bad \[validation\]"):
        load_task("docvqa", tmp_path / "bad")


@pytest.mark.parametrize("name", [*HUB_TASKS, "klc"])
def test_without_data_the_hub_is_named_and_offline_is_kept(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE  # tests/conftest.py
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub_id = KLC_HUB_ID if name == "klc" else HUB_TASKS[name].hub_id
    with pytest.raises(DataError, match=rf"{name}: .*{hub_id}"):
        load_task(name)
    assert f"{name}: reading {hub_id}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("3.14 %", "3.14%", True),
        ("$641.8 million", "$641.8", True),
        ("641.8", "$641.8 million", True),
        ("3,852 million dollars", "$3,852 million", True),
        ("36701 shares", "36,701", True),
        ("1.23 billion", "1,230 million", True),
        ("3.15%", "3.14%", False),
        ("Industrials", "Industrials.", True),
        ("Printing", "Printing & Identification", False),
        ("", "0", False),
    ],
)
def test_fintabnet(prediction: str, answer: str, right: bool) -> None:
    assert fintabnet_accuracy(prediction, (answer,)) == right
    assert fintabnet_accuracy(prediction, ("nothing like it", answer)) == right
    assert readings("$3 million") == {3e6, 3.0}


# Kleister Charity

EXPECTED = [
    "address__post_town=BOURNE_END charity_name=Saint_A=B charity_number=300703 "
    "income_annually_in_british_pounds=41721.00 report_date=2016-03-31",
    "charity_name=Other charity_number=7",
]


def klc(root: Path, form: str) -> Path:
    names = ["aa.pdf", "bb.pdf"]
    folder = {"official": root / "dev-0", "copy": root, "due": root / "dev"}[form]
    folder.mkdir(parents=True)
    pdfs = root / ("documents" if form == "official" else "pdfs")
    pdfs.mkdir()
    for name in names:
        pages = [Image.new("RGB", (72, 72), color) for color in ("red", "blue", "red", "blue")]
        pages[0].save(pdfs / name, save_all=True, append_images=pages[1:])
    if form == "due":
        lines = []
        for name, line in zip(names, EXPECTED, strict=True):
            pairs = [pair.split("=", 1) for pair in line.replace("_E", " E").split(" ")]
            pairs = [pair for pair in pairs if len(pair) == 2]
            notes = [{"key": k, "values": [{"value": v.replace("_", " ")}]} for k, v in pairs]
            lines.append(json.dumps({"name": name[:-4], "annotations": notes}))
        (folder / "document.jsonl").write_text("\n".join(lines))
        return folder / "document.jsonl"
    (folder / "expected.tsv").write_text("\n".join(EXPECTED) + "\n")
    if form == "copy":
        (folder / "documents.txt").write_text("\n".join(names) + "\n")
    else:
        with lzma.open(folder / "in.tsv.xz", "wt", encoding="utf-8") as file:
            file.writelines(f"{name}\tcharity_name charity_number\ttext\n" for name in names)
    return folder / "expected.tsv"


@pytest.mark.parametrize("form", ["official", "copy", "due"])
def test_klc(tmp_path: Path, form: str) -> None:
    klc(tmp_path / "klc", form)
    task = load_task("klc", tmp_path)
    assert len(task) == 16  # every field of both, there or not
    samples = {sample.id: sample for sample in map(task.sample, range(16))}
    assert samples["aa/charity_name"].answers == ("Saint A=B",)
    assert samples["aa/report_date"].answers == ("2016-03-31",)
    assert samples["bb/report_date"].answers == ()
    assert samples["bb/charity_number"].answers == ("7",)
    assert {sample.group for sample in samples.values()} == {"aa.pdf", "bb.pdf"}
    assert "Answer None" in task.sample(0).prompt
    assert len(task.pages(0)) == task.settings()["pages"]["max_pages"] == 3
    assert len(load_task("klc", tmp_path / "klc", max_pages=None).pages(0)) == 4
    assert TASKS["klc"].split == "dev"


def test_klc_errors(tmp_path: Path) -> None:
    path = klc(tmp_path / "klc", "copy")
    with pytest.raises(DataError, match=r"klc: no expected\.tsv or document\.jsonl in train"):
        load_task("klc", tmp_path, "train")
    good = path.read_text()
    for bad, reason in [
        (good.replace("=7", ""), r"expected\.tsv:2: 'charity_number' is not key=value"),
        (good.replace("charity_number=7", "number=7"), r"tsv:2: unknown field 'number'"),
        (good + "charity_name=x\n", "3 rows, but there are 2 documents"),
    ]:
        path.write_text(bad)
        with pytest.raises(DataError, match=reason):
            load_task("klc", tmp_path)
    path.write_text(good)
    (tmp_path / "klc/pdfs/bb.pdf").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected\.tsv:2: .*bb\.pdf: the file is empty"):
        load_task("klc", tmp_path)
    (tmp_path / "klc/pdfs/bb.pdf").unlink()
    with pytest.raises(DataError, match=r"expected\.tsv:2: PDF not found: .*bb\.pdf"):
        load_task("klc", tmp_path)
    (tmp_path / "klc/documents.txt").unlink()
    with pytest.raises(DataError, match=r"no in\.tsv\.xz, in\.tsv or documents\.txt"):
        load_task("klc", tmp_path)
    (tmp_path / "klc/in.tsv.xz").write_bytes(b"no xz")
    with pytest.raises(DataError, match=r"in\.tsv\.xz: cannot be read"):
        load_task("klc", tmp_path)
    due = klc(tmp_path / "due", "due")
    due.write_text('{"name": "aa"}\n')
    with pytest.raises(DataError, match=r"document\.jsonl:1: not a document of DUE: KeyError"):
        load_task("klc", tmp_path / "due")
