"""The command line's ``eval``: score answerers on tasks, compare results, tabulate them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import ConfigError, DataError
from .options import Json, Overwrite, RepetitionGuard, Seed, emit, number
from .status_line import Doing, load

if TYPE_CHECKING:
    from ..eval.results import Result
    from ..eval.tasks import Task
    from ..inference.answerers import Answerer

PRUNE_PAGES = 16
"""Documents whose pages choose the vocabulary of ``--prune K``."""


class _Group(TyperGroup):
    """``eval MODEL ...`` is ``eval run MODEL ...``; its help is that of ``run``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = args or ["--help"]
        return super().parse_args(ctx, args if args[0] in self.commands else ["run", *args])


class _Run(TyperCommand):
    def format_usage(self, ctx: Any, formatter: Any) -> None:
        path = ctx.command_path.removesuffix(" run")
        formatter.write_usage(path, " ".join(self.collect_usage_pieces(ctx)))


eval_app = typer.Typer(cls=_Group, help="Score a model on benchmarks; compare and tabulate scores.")


class Kind(StrEnum):
    """Who answers."""

    model = "model"
    text_only = "text-only"
    ocr = "ocr"
    majority = "majority"
    random = "random"


FLOORS = (Kind.majority, Kind.random)


@eval_app.command(
    "run",
    cls=_Run,
    epilog="Also: alignvlm eval compare A B (is the difference real?) and alignvlm eval table "
    "FILE... (a markdown table); each has its own --help.",
)
def run(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="folder or hub id; majority and random need none"),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="T[,T...]: wtq, tabfact, chartqa, sroie, ...")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="the benchmark's folder, or one with a folder a task")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="FILE.json for one task; else a folder: OUT/TASK.json")
    ] = None,
    answerer: Annotated[
        Kind,
        typer.Option(
            help="the model; its language model without pages (text-only) or with OCR text (ocr; "
            "both also take a plain language model); the most frequent or a random answer"
        ),
    ] = Kind.model,
    split: Annotated[str | None, typer.Option(help="default: the task's own")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="only N samples, spread over the split")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="samples a batch")] = 4,
    seed: Seed = 0,
    noise: Annotated[float, number("σ of Gaussian noise on the vision features", min=0)] = 0.0,
    prune: Annotated[
        str | None,
        typer.Option(help="keep K vocabulary ids in P_vocab, or those listed in a JSON file"),
    ] = None,
    repetition_guard: RepetitionGuard = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Score MODEL, or a floor or rival, on benchmark tasks.

    An interrupted run goes on when the same command is given again.
    """
    names = _task_names(task)
    if out is None:
        raise ConfigError("eval needs --out FILE.json, or --out FOLDER for several tasks")
    if model is None and answerer not in FLOORS:
        raise ConfigError(f"the answerer {answerer.value!r} needs a MODEL")
    if answerer is not Kind.model and (noise or prune):
        raise ConfigError(f"--noise and --prune are for the model, not for {answerer.value!r}")
    from ..eval.runner import evaluate
    from ..eval.tasks import load_task

    files = _files(out, names)
    tasks = [load_task(name, data, split) for name in names]
    ids = _prune_option(prune)
    make = _maker(answerer, model, data, seed, noise, ids, repetition_guard)
    rows = []
    for one, file in zip(tasks, files, strict=True):
        with make(one) as who:
            result = evaluate(
                who,
                one,
                file,
                limit=limit,
                batch_size=batch_size,
                seed=seed,
                overwrite=overwrite,
                quiet=True if json_ else None,
            )
        rows.append({**_summary(result, file), "already_there": result.found})
        if not json_:
            typer.echo(_sentence(rows[-1]))
    if json_:
        emit(True, {"results": rows}, "")


def _task_names(given: list[str] | None) -> list[str]:
    names = [name.strip() for part in given or [] for name in part.split(",") if name.strip()]
    if not names:
        raise ConfigError("eval needs --task, such as --task wtq,tabfact")
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--task names {double!r} twice")
    return names


def _files(out: Path, names: Sequence[str]) -> list[Path]:
    if out.suffix != ".json":
        return [out / f"{name}.json" for name in names]
    if len(names) > 1:
        raise ConfigError(f"--out {out} is one file for {len(names)} tasks; name a folder")
    return [out]


def _prune_option(given: str | None) -> int | list[int] | None:
    """How many ids to keep, or which."""
    if given is None:
        return None
    if given.isdecimal():
        return int(given)
    if not Path(given).is_file():
        raise ConfigError(f"--prune takes a number or a JSON file of ids; there is no file {given}")
    try:
        ids = json.loads(Path(given).read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{given}: not JSON: {error}") from None
    if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
        raise DataError(f"{given}: not a JSON list of vocabulary ids")
    return ids


Make = Callable[["Task"], AbstractContextManager["Answerer"]]


def _maker(
    kind: Kind,
    model: str | None,
    data: Path | None,
    seed: int,
    noise: float,
    prune: int | list[int] | None,
    guard: bool,
) -> Make:
    """Load what all tasks share; what comes back makes a task's answerer (a context)."""
    from ..eval.baselines import KnownAnswers, MajorityAnswerer, RandomAnswerer, training_task
    from ..inference.answerers import LanguageModel, TextOnlyAnswerer

    if kind in FLOORS:

        def floor(task: Task) -> Answerer:
            known = KnownAnswers.of(training_task(task, data))
            if kind is Kind.majority:
                return MajorityAnswerer(known)
            return RandomAnswerer(known, seed=seed)

        return lambda task: nullcontext(floor(task))
    assert model is not None
    if kind is Kind.model:
        return _model_maker(model, data, seed, noise, prune, guard)
    who: Callable[..., Answerer] = TextOnlyAnswerer
    if kind is Kind.ocr:
        from ..eval.ocr import OcrAnswerer, RapidOcrReader

        # before a model is loaded: it may not be installed
        who = partial(OcrAnswerer, reader=RapidOcrReader())
    with Doing(f"loading {model}"):
        rival = who(LanguageModel.load(model), repetition_guard=guard)
    return lambda task: nullcontext(rival)


def _model_maker(
    reference: str,
    data: Path | None,
    seed: int,
    noise: float,
    prune: int | list[int] | None,
    guard: bool,
) -> Make:
    model, processor = load(reference)
    from ..inference.answerers import ModelAnswerer, Weights

    keys = {"weights": Weights.of(reference), "noise": noise, "seed": seed}
    answerer = partial(ModelAnswerer, model, processor, repetition_guard=guard, **keys)

    @contextmanager
    def context(task: Task) -> Iterator[Answerer]:
        if prune is None:
            yield answerer()
            return
        from ..vocabulary.usage import pruned_to

        ids, record = _kept_ids(model, processor, task, data, prune)
        with pruned_to(model, ids):
            yield answerer(pruned=record)

    return context


def _kept_ids(
    model: Any, processor: Any, task: Task, data: Path | None, prune: int | list[int]
) -> tuple[Any, dict[str, Any]]:
    """Which ids to keep for a task, and what the result file says about them."""
    import hashlib

    import torch

    from ..eval.baselines import training_task
    from ..vocabulary.usage import top_vocabulary

    if isinstance(prune, list):
        ids, origin = torch.tensor(prune), "a file of ids"
    else:
        source = training_task(task, data)
        first: dict[str, int] = {}
        for index in range(len(source)):
            first.setdefault(source.sample(index).group, index)
            if len(first) == PRUNE_PAGES:
                break
        pages = (page for index in first.values() for page in source.pages(index))
        ids = top_vocabulary(model, processor, pages, prune)
        origin = f"first {len(first)} documents of {source.name} {source.split}"
    digest = hashlib.sha256(json.dumps(sorted(ids.tolist())).encode()).hexdigest()
    return ids, {"kept": len(ids), "chosen_by": origin, "ids_sha256": digest}


def _summary(result: Result, file: Path) -> dict[str, Any]:
    return {
        "task": result.task["name"],
        "split": result.task["split"],
        "answerer": result.answerer["name"],
        "metric": next(iter(result.metrics)),
        "score": result.score,
        "interval": list(result.interval),
        "samples": len(result.predictions),
        "seconds_per_sample": round(result.timing["seconds_per_sample"], 4),
        "out": str(file),
    }


def _sentence(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    done = "already there:" if row["already_there"] else "wrote"
    return (
        f"{row['task']} {row['split']}, {row['answerer']}: {row['metric']} "
        f"{100 * row['score']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] on {row['samples']} "
        f"samples, {row['seconds_per_sample']:.3g} s each; {done} {row['out']}"
    )


@eval_app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="result file of the one", metavar="A")],
    b: Annotated[Path, typer.Argument(help="result file of the other", metavar="B")],
    metric: Annotated[str | None, typer.Option(help="default: the task's score")] = None,
    seed: Seed = 0,
    json_: Json = False,
) -> None:
    """Is B better than A? Paired difference, its 95 % interval, and a significance test."""
    from ..eval.compare import compare as compare_results

    found = compare_results(a, b, metric=metric, seed=seed)
    emit(json_, found.to_dict(), found.to_text())


@eval_app.command()
def table(
    files: Annotated[list[Path], typer.Argument(help="result files", metavar="FILE...")],
    json_: Json = False,
) -> None:
    """Print results as a markdown table: tasks by answerers, score in per cent [interval]."""
    from ..eval.compare import table as make_table
    from ..eval.results import read_result

    if json_:
        emit(True, {"results": [_summary(read_result(file), file) for file in files]}, "")
        return
    typer.echo(make_table(files))
