"""The command line's ``convert``: ALIGN into a vision-language model of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from .errors import ConfigError


def convert(
    model: Annotated[str, typer.Argument(help="folder or hub id: LLaVA, Idefics3, SmolVLM, Ovis2")],
    out: Annotated[
        Path | None, typer.Option(help="folder of the converted model; must not exist")
    ] = None,
    connector: Annotated[str, typer.Option(help="the connector to put in")] = "align",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A key of the connector: gamma=4. Repeatable."),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="embedding rows P_vocab covers; default: the text vocabulary"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="say what would be replaced; load no weights")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Put ALIGN into a vision-language model: its connector is replaced, the rest stays."""
    if out is None and not dry_run:
        raise ConfigError("convert needs --out FOLDER (or --dry-run)")
    keys = _keys(set_)
    from .convert import convert_folder

    settings = {"type": connector, **keys}
    target = None if dry_run else out
    report = convert_folder(model, target, settings, vocab_size=vocab_size)
    ending = "" if target is None else f"\nmodel written to {target}"
    data: dict[str, Any] = {
        "model": model,
        "out": None if target is None else str(target),
        **report.to_dict(),
    }
    typer.echo(json.dumps(data, ensure_ascii=False) if json_ else report.to_text() + ending)


def _keys(given: list[str] | None) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for item in given or []:
        key, sign, text = item.partition("=")
        if not sign or not key or key == "type":
            raise ConfigError(f"--set {item}: write it as key=value, a key of the connector")
        try:
            keys[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {item}: {text!r} is not a YAML value") from None
    return keys
