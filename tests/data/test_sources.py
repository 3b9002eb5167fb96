"""Sources are numbered, deterministic, and name the row they refuse."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignvlm.data.records import Record, load_images, make_record, transcript
from alignvlm.data.sources import (
    TRANSCRIBE_QUESTION,
    HubSource,
    JsonlSource,
    MixedSource,
    RenderSource,
    Source,
    Subset,
    draw,
    limit,
)
from alignvlm.data.synthetic.render import RenderSpec
from alignvlm.documents.words import Word
from alignvlm.errors import DataError


class Numbers:
    """A source of records called name-0, name-1, ..."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return make_record(f"{self.name}-{index}", [], [("q", "a")], source=self.name)


def ids(source: Any) -> list[str]:
    return [source[i].id for i in range(len(source))]


# JSONL


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (6, 4), "red").save(tmp_path / "p.png")
    return tmp_path


def sample(**changes: Any) -> dict[str, Any]:
    return {"image": "p.png", "question": "q?", "answer": "ä", **changes}


def test_jsonl(folder: Path) -> None:
    path = write_jsonl(folder / "a.jsonl", ["\ufeff" + json.dumps(sample(id="x")), "", sample()])
    source = JsonlSource(path)
    assert isinstance(source, Source)
    assert ids(source) == ["x", f"{path}:3"]
    assert source[-1].answer == "ä"
    assert source[0].source == "a"
    assert load_images(source[0])[0].size == (6, 4)
    assert len(source) == 2
    assert ids(pickle.loads(pickle.dumps(source))) == ids(source)
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{not json", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (sample(answer=None), "no answer"),
        (sample(image="q.png"), "image 1 not found"),
        (sample(answr="a"), "did you mean 'answer'"),
    ],
)
def test_jsonl_errors_name_file_and_row(folder: Path, row: Any, reason: str) -> None:
    source = JsonlSource(write_jsonl(folder / "a.jsonl", [sample(), row]))
    assert source[0].question == "q?"
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{reason}"):
        source[1]


def test_jsonl_bad_files(folder: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        JsonlSource(folder / "none.jsonl")
    (folder / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="no records"):
        JsonlSource(folder / "empty.jsonl")
    (folder / "latin.jsonl").write_bytes(b'{"a": "\xe4"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl:1: not UTF-8"):
        JsonlSource(folder / "latin.jsonl")[0]


# Hugging Face datasets


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    pages = [Image.new("RGB", (4, 3 + i)) for i in range(5)]
    columns = {"img": pages, "q": [f"q{i}" for i in range(5)], "a": [f"a{i}" for i in range(5)]}
    return datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())


COLUMNS = {"image": "img", "question": "q", "answer": "a"}


@pytest.mark.parametrize("form", ["saved", "dict", "folder", "file"])
def test_hub_source_reads_local_sets(tmp_path: Path, table: Any, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "set"
    if form == "saved":
        table.save_to_disk(path)
    elif form == "dict":
        datasets.DatasetDict(train=table).save_to_disk(path)
    else:
        path.mkdir()
        table.to_parquet(path / "train.parquet")
        path = path / "train.parquet" if form == "file" else path
    source = HubSource(path, "train", COLUMNS)
    assert isinstance(source, Source)
    assert [source[i].answer for i in range(len(source))] == [f"a{i}" for i in range(5)]
    assert [load_images(source[i])[0].height for i in range(5)] == [3, 4, 5, 6, 7]
    assert source[1].id == f"{path}[train]:1"
    assert len(HubSource(path, "train", COLUMNS, limit=2)) == 2


def test_hub_errors(tmp_path: Path, table: Any) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "set"
    datasets.DatasetDict(train=table).save_to_disk(path)
    with pytest.raises(DataError, match=r"no such split.*it has train"):
        HubSource(path, "trian", COLUMNS)
    with pytest.raises(DataError, match=r"no column 'im'.*did you mean 'img'"):
        HubSource(path, "train", {**COLUMNS, "image": "im"})
    with pytest.raises(DataError, match="map columns to image and question"):
        HubSource(path, "train")
    with pytest.raises(DataError, match="nowhere"):
        HubSource(tmp_path / "nowhere", "train", COLUMNS)
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(DataError, match="cannot read"):
        HubSource(tmp_path / "a.xlsx", "train", COLUMNS)


# rendered pages


def test_render_source() -> None:
    spec = RenderSpec(layout="form")
    source = RenderSource(spec, size=20, seed=3)
    first, again = source[7], RenderSource(spec, size=20, seed=3)[7]
    assert first.images[0].tobytes() == again.images[0].tobytes()
    assert (first.messages, first.words, first.id) == (again.messages, again.words, again.id)
    assert (first.question, first.answer) in [(f.question, f.answer) for f in source.page(7).facts]
    assert len(first.words) == 1
    assert len(set(ids(source))) == 20
    assert RenderSource(spec, size=20, seed=4)[7].words != first.words
    with pytest.raises(IndexError):
        source[20]
    with pytest.raises(DataError, match=r"qaa.*did you mean 'qa'"):
        RenderSource(spec, size=1, task="qaa")
    with pytest.raises(DataError, match="size"):
        RenderSource(spec, size=0)


def test_render_transcribe_and_both() -> None:
    spec = RenderSpec(layout="receipt")
    source = RenderSource(spec, size=30, seed=1, task="transcribe")
    assert source[0].question == TRANSCRIBE_QUESTION
    assert source[0].answer.split() == [word["text"] for word in source[0].words[0]]
    assert "\n" in source[0].answer
    both = RenderSource(spec, size=30, seed=1, task="both")
    asked = Counter(both[i].question == TRANSCRIBE_QUESTION for i in range(30))
    assert min(asked.values()) >= 5


def test_transcript_joins_lines() -> None:
    words = [Word(t, (0, 0, 1, 1), line, ()) for t, line in [("a", 0), ("b", 0), ("c", 3)]]
    assert transcript(words) == "a b\nc"


# mixing


def test_mixed_is_exact_and_without_replacement() -> None:
    sources = [Numbers("a", 10), Numbers("b", 7), Numbers("c", 100)]
    mixed = MixedSource(sources, [3, 1.5, 0.5], size=101, seed=5)
    found = [record.source for record in map(mixed.__getitem__, range(len(mixed)))]
    for name, share in [("a", 0.6), ("b", 0.3), ("c", 0.1)]:
        assert abs(found.count(name) - 101 * share) <= 1
    for name, size in [("a", 10), ("b", 7), ("c", 100)]:
        mine = [i for i in ids(mixed) if i.startswith(name)]
        for start in range(0, len(mine), size):
            epoch = mine[start : start + size]
            assert len(set(epoch)) == len(epoch)
    first, second = ([i for i in ids(mixed) if i[0] == "a"][k : k + 10] for k in (0, 10))
    assert first != second
    assert sorted(first) == sorted(second)


def test_mixed_depends_on_the_seed_alone() -> None:
    def mix(seed: int) -> MixedSource:
        return MixedSource([Numbers("a", 30), Numbers("b", 20)], seed=seed)

    assert ids(mix(1)) == ids(mix(1)) != ids(mix(2))
    assert mix(1)[33].id == ids(mix(1))[33]  # any order of access
    assert sorted(ids(mix(1))) == sorted(ids(Numbers("a", 30)) + ids(Numbers("b", 20)))
    assert ids(pickle.loads(pickle.dumps(mix(1)))) == ids(mix(1))


@pytest.mark.parametrize(
    ("sources", "weights", "reason"),
    [
        ([], None, "at least one"),
        ([Numbers("a", 1)], [1, 2], "1 sources but 2 weights"),
        ([Numbers("a", 1)], [0], "weight of 'a' must be positive"),
        ([Numbers("a", 1)], [float("nan")], "weight of 'a'"),
        ([Numbers("a", 0)], [1], "'a' is empty"),
    ],
)
def test_mixed_refuses(sources: list[Any], weights: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        MixedSource(sources, weights, size=4)


def test_subset_and_limit() -> None:
    source = Numbers("a", 9)
    assert ids(Subset(source, [3, -1])) == ["a-3", "a-8"]
    assert ids(limit(source, 2)) == ["a-0", "a-1"]
    assert limit(source, None) is source
    assert limit(source, 100) is source
    with pytest.raises(IndexError):
        Subset(source, [9])
    with pytest.raises(DataError, match="limit"):
        limit(source, 0)


def test_draw_never_changes() -> None:
    assert draw(0, 1) == draw(0, 1) != draw(1, 0)
    assert draw(-1) >= 0
