"""Pictures and PDFs of a request: their bytes, then their pixels."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from PIL import Image

from ..data.documents import open_document
from ..errors import DataError
from .limits import Limits, RequestError
from .schema import ChatRequest, too_many_images

DPI = 144
"""Resolution of PDF pages, in pixels per inch."""
FETCH_SECONDS = 10.0


@dataclass(frozen=True)
class Document:
    """A picture or PDF, not decoded yet.

    Attributes:
        where: its place in the request, for error messages.
        data: the file's bytes.
    """

    where: str
    data: bytes


def read_documents(request: ChatRequest, limits: Limits) -> list[Document]:
    """Bytes of all pictures and PDFs, in order.

    Raises:
        RequestError: an address that is no data URL and may not or cannot be fetched.
    """
    return [
        Document(
            where, _data_url(where, url) if url.startswith("data:") else _fetch(where, url, limits)
        )
        for where, url in request.documents
    ]


def decode(documents: list[Document], limits: Limits) -> list[list[Image.Image]]:
    """RGB pages of each document, in memory alone. One thread at a time: PDFium's rule.

    Raises:
        RequestError: damaged files, too many pages or pixels; sizes are known before a page is
            decoded.
    """
    decoded, total = [], len(documents)
    for document in documents:
        try:
            with open_document(document.where, data=document.data) as opened:
                total += opened.count - 1
                if total > limits.max_images:
                    raise too_many_images(total, limits)
                pages = range(opened.count)
                decoded.append([opened.render(page, DPI, limits.max_pixels) for page in pages])
        except DataError as error:
            raise RequestError(str(error), code="invalid_image", param=document.where) from None
    return decoded


def _bad_url(where: str, message: object, code: str = "invalid_url") -> RequestError:
    return RequestError(f"{where}: {message}", code=code, param=where)


def _data_url(where: str, url: str) -> bytes:
    header, _, payload = url.partition(",")
    if not header.endswith(";base64"):
        raise _bad_url(where, "a data URL must read data:image/png;base64,... (or another type)")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad_url(where, f"the data URL is not base64: {error}") from None


def _fetch(where: str, url: str, limits: Limits) -> bytes:
    if not url.lower().startswith(("http://", "https://")):
        raise _bad_url(where, "send the file as a data URL (data:image/png;base64,...)")
    if not limits.allow_urls:
        raise _bad_url(
            where,
            "this server fetches no URLs; send the file as a data URL (data:image/png;base64,...)",
            "url_not_allowed",
        )
    import httpx

    data = bytearray()
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=FETCH_SECONDS) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > limits.max_body:
                    raise _bad_url(where, f"the file is larger than {limits.max_body} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _bad_url(where, f"the URL cannot be fetched: {reason}", "url_not_fetched") from None
    return bytes(data)
