"""The command line's ``compose`` and ``convert``: models put together from pretrained parts."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ..errors import AlignVLMError, ConfigError


def compose(
    text: Annotated[str, typer.Option(help="language model: smollm2, a folder or a hub id")],
    out: Annotated[Path, typer.Option(help="folder of the new model; must not exist")],
    vision: Annotated[
        str, typer.Option(help="page encoder: reader, a folder or a hub id")
    ] = "reader",
    connector: Annotated[
        str, typer.Option(help="align reads at once with the reader; others want training")
    ] = "align",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A key of the connector: gamma=4. Repeatable."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace an existing folder")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON line.")] = False,
) -> None:
    """Put a model together from pretrained parts: no data, no training.

    With the reader, any language model reads documents at once.
    """
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists: give another folder, or --overwrite to replace it")
    from ..compose.assemble import compose as put_together

    keys = connector_keys(set_)
    start = time.perf_counter()
    model, processor = put_together(
        vision, text, {"type": connector, **keys} if keys else connector
    )
    seconds = time.perf_counter() - start
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise AlignVLMError(f"cannot write {out}: {error.strerror or error}") from None
    if out.exists():
        shutil.rmtree(out)
    partial.replace(out)
    data: dict[str, Any] = {
        "out": str(out),
        "vision": vision,
        "text": text,
        "connector": model.config.connector.model_dump(),
        "parameters": model.num_parameters(),
        "seconds": round(seconds, 2),
    }
    lines = [
        f"{vision} + {connector} + {text}: {data['parameters'] / 1e6:.1f} M parameters, "
        f"put together in {seconds:.1f} s",
        f"model written to {out}",
    ]
    typer.echo(json.dumps(data, ensure_ascii=False) if json_ else "\n".join(lines))


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
    keys = connector_keys(set_)
    from ..transplant.convert import convert_folder

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


def connector_keys(given: list[str] | None) -> dict[str, Any]:
    """What ``--set key=value`` gives, values read as YAML.

    Raises:
        ConfigError: not a key and a value.
    """
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
