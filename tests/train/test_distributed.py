"""Training on two processes over gloo: the losses of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tests.train.checkpoints import wait_for_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from alignvlm.compose.assemble import load_pretrained
from alignvlm.train import Recipe, train
from alignvlm.train.recipe import parse_recipe
from alignvlm.train.stages import build_mix

HERE = Path(__file__).parent
PAGE = {
    "layout": "text", "width": 112, "height": 28, "font_px": [20, 20], "fonts": ["DejaVuSans"],
    "margin": 2,
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vision_use_head": False,
}  # fmt: skip
STAGE = {
    "steps": 4, "batch_size": 1, "train": {"vision": 1e-2, "connector": 1e-2, "text": 1e-2},
    "log_steps": 1, "save_steps": 2, "warmup_ratio": 0, "scheduler": "constant",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, make_image: Callable[..., Image.Image]) -> Path:
    """Questions about an image, and as many without one."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for seed in range(8):
        make_image(seed=seed).save(folder / f"{seed}.png")
        turns = [("user", "who signed?"), ("assistant", f"Maria signed it {seed * 1000} times.")]
        messages = [{"role": role, "content": text} for role, text in turns]
        lines += [
            {"image": f"{seed}.png", "question": "What is the total?", "answer": f"It is {seed}."},
            {"images": [], "messages": messages},
        ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


@pytest.fixture(scope="module")
def untied_dir(tiny_lm_dir: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny language model with a head of its own."""
    folder = tmp_path_factory.mktemp("untied")
    config = LlamaConfig.from_pretrained(tiny_lm_dir, tie_word_embeddings=False)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_data(text: Path, rows: Path, accumulation: int) -> dict[str, Any]:
    """Questions some of which have no image, then grounded pages."""
    stage = {**STAGE, "gradient_accumulation": accumulation}
    page = {"type": "render", "page": PAGE, "task": "transcribe"}
    return {
        "name": "two",
        "model": {
            "text": str(text), "vision": SIGLIP, "connector": {"type": "align", "gamma": 4.0},
            "tiling": {"max_tiles": 2},
        },
        "stages": [
            {**stage, "name": "mixed", "loss": {"lm": 1},
             "sources": [{"type": "jsonl", "path": str(rows)}]},
            {**stage, "name": "grounded", "loss": {"lm": 1, "vocab": 1}, "sources": [page]},
        ],
    }  # fmt: skip


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(
    tiny_lm_dir: Path, untied_dir: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """``one("tied")``: what one process makes of two micro-batches a step, and the recipe by which
    two processes take one each."""
    made: dict[str, tuple[Path, Path]] = {}

    def run(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            text = tiny_lm_dir if kind == "tied" else untied_dir
            out = train(
                parse_recipe(recipe_data(text, rows, 2)), folder / "one", quiet=True,
                report=lambda line: None,
            )  # fmt: skip
            file = folder / "two.yaml"
            file.write_text(yaml.safe_dump(recipe_data(text, rows, 1)))
            made[kind] = (out, file)
        return made[kind]

    return run


def command(kind: str, recipe: Path, out: Path) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    script = str(HERE / "two_processes.py")
    return [*torchrun, "--master-port", str(port), script, kind, str(recipe), str(out)]


ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu",
}  # fmt: skip


def kill(process: subprocess.Popen) -> None:
    """End torchrun and what it started, which would outlive it, without warning."""
    if process.poll() is None:
        parent = psutil.Process(process.pid)
        for one_process in [parent, *parent.children(recursive=True)]:
            one_process.kill()
        process.communicate()


def run_two(kind: str, recipe: Path, out: Path, *more: str) -> str:
    process = subprocess.Popen(
        [*command(kind, recipe, out), *more], env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said, complained = process.communicate(timeout=300)
    finally:
        kill(process)
    assert process.returncode == 0, complained[-4000:]
    return said


def assert_same(out: Path, expected: Path, tolerance: float = 1e-5) -> None:
    """Losses and gradient norms of every step, and a whole model."""
    found, wanted = metrics(out), metrics(expected)
    assert [(m["stage"], m["step"]) for m in found] == [(m["stage"], m["step"]) for m in wanted]
    assert len(found) == 8
    for ours, theirs in zip(found, wanted, strict=True):
        keys = [key for key in theirs if key.endswith("loss") or key == "grad_norm"]
        assert len(keys) == (3 if theirs["stage"] == "mixed" else 6)
        for key in keys:
            assert ours[key] == pytest.approx(theirs[key], rel=tolerance), (key, ours, theirs)
    weights, others = (load_file(p / "model.safetensors") for p in (out, expected))
    assert weights.keys() == others.keys()
    assert load_pretrained(out, torch.float32)[0].config.connector.type == "align"


def test_some_steps_have_a_rank_without_an_image(tiny_lm_dir, rows):
    """What the comparison below is about: micro-batch 2i + r is rank r's."""
    recipe: Recipe = parse_recipe(recipe_data(tiny_lm_dir, rows, 1))
    source = build_mix(recipe.stages[0], recipe.seed + 1000, processes=2)
    assert len(source) == 8
    images = [bool(source[index].images) for index in range(8)]
    pairs = {(images[i], images[i + 1]) for i in range(0, 8, 2)}
    assert pairs & {(True, False), (False, True)}


CASES = [("fsdp2", "untied"), ("fsdp2", "tied"), ("ddp", "tied"), ("ddp", "untied")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tables"), CASES)
def test_two_processes_have_the_losses_of_one(one, tmp_path, kind, tables):
    expected, recipe = one(tables)
    report = run_two(kind, recipe, tmp_path / "two")
    assert_same(tmp_path / "two", expected)
    assert report.count("stage 1/2 mixed: 4 steps of 2 samples") == 1


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
@pytest.mark.parametrize("tables", ["tied", "untied"])
def test_zero3_has_the_losses_of_one(one, tmp_path, tables):
    """Its first step is exact; its own Adam and clipping round a little differently later."""
    expected, recipe = one(tables)
    run_two("zero3", recipe, tmp_path / "two")
    assert_same(tmp_path / "two", expected, tolerance=1e-3)


@pytest.mark.slow
def test_a_killed_run_of_two_resumes(one, tmp_path):
    """Both processes killed at the first sharded checkpoint."""
    expected, recipe = one("untied")
    out = tmp_path / "two"
    stage = tmp_path / "two.training" / "01-mixed"
    process = subprocess.Popen(
        command("fsdp2", recipe, out), env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_checkpoint(stage / "checkpoint-2", process, 200, processes=2)
    finally:
        kill(process)
    assert not out.exists()
    assert "resuming at checkpoint-" in run_two("fsdp2", recipe, out, "--resume")
    assert_same(out, expected)


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_the_shipped_configurations_are_understood(name):
    """By the very class that ``accelerate launch`` reads them with."""
    from accelerate.commands.config.config_args import load_config_from_file

    file = HERE.parents[1] / "recipes" / "accelerate" / f"{name}.yml"
    config = load_config_from_file(str(file))
    assert (config.num_processes, config.mixed_precision) == (8, "bf16")
    assert config.distributed_type == {"fsdp2": "FSDP", "zero3": "DEEPSPEED"}[name]
    assert re.search(rf"accelerate launch --config_file recipes/accelerate/{name}\.yml",
                     file.read_text("utf-8"))  # fmt: skip
