"""What a fine-tuning run depends on; saved beside its adapter as ``finetune.yaml``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError, describe_validation_error

MOST_BATCH, STEPS = 8, 8
LR = 1e-4
"""Of what trains whole: the connector, the vision encoder."""
PASSES, MOST_PASSES, SEEN = 3.0, 10.0, 100
"""Over the data; the most over few pages with questions, and the samples such a run sees."""
LORA_LR, WIDTH = 1e-3, 576
"""Of LoRA, and the width of the language model that it was chosen for (docs/log.md)."""


class Settings(BaseModel):
    """All settings with their defaults; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, description="folder or hub id of a trained model")
    pdfs: str | None = Field(None, description="a folder of PDFs, or one PDF")
    data: str | None = Field(
        None, description="JSONL of questions with answers, or extract's CSV, corrected"
    )
    images: str | None = Field(None, description="folder that names of the CSV start from")
    epochs: float | None = Field(None, gt=0, description="default: see passes()")
    steps: int | None = Field(None, ge=1, description="optimiser steps; instead of epochs")
    lr: float | None = Field(
        None, gt=0, description="highest learning rate of everything; default: see rates()"
    )
    lora_rank: int = Field(16, ge=0, description="0: no LoRA, the connector alone trains")
    train_vision: bool = Field(False, description="the vision encoder trains too, whole")
    transcribe: bool = Field(True, description="the language model learns to read pages aloud")
    validation: float = Field(0.1, gt=0, le=0.5, description="share that is held out")
    patience: int = Field(3, ge=1, description="validations without progress before stopping")
    seed: int = 0
    batch_size: int | None = Field(None, ge=1, description="samples an optimiser step; default: 8")
    micro_batch: int = Field(1, ge=1, description="samples in memory at once")
    max_questions: int = Field(50, ge=1, description="held-out questions, and pages, scored")
    max_new_tokens: int = Field(64, ge=1, description="length of a scored answer")
    max_length: int = Field(8192, ge=16, description="longer samples are dropped, never cut")
    dpi: float = Field(144, gt=0, description="resolution PDFs are rendered at")

    @model_validator(mode="after")
    def _checks(self) -> Settings:
        if self.pdfs is None and self.data is None:
            raise ValueError("give --pdfs FOLDER, --data qa.jsonl, or both")
        if self.images is not None and not self.is_table:
            raise ValueError("--images is for a CSV: paths of a JSONL start from its own folder")
        if not self.transcribe and self.data is not None:
            raise ValueError("--no-transcribe is for --pdfs alone: questions need the answers")
        if self.batch_size is not None and self.batch_size % self.micro_batch:
            raise ValueError("--batch-size must be a multiple of --micro-batch")
        return self

    @property
    def is_table(self) -> bool:
        """Whether ``data`` is a table of fields."""
        return self.data is not None and self.data.lower().endswith(".csv")

    @property
    def rank(self) -> int:
        """LoRA's rank as it is used: without a loss on text the language model does not train."""
        return self.lora_rank if self.transcribe else 0

    def rates(self, width: int) -> dict[str, float]:
        """Highest learning rates: ``text`` of LoRA, ``connector`` of all that trains whole.

        A wider language model takes less in proportion, as μP has it for Adam (arXiv 2203.03466).

        Args:
            width: of the language model.
        """
        rates = {"connector": self.lr or LR}
        if self.rank:
            rates["text"] = self.lr or LORA_LR * min(1.0, WIDTH / width)
        return rates

    def passes(self, samples: int) -> float:
        """Passes over the data: three, and more over few samples, which are pages with all that is
        asked of them. Pages of PDFs take longer, and each teaches hundreds of words."""
        if self.epochs is not None:
            return self.epochs
        if self.pdfs is not None:
            return PASSES
        return min(MOST_PASSES, max(PASSES, SEEN / samples))

    def batch(self, samples: int) -> int:
        """Samples an optimiser step. By default 8, and of few ``samples`` fewer: a pass over them
        then still has :data:`STEPS` steps."""
        if self.batch_size is not None:
            return self.batch_size
        wanted = min(MOST_BATCH, samples // STEPS)
        return max(wanted // self.micro_batch, 1) * self.micro_batch

    def to_yaml(self) -> str:
        """All settings, also those left at their defaults."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def settings_from(**given: Any) -> Settings:
    """Checked settings; local paths are made absolute, so that a run can go on from anywhere.

    Raises:
        ConfigError: an unknown key, a value out of range, or no data.
    """
    for key in ("model", "pdfs", "data", "images"):
        value = given.get(key)
        if value is not None:
            value = os.fspath(value)
            local = key != "model" or os.path.isdir(os.path.expanduser(value))
            given[key] = str(Path(value).expanduser().absolute()) if local else value
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, Settings.model_fields)) from None
