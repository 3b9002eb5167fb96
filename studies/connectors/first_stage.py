"""One stage of a recipe for benchmarks: the package's own stage code, in silence, nothing kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed
from transformers.trainer_utils import SaveStrategy

from alignvlm.data.collate import Collator
from alignvlm.data.sources import Source
from alignvlm.train.recipe import Recipe
from alignvlm.train.stages import StageDataset, StageTrainer, set_trainable, training_arguments


def train_first_stage(
    recipe: Recipe, model: Any, processor: Any, source: Source, callback: TrainerCallback
) -> int:
    """Train ``model`` on ``source`` as ``alignvlm train`` does; returns the steps it took."""
    stage = recipe.stages[0]
    set_seed(recipe.seed)
    set_trainable(model, stage.train)
    model.config.vocab_loss_weight = stage.loss.vocab
    model.config.blank_loss_weight = stage.loss.blank
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(stage, Path(folder), recipe.seed, bf16=False, quiet=True)
        arguments.save_strategy = SaveStrategy.NO
        trainer = StageTrainer(
            model=model,
            args=arguments,
            train_dataset=StageDataset(source, stage, processor, model, recipe.seed),
            data_collator=Collator(processor.tokenizer.pad_token_id),
            rates=stage.train,
            losses=stage.loss,
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    return trainer.state.global_step
