"""Pictures and PDFs of a request: their bytes, then their pixels."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote

import httpx
from PIL import Image

from ..documents.opening import PdfDocument, open_document
from ..documents.pictures import Picture
from ..errors import DataError
from .limits import Limits, RequestError
from .schema import ChatRequest, too_many_images

DPI = 144
"""Resolution of PDF pages, in pixels per inch."""
FETCH_SECONDS = 10.0
"""Until the last byte of a fetched file, redirects included."""


@dataclass(frozen=True)
class Attachment:
    """A picture or PDF, not decoded yet; ``where``: its place in the request, for errors."""

    where: str
    data: bytes


@dataclass(frozen=True)
class Address:
    """A picture or PDF that is not fetched yet."""

    where: str
    url: str


def read_documents(request: ChatRequest, limits: Limits) -> list[Attachment | Address]:
    """All pictures and PDFs, in order; those that are no data URLs have only their address.

    Raises:
        RequestError: an address that may not be fetched, or a data URL that is none.
    """
    return [
        Attachment(where, _data_url(where, url))
        if url[:5].lower() == "data:"
        else _address(where, url, limits)
        for where, url in request.documents
    ]


async def fetch_documents(
    found: list[Attachment | Address], limits: Limits, used: int
) -> list[Attachment]:
    """What :func:`read_documents` found, fetched one after the other.

    On the event loop rather than a thread, so that whoever awaits it can end it at any byte.

    Args:
        used: bytes of the request's body, which count towards ``max_body`` like the files.

    Raises:
        RequestError: a file that cannot be fetched in time, or is too large with all others.
    """
    documents, left = list[Attachment](), limits.max_body - used
    if all(isinstance(one, Attachment) for one in found):
        return [one for one in found if isinstance(one, Attachment)]
    certificates = await asyncio.to_thread(_certificates)
    # a compressed file could be a thousand times larger than what is counted
    keys = {"follow_redirects": True, "headers": {"accept-encoding": "identity"}}
    async with httpx.AsyncClient(verify=certificates, timeout=FETCH_SECONDS, **keys) as client:
        for one in found:
            if isinstance(one, Address):
                one = Attachment(one.where, await _fetch(client, one, left, limits))
                left -= len(one.data)
            documents.append(one)
    return documents


@contextmanager
def opened(
    documents: list[Attachment], limits: Limits, pdf_pixels: int | None = None
) -> Iterator[list[tuple[Attachment, Picture | PdfDocument]]]:
    """The documents, none of their pages decoded yet; a PDF's will have ``pdf_pixels`` at most.

    Raises:
        RequestError: damaged files, too many pages.
    """
    total = len(documents)
    with ExitStack() as stack:
        files = []
        for document in documents:
            with _refused(document):
                opening = open_document(document.where, data=document.data, pdf_pixels=pdf_pixels)
                files.append((document, stack.enter_context(opening)))
            total += files[-1][1].count - 1
            if total > limits.max_images:
                raise too_many_images(total, limits)
        yield files


def decode(
    files: list[tuple[Attachment, Picture | PdfDocument]], limits: Limits
) -> Iterator[Image.Image]:
    """RGB pages of :func:`opened` documents, one after another, in memory alone: each is let go
    before the next is decoded. One thread at a time: PDFium's rule.

    Raises:
        RequestError: damaged files, too many pixels; sizes are known before a page is decoded.
    """
    for document, file in files:
        for page in range(file.count):
            with _refused(document):
                image = file.render(page, DPI, limits.max_pixels)
            yield image
            del image
        if isinstance(file, Picture):  # Pillow keeps the pixels of an open one
            file.image.close()


@contextmanager
def _refused(document: Attachment) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise RequestError(str(error), code="invalid_image", param=document.where) from None


def _bad_url(where: str, message: object, code: str = "invalid_url") -> RequestError:
    return RequestError(f"{where}: {message}", code=code, param=where)


_USUAL = str.maketrans("-_", "+/", " \t\r\n")
"""The usual letters of base64 for those that are safe in addresses, without line breaks."""


def _data_url(where: str, url: str) -> bytes:
    header, _, payload = url.partition(",")
    if not header.lower().endswith(";base64"):
        raise _bad_url(where, "a data URL must read data:image/png;base64,... (or another type)")
    if "%" in payload:
        payload = unquote(payload)
    payload = payload.translate(_USUAL).rstrip("=")
    try:
        return base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _bad_url(
            where, "the file is not base64: send its bytes through base64, as `base64 FILE` does"
        ) from None


def _address(where: str, url: str, limits: Limits) -> Address:
    if not url.lower().startswith(("http://", "https://")):
        raise _bad_url(where, "send the file as a data URL (data:image/png;base64,...)")
    if not limits.allow_urls:
        raise _bad_url(
            where,
            "this server fetches no URLs; send the file as a data URL (data:image/png;base64,...)",
            "url_not_allowed",
        )
    return Address(where, url)


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes long."""
    return httpx.create_ssl_context()


async def _fetch(client: httpx.AsyncClient, address: Address, left: int, limits: Limits) -> bytes:
    try:
        # httpx itself limits only the wait for the next byte
        return await asyncio.wait_for(_download(client, address, left, limits), FETCH_SECONDS)
    except TimeoutError:
        reason = f"it takes longer than {FETCH_SECONDS:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise _bad_url(address.where, f"the URL cannot be fetched: {reason}", "url_not_fetched")


async def _download(
    client: httpx.AsyncClient, address: Address, left: int, limits: Limits
) -> bytes:
    data = bytearray()
    async with client.stream("GET", address.url) as response:
        response.raise_for_status()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > left:
                raise RequestError(
                    f"{address.where}: the request and the files it names are larger than this "
                    f"server's limit of {limits.max_body} bytes together",
                    status=413,
                    code="body_too_large",
                    param=address.where,
                )
    return bytes(data)
