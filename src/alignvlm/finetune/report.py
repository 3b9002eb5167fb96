"""What a fine-tuning run did: as text, as JSON, and as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from .own_data import Data
from .quality import combined
from .report_page import html_page
from .scores import Example, Scored
from .settings import Settings


class Outcome(NamedTuple):
    """A finished run.

    Attributes:
        settings: what it was asked to do.
        out: its folder.
        data: how many records there were, by kind (``pages``, ``questions``; ``None`` without any),
            and what reading the PDFs gave (``harvest``).
        before, after: held-out verdicts and answers of the model and of the adapter.
        scores: see :func:`alignvlm.finetune.scores.compare`.
        log: the Trainer's losses, training and validation, with their steps.
        steps, planned_steps: optimiser steps taken; fewer than planned after an early stop.
        best_step: where the score was highest; that checkpoint is the adapter. 0: no checkpoint
            was better than the model before training, and the adapter changes nothing.
        trained_parameters: of LoRA and of what is saved whole.
        too_long: training samples passed over, longer than ``max_length`` tokens.
        seconds: wall clock of the last call, scoring included.
    """

    settings: Settings
    out: Path
    data: dict[str, Any]
    before: Scored
    after: Scored
    scores: dict[str, dict[str, Any]]
    log: list[dict[str, Any]]
    steps: int
    planned_steps: int
    best_step: int | None
    trained_parameters: int
    too_long: int
    max_length: int
    seconds: float

    @property
    def validation(self) -> list[tuple[int, float]]:
        """Step and validation loss; step 0 is the model before training."""
        return [(entry["step"], entry["eval_loss"]) for entry in self.log if "eval_loss" in entry]

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Step and training loss."""
        return [(entry["step"], entry["loss"]) for entry in self.log if "loss" in entry]

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """``step``, ``score``, its ``parts`` and ``loss`` of each validation; step 0 is the model
        before training."""
        name = "eval_part_"
        return [
            {
                "step": entry["step"],
                "score": entry["eval_score"],
                "parts": {k.removeprefix(name): v for k, v in entry.items() if k.startswith(name)},
                "loss": entry["eval_loss"],
            }
            for entry in self.log
            if "eval_score" in entry
        ]

    @property
    def score(self) -> dict[str, float]:
        """``before`` and ``after``: see :func:`alignvlm.finetune.quality.combined`."""
        start = self.before.parts()
        return {"before": combined(start), "after": combined(self.after.parts(), start)}

    @property
    def kept_start(self) -> bool:
        """Whether no checkpoint was better than the model before training."""
        return self.best_step == 0

    def verdict(self) -> str:
        """The one line to read: what training did to the score."""
        score = self.score
        if not self.kept_start:
            return (
                f"score: {score['before']:.3f} before, {score['after']:.3f} after (step "
                f"{self.best_step} of {self.steps})"
            )
        line = "the run did not improve the model: the start is kept"
        tried = [entry for entry in self.checkpoints if entry["step"]]
        if tried:
            best = max(tried, key=lambda entry: entry["score"])
            line += (
                f" (score {score['before']:.3f}; the best checkpoint, of step {best['step']}, has "
                f"{best['score']:.3f})"
            )
        return f"{line}; try a lower --lr or more data"

    def warnings(self) -> list[str]:
        """What a person should know before trusting the adapter."""
        found = [self.verdict()] if self.kept_start else []
        for entry in self.scores.values():
            if entry["interval"] is not None and entry["interval"][1] < 0:
                found.append(f"{entry['title']} fell")
            if entry["documents"] == 1:
                found.append(
                    f"{entry['title']}: one document alone was scored, so its score says little "
                    "about others; raise --validation or add documents"
                )
        for name in ("pages", "questions"):
            if (self.data[name] or {}).get("split_by") == "record":
                found.append(
                    f"{name}: there are too few documents to hold whole ones out, so held-out "
                    f"{name} share documents with training and the scores are too good"
                )
        if self.too_long:
            found.append(
                f"{self.too_long} training samples were passed over: longer than "
                f"{self.max_length} tokens"
            )
        skipped = self.data["harvest"].get("skipped_pages", [])
        files = self.data["harvest"].get("skipped_files", [])
        if skipped or files:
            found.append(f"{len(files)} PDFs and {len(skipped)} pages could not be used")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data for JSON."""
        return {
            "out": str(self.out),
            "settings": self.settings.model_dump(mode="json"),
            "kept": "start" if self.kept_start else "checkpoint",
            "verdict": self.verdict(),
            "score": self.score,
            "scores": self.scores,
            "warnings": self.warnings(),
            "steps": self.steps,
            "planned_steps": self.planned_steps,
            "best_step": self.best_step,
            "trained_parameters": self.trained_parameters,
            "too_long": self.too_long,
            "max_length": self.max_length,
            "seconds": round(self.seconds, 1),
            **self.data,
            "checkpoints": self.checkpoints,
            "log": self.log,
            "examples": self.examples(),
        }

    def examples(self) -> dict[str, list[dict[str, str]]]:
        """Held-out records with both answers, by kind."""
        return {
            kind: [_both(*pair) for pair in zip(first, second, strict=True)]
            for kind, first, second in (
                ("questions", self.before.questions, self.after.questions),
                ("pages", self.before.pages, self.after.pages),
            )
        }

    def to_text(self) -> str:
        """The verdict and the scores, then what to know, then where everything is."""
        lines = [self.verdict()]
        for entry in self.scores.values():
            bounds = entry["interval"]
            interval = f", 95 % interval {bounds[0]:+.3f} to {bounds[1]:+.3f}" if bounds else ""
            lines.append(
                f"{entry['title']}: {entry['before']:.3f} before, {entry['after']:.3f} after "
                f"({entry['difference']:+.3f}{interval}; {entry['count']} held out)"
            )
        curve = dict(self.validation)
        if 0 in curve and self.best_step in curve and not self.kept_start:
            lines.append(
                f"validation loss: {curve[0]:.4f} before, {curve[self.best_step]:.4f} at step "
                f"{self.best_step} of {self.steps}"
            )
        lines += [f"note: {warning}" for warning in self.warnings() if warning != lines[0]]
        lines.append(f"adapter, report.html and report.json are in {self.out}")
        return "\n".join(lines)


def _both(before: Example, after: Example) -> dict[str, str]:
    return {
        "id": before.id,
        "question": before.question,
        "expected": before.expected,
        "before": before.answer,
        "after": after.answer,
    }


def write_report(outcome: Outcome, data: Data, folder: Path) -> None:
    """Write ``report.json`` and ``report.html`` into a folder.

    Args:
        data: the pictures beside the examples come from here.

    Raises:
        OSError: the disk is full.
    """
    result = outcome.to_dict()
    text = json.dumps(result, ensure_ascii=False, indent=1)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    splits = {"questions": data.questions, "pages": data.pages}
    records = {kind: split.held_out for kind, split in splits.items() if split is not None}
    (folder / "report.html").write_text(
        html_page(result, outcome.losses, outcome.validation, records), encoding="utf-8"
    )
