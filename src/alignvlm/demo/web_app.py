"""What the web page asks of this process, and what it gets: documents, and jobs told as they go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import AlignVLMError, DataError, describe_validation_error
from ..inference.extract import FieldValue
from ..inference.markdown import as_markdown
from ..inference.page_text import as_json, as_text
from .desk import Desk
from .field_rows import as_csv
from .gallery import gallery, gallery_folder
from .overlay import jpeg
from .shelf import OpenDocument, Shelf
from .turns import Event, Turns, Watch

STATIC = Path(__file__).parent / "static"
MAX_UPLOAD = 32 * 2**20
UPLOAD_SECONDS = 60
SIDES = {"page": 2000, "thumbnail": 200}
LISTEN_SECONDS = 0.5
"""How often a visitor who hears nothing new is looked for."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Wanted(BaseModel, extra="forbid"):
    """What a job is asked for."""

    page: int = Field(1, ge=1)
    all_pages: bool = False
    question: str = Field("", max_length=2000)
    fields: str = Field("", max_length=2000)
    sigma: float = Field(0.0, ge=0, allow_inf_nan=False)
    halved: int = Field(0, ge=0, le=64)


class OwnPageOnly:
    """ASGI middleware: other web pages can neither ask here nor show this one.

    A page may have its own name lead to 127.0.0.1 once it is loaded, so names are checked too.

    Args:
        hosts: names that this page answers to, without ports; ``None``: any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        known = self.hosts is None or re.sub(r":\d*$", "", host) in self.hosts
        if not known or (origin is not None and urlsplit(origin).netloc.lower() != host):
            refusal = JSONResponse({"error": "only the page itself may ask here"}, 403)
            return await refusal(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


class WebApp:
    """The page's routes.

    Args:
        desk: the model.
        name: of the model, as shown.
        max_pages: of a document; the rest is left out.
    """

    def __init__(self, desk: Desk, name: str, max_pages: int) -> None:
        self.desk, self.name, self.max_pages = desk, name, max_pages
        self.shelf, self.turns = Shelf(), Turns()

    def build(self, hosts: Collection[str] | None = None) -> Starlette:
        """The application; ``hosts`` as :class:`OwnPageOnly` takes them."""
        one = "/api/documents/{key}"
        app = Starlette(
            routes=[
                Route("/", self.start),
                Route("/api/about", self.about),
                Route("/api/examples/{number:int}", self.example, methods=["POST"]),
                Route("/api/examples/{number:int}.png", self.example_picture),
                Route("/api/documents", self.upload, methods=["POST"]),
                Route(one, self.put_away, methods=["DELETE"]),
                Route(one + "/{number:int}/{kind}.jpg", self.picture),
                Route(one + "/text.{form}", self.text_file),
                Route(one + "/fields.csv", self.fields_file),
                Route(one + "/{job}", self.job, methods=["POST"]),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            exception_handlers={AlignVLMError: _refused, ClientDisconnect: _refused},
        )
        app.add_middleware(OwnPageOnly, hosts=hosts)
        return app

    async def start(self, request: Request) -> Response:
        """The page itself."""
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def about(self, request: Request) -> Response:
        """What the page shows of the model, and how far it goes."""
        desk = self.desk
        return JSONResponse(
            {
                "name": self.name,
                "ids": desk.ids,
                "reads": desk.reads,
                "halvings": desk.halvings,
                "max_pages": self.max_pages,
                "max_upload": MAX_UPLOAD,
                "examples": gallery(),
            }
        )

    async def example(self, request: Request) -> Response:
        """Open a page of the gallery."""
        path = _example(request.path_params["number"])
        return await self._open(path.name, path.read_bytes())

    async def example_picture(self, request: Request) -> Response:
        """A page of the gallery."""
        return FileResponse(_example(request.path_params["number"]))

    async def upload(self, request: Request) -> Response:
        """Open the file that is the request's body."""
        name = Path(request.query_params.get("name", "")).name[:200] or "document"
        data = bytearray()
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                async for piece in request.stream():
                    data += piece
                    if len(data) > MAX_UPLOAD:
                        raise DataError(f"{name} is larger than {MAX_UPLOAD // 2**20} MiB")
        except TimeoutError:
            raise DataError(f"{name} took longer than {UPLOAD_SECONDS} s to arrive") from None
        return await self._open(name, bytes(data))

    async def _open(self, name: str, data: bytes) -> Response:
        document = await run_in_threadpool(OpenDocument, name, data, self.max_pages)
        pages = len(document.pages)
        told = {"key": self.shelf.add(document), "name": name, "pages": pages}
        return JSONResponse({**told, "left_out": document.count - pages})

    async def put_away(self, request: Request) -> Response:
        """Forget a document."""
        self.shelf.remove(request.path_params["key"])
        return Response(status_code=204)

    async def picture(self, request: Request) -> Response:
        """A page as the browser shows it."""
        document, kind = self._document(request), request.path_params["kind"]
        if kind not in SIDES:
            raise DataError("there are pages and thumbnails")

        def drawn() -> bytes:
            return jpeg(document.page(request.path_params["number"]).image, SIDES[kind])

        headers = {"Cache-Control": "private, max-age=3600"}
        data = await run_in_threadpool(drawn)
        return Response(data, media_type="image/jpeg", headers=headers)

    async def text_file(self, request: Request) -> Response:
        """What was read so far, as text, Markdown or JSON."""
        document, form = self._document(request), request.path_params["form"]
        pages = [page for _, page in sorted(document.texts.items())]
        if not pages:
            raise DataError("no page was read yet")
        writers: dict[str, tuple[str, Callable[[], str]]] = {
            "txt": ("text/plain", lambda: as_text(pages)),
            "md": ("text/markdown", lambda: as_markdown(pages)),
            "json": ("application/json", lambda: as_json(document.name, pages)),
        }
        if form not in writers:
            raise DataError("there are txt, md and json")
        media, write = writers[form]
        return _download(write(), media, f"{Path(document.name).stem}.{form}")

    async def fields_file(self, request: Request) -> Response:
        """The fields found last, as CSV."""
        document = self._document(request)
        if not document.fields:
            raise DataError("no fields were found yet")
        return _download(as_csv(document.fields), "text/csv", f"{Path(document.name).stem}.csv")

    async def job(self, request: Request) -> Response:
        """Something of the model: a line of JSON for each thing that happens. It ends when the
        visitor hangs up."""
        document = self._document(request)
        jobs = {"read": self.read, "ask": self.ask, "fields": self.fields, "window": self.window}
        job = jobs.get(request.path_params["job"])
        if job is None:
            raise DataError(f"there are {', '.join(jobs)}")
        wanted = _wanted(await request.body())
        events = self._events(request, lambda watch: job(document, wanted, watch))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="application/x-ndjson", headers=headers)

    def read(self, document: OpenDocument, wanted: Wanted, watch: Watch) -> Event:
        """The lines of the page shown, or of all; those are told one by one."""
        for number in _numbers(document, wanted):
            if number not in document.texts:
                document.texts[number] = self.desk.text(document, number, watch)
            watch.tell({"event": "page", **asdict(document.texts[number])})
        return {}

    def ask(self, document: OpenDocument, wanted: Wanted, watch: Watch) -> Event:
        """An answer and its places."""
        numbers, question = _numbers(document, wanted), wanted.question.strip()
        if not question:
            raise DataError("write a question first")
        return self.desk.ask(document, numbers, question, watch, wanted.sigma, wanted.halved)

    def fields(self, document: OpenDocument, wanted: Wanted, watch: Watch) -> Event:
        """A value for each field."""
        names = [name for name in re.split(r"[,;\n]", wanted.fields) if name.strip()]
        document.fields = self.desk.fields(document, _numbers(document, wanted), names, watch)
        return {"fields": [_shown(document, *found) for found in document.fields.items()]}

    def window(self, document: OpenDocument, wanted: Wanted, watch: Watch) -> Event:
        """What each cell is read as."""
        return self.desk.window(document, wanted.page, wanted.sigma, wanted.halved, watch)

    async def _events(self, request: Request, work: Callable[[Watch], Event]) -> AsyncIterator[str]:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event | None]()

        def tell(event: Event | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(queue.put_nowait, event)

        watch = Watch(tell)
        self.turns.join(watch, work)
        try:
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), LISTEN_SECONDS)
                except TimeoutError:
                    if await request.is_disconnected():
                        return
                    continue
                if event is None:
                    return
                yield json.dumps(event, ensure_ascii=False) + "\n"
        finally:
            self.turns.leave(watch)

    def _document(self, request: Request) -> OpenDocument:
        return self.shelf.get(request.path_params["key"])


def _numbers(document: OpenDocument, wanted: Wanted) -> list[int]:
    return list(range(1, len(document.pages) + 1)) if wanted.all_pages else [wanted.page]


def _wanted(body: bytes) -> Wanted:
    try:
        return Wanted.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise DataError(describe_validation_error(error, Wanted.model_fields)) from None


def _shown(document: OpenDocument, name: str, found: FieldValue) -> dict[str, Any]:
    value = None if found.value is None else str(found.value)
    size = None if found.page is None else document.page(found.page).image.size
    return {**asdict(found), "name": name, "value": value, "size": size}


def _example(number: int) -> Path:
    folder, known = gallery_folder(), gallery()
    if folder is None or not 0 <= number < len(known):
        raise DataError("there is no such example")
    return folder / known[number]["page"]


def _download(text: str, media: str, name: str) -> Response:
    disposition = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    headers = {"Content-Disposition": disposition, "Cache-Control": "no-store"}
    return Response(text, media_type=f"{media}; charset=utf-8", headers=headers)


async def _refused(request: Request, error: Any) -> Response:
    return JSONResponse({"error": " ".join(str(error).split())}, 400)
