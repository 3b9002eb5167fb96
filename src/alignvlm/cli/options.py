"""Options that several verbs have, and how a verb says what it found.

One name means one thing: what two verbs have in common is defined here, and a test compares the
spelling of every option that more than one verb has.
"""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError
from .status_line import CLEAR

if TYPE_CHECKING:
    from ..documents.page_images import Pages

DPI = 144
MAX_PAGES = 8
"""Pages used unless more are asked for."""
MAX_NEW_TOKENS = 64
"""Longest answer to a question; ``batch`` and ``serve`` say why theirs is longer."""
MAX_SEED = 2**32 - 1
"""NumPy takes no larger one."""


def number(
    text: str, *, min: float | None = None, max: float | None = None, above: float | None = None
) -> Any:
    """A number's option; ``nan`` and ``inf`` are refused, which click's own ranges let pass."""

    def check(value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise typer.BadParameter(f"{value} is not a finite number.")
        if value is not None and above is not None and value <= above:
            raise typer.BadParameter(f"{value:g} is not more than {above:g}.")
        return value

    return typer.Option(help=text, min=min, max=max, callback=check)


Model = Annotated[str, typer.Argument(help="folder or hub id of a trained model")]
Recipe = Annotated[str, typer.Argument(help="a shipped recipe's name, or a YAML file")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a recipe key: a.b=value. Repeatable.")
]
ConnectorSets = Annotated[
    list[str] | None, typer.Option("--set", help="A key of the connector: gamma=4. Repeatable.")
]
PageRange = Annotated[str | None, typer.Option(help="pages of each PDF or TIFF: 1-3,5")]
MaxPages = Annotated[int, typer.Option(min=1, help="use at most so many pages in all")]
Password = Annotated[str | None, typer.Option(help="opens encrypted PDFs")]
Dpi = Annotated[float, number("resolution PDFs are rendered at", min=1)]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="longest answer, in tokens")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of all that is drawn")]
RepetitionGuard = Annotated[
    bool,
    typer.Option(
        "--repetition-guard/--no-repetition-guard", help="end answers that go round in circles"
    ),
]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="go on with an interrupted run")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite/--no-overwrite", help="replace what is there")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run/--no-dry-run", help="say what would be done; load no weights")
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT; default: this machine"),
]
Actors = Annotated[
    int | None,
    typer.Option(min=1, help="models loaded at once; default: one a GPU, or one a machine"),
]
NumGpus = Annotated[float | None, number("GPUs of each actor, perhaps a fraction", min=0)]
Host = Annotated[str, typer.Option(help="address to listen on")]


def emit(as_json: bool, data: dict[str, Any], text: str) -> None:
    """Print one JSON line, or the text for people."""
    typer.echo(json.dumps(data, ensure_ascii=False) if as_json else text)


def one_line(text: str) -> str:
    """A message without what a file's name may bring: newlines, and codes that a terminal obeys."""
    shown = (char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(text.split()))
    return "".join(shown)


def note(text: str) -> None:
    """Say on stderr what a person should know of a result that was made all the same."""
    clear = CLEAR if sys.stderr.isatty() else ""
    print(f"{clear}note: {one_line(text)}", file=sys.stderr, flush=True)


def note_left_out(pages: Pages) -> None:
    """Say which pages will not be used; every file is opened for that.

    Raises:
        DataError: a file cannot be read.
    """
    from ..documents.opening import LockedPdfError

    try:
        left_out = pages.left_out
    except LockedPdfError as error:
        raise DataError(f"{error}, or give it with --password") from None
    if left_out:
        note(left_out)


def shows_progress() -> bool:
    """Whether bars belong on stderr: a person is looking. JSON on stdout is not disturbed by it."""
    return sys.stderr.isatty()
