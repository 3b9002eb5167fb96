"""transformers' Trainer for adapters: ALIGN's losses, validation, early stop, best checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from ..data.sources.specs import JsonlSourceSpec
from ..train.recipe import LossSpec, StageSpec
from ..train.stages import GROUNDED, StageTrainer, training_arguments
from .quality import combined
from .settings import Settings

EVALUATIONS = 10
"""How often a run is validated, at most."""
BLANK_CELLS = 200
"""Blank cells of a page that are scored; most of a page is blank."""


def stage_of(
    settings: Settings, width: int, steps: int, batch: int, *, grounded: bool, max_length: int
) -> StageSpec:
    """The run as a recipe's stage.

    Args:
        width: of the language model.
        steps: optimiser steps.
        batch: samples of each.
        grounded: there are words, and P_vocab to train on them.
        max_length: tokens; longer samples are dropped.
    """
    every = max(1, math.ceil(steps / EVALUATIONS))
    return StageSpec(
        name="finetune",
        train=settings.rates(width),
        sources=[JsonlSourceSpec(type="jsonl", path=settings.data or settings.pdfs or "")],
        steps=steps,
        loss=LossSpec(
            lm=1.0 if settings.transcribe else 0.0,
            vocab=1.0 if grounded else 0.0,
            blank_cells=BLANK_CELLS,
        ),
        batch_size=settings.micro_batch,
        gradient_accumulation=batch // settings.micro_batch,
        max_length=max_length,
        log_steps=max(1, every // 5),
        save_steps=every,
    )


def arguments(
    stage: StageSpec, folder: Path, seed: int, *, bf16: bool, quiet: bool
) -> TrainingArguments:
    """A stage's arguments, with validation at every checkpoint and the best one loaded at the end.

    The Trainer then keeps the best checkpoint and the last.
    """
    args = training_arguments(stage, folder, seed, bf16=bf16, quiet=quiet)
    args = args.set_evaluate(
        strategy="steps",
        steps=stage.save_steps,
        batch_size=stage.batch_size,
        delay=0,
        loss_only=True,
    )
    args.eval_on_start = True  # the curve starts where the model was
    args.load_best_model_at_end = True
    args.metric_for_best_model, args.greater_is_better = "eval_score", True
    # a resumed run must stop where an unbroken one would
    args.restore_callback_states_from_checkpoint = True
    args._n_gpu = min(args.n_gpu, 1)  # DataParallel would cut a batch of tiles anywhere
    return args


class FinetuneTrainer(StageTrainer):
    """The stages' trainer with a validation loss, one learning rate, and peft around the model.

    The best checkpoint is the one with the highest :func:`.quality.combined`; the model before
    training is one of those to choose from.

    Args:
        judge: the parts of the model's score, as it is now.
        start: those of the model before training.
    """

    def __init__(
        self,
        *args: Any,
        judge: Callable[[], Mapping[str, float]],
        start: Mapping[str, float],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.validated: dict[str, list[float]] = {}
        self.judge, self.start = judge, dict(start)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's own, which does not look for the best one among the model at the start."""
        metrics = super().evaluate(*args, **kwargs)
        if self.state.global_step == 0:
            self.state.best_metric, self.state.best_global_step = metrics["eval_score"], 0
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The validation loss, and the score with its parts."""
        output = super().evaluation_loop(*args, **kwargs)
        metrics: Any = output.metrics
        parts: Mapping[str, float] = self.start
        if self.state.global_step:
            parts = self.judge() if math.isfinite(metrics["eval_loss"]) else {}
        metrics["eval_score"] = combined(parts, self.start)
        metrics.update({f"eval_part_{name}": value for name, value in parts.items()})
        return output

    def rate_of(self, parameter: str) -> float:
        """LoRA's, or that of what trains whole; peft has already frozen what must not move."""
        return self.rates["text" if ".lora_" in parameter else "connector"]

    def prediction_step(  # type: ignore[override]
        self, model: Any, inputs: dict, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        """The weighted loss of one validation batch; its parts are kept for the log."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[assignment]
        if not self.lm_weight:
            inputs = {key: inputs[key] for key in GROUNDED if key in inputs}
        extra = {"skip_logits": True, "use_cache": False} if self.lm_weight else {}
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, **extra)
        loss = torch.zeros((), device=outputs.loss.device)
        weights = {"lm_loss": self.lm_weight, "vocab_loss": self.vocab_weight}
        for name, weight in weights.items():
            part = getattr(outputs, name)
            if part is not None:
                loss = loss + weight * part
                self.validated.setdefault(f"eval_{name}", []).append(float(part))
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the validation loss: means over its batches."""
        if "eval_loss" in logs:
            parts = self.validated.items()
            logs.update({name: math.fsum(values) / len(values) for name, values in parts})
            self.validated.clear()
        super().log(logs, *args, **kwargs)

    def _telemetry(self) -> dict[str, float]:
        return {}  # the connector is behind peft's wrapper


class Patience(EarlyStoppingCallback):
    """Ends a run after so many validations in which neither the score nor the loss got better.

    The score alone would end a run too early: a few pages move it in leaps.
    """

    def __init__(
        self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0
    ) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)
        self.best_loss = math.inf

    def on_evaluate(  # type: ignore[override]
        self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any
    ) -> None:
        """Count, or start counting anew."""
        better = metrics["eval_loss"] < self.best_loss
        self.check_metric_value(args, state, control, metrics["eval_score"])
        if better:
            self.best_loss = metrics["eval_loss"]
            self.early_stopping_patience_counter = 0
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def state(self) -> dict:
        """What a checkpoint keeps."""
        found = super().state()
        found["attributes"]["best_loss"] = self.best_loss
        return found


class Progress(TrainerCallback):
    """One line a validation."""

    def __init__(self, report: Any) -> None:
        self.report = report

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        if metrics and "eval_loss" in metrics:
            self.report(
                f"  step {state.global_step}/{state.max_steps}: "
                f"score {metrics['eval_score']:.4f}, validation loss {metrics['eval_loss']:.4f}"
            )
