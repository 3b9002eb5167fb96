"""The command line's ``demo``: a web page to ask a model and see what it reads."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import AlignVLMError


def demo(
    model: Annotated[str, typer.Argument(help="folder or hub id of a trained model")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="default: the first free one from 7860 on"),
    ] = None,
    max_pages: Annotated[int, typer.Option(min=1, help="pages read of a document")] = 8,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="open the page in this machine's browser")
    ] = False,
) -> None:
    """Open a web page: drop a page or PDF, ask, and see what each part of it is read as.

    The page is for this machine alone unless --host says otherwise. It needs no network and sends
    nothing anywhere.
    """
    try:
        from ..demo.web_page import run
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise AlignVLMError("the web page needs gradio: pip install 'alignvlm[ui]'") from None
    run(
        model,
        host=host,
        port=port,
        max_pages=max_pages,
        open_browser=open_,
        report=lambda line: typer.echo(line),
    )
