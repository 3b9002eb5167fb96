"""The command line's ``batch`` and ``plan``: many documents, many GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .options import (
    DPI,
    Actors,
    Address,
    Dpi,
    Json,
    Model,
    NumGpus,
    Recipe,
    RepetitionGuard,
    Sets,
    emit,
    number,
    shows_progress,
)
from .status_line import Doing


def batch(
    model: Model,
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="folder of PDFs and pictures, or records.jsonl")
    ],
    out: Annotated[Path, typer.Option(help="folder of the rows; a rerun goes on")],
    question: Annotated[
        str | None, typer.Option(help="asked about every page; default: read the text")
    ] = None,
    actors: Actors = None,
    num_gpus: NumGpus = None,
    batch_size: Annotated[int, typer.Option(min=1, help="pages answered together")] = 4,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="longest answer, in tokens; long because it reads whole pages by default"
        ),
    ] = 512,
    dpi: Dpi = DPI,
    repetition_guard: RepetitionGuard = True,
    retry_errors: Annotated[bool, typer.Option(help="ask again what ended in an error")] = False,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Ask about every page of a folder, or every record of a JSONL file, on Ray."""
    from ..batch.driver import batch as run
    from ..batch.pool import Pool
    from ..batch.requests import Asking

    asked = {} if question is None else {"question": question}
    asking = Asking(
        dpi=dpi, max_new_tokens=max_new_tokens, repetition_guard=repetition_guard, **asked
    )
    summary = run(
        model,
        source,
        out,
        asking=asking,
        pool=Pool(address, actors, num_gpus, batch_size),
        retry_errors=retry_errors,
        progress=shows_progress(),
    )
    emit(json_, summary.to_dict(), summary.to_text())


def plan(
    recipe: Recipe,
    gpus: Annotated[int, typer.Option(min=1, help="how many, on all machines")] = 8,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100-80, a100-40, l40s, rtx4090")] = "h100",
    mfu: Annotated[
        float,
        number("assumed share of the peak rate that the model's operations reach", above=0, max=1),
    ] = 0.35,
    tiles: Annotated[
        float | None, number("of an average page; default: the most a page can have", above=0)
    ] = None,
    samples: Annotated[
        list[str] | None, typer.Option(help="samples of a stage: STAGE=N. Repeatable.")
    ] = None,
    set_: Sets = None,
    json_: Json = False,
) -> None:
    """Say what a recipe takes on many GPUs: memory, operations, hours. Loads no weights."""
    counts = dict(_count(text) for text in samples or [])
    with Doing(f"planning {recipe}"):
        from ..train.plan import plan as run
        from ..train.recipe import load_recipe

        made = run(load_recipe(recipe, set_), gpus, gpu, mfu=mfu, tiles=tiles, samples=counts)
    emit(json_, made.to_dict(), made.to_text())


def _count(text: str) -> tuple[str, int]:
    stage, sign, number = text.partition("=")
    if not sign or not number.strip().isdigit():
        raise ConfigError(f"--samples {text}: write it as STAGE=N")
    return stage.strip(), int(number)
