"""Fine-tuning, resumable, and nothing half-written: ``alignvlm finetune``.

``--out X`` appears whole, at the end. Until then everything lives in ``X.finetuning`` beside it:
the pages of the PDFs, the Trainer's checkpoints, the adapter once it is trained, and the scores.
``--resume`` goes on from there.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import transformers
from transformers import PrinterCallback, set_seed

from ..compose.assemble import load_pretrained
from ..connectors import AlignConnector
from ..data import encode
from ..data.collate import Collator
from ..data.questions_together import together
from ..errors import AlignVLMError, ConfigError
from ..files import file_sha256
from ..inference.extract import asked_path
from ..inference.loading import default_device
from ..model.branches import can_branch
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from ..train.checkpoints import last_checkpoint
from ..train.run_folder import begin, finish, writing
from ..train.stages import StageDataset, trains_in_bf16
from ..weights.resolve import resolve
from .adapter import load_adapted, lora_config, require_peft, save_adapter, unwrapped, wrap
from .own_data import Data, load_data
from .pages_once import pages_once
from .report import Outcome, write_report
from .scores import Scored, compare, score
from .settings import Settings
from .trainer import FinetuneTrainer, Patience, Progress, arguments, stage_of

VALIDATION_RECORDS = 200
"""Held-out records on which the loss is measured, at most."""
NOTE = "finetune.yaml"
FORMAT = 2
"""Of an unfinished run: what a sample is, and in which order scores are kept."""
Report = Callable[[str], None]


def finetune(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    report: Report = print,
) -> Outcome:
    """Fine-tune a model on a user's documents and say what that changed.

    Args:
        settings: see :func:`alignvlm.finetune.settings_from`.
        out: gets ``adapter/`` (peft's format, with the processor), ``report.html``,
            ``report.json`` and ``finetune.yaml``.
        resume: go on where an interrupted run stopped.
        overwrite: replace an existing ``out`` of an earlier run, or start an unfinished one over.
        quiet: no progress bars; scores and validation losses go to ``report``.
        report: receives what happens, line by line.

    Raises:
        ConfigError: ``out`` exists, a run is there and ``resume`` is not set, or the settings or
            the data changed since; a library is missing.
        DataError: the documents or questions cannot be used.
        WeightsError: weights cannot be read or written; nothing half-written is left at ``out``.
    """
    require_peft()
    out = Path(os.path.abspath(out))
    work = out.with_name(out.name + ".finetuning")
    source = resolve(settings.model)
    note = (NOTE, settings.to_yaml() + _fingerprint(settings))
    kind = ("fine-tuning run", "settings or the data")
    begin(out, work, note, kind, resume=resume, overwrite=overwrite)
    if quiet:
        transformers.logging.disable_progress_bar()
    try:
        with writing(work):
            return _run(settings, source, work, out, overwrite, quiet, report)
    except AlignVLMError:
        if not (work / "before.json").exists():  # nothing that would be worth resuming
            shutil.rmtree(work, ignore_errors=True)
        raise


def _fingerprint(settings: Settings) -> str:
    """A line that changes when the questions do; the harvest notices changed PDFs itself."""
    if settings.data is None or not os.path.isfile(settings.data):
        return ""
    beside = asked_path(Path(settings.data))  # how the fields of a table were asked
    files = [settings.data, *([beside] if settings.is_table and beside.is_file() else [])]
    return f"# data sha256 {' '.join(map(file_sha256, files))}\n"


def _run(
    settings: Settings,
    source: Path,
    work: Path,
    out: Path,
    overwrite: bool,
    quiet: bool,
    report: Report,
) -> Outcome:
    start = time.perf_counter()
    set_seed(settings.seed)
    data = load_data(settings, work / "pages", progress=not quiet)
    _check_split(data, work)
    for line in data.notes:
        report(line)
    for name, split in (("pages", data.pages), ("questions", data.questions)):
        if split is not None:
            report(
                f"{name}: {len(split.train)} to train on, {len(split.held_out)} held out, of "
                f"{split.documents} documents"
            )
    model, processor = load_pretrained(source, torch.float32)
    model.to(default_device())
    if not (can_branch(model.model.language_model) and _page_first(data, processor)):
        data.take_apart()
    with _see_once(settings, data, model):
        before = _scored(work / "before.json", settings, data, model, processor)
        if not (work / "adapter").is_dir():
            _train(settings, source, work, data, model, processor, before.parts(), quiet, report)
    del model
    gc.collect()
    # scored as it was saved: what is reported is what the user gets
    adapted, processor = load_adapted(work / "adapter", base=source)
    adapted.to(default_device())
    with _see_once(settings, data, adapted):
        after = _scored(work / "after.json", settings, data, adapted, processor)
    history = json.loads((work / "history.json").read_text(encoding="utf-8"))
    outcome = Outcome(
        settings=settings,
        out=out,
        data=data.to_dict(),
        before=before,
        after=after,
        scores=compare(before, after, settings.seed),
        **history,
        seconds=time.perf_counter() - start,
    )
    _finish(outcome, data, work, overwrite)
    return outcome


def _page_first(data: Data, processor: AlignVLMProcessor) -> bool:
    """Whether the chat template leaves the page before the question, tried on one."""
    for split in data.splits:
        asked = split.held_together()
        groups = (asked.records(index) for index in range(len(asked)))
        several = next((records for records in groups if len(records) > 1), None)
        if several is not None:
            try:
                encode.encode(together(several), processor)
            except encode.PageBehind:
                return False
    return True


def _check_split(data: Data, work: Path) -> None:
    """A run that goes on must hold out what it held out before.

    Raises:
        ConfigError: PDFs were added, changed or removed since it began.
    """
    note = work / "split.json"
    held = [[s.held_out[i].id for i in range(len(s.held_out))] for s in data.splits]
    found = {"format": FORMAT, "train": [len(s.train) for s in data.splits], "held_out": held}
    if not note.is_file():
        note.write_text(json.dumps(found), encoding="utf-8")
    elif json.loads(note.read_text(encoding="utf-8")) != found:
        raise ConfigError(
            f"the documents changed since {work} was started, or another version of alignvlm "
            "started it; start over with --overwrite"
        )


def _scored(
    file: Path,
    settings: Settings,
    data: Data,
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
) -> Scored:
    """The scores of a model; read back if an interrupted run has them."""
    if not file.is_file():
        _score(settings, data, model, processor).save(file)
    return Scored.load(file)


def _score(
    settings: Settings,
    data: Data,
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    *,
    examples: bool = True,
) -> Scored:
    return score(
        model,
        processor,
        data,
        most=settings.max_questions,
        max_new_tokens=settings.max_new_tokens,
        max_length=_longest(settings, model),
        transcribe=settings.transcribe,
        examples=examples,
    )


def _longest(settings: Settings, model: AlignVLMForConditionalGeneration) -> int:
    """Tokens of the longest record that is taken."""
    room = getattr(model.config.text_config, "max_position_embeddings", settings.max_length)
    return min(settings.max_length, room)


def _train(
    settings: Settings,
    source: Path,
    work: Path,
    data: Data,
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    start: Mapping[str, float],
    quiet: bool,
    report: Report,
) -> None:
    """Train an adapter, and write it with the losses to ``work``; where no checkpoint is better
    than the start, it is one that changes nothing."""
    grounded = isinstance(model.model.connector, AlignConnector) and data.has_words
    if not grounded and not settings.transcribe:
        raise ConfigError("--no-transcribe trains P_vocab alone, and this model has no ALIGN one")
    batch = settings.batch(data.train_size)
    steps = settings.steps or math.ceil(settings.passes(data.train_size) * data.train_size / batch)
    longest = _longest(settings, model)
    width = model.config.text_config.hidden_size
    stage = stage_of(settings, width, steps, batch, grounded=grounded, max_length=longest)
    train_set, validation_set = (
        StageDataset(records, stage, processor, model, settings.seed)
        for records in (
            data.training(steps, batch, settings.seed),
            data.validation(VALIDATION_RECORDS, settings.seed),
        )
    )
    set_seed(settings.seed)  # LoRA starts the same, whatever was drawn before
    connects = _connector_trains(settings, data, model)
    config = lora_config(
        model, settings.rank, train_vision=settings.train_vision, train_connector=connects
    )
    wrapped = wrap(model, config)
    local = os.path.isdir(os.path.expanduser(settings.model))
    base = os.path.abspath(source) if local else settings.model
    if not (work / "start").is_dir():
        save_adapter(wrapped, processor, base, work / "start")
    # where peft looks for the base's config when a checkpoint is written
    wrapped.peft_config["default"].base_model_name_or_path = str(source)
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    samples = "1 sample" if batch == 1 else f"{batch} samples"
    fastest = max(stage.train.values())
    report(f"{steps} steps of {samples}; {trained / 1e6:.2f} M parameters, rate {fastest:.1e}")

    def judge() -> dict[str, float]:
        with unwrapped(wrapped) as inner:
            return _score(settings, data, inner, processor, examples=False).parts()

    folder = work / "checkpoints"
    trainer = FinetuneTrainer(
        model=wrapped,
        args=arguments(stage, folder, settings.seed, bf16=trains_in_bf16(), quiet=quiet),
        train_dataset=train_set,
        eval_dataset=validation_set,
        data_collator=Collator(processor.tokenizer.pad_token_id),
        rates=stage.train,
        losses=stage.loss,
        judge=judge,
        start=start,
        callbacks=[Progress(report), Patience(settings.patience)],
    )
    trainer.remove_callback(PrinterCallback)  # it would print into a --json answer
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        report(f"  resuming at {checkpoint.name}")
        trainer.args.eval_on_start = False  # that was measured when the run began
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    curve = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if not any(entry["step"] and math.isfinite(entry["eval_loss"]) for entry in curve):
        raise AlignVLMError(
            "training diverged: no validation loss was a number; start over with a lower --lr"
        )
    history = {
        "log": [entry for entry in trainer.state.log_history if {"loss", "eval_loss"} & {*entry}],
        "steps": trainer.state.global_step,
        "planned_steps": steps,
        "best_step": trainer.state.best_global_step,
        "trained_parameters": trained,
        "too_long": train_set.dropped,
        "max_length": longest,
    }
    (work / "history.json").write_text(json.dumps(history), encoding="utf-8")
    if history["best_step"] == 0:
        (work / "start").rename(work / "adapter")
    else:
        save_adapter(wrapped, processor, base, work / "adapter")


def _connector_trains(
    settings: Settings, data: Data, model: AlignVLMForConditionalGeneration
) -> bool:
    """What an encoder that reads says is put into words in closed form: answers to questions have
    nothing to teach there, only words with their places have."""
    reads = getattr(model.model.vision_model, "reads_pages", False)
    return not reads or data.has_words or not settings.rank


def _see_once(
    settings: Settings, data: Data, model: AlignVLMForConditionalGeneration
) -> AbstractContextManager[None]:
    """Each page is encoded once where neither encoder nor connector trains."""
    if settings.train_vision or _connector_trains(settings, data, model):
        return nullcontext()
    return pages_once(model)


def _finish(outcome: Outcome, data: Data, work: Path, overwrite: bool) -> None:
    final = work / "final"
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir()
    write_report(outcome, data, final)
    (final / NOTE).write_text(outcome.settings.to_yaml(), encoding="utf-8")
    shutil.copytree(work / "adapter", final / "adapter")
    finish(final, work, outcome.out, overwrite)
