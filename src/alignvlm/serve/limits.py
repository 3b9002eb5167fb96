"""What the server refuses, and how it says so; and who waits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import AlignVLMError, ConfigError
from ..processing.image_processor import MAX_PIXELS

MIB = 2**20
LONGEST_RETRY = 60


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may cost.

    Attributes:
        max_body: bytes of a request, with the files that are fetched for it.
        max_pixels: of one picture or PDF page, known before it is decoded.
        max_images: pictures and PDF pages in a request.
        max_new_tokens: tokens of an answer; also what a request gets that names no number.
        queue: requests that may wait while one is answered.
        timeout: seconds from a request's first byte to its answer's last.
        allow_urls: fetch ``http`` and ``https`` addresses that a request names.

    Raises:
        ConfigError: a limit below one (``queue`` may be 0), or more pixels than Pillow opens.
    """

    max_body: int = 32 * MIB
    max_pixels: int = 40_000_000
    max_images: int = 8
    max_new_tokens: int = 1024
    queue: int = 16
    timeout: float = 120.0
    allow_urls: bool = False

    def __post_init__(self) -> None:
        for name in ("max_body", "max_pixels", "max_images", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.queue < 0:
            raise ConfigError(f"queue must be at least 0, not {self.queue}")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout}")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(f"max_pixels can be at most {MAX_PIXELS}, which is Pillow's limit")


class RequestError(AlignVLMError):
    """A request that is not answered: HTTP status, and the error as OpenAI's clients expect it.

    Args:
        message: one line.
        status: HTTP status; from 500 on the server is to blame.
        code: short and stable, for programs.
        param: the field of the request it is about.
        headers: to be sent with it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_value",
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 401:
            kind = "authentication_error"
        message = " ".join(str(self).split())
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass
class WaitingLine:
    """One request is answered at a time, at most ``length`` wait, first come first served.

    A place in the line is taken before the body is read, so that at most ``length + 1`` bodies are
    ever in memory.
    """

    length: int
    present: int = 0
    last_seconds: float = 1.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def running(self) -> int:
        """Requests being answered: 0 or 1."""
        return int(self.turn.locked())

    @property
    def waiting(self) -> int:
        """Requests in the line behind it."""
        return max(0, self.present - self.running)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the line.

        Raises:
            RequestError: 503 with ``Retry-After``, the line is full.
        """
        if self.present > self.length:
            seconds = min(LONGEST_RETRY, max(1, math.ceil(self.last_seconds)))
            raise RequestError(
                f"{self.length} requests are waiting already; try again in {seconds} s",
                status=503,
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        self.present += 1
        try:
            yield
        finally:
            self.present -= 1
