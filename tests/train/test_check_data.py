"""``train RECIPE --check-data``: every source of a recipe is opened, and what lacks is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

datasets = pytest.importorskip("datasets")

from tests.data.replicas import BIGDOCS, make_replicas  # noqa: E402

from alignvlm.errors import DataError  # noqa: E402
from alignvlm.train.check_data import check_data  # noqa: E402
from alignvlm.train.recipe import load_recipe, parse_recipe  # noqa: E402


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("ALIGNVLM_DATA", str(tmp_path / "data"))


@pytest.mark.parametrize(
    "name",
    [
        "paper/llama-3.2-1b",
        "paper/llama-3.2-3b-vcr",
        "lowres/llama-3.2-3b",
        "general/llama-3.2-3b",
    ],
)
def test_recipes_find_their_data_in_replicas(command: Any, name: str, tmp_path: Path) -> None:
    make_replicas(tmp_path / "data")
    done = command("train", name, "--check-data")
    assert (done.code, done.err) == (0, ""), done
    recipe = load_recipe(name)
    sources = [spec for stage in recipe.stages for spec in stage.sources]
    assert done.out.count("  ok  ") == len(sources)
    assert done.out.count(": 3 records; 2") == len(sources), done.out
    assert not (tmp_path / "home").exists()
    again = command("train", name, "--check-data", "--json")
    assert [one["error"] for one in json.loads(again.out)["sources"]] == [None] * len(sources)


def test_a_line_for_each_source_that_is_not_there(command: Any, tmp_path: Path) -> None:
    make_replicas(tmp_path / "data", "mPLUG/DocDownstream-1.0")
    done = command("train", "paper/llama-3.2-1b", "--check-data")
    assert done.code == 2
    assert done.err == "error: 10 of 11 sources of paper/llama-3.2-1b cannot be read\n"
    lines = done.out.splitlines()
    assert len(lines) == 3 + 11
    assert sum("  cannot read  " in line for line in lines) == 10
    wanted = (
        "hf download pixparse/cc12m-wds --repo-type dataset --local-dir DATA/pixparse/cc12m-wds"
    )
    assert wanted in lines[1]
    assert lines[-1].endswith("3 records; 23x10: 'q3' -> 'a3'")  # the archive's order


def test_other_kinds_of_sources(tmp_path: Path, write_records: Any) -> None:
    write_records(tmp_path / "own.jsonl")
    entries = [f"{{type: jsonl, path: {tmp_path / 'own.jsonl'}}}", "{type: jsonl, path: no.jsonl}"]
    recipe = load_recipe("tiny", [f"stages.0.sources=[{', '.join(entries)}]"])
    found = check_data(recipe)
    first, second, *rendered = found.sources
    assert (first.records, first.error) == (1, None)
    assert second.error == "no such file"
    assert found.missing == 1
    assert {one.records for one in rendered} == {3}
    assert rendered[0].source.startswith("render ")


@pytest.fixture
def write_records(make_image: Any) -> Any:
    def write(path: Path) -> None:
        make_image(30, 20, 0).save(path.with_suffix(".png"))
        row = {"image": f"{path.stem}.png", "question": "?", "answer": "!"}
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")

    return write


def test_a_model_trains_on_three_layouts(tiny_lm_dir: Path, tmp_path: Path) -> None:
    """By number, with workers, and with what has to be unpacked."""
    from alignvlm.train.training import train

    make_replicas(tmp_path / "data")
    vision = {
        "model_type": "convnext", "image_size": [28, 56], "patch_size": 7, "num_stages": 2,
        "hidden_sizes": [16, 32], "depths": [1, 1],
    }  # fmt: skip
    sets = {
        "alignment": [{"path": "pixparse/cc12m-wds", "limit": 3}],
        "documents": [
            {"path": BIGDOCS, "config": "ArxivOCR"},
            {"path": BIGDOCS, "config": "COCOtext", "images": "train2014.zip"},
        ],
        "instruction": [{"path": "mPLUG/DocDownstream-1.0"}],
    }
    stages = [
        {
            "name": name, "epochs": 1, "batch_size": 2, "train": {"connector": 1e-3}, "workers": 2,
            "log_steps": 1, "sources": [{"type": "hub", **one} for one in sources],
        }
        for name, sources in sets.items()
    ]  # fmt: skip
    model = {
        "text": str(tiny_lm_dir), "vision": vision, "connector": {"type": "align"},
        "tiling": {"tile_height": 28, "tile_width": 56, "max_tiles": 2},
    }  # fmt: skip
    recipe = parse_recipe({"name": "little", "model": model, "stages": stages})
    lines: list[str] = []
    wrong = [{**stages[0]}, {**stages[1], "sources": [{"type": "hub", "path": BIGDOCS}]}]
    with pytest.raises(DataError, match="needs a configuration"):  # before the first stage
        little = parse_recipe({"name": "little", "model": model, "stages": wrong})
        train(little, tmp_path / "wrong", quiet=True, report=lines.append)
    assert not lines
    out = train(recipe, tmp_path / "out", quiet=True, report=lines.append)
    steps = [line.split(": ")[1] for line in lines if line.startswith("stage ")]
    assert [said.split()[0] for said in steps] == ["2", "4", "2"], lines
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= 8
