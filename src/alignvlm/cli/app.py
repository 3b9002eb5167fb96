"""The command line: one verb, one importable function.

Every verb prints for people; ``--json`` prints one JSON line instead. What cannot be done is one
line on stderr and exit code 2. What a verb needs is imported when it runs: help is quick.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__
from ..deferred import after_import
from ..errors import AlignVLMError
from .answers import ask, embed
from .datasets import data_app
from .evaluation import eval_app
from .extraction import extract
from .info import info, inspect
from .models import compose, convert, prune, pull
from .options import one_line
from .reading import read
from .scaling import batch, plan
from .serving import demo, serve
from .training_commands import finetune, merge, train

VERBS = (
    *(pull, info, ask, read, extract, inspect, embed, demo, serve, batch),
    *(train, finetune, merge, compose, prune, convert, plan),
)

app = typer.Typer(
    name="alignvlm",
    help="Train, ask and inspect AlignVLM document models.",
    no_args_is_help=True,
    context_settings={"max_content_width": 120},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # which takes alignvlm[extra] for markup
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"alignvlm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Train, ask and inspect AlignVLM document models."""


def _quieten(logging: Any) -> None:
    """What transformers says is for programmers; instead of its bars there is a line of ours."""
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    logging.disable_progress_bar()


def _quieten_deepspeed(module: Any) -> None:
    """It writes to standard output, which is for results."""
    module.logger.setLevel(logging.ERROR)
    for handler in module.logger.handlers:
        if type(handler) is logging.StreamHandler:  # none of a file
            handler.stream = sys.stderr


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {one_line(message)}", err=True)
    raise SystemExit(2)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Within, SIGTERM (systemd, ``docker stop``) ends the program as Ctrl-C does: in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Entry point: errors a person can act on become one line and exit code 2."""
    after_import("transformers.utils.logging", _quieten)
    after_import("deepspeed.utils.logging", _quieten_deepspeed)
    try:
        with _terminated_as_interrupted():
            code = app(standalone_mode=False)
        if isinstance(code, int) and code == 130:  # typer's way to say Ctrl-C
            _fail("interrupted")
    except AlignVLMError as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except Exception as error:
        if not type(error).__module__.startswith(("click", "typer")):
            raise
        message = getattr(error, "format_message", error.__str__)()
        if type(error).__name__ == "NoArgsIsHelpError":  # without a verb the help is the message
            typer.echo(message, err=True)
            raise SystemExit(2) from None
        _fail(message)  # usage errors


if __name__ == "__main__":
    main()
