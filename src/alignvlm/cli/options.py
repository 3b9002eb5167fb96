"""Options that several verbs have, and how a verb says what it found."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

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
Dpi = Annotated[float, typer.Option(help="resolution PDFs are rendered at")]
DPI = 144


def emit(as_json: bool, data: dict[str, Any], text: str) -> None:
    """Print one JSON line, or the text for people."""
    typer.echo(json.dumps(data, ensure_ascii=False) if as_json else text)


def note(text: str) -> None:
    """Say on stderr what a person should know of a result that was made all the same."""
    typer.echo(f"note: {text}", err=True)


def shows_progress(as_json: bool) -> bool:
    """Whether bars belong on stderr: a person is looking."""
    return not as_json and sys.stderr.isatty()
