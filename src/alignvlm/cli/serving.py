"""The command line's ``serve`` and ``demo``: a model behind OpenAI's interface, or a web page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from ..errors import AlignVLMError, ConfigError
from .options import MAX_PAGES, Host, Json, MaxPages, Model, emit, number
from .status_line import Doing

MIB = 2**20


def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="what clients call the model; default: its folder's name")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="ALIGNVLM_API_KEY",
            help="key that clients must send; safer in the environment, where ps does not show it",
        ),
    ] = None,
    allow_no_key: Annotated[
        bool, typer.Option("--allow-no-key", help="let other machines ask without a key")
    ] = False,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="fetch http(s) addresses that requests name")
    ] = False,
    max_body_mib: Annotated[int, typer.Option(min=1, help="size of a request")] = 32,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="pixels of a picture or PDF page")
    ] = 40_000_000,
    max_images: Annotated[int, typer.Option(min=1, help="pictures and PDF pages of a request")] = 8,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="longest answer, in tokens, that a request may ask for; also without asking"
        ),
    ] = 1024,
    queue: Annotated[
        int, typer.Option(min=0, help="requests that may wait; one is answered at a time")
    ] = 16,
    timeout: Annotated[float, number("seconds a request may take", above=0)] = 120.0,
    json_: Json = False,
) -> None:
    """Serve a model to OpenAI's clients: POST /v1/chat/completions, /health, /metrics."""
    try:
        from ..serve.limits import Limits
        from ..serve.server import run
    except ImportError as error:
        raise ConfigError(
            f"serve needs the serve extra ({error.name} is missing): pip install 'alignvlm[serve]'"
        ) from None
    limits = Limits(
        max_body=max_body_mib * MIB,
        max_pixels=max_pixels,
        max_images=max_images,
        max_new_tokens=max_new_tokens,
        queue=queue,
        timeout=timeout,
        allow_urls=allow_urls,
    )
    with Doing(f"loading {model}") as doing:
        run(
            model,
            host=host,
            port=port,
            name=name,
            limits=limits,
            api_key=api_key,
            allow_no_key=allow_no_key,
            report=_announce(json_, doing),
        )


def _announce(as_json: bool, doing: Doing) -> Callable[[str, str], None]:
    """What says where a server listens, once it does."""

    def announce(url: str, text: str) -> None:
        doing.end()
        emit(as_json, {"url": url}, text)

    return announce


def demo(
    model: Model,
    host: Host = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="default: the first free one from 7860 on"),
    ] = None,
    max_pages: MaxPages = MAX_PAGES,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="open the page in this machine's browser")
    ] = False,
    json_: Json = False,
) -> None:
    """Open a web page: drop a page or PDF, ask, and see where the answer stands and what is read.

    The page is for this machine alone unless --host says otherwise. It needs no network and sends
    nothing anywhere.
    """
    try:
        from ..demo.web_page import run
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise AlignVLMError(
            f"the web page needs {error.name}: pip install 'alignvlm[ui]'"
        ) from None
    with Doing(f"loading {model}") as doing:
        run(
            model,
            host=host,
            port=port,
            max_pages=max_pages,
            open_browser=open_,
            report=_announce(json_, doing),
        )
