"""The model class for VLMEvalKit, where VLMEvalKit is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignvlm.errors import ConfigError, DataError
from alignvlm.eval import vlmevalkit
from alignvlm.inference.ask import ask, load_model


def test_the_class_answers_as_ask_does(tiny_model_dir: Path, tmp_path: Path, make_image: Any):
    model = vlmevalkit.VLMEvalKitModel(str(tiny_model_dir), max_new_tokens=12, device="cpu")
    bare, processor = load_model(tiny_model_dir)
    for index, question in enumerate(["What is the total?", "Who signed the letter?"]):
        make_image(56, 28, index).save(tmp_path / f"{index}.png")
        message = [
            {"type": "image", "value": str(tmp_path / f"{index}.png")},
            {"type": "text", "value": question},
        ]
        page = make_image(56, 28, index)
        expected = ask(bare, processor, [page], question, max_new_tokens=12).text
        assert model.generate_inner(message, dataset="Tiny") == expected


def test_messages(tmp_path: Path, make_image: Any):
    make_image(9, 9).save(tmp_path / "a.png")
    make_image(10, 9).save(tmp_path / "b.png")
    image = [{"type": "image", "value": str(tmp_path / name)} for name in ("a.png", "b.png")]
    text = [{"type": "text", "value": value} for value in ("first", "second")]
    pages, prompt = vlmevalkit.read_message([text[0], image[0], text[1], image[1]], "Tiny")
    assert [page.size for page in pages] == [(9, 9), (10, 9)]
    assert prompt == "first\nsecond"
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Tiny: .*a\.png: no usable image"):
        vlmevalkit.read_message([image[0]], "Tiny")


def test_dtypes(tiny_model_dir: Path):
    assert str(vlmevalkit.load_answerer(tiny_model_dir, "cpu").model.dtype) == "torch.float32"
    half = vlmevalkit.load_answerer(tiny_model_dir, "cpu", "bfloat16", repetition_guard=True)
    assert str(half.model.dtype) == "torch.bfloat16" and half.repetition_guard
    with pytest.raises(ConfigError, match="dtype 'int8': choose one of auto, float32"):
        vlmevalkit.load_answerer(tiny_model_dir, "cpu", "int8")
