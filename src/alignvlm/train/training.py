"""Running a recipe: stage after stage, resumable, and nothing half-written.

``--out X`` appears whole, at the end. Until then everything lives in ``X.training`` beside it: a
folder a stage with the Trainer's checkpoints, and the finished stages' weights. ``--resume`` goes
on from there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.integrations.integration_utils import TensorBoardCallback

from ..compose.assemble import compose, load_pretrained, load_tokenizer
from ..connectors.configs import AlignConfig
from ..data.collate import Collator
from ..data.ground import as_words, frequent_tokens
from ..data.hub.place import local_copy
from ..data.sources import MixedSource, Source
from ..data.sources.specs import HubSourceSpec, RenderSourceSpec, build_source
from ..errors import AlignVLMError
from ..eval.reading_accuracy import answer_loss, reading_accuracy
from ..files import replacing
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.packing import check_packing
from ..processing.processor import AlignVLMProcessor, space_token_id
from .checkpoints import last_checkpoint
from .recipe import Recipe, StageSpec
from .run_folder import begin, finish, writing
from .stages import (
    Losses,
    StageDataset,
    StageTrainer,
    build_mix,
    set_trainable,
    training_arguments,
    trains_in_bf16,
)

VOCABULARY_PAGES = 500
"""Pages counted to choose a pruned vocabulary."""
PROBE_PAGES = 24
"""Unseen pages read before and after a stage."""
Report = Callable[[str], None]


def build_model(recipe: Recipe) -> tuple[AlignVLMForConditionalGeneration, AlignVLMProcessor]:
    """Put the recipe's model together, seeded."""
    set_seed(recipe.seed)
    spec = recipe.model
    return compose(
        spec.vision,
        spec.text,
        spec.connector,
        token_ids=kept_tokens(recipe),
        chat_template=spec.chat_template,
        image_token=spec.image_token,
        tiling=spec.tiling.model_dump(include={"max_tiles", "min_tiles", "thumbnail"}),
        **spec.config_options(),
    )


def kept_tokens(recipe: Recipe) -> torch.Tensor | None:
    """Ids of the pruned vocabulary: the most frequent on pages of the first stage."""
    connector = recipe.model.connector
    if not isinstance(connector, AlignConfig) or connector.kept_tokens is None:
        return None
    tokenizer = load_tokenizer(recipe.model.text)
    source = build_mix(recipe.stages[0], recipe.seed)
    pages = []
    for index in range(min(VOCABULARY_PAGES, len(source))):
        for words in source[index].words or []:
            pages.append(as_words(words))
    newline = tokenizer.encode("\n", add_special_tokens=False)
    always = [space_token_id(tokenizer), *newline]
    return frequent_tokens(pages, tokenizer, connector.kept_tokens, always)


def train(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    report: Report = print,
) -> Path:
    """Run all stages and write the model, its processor, the recipe and the losses to ``out``.

    Args:
        resume: go on where an interrupted run stopped; the loss curve is that of an unbroken run.
        overwrite: replace an existing ``out``.
        quiet: no progress bars; the losses go to ``report``.
        report: receives what happens, line by line.

    Returns:
        ``out``: a folder for ``from_pretrained``, with ``recipe.yaml`` and ``metrics.jsonl``.

    Raises:
        ConfigError: ``out`` exists, or a run is there and ``resume`` is not set, or the recipe
            changed since.
        WeightsError: weights cannot be read or written; nothing half-written is left at ``out``.
    """
    out = Path(os.path.abspath(out))
    work = out.with_name(out.name + ".training")
    processes = PartialState(cpu=not torch.cuda.is_available())
    if processes.is_main_process:
        note, kind = ("recipe.yaml", recipe.to_yaml()), ("trained model", "recipe")
        begin(out, work, note, kind, resume=resume, overwrite=overwrite)
    else:
        report = _silent
    processes.wait_for_everyone()
    if quiet:
        transformers.logging.disable_progress_bar()
    else:
        transformers.logging.set_verbosity_warning()
    try:
        with writing(work):
            for number, stage in enumerate(recipe.stages, start=1):
                folder = work / f"{number:02d}-{stage.name}"
                if (folder / "done").is_dir():
                    report(f"stage {number}/{len(recipe.stages)} {stage.name}: already done")
                    continue
                model, processor = _stage_start(recipe, work, number)
                if number == 1:
                    _check_stages(recipe, model)
                _run_stage(recipe, number, model, processor, folder, quiet, report)
                del model
                processes.wait_for_everyone()
            if processes.is_main_process:
                _finish(recipe, work, out, overwrite)
            processes.wait_for_everyone()
        return out
    except AlignVLMError:
        begun = not processes.is_main_process or any(path.is_dir() for path in work.iterdir())
        if not begun:
            shutil.rmtree(work)
        raise


def _silent(line: str) -> None:
    """What processes other than the first report."""


def _stage_start(
    recipe: Recipe, work: Path, number: int
) -> tuple[AlignVLMForConditionalGeneration, AlignVLMProcessor]:
    if number == 1:
        return build_model(recipe)
    # the last stage's Trainer left word that models are to be loaded in DeepSpeed's pieces
    unset_hf_deepspeed_config()
    previous = work / f"{number - 1:02d}-{recipe.stages[number - 2].name}" / "done"
    return load_pretrained(previous, torch.float32)


def _check_stages(recipe: Recipe, model: AlignVLMForConditionalGeneration) -> None:
    """Find mistakes of later stages now, not after the first ones have run."""
    if any(stage.packing for stage in recipe.stages):
        check_packing(model.model.language_model)
    for stage in recipe.stages:
        set_trainable(model, stage.train)
        for spec in stage.sources:
            if isinstance(spec, HubSourceSpec) and local_copy(spec.path) is None:
                continue  # it may be a long download
            build_source(spec, recipe.seed)


def _run_stage(
    recipe: Recipe,
    number: int,
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    folder: Path,
    quiet: bool,
    report: Report,
) -> None:
    stage = recipe.stages[number - 1]
    seed = recipe.seed + 1000 * number
    counts = set_trainable(model, stage.train)
    model.config.vocab_loss_weight = stage.loss.vocab
    model.config.blank_loss_weight = stage.loss.blank
    processes = PartialState()
    source: Source = build_mix(stage, seed, processes.num_processes)
    dataset = StageDataset(source, stage, processor, model, seed)
    samples = stage.batch * processes.num_processes
    steps = stage.steps or math.ceil(len(dataset) / samples)
    trains = ", ".join(f"{part} {n / 1e6:.1f} M" for part, n in counts.items() if n)
    report(
        f"stage {number}/{len(recipe.stages)} {stage.name}: {steps} steps of {samples} "
        f"samples; trains {trains}"
    )
    if processes.is_main_process:
        last_checkpoint(folder)  # removes broken ones before the others look
    processes.wait_for_everyone()
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        report(f"  resuming at {checkpoint.name}")
    trainer = StageTrainer(
        model=model,
        args=training_arguments(stage, folder, seed, bf16=trains_in_bf16(), quiet=quiet),
        train_dataset=dataset,
        data_collator=Collator(processor.tokenizer.pad_token_id),
        rates=stage.train,
        losses=stage.loss,
        packing=stage.packing,
        callbacks=[Losses(report if quiet else None)],
    )
    trainer.remove_callback(PrinterCallback)  # it would print into a --json answer
    if processes.is_main_process:
        writer = SummaryWriter(str(folder / "tensorboard"))
        trainer.add_callback(TensorBoardCallback(writer))
    probe = _probe(stage, seed) if processes.is_main_process and not trainer.sharded else None
    if probe is not None and checkpoint is None:
        _report_probe("before", stage, model, processor, probe, report)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    report(f"  trained in {time.perf_counter() - start:.0f} s")
    if probe is not None:
        _report_probe("after", stage, model, processor, probe, report)
    if dataset.dropped:
        report(f"  {dataset.dropped} samples were longer than {stage.max_length} tokens")
    _save_stage(model, processor, trainer, stage, folder)


def _probe(stage: StageSpec, seed: int) -> Source | None:
    """Rendered pages that the stage never shows, if it trains on rendered pages."""
    rendered = [spec for spec in stage.sources if isinstance(spec, RenderSourceSpec)]
    if not rendered:
        return None
    sources = [build_source(spec, seed + 500_000) for spec in rendered]
    return MixedSource(sources, [spec.weight for spec in rendered], PROBE_PAGES, seed=seed)


def _report_probe(
    when: str,
    stage: StageSpec,
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    probe: Source,
    report: Report,
) -> None:
    """Say how well unseen pages are read, and how well their answers are predicted."""
    if stage.loss.vocab:
        report(f"  {when}: {reading_accuracy(model, processor, probe, PROBE_PAGES)}")
    if stage.loss.lm:
        loss = answer_loss(model, processor, probe, PROBE_PAGES)
        report(f"  {when}: language-model loss on unseen pages {loss:.3f} nats a token")


def _save_stage(
    model: Any, processor: Any, trainer: StageTrainer, stage: StageSpec, folder: Path
) -> None:
    """Write the stage's weights and losses, then make them visible under ``done`` at once."""
    weights = trainer.whole_weights()
    if trainer.args.should_save:  # the first process alone
        with replacing(folder / "done") as partial:
            model.save_pretrained(partial, state_dict=weights)
            processor.save_pretrained(partial)
            lines = [
                json.dumps({"stage": stage.name, **entry})
                for entry in trainer.state.log_history
                if "loss" in entry
            ]
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)


def _finish(recipe: Recipe, work: Path, out: Path, overwrite: bool) -> None:
    stages = [work / f"{n:02d}-{s.name}" / "done" for n, s in enumerate(recipe.stages, start=1)]
    losses = [stage.parent / "metrics.jsonl" for stage in stages]
    metrics = "".join(path.read_text(encoding="utf-8") for path in losses)
    final = stages[-1]
    (final / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    shutil.copy(work / "recipe.yaml", final / "recipe.yaml")
    for stage in stages:
        curves = stage.parent / "tensorboard"
        if curves.is_dir():
            shutil.copytree(curves, final / "tensorboard" / stage.parent.name, dirs_exist_ok=True)
    finish(final, work, out, overwrite)


def end_processes() -> None:
    """Leave the group of processes that torchrun made, all at once; alone there is none.

    Threads of a group that is open at exit, or that another process has left, may abort a process.
    """
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
