"""The command line's ``data``: make training data, look at it, measure how well it is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, DataError, describe_validation_error
from .options import DPI, Dpi, Json, Model, PageRange, Seed, Sets, emit, number, shows_progress
from .status_line import load

if TYPE_CHECKING:
    from ..data.sources import Source
    from ..eval.reading_accuracy import ReadingAccuracy

data_app = typer.Typer(help="Make, look at and read training data.", no_args_is_help=True)
Folder = Annotated[Path, typer.Argument(help="looked through at all depths; or one file")]
Out = Annotated[Path, typer.Option("--out", help="gets records.jsonl and pages/; a rerun goes on")]
MaxPages = Annotated[int | None, typer.Option(min=1, help="at most so many pages of each file")]
MinWords = Annotated[int, typer.Option(min=1, help="skip pages with fewer words")]

RECORDS = "records.jsonl"
UNSEEN = 500_000
"""Added to a stage's seed: rendered pages that training never shows, those ``train`` probes."""
FOLDERS = {"deepform": ("labels.csv", "pdfs"), "sroie": ("img", "box", "key")}
"""Benchmarks whose pages carry words, and what a split's folder of theirs holds."""
SPLITS = ("val", "test", "train")


@data_app.command("from-pdf")
def data_from_pdf(
    folder: Folder,
    out: Out,
    dpi: Dpi = DPI,
    pages: PageRange = None,
    max_pages: MaxPages = None,
    min_words: MinWords = 1,
    json_: Json = False,
) -> None:
    """Turn PDFs with a text layer into records with words and boxes; no labels needed."""
    from ..data.harvest.from_pdf import from_pdf

    found = from_pdf(
        folder,
        out,
        dpi=dpi,
        pages=pages,
        max_pages=max_pages,
        min_words=min_words,
        progress=shows_progress(),
    )
    emit(json_, found.to_dict(), found.to_text())


@data_app.command("from-scans")
def data_from_scans(
    folder: Folder,
    out: Out,
    dpi: Dpi = DPI,
    pages: PageRange = None,
    max_pages: MaxPages = None,
    min_words: MinWords = 1,
    confidence: Annotated[float, number("leave out lines OCR is less sure of", min=0, max=1)] = 0.8,
    json_: Json = False,
) -> None:
    """Turn pictures and scanned PDFs into records, annotated by OCR (pip install 'alignvlm[ocr]').

    PDF pages with a text layer are left to from-pdf.
    """
    from ..data.harvest.from_scans import from_scans

    found = from_scans(
        folder,
        out,
        dpi=dpi,
        pages=pages,
        max_pages=max_pages,
        min_words=min_words,
        confidence=confidence,
        progress=shows_progress(),
    )
    emit(json_, found.to_dict(), found.to_text())


@data_app.command("show")
def data_show(
    recipe: Annotated[
        str,
        typer.Argument(help="a recipe, a JSON or JSONL file of records, or a published set's id"),
    ],
    model: Annotated[
        str | None, typer.Option(help="model whose processor encodes; default: the recipe's")
    ] = None,
    stage: Annotated[int, typer.Option(min=1, help="stage of the recipe")] = 1,
    index: Annotated[int, typer.Option(min=0, help="which sample")] = 0,
    out: Annotated[Path | None, typer.Option(help="save the sample's page images here")] = None,
    set_: Sets = None,
    json_: Json = False,
) -> None:
    """Print one sample as the model gets it: ids, label mask, page, and grounded targets.

    Of a published data set: its licence, size, configurations and columns.
    """
    from ..data.hub.catalogue import published

    known = published(recipe)
    if known is not None and not Path(recipe).is_file():
        from ..data.hub.description import describe

        described = describe(known, recipe)
        emit(json_, described.to_dict(), described.to_text())
        return
    from ..train.show import show

    shown = show(recipe, model=model, stage=stage, index=index, overrides=set_)
    if out is not None:
        shown.save(out)
    emit(json_, shown.to_dict(), shown.to_text())


@data_app.command("read")
def data_read(
    model: Model,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="a JSONL file of records or the folder of one, a deepform or sroie folder, a "
            "recipe (unseen pages of its render sources), or a recipe's source entry {type: ...}",
        ),
    ],
    limit: Annotated[int, typer.Option(min=1, help="read at most so many records")] = 200,
    split: Annotated[
        str | None, typer.Option(help="of a benchmark; default: val, test or train, as there is")
    ] = None,
    stage: Annotated[int, typer.Option(min=1, help="stage of a recipe")] = 1,
    seed: Seed = 0,
    set_: Sets = None,
    json_: Json = False,
) -> None:
    """Say how much of some pages ALIGN reads: token-reading accuracy, also by text height."""
    # all are opened before a model is loaded
    opened = [
        open_source(name, split=split, stage=stage, seed=seed, pages=limit, overrides=set_)
        for name in sources
    ]
    loaded, processor = load(model)
    from ..eval.reading_accuracy import reading_accuracy

    results = []
    for name, source in zip(sources, opened, strict=True):
        read = reading_accuracy(loaded, processor, source, limit, progress=shows_progress())
        results.append({"source": name, **reading_report(read, seed=seed)})
        if not json_:
            typer.echo(_table(results[-1]))
    if json_:
        emit(True, {"model": model, "results": results}, "")


def open_source(
    name: str,
    *,
    split: str | None = None,
    stage: int = 1,
    seed: int = 0,
    pages: int = 200,
    overrides: list[str] | None = None,
) -> Source:
    """The source that a name on the command line means; one record for each document.

    Raises:
        ConfigError, DataError: there is nothing of that name, or it carries no words.
    """
    from ..data.sources import JsonlSource

    path = Path(name)
    if name.lstrip().startswith("{"):
        return _entry(name, seed)
    if path.suffix in (".jsonl", ".json") or (path.is_dir() and (path / RECORDS).is_file()):
        return JsonlSource(path / RECORDS if path.is_dir() else path, require_answer=False)
    if path.is_dir():
        return _benchmark(path, split)
    return _rendered(name, stage, seed, pages, overrides)


def _entry(text: str, seed: int) -> Source:
    """A source written as in a recipe."""
    import yaml
    from pydantic import TypeAdapter, ValidationError

    from ..data.sources.specs import SourceSpec, build_source

    try:
        spec = TypeAdapter(SourceSpec).validate_python(yaml.safe_load(text))
    except yaml.YAMLError:
        raise ConfigError(f"{text}: not a source entry; write {{type: ..., ...}}") from None
    except ValidationError as error:
        raise ConfigError(f"{text}: {describe_validation_error(error)}") from None
    return _distinct(build_source(spec, seed + UNSEEN))  # type: ignore[arg-type]


def _benchmark(folder: Path, split: str | None) -> Source:
    from ..data.benchmarks.tables import BENCHMARKS

    for one in SPLITS if split is None else (split,):
        for key, parts in FOLDERS.items():
            if all((folder / one / part).exists() for part in parts):
                return _distinct(BENCHMARKS[key](folder, one))
    wanted = "" if split is None else f" with a split {split!r}"
    raise DataError(
        f"{folder}: holds neither {RECORDS} nor a deepform or sroie benchmark{wanted} whose pages "
        "have words"
    )


def _distinct(source: Source) -> Source:
    """A benchmark's first question of each document: several would count its pages again."""
    from ..data.benchmarks.benchmark import Benchmark
    from ..data.sources import Subset

    if not isinstance(source, Benchmark):
        return source
    first: dict[str, int] = {}
    for index, row in enumerate(source.rows):
        first.setdefault(row.key, index)
    return Subset(source, list(first.values()))


def _rendered(name: str, stage: int, seed: int, pages: int, overrides: list[str] | None) -> Source:
    """Rendered pages that training on a recipe never shows."""
    from ..data.sources import MixedSource
    from ..data.sources.specs import RenderSourceSpec, build_source
    from ..train.recipe import load_recipe

    recipe = load_recipe(name, overrides)
    if stage > len(recipe.stages):
        raise DataError(f"{name} has {len(recipe.stages)} stages, there is no {stage}")
    specs = [s for s in recipe.stages[stage - 1].sources if isinstance(s, RenderSourceSpec)]
    if not specs:
        raise DataError(f"{name}: stage {stage} has no render source; name its other sources")
    seed = recipe.seed + 1000 * stage + UNSEEN + seed
    made = [build_source(spec, seed) for spec in specs]
    return MixedSource(made, [spec.weight for spec in specs], pages, seed=seed, name=name)


def reading_report(read: ReadingAccuracy, *, seed: int = 0) -> dict[str, Any]:
    """Shares, counts and 95 % bootstrap intervals of a reading.

    Pages of one document are drawn together.
    """
    from ..eval.intervals import bootstrap_interval

    def interval(counts: list[tuple[int, int]]) -> list[float]:
        groups = [p.document for p, (_, cells) in zip(read.pages, counts, strict=True) if cells]
        verdicts = [{"right": float(r), "cells": float(n)} for r, n in counts if n]
        low, high = bootstrap_interval(groups, verdicts, _share, seed=seed)
        return [round(low, 4), round(high, 4)]

    report: dict[str, Any] = {
        "pages": len(read.pages),
        "documents": len({page.document for page in read.pages}),
        "text": round(read.text, 4),
        "interval": interval([page.text for page in read.pages]),
        "text_cells": read.text_cells,
        "blank": round(read.blank, 4),
        "blank_cells": read.blank_cells,
        "loss": round(read.loss, 4),
        "by_text_height": {},
    }
    from ..eval.reading_accuracy import size_names

    for size, name in enumerate(size_names()):
        counts = [page.sizes[size] for page in read.pages]
        if cells := sum(n for _, n in counts):
            share = sum(r for r, _ in counts) / cells
            report["by_text_height"][name] = {
                "text": round(share, 4), "interval": interval(counts), "text_cells": cells,
            }  # fmt: skip
    return report


def _share(verdicts: Any) -> float:
    return sum(v["right"] for v in verdicts) / sum(v["cells"] for v in verdicts)


def _table(report: dict[str, Any]) -> str:
    def row(name: str, part: dict[str, Any]) -> str:
        low, high = (f"{100 * v:.1f}" for v in part["interval"])
        bounds = f"[{low}, {high}]"
        return f"  {name:<12}{100 * part['text']:6.1f} % {bounds:<15}{part['text_cells']:9d} cells"

    lines = [
        f"{report['source']}: {report['pages']} pages of {report['documents']} documents",
        row("text", report),
        *(row(f"{k} px", part) for k, part in report["by_text_height"].items()),
        f"  {'blank':<12}{100 * report['blank']:6.1f} % {'':<15}{report['blank_cells']:9d} cells",
        f"  loss {report['loss']:.2f} nats",
    ]
    return "\n".join(lines)
