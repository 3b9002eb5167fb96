"""Published data sets load as they lie on the hub: by number, and as a stream."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")

from tests.data.replicas import BIGDOCS, ROWS, make_replicas  # noqa: E402

from alignvlm.data.hub.archives import Parts  # noqa: E402
from alignvlm.data.hub.catalogue import PUBLISHED, published  # noqa: E402
from alignvlm.data.records import load_images  # noqa: E402
from alignvlm.data.sources import HubSource, HubStream  # noqa: E402
from alignvlm.errors import DataError  # noqa: E402


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets.disable_progress_bars()
    return make_replicas(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _places(replicas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("ALIGNVLM_DATA", str(replicas))
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path / "home"))


SETS: list[tuple[str, dict[str, Any]]] = [
    *[
        (BIGDOCS, {"config": config})
        for config in ("ArxivOCR", "ArxivTableCap", "Open4Business", "TabFact", "WikiTQ", "cord-v2")
    ],
    (BIGDOCS, {"config": "COCOtext", "images": "train2014.zip"}),
    (BIGDOCS, {"config": "TextOCR", "images": "train_val_images.zip"}),
    (BIGDOCS, {"config": "pubtables-1m", "images": "bsmock/pubtables-1m"}),
    ("ServiceNow/BigDocs-Bench", {"config": "GUI-VQA"}),
    ("mPLUG/DocDownstream-1.0", {}),
    ("pixparse/cc12m-wds", {}),
    ("liuhaotian/LLaVA-Pretrain", {}),
    ("lmms-lab/LLaVA-NeXT-Data", {}),
    ("MAmmoTH-VL/MAmmoTH-VL-Instruct-12M", {}),
    ("HuggingFaceM4/FineVision", {"config": "docvqa"}),
    ("HuggingFaceM4/Docmatix", {"config": "images"}),
    ("HuggingFaceM4/Docmatix", {"config": "pdf"}),
    ("vcr-org/VCR-wiki-en-easy", {}),
    ("vcr-org/VCR-wiki-en-hard", {}),
]
TEXT_ONLY = ("lmms-lab/LLaVA-NeXT-Data", "MAmmoTH-VL/MAmmoTH-VL-Instruct-12M")
"""Their last row has no image."""


def seen(record: Any, reference: str) -> tuple[str, str | None, list[int]]:
    """Question, answer, and by the images' width which row they are of."""
    known = published(reference)
    one_question = known is not None and known.question is not None
    question = "q" + record.answer[1:] if one_question else record.question
    scale = 2 if any("pdf" in str(value) for value in (record.id,)) else 1
    return question, record.answer, [image.width // scale - 20 for image in load_images(record)]


def right(reference: str) -> list[tuple[str, str, list[int]]]:
    last = ROWS - 1
    return [
        (f"q{i}", f"a{i}", [] if i == last and reference in TEXT_ONLY else [i]) for i in range(ROWS)
    ]


@pytest.mark.parametrize(("reference", "options"), SETS)
def test_by_number(reference: str, options: dict[str, Any]) -> None:
    source = HubSource(reference, **options)
    assert [seen(source[i], reference) for i in range(len(source))] == right(reference)
    assert source[1].source in (published(reference).id.split("/")[1], "docvqa")


@pytest.mark.parametrize(("reference", "options"), SETS)
def test_as_a_stream(reference: str, options: dict[str, Any], tmp_path: Path) -> None:
    stream = HubStream(reference, **options)
    found = [seen(record, reference) for record in stream]
    assert sorted(found) == right(reference)
    assert not (tmp_path / "home").exists()


def test_every_set_of_the_catalogue_has_a_replica(replicas: Path) -> None:
    assert {reference for reference, _ in SETS} == {one.id for one in PUBLISHED}
    for one in PUBLISHED:
        assert (replicas / one.id).is_dir()
        assert published(str(replicas / one.id)) == one
        cache = f"/c/datasets--{one.id.replace('/', '--')}/snapshots/0123"
        assert published(cache) == one
    assert published("some/where") is None


def test_several_images_and_mixed_columns() -> None:
    options = {"data_files": ["mammoth_ov_2M.json"]}
    source = HubSource("MAmmoTH-VL/MAmmoTH-VL-Instruct-12M", **options)
    assert [record.id for record in (source[0], source[1])] == ["7", "m4"]
    assert [image.width for image in load_images(source[0])] == [20, 21]
    stream = HubStream("MAmmoTH-VL/MAmmoTH-VL-Instruct-12M", **options)
    assert sorted(len(record.images) for record in stream) == [1, 2]


def test_what_is_unpacked_already_is_not_again(replicas: Path, tmp_path: Path) -> None:
    reference = "mPLUG/DocDownstream-1.0"
    HubSource(reference)
    (kept,) = (tmp_path / "home" / "data").glob("mPLUG--DocDownstream-1.0-????????????")
    before = kept.stat().st_mtime_ns
    assert HubSource(reference)[0].images == [str(kept / "imgs/DocVQA/pngs/0.png")]
    assert kept.stat().st_mtime_ns == before


def test_what_was_unpacked_by_hand_is_not_unpacked_again(tmp_path: Path) -> None:
    make_replicas(tmp_path, "mPLUG/DocDownstream-1.0")
    folder = tmp_path / "mPLUG" / "DocDownstream-1.0"
    with Parts(sorted(folder.glob("partial-imgs*"))) as parts:
        (folder / "imgs.tar.gz").write_bytes(parts.readall() or b"")
    subprocess.run(["tar", "-xzf", "imgs.tar.gz"], cwd=folder, check=True)
    source = HubSource(folder)
    assert source[0].images == [str(folder / "imgs/DocVQA/pngs/0.png")]
    (folder / "imgs/DocVQA/pngs/1.png").unlink()
    with pytest.raises(DataError, match=r"\[train\]:1: no image imgs/DocVQA/pngs/1\.png below"):
        source[1]
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("reference", ["mPLUG/DocDownstream-1.0", "lmms-lab/LLaVA-NeXT-Data"])
def test_an_image_is_opened_once(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, opened, original = HubSource(reference), [], Image.open

    def count(*args: Any, **keys: Any) -> Any:
        opened.append(args)
        return original(*args, **keys)

    monkeypatch.setattr(Image, "open", count)
    load_images(source[0])
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        (BIGDOCS, {}, r"needs a configuration, config: NAME; it has ArxivOCR, "),
        (BIGDOCS, {"config": "arxivocr"}, r"no configuration 'arxivocr' \(did you mean 'ArxivOCR'"),
        (BIGDOCS, {"config": "COCOtext"}, r"COCOtext: get train2014.zip of COCO .*images: FOLDER"),
        (
            BIGDOCS,
            {"config": "COCOtext", "images": "no.zip"},
            r"no no\.zip in this .*DATA: get train2014",
        ),
        ("ServiceNow/BigDocs-Bench", {}, r"config: .*it has Chart2MD, GUI-VQA, Image2SVG"),
        ("ServiceNow/BigDocs-Bench", {"config": "GUI-VQ"}, r"did you mean 'GUI-VQA'\?\); it has C"),
        ("HuggingFaceM4/FineVision", {"config": "docvq"}, r"'docvq' \(did you mean 'docvqa'\?\)"),
        ("mPLUG/DocDownstream-1.0", {"split": "test"}, r"no such split; it has train, val"),
        (
            "MAmmoTH-VL/MAmmoTH-VL-Instruct-12M",
            {"data_files": ["mammoth_si.json"]},
            r"no file mammoth_si\.json .*; it has mammoth_ov_2M\.json, mammoth_si_10M\.json",
        ),
        ("nobody/nothing", {}, r"nothing: not on this machine, .*hf download nobody/nothing"),
        ("./nothing", {}, r"no such file or folder, nor a hub id"),
    ],
)
def test_one_line_says_what_is_right(reference: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        next(iter(HubStream(reference, **options)))
    assert "\n" not in str(caught.value)


def test_a_set_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNVLM_DATA")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for kind in (HubSource, HubStream):
        with pytest.raises(DataError, match=r"not on this machine \(574,268 training rows"):
            kind("mPLUG/DocDownstream-1.0")
    monkeypatch.setenv("ALIGNVLM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"ALIGNVLM_DATA=.*nowhere: no such folder"):
        HubSource("mPLUG/DocDownstream-1.0")


def test_show_says_licence_and_size(command: Any, replicas: Path) -> None:
    done = command("data", "show", "mPLUG/DocDownstream-1.0")
    assert (done.code, done.err) == (0, "")
    for words in (
        "licence        Apache-2.0",
        "574,268 training rows",
        "partial-imgs*",
        str(replicas),
    ):
        assert words in done.out
    assert "of TextOCR from train_val_images.zip" in command("data", "show", BIGDOCS).out
    bench = command("data", "show", "ServiceNow/BigDocs-Bench").out
    assert "configurations Chart2MD, GUI-VQA, Image2SVG" in bench


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: one.id)
def test_every_set_is_described_without_a_copy(
    command: Any, one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALIGNVLM_DATA")
    done = command("data", "show", one.id)
    assert (done.code, done.err) == (0, "")
    assert f"here           no; `hf download {one.id}" in done.out
    assert one.licence in done.out and one.size in done.out


def test_columns_of_llava_are_known_by_name(replicas: Path) -> None:
    """Any set of that form, also one that is in no catalogue."""
    folder = replicas / "lmms-lab" / "LLaVA-NeXT-Data" / "data"
    file = folder / "train-00000-of-00001.parquet"
    assert HubSource(str(file))[1].question == "q1"


def test_a_users_own_folders(tmp_path: Path) -> None:
    """Pictures beside their metadata, and rows that name pictures by relative or absolute paths."""
    rows = [("a.png", "q0"), ("b.png", "q1")]
    own = tmp_path / "own"
    own.mkdir()
    for name, _ in rows:
        Image.new("RGB", (9, 5)).save(own / name)
    lines = [json.dumps({"file_name": n, "question": q, "answer": "a"}) for n, q in rows]
    (own / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for source in (HubSource(own), HubStream(own)):
        found = [source[i] for i in range(2)] if isinstance(source, HubSource) else list(source)
        assert [record.question for record in found] == ["q0", "q1"]
        assert load_images(found[1])[0].size == (9, 5)
    for name in ("a.png", str(own / "a.png")):
        row = {"image": name, "conversations": [{"from": "human", "value": "<image>\nq"}]}
        row["conversations"].append({"from": "gpt", "value": "a"})
        (own / "rows.json").write_text(json.dumps([row]), encoding="utf-8")
        assert HubSource(own / "rows.json")[0].images == [str(own / "a.png")]
        assert next(iter(HubStream(own / "rows.json"))).question == "q"


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_is_kept(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    asked: list[str] = []
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, **keys: asked.append(name))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", variable == "HF_HUB_OFFLINE")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", variable != "HF_HUB_OFFLINE")
    with pytest.raises(DataError, match=r"this run is offline .*get it with `hf download"):
        HubStream("nobody/nothing")
    assert not asked


def test_the_hubs_answers_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants, errors

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    missing = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    for error, reason in [(missing, "no such set"), (OSError("down"), r"be reached \(OSError\)")]:

        def fail(*args: Any, error: Exception = error, **keys: Any) -> None:
            raise error

        monkeypatch.setattr(HfApi, "dataset_info", fail)
        with pytest.raises(DataError, match=reason) as caught:
            HubStream("nobody/nothing")
        assert "\n" not in str(caught.value)
