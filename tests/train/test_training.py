"""Running a recipe: whole, interrupted and resumed, and with a full disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.train.checkpoints import wait_for_checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from alignvlm import AlignVLMForConditionalGeneration, AlignVLMProcessor
from alignvlm.compose.assemble import load_pretrained
from alignvlm.data.ground import as_words, token_starts
from alignvlm.errors import ConfigError, DataError, WeightsError
from alignvlm.train import Recipe, load_recipe, train
from alignvlm.train import training as run_module
from alignvlm.train.checkpoints import last_checkpoint, written_whole
from alignvlm.train.recipe import parse_recipe
from alignvlm.train.stages import build_mix
from alignvlm.train.training import build_model, kept_tokens

PAGE = {
    "layout": "text", "width": 112, "height": 28, "font_px": [20, 20], "fonts": ["DejaVuSans"],
    "margin": 2,
}  # fmt: skip
CONVNEXT = {
    "model_type": "convnext", "image_size": [28, 56], "patch_size": 7, "num_stages": 2,
    "hidden_sizes": [16, 32], "depths": [1, 1], "layer_scale_init_value": 0.1,
}  # fmt: skip


@pytest.fixture(scope="session")
def data(tiny_lm_dir: Path) -> dict[str, Any]:
    """A recipe of two stages, as YAML would hold it."""
    return {
        "name": "little",
        "model": {
            "text": str(tiny_lm_dir),
            "vision": CONVNEXT,
            "connector": {"type": "align", "gamma": 6.0},
            "tiling": {"tile_height": 28, "tile_width": 56, "max_tiles": 2},
        },
        "stages": [
            {
                "name": "alignment",
                "steps": 12,
                "batch_size": 4,
                "train": {"vision": 2e-3, "connector": 2e-3},
                "loss": {"lm": 0, "vocab": 1, "blank_cells": 5},
                "log_steps": 3,
                "save_steps": 4,
                "sources": [{"type": "render", "page": PAGE}],
            },
            {
                "name": "documents",
                "steps": 16,
                "batch_size": 2,
                "gradient_accumulation": 2,
                "train": {"vision": 5e-3, "connector": 5e-3, "connector.w2": 0, "text": 5e-3},
                "loss": {"lm": 1, "vocab": 1},
                "log_steps": 3,
                "save_steps": 8,
                "sources": [{"type": "render", "page": PAGE, "task": "transcribe"}],
            },
        ],
    }


@pytest.fixture(scope="session")
def recipe(data: dict[str, Any]) -> Recipe:
    return parse_recipe(data)


@pytest.fixture(scope="session")
def unbroken(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run, never interrupted."""
    lines: list[str] = []
    out = tmp_path_factory.mktemp("unbroken") / "model"
    assert train(recipe, out, quiet=True, report=lines.append) == out
    (out.parent / "report.txt").write_text("\n".join(lines))
    return out


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(out: Path, unbroken: Path) -> None:
    found, expected = metrics(out), metrics(unbroken)
    assert [(m["stage"], m["step"]) for m in found] == [(m["stage"], m["step"]) for m in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            if key != "stage":
                assert one[key] == pytest.approx(other[key], abs=1e-6, rel=1e-6), (one, key)
    weights, others = (load_file(p / "model.safetensors") for p in (out, unbroken))
    assert weights.keys() == others.keys()
    for name in weights:
        assert torch.equal(weights[name], others[name]), name


# --- a whole run -------------------------------------------------------------------------------


def test_the_loss_goes_down(unbroken):
    first = [m["loss"] for m in metrics(unbroken) if m["stage"] == "alignment"]
    assert first[-1] < 0.7 * first[0]
    second = [m["lm_loss"] for m in metrics(unbroken) if m["stage"] == "documents"]
    assert second[-1] < 0.9 * second[0], second
    # every stage's steps are there, each once, in order
    steps = [(m["stage"], m["step"]) for m in metrics(unbroken)]
    assert steps == [("alignment", n) for n in (1, 3, 4, 6, 8, 9, 12)] + [
        ("documents", n) for n in (1, 3, 6, 8, 9, 12, 15, 16)
    ]
    assert "lm_loss" not in metrics(unbroken)[0]
    assert {"lm_loss", "vocab_loss", "learning_rate", "grad_norm"} <= set(metrics(unbroken)[-1])


def test_the_folder_holds_a_whole_model(unbroken, recipe):
    names = {path.name for path in unbroken.iterdir()}
    assert {"model.safetensors", "recipe.yaml", "metrics.jsonl", "tensorboard"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert sorted(p.name for p in (unbroken / "tensorboard").iterdir()) == [
        "01-alignment", "02-documents",
    ]  # fmt: skip
    assert sorted(p.name for p in unbroken.parent.iterdir()) == ["model", "report.txt"]
    assert load_recipe(str(unbroken / "recipe.yaml")) == recipe


def test_the_folder_loads_with_auto_classes(unbroken, recipe):
    model = AutoModelForImageTextToText.from_pretrained(unbroken)
    processor = AutoProcessor.from_pretrained(unbroken)
    assert isinstance(model, AlignVLMForConditionalGeneration)
    assert isinstance(processor, AlignVLMProcessor)
    assert AutoConfig.from_pretrained(unbroken).connector.gamma == 6
    assert processor.image_processor.max_tiles == 2
    assert processor.tokenizer.padding_side == "left"
    record = build_mix(recipe.stages[1], 0)[0]
    messages = [{"role": "user", "content": [{"type": "image", "image": record.images[0]}]}]
    batch = processor.apply_chat_template(
        [messages], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    out = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert 0 < out.shape[1] - batch["input_ids"].shape[1] <= 3


def test_what_is_frozen_stays(unbroken, recipe, tmp_path):
    """W2 has rate 0 in the second stage, the language model trains only there."""
    start, _ = build_model(recipe)
    short = parse_recipe({**recipe.model_dump(), "stages": [recipe.stages[0].model_dump()]})
    middle = load_file(
        train(short, tmp_path / "a", quiet=True, report=_ignore) / "model.safetensors"
    )
    end, first = load_file(unbroken / "model.safetensors"), start.state_dict()
    text = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(middle[text], first[text])
    assert not torch.equal(end[text], middle[text])
    assert torch.equal(end["model.connector.w2.weight"], middle["model.connector.w2.weight"])
    assert not torch.equal(middle["model.connector.w2.weight"], first["model.connector.w2.weight"])


def test_the_report_says_what_happens(unbroken):
    report = (unbroken.parent / "report.txt").read_text()
    assert "stage 1/2 alignment: 12 steps of 4 samples" in report
    assert "  step 12: loss " in report
    assert report.count("before: token-reading accuracy") == 2
    assert report.count("after: token-reading accuracy") == 2


def test_the_same_recipe_gives_the_same_model(recipe, unbroken, tmp_path):
    out = train(recipe, tmp_path / "again", quiet=True, report=_ignore)
    assert_same_run(out, unbroken)


def _ignore(line: str) -> None:
    pass


def test_a_pruned_vocabulary_comes_from_the_pages(data, tmp_path):
    keys = {**data, "stages": [{**data["stages"][0], "steps": 2}]}
    keys["model"] = {**data["model"], "connector": {"type": "align", "kept_tokens": 380}}
    pruned = parse_recipe(keys)
    ids = kept_tokens(pruned)
    assert ids is not None and len(ids) == 380
    model, processor = load_pretrained(
        train(pruned, tmp_path / "m", quiet=True, report=_ignore), torch.float32
    )
    assert torch.equal(model.model.connector.token_ids, ids)
    words = as_words(build_mix(pruned.stages[0], pruned.seed)[0].words[0])
    said = {token for token, _, _ in token_starts(words, processor.tokenizer)}
    assert len(said & set(ids.tolist())) > 0.8 * len(said)


def test_a_siglip_encoder_without_grounding(data, tmp_path):
    """Another encoder, another connector, tile order, epochs instead of steps."""
    stage = {
        **data["stages"][1],
        "steps": None,
        "epochs": 1.5,
        "loss": {"lm": 1},
        "train": {"connector": 1e-3},
        "sources": [{"type": "render", "page": PAGE, "size": 4}],
        "gradient_checkpointing": True,
    }
    siglip = {
        "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vision_use_head": False,
    }  # fmt: skip
    model = {
        "text": data["model"]["text"],
        "vision": siglip,
        "connector": {"type": "perceiver", "num_latents": 3, "depth": 1, "num_heads": 2},
        "token_order": "tile",
        "tiling": {"max_tiles": 4, "thumbnail": True},
    }
    lines: list[str] = []
    out = train(
        parse_recipe({**data, "model": model, "stages": [stage]}),
        tmp_path / "m",
        quiet=True,
        report=lines.append,
    )
    assert metrics(out)[-1]["step"] == 2  # 6 samples, 4 a step
    assert not any("accuracy" in line for line in lines)
    assert load_pretrained(out, torch.float32)[0].config.connector.type == "perceiver"


# --- interrupted runs --------------------------------------------------------------------------


def copy_of(work: Path, target: Path) -> Path:
    """The unfinished run ``work`` again, for another ``out``."""
    shutil.copytree(work, target.with_name(target.name + ".training"))
    return target


class Stop(Exception):
    pass


@pytest.fixture(scope="session")
def stopped(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped at step 7 of its first stage: checkpoint 4 is there."""
    out = tmp_path_factory.mktemp("stopped") / "model"
    original = run_module.Losses.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **keys: Any) -> Any:
        if state.global_step == 7:
            raise Stop
        return original(self, args, state, control, **keys)

    run_module.Losses.on_step_end = stop  # type: ignore[method-assign]
    try:
        with pytest.raises(Stop):
            train(recipe, out, quiet=True, report=_ignore)
    finally:
        run_module.Losses.on_step_end = original  # type: ignore[method-assign]
    assert not out.exists()
    work = out.with_name("model.training")
    assert last_checkpoint(work / "01-alignment").name == "checkpoint-4"
    return work


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(data, unbroken, tmp_path):
    """SIGKILL in the middle of a stage, as soon as a checkpoint is there."""
    file, out = tmp_path / "little.yaml", tmp_path / "model"
    file.write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "alignvlm", "train", str(file), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stage = tmp_path / "model.training" / "01-alignment"
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_checkpoint(stage / "checkpoint-4", process, 120)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert not (stage / "done").exists()
    done = subprocess.run(
        [*command, "--resume"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "resuming at checkpoint-" in done.stdout
    assert_same_run(out, unbroken)
    assert not (tmp_path / "model.training").exists()


def test_stopped_in_the_middle_of_a_stage(recipe, stopped, unbroken, tmp_path):
    lines: list[str] = []
    out = copy_of(stopped, tmp_path / "m")
    train(recipe, out, resume=True, quiet=True, report=lines.append)
    assert "  resuming at checkpoint-4" in lines
    assert_same_run(out, unbroken)


@pytest.fixture(scope="session")
def packed_stage(data: dict[str, Any]) -> dict[str, Any]:
    """The last stage alone, packed; cut short."""
    keys = {"steps": 6, "batch_size": 3, "save_steps": 3, "packing": True}
    return {**data, "stages": [{**data["stages"][1], **keys}]}


def test_a_packed_run_has_the_losses_of_a_padded_one_and_resumes(
    packed_stage, tmp_path, monkeypatch
):
    stage = packed_stage["stages"][0]
    padded = {**packed_stage, "stages": [{**stage, "packing": False}]}
    for name, keys in (("packed", packed_stage), ("padded", padded)):
        train(parse_recipe(keys), tmp_path / name, quiet=True, report=_ignore)
    for one, other in zip(metrics(tmp_path / "packed"), metrics(tmp_path / "padded"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    original = run_module.Losses.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **keys: Any) -> Any:
        if state.global_step == 4:
            raise Stop
        return original(self, args, state, control, **keys)

    monkeypatch.setattr(run_module.Losses, "on_step_end", stop)
    with pytest.raises(Stop):
        train(parse_recipe(packed_stage), tmp_path / "again", quiet=True, report=_ignore)
    monkeypatch.undo()
    train(parse_recipe(packed_stage), tmp_path / "again", resume=True, quiet=True, report=_ignore)
    assert_same_run(tmp_path / "again", tmp_path / "packed")


def test_packing_that_cannot_be_is_refused_before_the_first_step(
    packed_stage, tmp_path, monkeypatch
):
    def refuse(model: Any) -> None:
        raise ConfigError("packing: not with this")

    monkeypatch.setattr(run_module, "check_packing", refuse)
    lines: list[str] = []
    with pytest.raises(ConfigError, match="packing: not with this"):
        train(parse_recipe(packed_stage), tmp_path / "m", quiet=True, report=lines.append)
    assert lines == []
    assert not list(tmp_path.iterdir())


def test_killed_between_stages(recipe, stopped, unbroken, tmp_path, monkeypatch):
    out = copy_of(stopped, tmp_path / "m")

    def stop(recipe: Recipe, work: Path, number: int) -> Any:
        if number == 2:
            raise Stop
        return start(recipe, work, number)

    start = run_module._stage_start
    monkeypatch.setattr(run_module, "_stage_start", stop)
    with pytest.raises(Stop):
        train(recipe, out, resume=True, quiet=True, report=_ignore)
    monkeypatch.undo()
    first = tmp_path / "m.training" / "01-alignment"
    assert (first / "done" / "model.safetensors").is_file()
    assert not list(first.glob("checkpoint-*"))  # not needed any more
    lines: list[str] = []
    train(recipe, out, resume=True, quiet=True, report=lines.append)
    assert lines[0] == "stage 1/2 alignment: already done"
    assert_same_run(out, unbroken)


def test_killed_at_the_very_end(recipe, stopped, unbroken, tmp_path, monkeypatch):
    """All is written but the folder is not yet in its place: the losses come once, not twice."""
    out = copy_of(stopped, tmp_path / "m")
    rename = Path.rename

    def stop(self: Path, target: Any) -> Any:
        if Path(target) == out:
            raise Stop
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(Stop):
        train(recipe, out, resume=True, quiet=True, report=_ignore)
    monkeypatch.undo()
    assert not out.exists()
    train(recipe, out, resume=True, quiet=True, report=_ignore)
    assert_same_run(out, unbroken)


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "model.safetensors", "optimizer.pt", "rng_state.pth"]
)
def test_a_checkpoint_with_a_missing_file_is_skipped(stopped, tmp_path, name):
    out = copy_of(stopped, tmp_path / "m")
    stage = tmp_path / "m.training" / "01-alignment"
    shutil.copytree(stage / "checkpoint-4", stage / "checkpoint-6")
    (stage / "checkpoint-6" / name).unlink()
    assert last_checkpoint(stage) == stage / "checkpoint-4"
    assert not (stage / "checkpoint-6").exists()
    assert not out.exists()


def test_every_process_has_written_its_random_state(tmp_path):
    for name in ("model.safetensors", "optimizer.pt"):
        (tmp_path / name).touch()
    (tmp_path / "trainer_state.json").write_text("{}")
    torch.save({"cpu": torch.zeros(5000)}, tmp_path / "rng_state_0.pth")
    assert written_whole(tmp_path, 1)
    assert not written_whole(tmp_path, 2)
    other = tmp_path / "rng_state_1.pth"
    whole = (tmp_path / "rng_state_0.pth").read_bytes()
    for size in (0, len(whole) // 2, len(whole)):
        other.write_bytes(whole[:size])
        assert written_whole(tmp_path, 2) == (size == len(whole))


def test_a_truncated_checkpoint_is_skipped(recipe, stopped, unbroken, tmp_path):
    out = copy_of(stopped, tmp_path / "m")
    stage = tmp_path / "m.training" / "01-alignment"
    broken = stage / "checkpoint-6"
    shutil.copytree(stage / "checkpoint-4", broken)
    state = (broken / "trainer_state.json").read_text()
    (broken / "trainer_state.json").write_text(state[: len(state) // 2])
    lines: list[str] = []
    train(recipe, out, resume=True, quiet=True, report=lines.append)
    assert "  resuming at checkpoint-4" in lines
    assert_same_run(out, unbroken)


def test_no_checkpoint_at_all_starts_the_stage_again(recipe, stopped, unbroken, tmp_path):
    out = copy_of(stopped, tmp_path / "m")
    shutil.rmtree(tmp_path / "m.training" / "01-alignment")
    train(recipe, out, resume=True, quiet=True, report=_ignore)
    assert_same_run(out, unbroken)


def test_the_newest_checkpoint_is_by_number(tmp_path):
    for step in (9, 10, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("model.safetensors", "optimizer.pt"):
            (folder / name).touch()
        torch.save({}, folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path).name == "checkpoint-100"
    assert last_checkpoint(tmp_path / "nothing") is None


# --- refusals ----------------------------------------------------------------------------------


def test_an_existing_folder_is_not_touched(recipe, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"mine exists; choose another --out"):
        train(recipe, out, quiet=True, report=_ignore)
    with pytest.raises(ConfigError, match=r"mine exists"):
        train(recipe, out, resume=True, quiet=True, report=_ignore)
    with pytest.raises(ConfigError, match=r"not a trained model, so --overwrite leaves it alone"):
        train(recipe, out, overwrite=True, quiet=True, report=_ignore)
    with pytest.raises(ConfigError, match=r"thesis\.txt is not a trained model"):
        train(recipe, out / "thesis.txt", overwrite=True, quiet=True, report=_ignore)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert (out / "thesis.txt").read_text() == "dear"


def test_overwriting_replaces_a_trained_model(data, unbroken, tmp_path):
    out = tmp_path / "m"
    shutil.copytree(unbroken, out)
    (out / "old.txt").touch()
    short = parse_recipe({**data, "stages": [{**data["stages"][0], "steps": 1}]})
    train(short, out, overwrite=True, quiet=True, report=_ignore)
    assert not (out / "old.txt").exists()
    assert load_recipe(str(out / "recipe.yaml")) == short


def test_an_unfinished_run_is_not_started_over_by_accident(recipe, stopped, tmp_path):
    out = copy_of(stopped, tmp_path / "m")
    with pytest.raises(ConfigError, match=r"unfinished run .* --resume .* --overwrite"):
        train(recipe, out, quiet=True, report=_ignore)
    assert last_checkpoint(tmp_path / "m.training" / "01-alignment") is not None


def test_another_recipe_cannot_resume(data, stopped, tmp_path):
    out = copy_of(stopped, tmp_path / "m")
    other = parse_recipe({**data, "seed": 5})
    with pytest.raises(ConfigError, match="the recipe changed since"):
        train(other, out, resume=True, quiet=True, report=_ignore)
    (tmp_path / "m.training" / "recipe.yaml").unlink()
    with pytest.raises(ConfigError, match="not a run that can be resumed"):
        train(other, out, resume=True, quiet=True, report=_ignore)


def test_a_folder_that_cannot_be_made(recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot create"):
        train(recipe, tmp_path / "file" / "out", quiet=True, report=_ignore)


def test_missing_weights_leave_nothing(data, tmp_path):
    gone = parse_recipe({**data, "model": {**data["model"], "text": str(tmp_path / "gone")}})
    with pytest.raises(WeightsError, match="no folder"):
        train(gone, tmp_path / "m", quiet=True, report=_ignore)
    assert not list(tmp_path.iterdir())  # so that the corrected command just works


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": {"connector.w9": 1e-3}}, "'connector.w9' leads to no parameter"),
        ({"sources": [{"type": "jsonl", "path": "/no/such.jsonl"}]}, "no such file"),
    ],
)
def test_mistakes_of_the_last_stage_are_found_first(data, tmp_path, keys, message):
    stages = [data["stages"][0], {**data["stages"][1], **keys}]
    lines: list[str] = []
    with pytest.raises((ConfigError, DataError), match=message):
        train(
            parse_recipe({**data, "stages": stages}), tmp_path / "m", quiet=True,
            report=lines.append,
        )  # fmt: skip
    assert lines == []
    assert not list(tmp_path.iterdir())


def test_corrupt_weights_between_stages(recipe, stopped, tmp_path):
    out = copy_of(stopped, tmp_path / "m")
    stage = tmp_path / "m.training" / "01-alignment"
    (stage / "checkpoint-4").rename(stage / "done")
    (stage / "done" / "model.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(WeightsError, match="not a usable model") as caught:
        train(recipe, out, resume=True, quiet=True, report=_ignore)
    assert "\n" not in str(caught.value)


def test_a_bad_record_is_named(data, tmp_path, make_image):
    make_image().save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:400])
    row = {"image": "a.png", "question": "?", "answer": "!"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    source = {"type": "jsonl", "path": str(tmp_path / "rows.jsonl")}
    stage = {**data["stages"][1], "loss": {"lm": 1}, "sources": [source]}
    with pytest.raises(DataError, match=r"rows\.jsonl:1.*a\.png"):
        train(parse_recipe({**data, "stages": [stage]}), tmp_path / "m", quiet=True, report=_ignore)


# --- a full disk -------------------------------------------------------------------------------

FULL = {
    "os": OSError(errno.ENOSPC, "No space left on device"),
    "safetensors": RuntimeError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    ),
    "torch": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
}


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("when", ["checkpoint", "stage"])
def test_a_full_disk_is_one_line_and_can_be_resumed(
    recipe, stopped, unbroken, tmp_path, monkeypatch, kind, when
):
    out = copy_of(stopped, tmp_path / "m")
    write = AlignVLMForConditionalGeneration.save_pretrained

    def full(self: Any, folder: Any, *args: Any, **keys: Any) -> None:
        if ("checkpoint" in str(folder)) == (when == "checkpoint"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise FULL[kind]
        write(self, folder, *args, **keys)

    monkeypatch.setattr(AlignVLMForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(WeightsError, match=r"could not write .*space.*--resume") as caught:
        train(recipe, out, resume=True, quiet=True, report=_ignore)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    assert not (tmp_path / "m.training" / "01-alignment" / "done").exists()
    monkeypatch.undo()
    if kind == "os":
        train(recipe, out, resume=True, quiet=True, report=_ignore)
        assert_same_run(out, unbroken)


def test_other_errors_are_not_called_a_full_disk(recipe, stopped, tmp_path, monkeypatch):
    out = copy_of(stopped, tmp_path / "m")

    def broken(*args: Any, **keys: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(AlignVLMForConditionalGeneration, "save_pretrained", broken)
    with pytest.raises(RuntimeError, match="something else"):
        train(recipe, out, resume=True, quiet=True, report=_ignore)
