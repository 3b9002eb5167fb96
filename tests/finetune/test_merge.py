"""Adapters put back onto their base: the same answers, from one folder."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.command import Run

from alignvlm import AlignVLMForConditionalGeneration
from alignvlm.compose.assemble import load_pretrained
from alignvlm.errors import ConfigError, WeightsError
from alignvlm.finetune import load_adapted, merge_adapter
from alignvlm.finetune.adapter import lora_config, save_adapter, wrap
from alignvlm.inference.ask import ask, load_model

pytest.importorskip("peft")


@pytest.fixture(scope="session")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the model says: all that trains is shaken."""
    model, processor = load_pretrained(tiny_model_dir, torch.float32)
    wrapped = wrap(model, lora_config(model, 4))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("run") / "adapter"
    save_adapter(wrapped, processor, str(tiny_model_dir), folder)
    return folder


def greedy(model: Any, processor: Any, image: Any, question: str) -> list[int]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    batch = processor.apply_chat_template(
        [[{"role": "user", "content": content}]],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    with torch.no_grad():
        return model.generate(**batch, max_new_tokens=12, do_sample=False)[0].tolist()


def test_merged_answers_are_the_adapters(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path, make_image: Any
) -> None:
    apart, processor = load_adapted(adapter, merge=False)
    assert any("lora_A" in name for name, _ in apart.named_parameters())
    out = merge_adapter(adapter, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    merged, own = load_pretrained(out, torch.float32)
    base, _ = load_pretrained(tiny_model_dir, torch.float32)
    changed = 0
    for seed in range(4):
        image, question = make_image(56, 28, seed), f"What is number {seed}?"
        wanted = greedy(apart, processor, image, question)
        assert greedy(merged.eval(), own, image, question) == wanted
        changed += greedy(base.eval(), processor, image, question) != wanted
    assert changed == 4


def test_a_merged_model_stands_alone(adapter: Path, tmp_path: Path, make_image: Any) -> None:
    """Neither peft's files nor the base are needed, and it can be asked."""
    out = merge_adapter(adapter, tmp_path / "model")
    assert not (out / "adapter_config.json").exists()
    assert not [name for name in load_file(out / "model.safetensors") if "lora_" in name]
    model, processor = load_model(out, dtype=torch.float32)
    assert isinstance(ask(model, processor, [make_image(56, 28, 1)], "?").text, str)


def test_the_run_folder_and_another_base_and_precision(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model_dir, moved)
    whole = merge_adapter(adapter.parent, tmp_path / "a", base=moved)
    half = merge_adapter(adapter, tmp_path / "b", dtype=torch.bfloat16)
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, half))
    name = "model.connector.w1.weight"
    assert second[name].dtype == torch.bfloat16
    assert torch.equal(first[name].bfloat16(), second[name])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "a file within"),
        ValueError("I/O error: No space left on device (os error 28)"),  # safetensors' own
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    adapter: Path, tmp_path: Path, command: Run, monkeypatch: Any, error: Exception
) -> None:
    own = AlignVLMForConditionalGeneration.save_pretrained

    def fills(*given: Any, **keys: Any) -> None:
        own(*given, **keys)
        raise error

    monkeypatch.setattr(AlignVLMForConditionalGeneration, "save_pretrained", fills)
    (tmp_path / "mine").write_text("mine")
    done = command("merge", adapter, "--out", tmp_path / "model")
    assert (done.code, done.out) == (2, ""), done
    assert done.err == f"error: {tmp_path / 'model'}: No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_pickled_adapters_are_never_loaded(adapter: Path, tmp_path: Path, command: Run) -> None:
    """Of an adapter in peft's older form, with a pickle that would show that it was opened."""
    folder, seen = Path(shutil.copytree(adapter, tmp_path / "older")), tmp_path / "seen"
    (folder / "adapter_model.safetensors").unlink()

    class Opened:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(seen),)

    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Opened()))
    done = command("merge", folder, "--out", tmp_path / "model")
    assert (done.code, done.out) == (2, ""), done
    assert done.err == (
        f"error: {folder}: no adapter_model.safetensors in it (pickled weights are never loaded)\n"
    )
    assert not seen.exists() and not (tmp_path / "model").exists()


def test_what_cannot_be_merged_is_one_line(
    adapter: Path, tiny_model_dir: Path, make_model: Any, make_processor: Any, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"not an adapter, it has no adapter_config\.json"):
        merge_adapter(tiny_model_dir, tmp_path / "out")
    with pytest.raises(ConfigError, match="exists already"):
        merge_adapter(adapter, tmp_path)
    with pytest.raises(WeightsError, match="its base model"):
        merge_adapter(adapter, tmp_path / "out", base=tmp_path / "gone")
    other = make_model("mlp")
    other.save_pretrained(tmp_path / "other")
    make_processor(other.config).save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsError, match="does not fit"):
        merge_adapter(adapter, tmp_path / "out", base=tmp_path / "other")
    nameless = tmp_path / "nameless"
    shutil.copytree(adapter, nameless)
    config = json.loads((nameless / "adapter_config.json").read_text("utf-8"))
    config["base_model_name_or_path"] = None
    (nameless / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(WeightsError, match="give it with --base"):
        merge_adapter(nameless, tmp_path / "out")
    assert merge_adapter(nameless, tmp_path / "out", base=tiny_model_dir).is_dir()
    (nameless / "adapter_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(WeightsError, match="does not fit"):
        merge_adapter(nameless, tmp_path / "out2", base=tiny_model_dir)
    assert not list(tmp_path.glob("*.partial"))
