"""The command line's ``finetune`` and ``merge``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def finetune(
    model: Annotated[str, typer.Argument(help="folder or hub id of a trained model")],
    out: Annotated[Path, typer.Option(help="folder of the adapter and the report")],
    pdfs: Annotated[Path | None, typer.Option(help="folder of PDFs with text, or one PDF")] = None,
    data: Annotated[
        Path | None, typer.Option(help="JSONL: {image, question, answer}, or chat messages")
    ] = None,
    epochs: Annotated[float, typer.Option(help="passes over the data")] = 3.0,
    steps: Annotated[int | None, typer.Option(help="optimiser steps, instead of epochs")] = None,
    lr: Annotated[float, typer.Option(help="highest learning rate")] = 1e-4,
    lora_rank: Annotated[int, typer.Option(help="0: the connector alone trains")] = 16,
    train_vision: Annotated[
        bool, typer.Option("--train-vision", help="the vision encoder trains too, whole")
    ] = False,
    transcribe: Annotated[
        bool, typer.Option(help="the language model learns to read PDF pages aloud")
    ] = True,
    validation: Annotated[float, typer.Option(help="share of the documents held out")] = 0.1,
    patience: Annotated[
        int, typer.Option(help="stop after so many validations without progress")
    ] = 3,
    seed: Annotated[int, typer.Option()] = 0,
    batch_size: Annotated[int, typer.Option(help="samples an optimiser step")] = 8,
    micro_batch: Annotated[int, typer.Option(help="samples in memory at once")] = 1,
    max_questions: Annotated[int, typer.Option(help="held-out questions, and pages, scored")] = 50,
    max_new_tokens: Annotated[int, typer.Option(help="length of a scored answer")] = 64,
    max_length: Annotated[int, typer.Option(help="tokens; longer samples are left out")] = 8192,
    dpi: Annotated[float, typer.Option(help="resolution PDFs are rendered at")] = 144,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier run")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Fine-tune a model on your own PDFs and questions, and report what that changed."""
    from ..finetune import finetune as run
    from ..finetune import settings_from

    settings = settings_from(
        model=model,
        pdfs=pdfs,
        data=data,
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
    outcome = run(
        settings,
        out,
        resume=resume,
        overwrite=overwrite,
        quiet=json_ or not sys.stderr.isatty(),
        report=lambda line: typer.echo(line, err=json_),
    )
    result = outcome.to_dict()
    for key in ("log", "examples", "harvest", "checkpoints"):  # long, and in report.json
        del result[key]
    typer.echo(json.dumps(result, ensure_ascii=False) if json_ else outcome.to_text())


def merge(
    adapter: Annotated[Path, typer.Argument(help="folder of an adapter, or of a finetune run")],
    out: Annotated[Path, typer.Option(help="folder of the merged model; must not exist")],
    base: Annotated[
        str | None, typer.Option(help="its model, if not the one that the adapter names")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="of the written weights")
    ] = "float32",
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Make one self-contained model folder of an adapter and its base."""
    import torch

    from ..finetune import merge_adapter

    folder = merge_adapter(adapter, out, base=base, dtype=getattr(torch, dtype))
    data = {"adapter": str(adapter), "base": base, "out": str(folder)}
    typer.echo(json.dumps(data, ensure_ascii=False) if json_ else f"model written to {folder}")
