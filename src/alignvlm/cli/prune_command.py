"""The command line's ``prune``: a smaller P_vocab for the pages a model will see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from ..documents.page_images import Pages
    from ..vocabulary.pruning import Question


class _Images:
    """Pages as images alone, read again each time they are gone through."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages

    def __iter__(self) -> Iterator[Image.Image]:
        return (page.image for page in self.pages)


def _questions(pages: Pages, file: Path | None, limit: int) -> list[Question]:
    """At most ``limit``: those of a file, or a default one a page."""
    from ..data.records import load_images
    from ..data.sources import TRANSCRIBE_QUESTION, JsonlSource
    from ..vocabulary.pruning import Question

    if file is None:
        first = islice(pages, limit)
        return [Question(f"{p.file}:{p.page}", [p.image], TRANSCRIBE_QUESTION) for p in first]
    source = JsonlSource(file, require_answer=False)
    records = (source[index] for index in range(min(limit, len(source))))
    return [Question(r.id, load_images(r), r.question) for r in records]


def prune(
    model: Annotated[str, typer.Argument(help="folder or hub id of a trained model")],
    keep: Annotated[int, typer.Option(min=1, help="vocabulary ids that P_vocab keeps")],
    data: Annotated[
        list[Path], typer.Option(help="page images, PDFs, or folders of them. Repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="folder of the pruned model; must not exist")],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[PAGES]...", help="more pages, as --data")
    ] = None,
    pages: Annotated[str | None, typer.Option(help="pages of each PDF: 1-3,5")] = None,
    dpi: Annotated[float, typer.Option(help="resolution PDFs are rendered at")] = 144,
    questions: Annotated[
        Path | None,
        typer.Option(help="JSONL of questions to compare answers on; default: read each page"),
    ] = None,
    max_questions: Annotated[int, typer.Option(min=0, help="ask at most so many")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="length of an answer")] = 32,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Keep only the vocabulary that P_vocab uses on some pages, and say what that changes.

    The ids with the most probability on the pages' visual tokens are kept. Blank, newline and all
    single-byte tokens always are, so that everything can still be spelled.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another folder")
    from ..documents.page_images import Pages

    found = Pages([*data, *(more or [])], dpi=dpi, pages=pages)
    asked = _questions(found, questions, max_questions)
    from ..compose.assemble import load_pretrained
    from ..inference.ask import ask
    from ..inference.loading import default_device
    from ..vocabulary.pruning import prune_model, save_pruned
    from ..weights.resolve import resolve

    loaded, processor = load_pretrained(resolve(model), "auto")
    loaded.eval().to(default_device())  # type: ignore[arg-type]

    def answer(images: list[Image.Image], question: str) -> str:
        said = ask(loaded, processor, images, question, max_new_tokens=max_new_tokens)
        return said.text

    report = prune_model(loaded, processor, _Images(found), keep, asked, answer)
    origin: dict[str, Any] = {"model": model, "files": found.files}
    save_pruned(loaded, processor, report, out, origin)
    result = {"out": str(out), **origin, **report.to_dict()}
    text = f"{report.to_text()}\nmodel written to {out}"
    typer.echo(json.dumps(result, ensure_ascii=False) if json_ else text)
