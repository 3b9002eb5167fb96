"""The score that chooses a checkpoint, and runs that make a model worse: they keep the start."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignvlm.compose.assemble import load_pretrained
from alignvlm.connectors import AlignConnector
from alignvlm.data.encode import TooLong
from alignvlm.data.sources import JsonlSource
from alignvlm.finetune import finetune, merge_adapter, settings_from
from alignvlm.finetune import session as run_module
from alignvlm.finetune.adapter import lora_config, unwrapped, wrap
from alignvlm.finetune.own_data import load_data
from alignvlm.finetune.quality import combined, reading_part
from alignvlm.finetune.scores import Scored, answer_probabilities, score
from alignvlm.finetune.trainer import FinetuneTrainer, Patience

FAST = {"steps": 4, "lr": 5e-3, "batch_size": 2, "max_new_tokens": 4, "validation": 0.25}


@pytest.mark.parametrize(
    ("text", "blank", "expected"),
    [
        ((199, 199), (4800, 4800), 1.0),
        ((174, 199), (4795, 4800), 175 / 205),
        ((187, 199), (0, 4800), 188 / 5000),  # every blank is read as text
        ((187, 199), (4560, 4800), 188 / 440),  # one in twenty is
        ((0, 199), (4800, 4800), 1 / 200),  # everything is blank
        ((0, 199), (0, 4800), 1 / 5000),
        ((0, 0), (0, 0), 1.0),
    ],
)
def test_reading_counts_what_is_made_up(
    text: tuple[int, int], blank: tuple[int, int], expected: float
) -> None:
    assert reading_part(text, blank) == pytest.approx(expected)


def test_text_read_better_does_not_pay_for_lost_blanks() -> None:
    """As found: token-reading accuracy rose from 0.871 to 0.935, and no cell was blank any more."""
    start = {"reading": reading_part((174, 200), (4790, 4800))}
    worse = {"reading": reading_part((187, 200), (0, 4800))}
    better = {"reading": reading_part((187, 200), (4790, 4800))}
    assert combined(worse) < 0.05 < combined(start) < combined(better)
    assert combined(worse, start) == 0
    assert combined(better, start) == combined(better)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"reading": 0.81, "answers": 1.0}, 0.9),
        ({"reading": 0.5, "answers": 0.5, "aloud": 0.5}, 0.5),
        ({"reading": 1.0, "answers": 0.0}, math.sqrt(0.001)),
        ({"reading": 1.0, "answers": math.nan}, math.sqrt(0.001)),
        ({"reading": 1.0}, 1.0),
        ({}, 0.0),
    ],
)
def test_the_score_is_the_geometric_mean_of_its_parts(
    parts: dict[str, float], expected: float
) -> None:
    assert combined(parts) == pytest.approx(expected)
    assert combined(parts, parts) == pytest.approx(expected)


def test_no_part_is_paid_for_with_another() -> None:
    start = {"reading": 0.2, "answers": 0.8}
    assert combined({"reading": 0.9, "answers": 0.3}) > combined(start)
    assert combined({"reading": 0.9, "answers": 0.3}, start) == 0
    assert combined({"reading": 0.9}, start) == 0  # no longer measured
    assert combined({"reading": 0.9, "answers": 0.7}, start) > combined(start)
    tiny = {"reading": 0.9, "answers": 0.01}  # noise about nothing is no fall
    assert combined({"reading": 0.95, "answers": 0.005}, tiny) > 0


def test_parts_of_verdicts() -> None:
    cells = [{"right": 8.0, "all": 10.0}, {"right": 1.0, "all": 9.0}]
    blanks = [{"right": 90.0, "all": 100.0}, {"right": 100.0, "all": 100.0}]
    verdicts: Any = {
        "anls": [{"score": 1.0}, {"score": 0.0}],
        "exact_match": [{"score": 1.0}, {"score": 0.0}],
        "probability": [{"score": 0.9}],
        "reading": cells,
        "blank": blanks,
        "aloud": [{"score": 0.25}],
    }
    assert Scored(verdicts, {}, [], []).parts() == pytest.approx(
        {"answers": 0.05 * 0.5 + 0.95 * 0.9, "reading": 10 / 30, "aloud": 0.25}
    )
    assert Scored({"anls": verdicts["anls"]}, {}, [], []).parts() == {"answers": 0.5}
    assert Scored({}, {}, [], []).parts() == {}
    many: Any = {"anls": verdicts["anls"] * 10, "probability": verdicts["probability"] * 20}
    assert Scored(many, {}, [], []).parts() == pytest.approx({"answers": 0.7})


def spoil(parts: dict[str, float]) -> Any:
    """A trainer whose every checkpoint is found to have these parts."""

    def trainer(*args: Any, **kwargs: Any) -> FinetuneTrainer:
        return FinetuneTrainer(*args, **{**kwargs, "judge": lambda: parts})

    return trainer


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_that_gets_worse_keeps_the_start(
    rank: int,
    tiny_model_dir: Path,
    pdf_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "FinetuneTrainer", spoil({"reading": 0.0, "aloud": 0.0}))
    settings = settings_from(model=tiny_model_dir, pdfs=pdf_folder, lora_rank=rank, **FAST)
    outcome = finetune(settings, tmp_path / "run", quiet=True, report=lambda line: None)
    assert (outcome.kept_start, outcome.best_step) == (True, 0)
    plain = "the run did not improve the model: the start is kept"
    assert outcome.to_text().startswith(plain)
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert report["kept"] == "start"
    assert report["warnings"][0].startswith(plain)
    assert report["score"]["before"] == report["score"]["after"]
    assert plain in (tmp_path / "run" / "report.html").read_text("utf-8")
    # what the user gets is what there was
    merged = merge_adapter(tmp_path / "run", tmp_path / "merged")
    before = load_file(tiny_model_dir / "model.safetensors")
    after = load_file(merged / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_blanks_turned_into_text_are_not_kept(
    tiny_model_dir: Path, pdf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, with a model that training makes say "The" everywhere, whatever the loss does."""
    answer, plain = {}, AlignConnector.top_tokens

    def top_tokens(self: Any, features: Any, k: int) -> Any:
        values, ids = plain(self, features, k)
        return values, torch.full_like(ids, answer["token"])

    settings = settings_from(model=tiny_model_dir, pdfs=pdf_folder, transcribe=False, **FAST)
    model, processor = load_pretrained(tiny_model_dir, torch.float32)
    blank = model.config.blank_token_id
    answer["token"] = blank
    monkeypatch.setattr(AlignConnector, "top_tokens", top_tokens)
    step = FinetuneTrainer.training_step

    def ruin(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer["token"] = processor.tokenizer.convert_tokens_to_ids("The")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(FinetuneTrainer, "training_step", ruin)
    outcome = finetune(settings, tmp_path / "run", quiet=True, report=lambda line: None)
    assert outcome.kept_start
    curve = dict(outcome.validation)
    assert min(loss for step, loss in curve.items() if step) < curve[0]  # the loss did not see it
    first, *rest = outcome.checkpoints
    assert all(entry["score"] < first["score"] for entry in rest)


def test_a_checkpoint_is_judged_as_the_model_it_becomes(
    tiny_model_dir: Path, pdf_folder: Path, questions_file: Path, tmp_path: Path
) -> None:
    """Within peft's wrappers the connector and the encoder are what trains, and stay in place."""
    settings = settings_from(model=tiny_model_dir, pdfs=pdf_folder, data=questions_file, **FAST)
    data = load_data(settings, tmp_path)
    model, processor = load_pretrained(tiny_model_dir, torch.float32)
    options: Any = {"most": 4, "max_new_tokens": 4, "max_length": 4096, "examples": False}
    plain = score(model, processor, data, **options)
    wrapped = wrap(model, lora_config(model, 4, train_vision=True))
    inside = wrapped.get_base_model().model
    before = inside.connector, inside.vision_model
    with unwrapped(wrapped) as inner:
        assert isinstance(inner.model.connector, AlignConnector)
        assert score(inner, processor, data, **options) == plain
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        assert score(inner, processor, data, **options) != plain
    assert (inside.connector, inside.vision_model) == before
    assert not plain.pages


def test_probability_of_an_answer(
    tiny_model_dir: Path, questions_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load_pretrained(tiny_model_dir, torch.float32)
    record = JsonlSource(questions_file)[0]
    (alone,) = answer_probabilities(model, processor, record, 4096)
    assert 0 < alone < 1
    with pytest.raises(TooLong):
        answer_probabilities(model, processor, record, 4)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    assert answer_probabilities(model, processor, record, 4096) == [0]


def test_questions_of_a_page_train_together_where_the_language_model_can(
    questions_file: Path, tmp_path: Path
) -> None:
    data = load_data(settings_from(model="m", data=questions_file, validation=0.5), tmp_path)
    (split,) = data.splits
    assert data.train_size < len(split.train)
    data.take_apart()
    assert data.train_size == len(split.train)
    assert len(split.held_together()) == len(split.held_out)


def test_questions_scored_together_are_scored_as_alone(
    tiny_model_dir: Path, questions_file: Path, tmp_path: Path
) -> None:
    model, processor = load_pretrained(tiny_model_dir, torch.float32)
    data = load_data(settings_from(model="m", data=questions_file, validation=0.5), tmp_path)
    assert data.questions is not None
    split = data.questions
    assert len(split.held_together()) < len(split.held_out)  # two questions about each picture
    alone = dataclasses.replace(split, held_pages=[None] * len(split.held_out))
    options = {"most": 50, "max_new_tokens": 6, "max_length": 4096}
    one, other = (
        score(model, processor, dataclasses.replace(data, questions=own), **options)
        for own in (split, alone)
    )
    assert sorted(one.questions) == sorted(other.questions)
    by_group = [
        sorted(
            zip(found.groups["probability"], (v["score"] for v in found.verdicts["probability"]))
        )
        for found in (one, other)
    ]
    for (a, p), (b, q) in zip(*by_group, strict=True):
        assert a == b
        assert p == pytest.approx(q, rel=1e-4)


def test_patience_counts_what_neither_loss_nor_score_betters() -> None:
    class Now:
        best_metric: float | None = None
        should_training_stop = False
        greater_is_better = True

    now, patience = Now(), Patience(2)

    def see(loss: float, score: float) -> bool:
        metrics = {"eval_loss": loss, "eval_score": score}
        patience.on_evaluate(now, now, now, metrics)
        now.best_metric = max(score, now.best_metric or 0.0)
        return now.should_training_stop

    assert not see(5.0, 0.5)
    assert not see(5.0, 0.5)  # once without progress
    assert not see(4.0, 0.4)  # the loss
    assert not see(5.0, 0.4)
    assert not see(5.0, 0.6)  # the score
    assert not see(5.0, 0.4)
    again = Patience.from_state(patience.state())
    assert isinstance(again, Patience)
    assert (again.best_loss, again.early_stopping_patience_counter) == (4.0, 1)
    assert see(math.nan, 0.4)
