"""The command line's ``train``, ``finetune`` and ``merge``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import AlignVLMError, DataError
from .options import (
    DPI,
    MAX_NEW_TOKENS,
    Dpi,
    DryRun,
    Json,
    MaxNewTokens,
    Model,
    Overwrite,
    Recipe,
    Resume,
    Seed,
    Sets,
    emit,
    number,
    shows_progress,
)
from .status_line import CLEAR, Doing


def train(
    recipe: Recipe,
    out: Annotated[Path | None, typer.Option("--out", help="folder of the trained model")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    check_data: Annotated[
        bool,
        typer.Option("--check-data", help="read three records of each source, and say what lacks"),
    ] = False,
    set_: Sets = None,
    json_: Json = False,
) -> None:
    """Train a recipe's stages."""
    from ..train.recipe import load_recipe

    loaded = load_recipe(recipe, set_)
    if check_data:
        from ..train.check_data import check_data as check

        found = check(loaded)
        emit(json_, found.to_dict(), found.to_text())
        if found.missing:
            raise DataError(
                f"{found.missing} of {len(found.sources)} sources of {loaded.name} cannot be read"
            )
        return
    if dry_run:
        from ..train.estimate import estimate

        result = estimate(loaded)
        emit(json_, result.to_dict(), result.to_text())
        return
    if out is None:
        raise AlignVLMError("train needs --out FOLDER (or --dry-run)")
    from ..train.training import end_processes
    from ..train.training import train as run

    with _reporting(f"training {recipe}", json_) as report:
        folder = run(
            loaded,
            out,
            resume=resume,
            overwrite=overwrite,
            quiet=json_ or not shows_progress(),
            report=report,
        )
    emit(json_, {"out": str(folder)}, f"model written to {folder}")
    end_processes()


@contextmanager
def _reporting(what: str, as_json: bool) -> Iterator[Callable[[str], None]]:
    """Takes the lines that say how training goes. With JSON they are on stderr, with what is done
    below them instead of bars: transformers' would write to stdout, which has one line of JSON."""
    if not as_json:
        yield typer.echo
        return
    clear = CLEAR if shows_progress() else ""
    with Doing(what):
        yield lambda line: typer.echo(clear + line, err=True)


def finetune(
    model: Model,
    out: Annotated[Path, typer.Option(help="folder of the adapter and the report")],
    pdfs: Annotated[Path | None, typer.Option(help="folder of PDFs with text, or one PDF")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="JSONL of {image, question, answer}, or extract's CSV, corrected"),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="folder that the CSV's file names start from; default: the CSV's own"),
    ] = None,
    epochs: Annotated[
        float | None, number("passes over the data; default: 3, over few pages more", above=0)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="optimiser steps, instead of epochs")
    ] = None,
    lr: Annotated[
        float | None,
        number("highest learning rate of everything; default: by the language model", above=0),
    ] = None,
    lora_rank: Annotated[int, typer.Option(min=0, help="0: the connector alone trains")] = 16,
    train_vision: Annotated[
        bool, typer.Option("--train-vision", help="the vision encoder trains too, whole")
    ] = False,
    transcribe: Annotated[
        bool, typer.Option(help="the language model learns to read PDF pages aloud")
    ] = True,
    validation: Annotated[float, number("share of the documents held out", above=0, max=0.5)] = 0.1,
    patience: Annotated[
        int, typer.Option(min=1, help="stop after so many validations without progress")
    ] = 3,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="samples an optimiser step; default: 8, fewer of few samples"),
    ] = None,
    micro_batch: Annotated[int, typer.Option(min=1, help="samples in memory at once")] = 1,
    max_questions: Annotated[
        int, typer.Option(min=1, help="held-out questions, and pages, scored")
    ] = 50,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    max_length: Annotated[
        int, typer.Option(min=16, help="tokens; longer samples are left out")
    ] = 8192,
    dpi: Dpi = DPI,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Fine-tune a model on your own PDFs and questions, and report what that changed."""
    from ..finetune import finetune as run
    from ..finetune import settings_from

    settings = settings_from(
        model=model,
        pdfs=pdfs,
        data=data,
        images=images,
        epochs=epochs,
        steps=steps,
        lr=lr,
        lora_rank=lora_rank,
        train_vision=train_vision,
        transcribe=transcribe,
        validation=validation,
        patience=patience,
        seed=seed,
        batch_size=batch_size,
        micro_batch=micro_batch,
        max_questions=max_questions,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        dpi=dpi,
    )
    with _reporting(f"fine-tuning {model}", json_) as report:
        outcome = run(
            settings,
            out,
            resume=resume,
            overwrite=overwrite,
            quiet=json_ or not shows_progress(),
            report=report,
        )
    result = outcome.to_dict()
    for key in ("log", "examples", "harvest", "checkpoints"):  # long, and in report.json
        del result[key]
    emit(json_, result, outcome.to_text())


def merge(
    adapter: Annotated[Path, typer.Argument(help="folder of an adapter, or of a finetune run")],
    out: Annotated[Path, typer.Option(help="folder of the merged model; must not exist")],
    base: Annotated[
        str | None, typer.Option(help="its model, if not the one that the adapter names")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="of the written weights")
    ] = "float32",
    json_: Json = False,
) -> None:
    """Make one self-contained model folder of an adapter and its base."""
    with Doing(f"merging {adapter}"):
        import torch

        from ..finetune import merge_adapter

        folder = merge_adapter(adapter, out, base=base, dtype=getattr(torch, dtype))
    data = {"adapter": str(adapter), "base": base, "out": str(folder)}
    emit(json_, data, f"model written to {folder}")
