"""What the server refuses, and how it says so; and who waits."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import AlignVLMError, ConfigError
from ..processing.image_processor import MAX_PIXELS

MIB = 2**20
LONGEST_RETRY = 60
"""Seconds; OpenAI's client passes over a longer ``Retry-After``."""
FIRST_GUESS, LATER = 4.0, 1.25
"""Seconds an answer takes before one was given; and how much later than the mean says a client is
told to come: one that comes too early is refused again."""
RECENT = 16
"""Answers whose mean time says how long the next ones take."""


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
        status: HTTP status; from 500 on the server is to blame.
        code: short and stable, for programs.
        param: the field of the request it is about.
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
        self.status, self.code, self.param = status, code, param
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

    A place is taken when a request's body is there: who sends slowly keeps nobody out.
    """

    length: int
    present: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _began: float = 0.0
    _promised: float = 0.0

    @property
    def running(self) -> int:
        """Requests being answered: 0 or 1."""
        return int(self.turn.locked())

    @property
    def waiting(self) -> int:
        """Requests in the line behind it."""
        return max(0, self.present - self.running)

    def began(self) -> None:
        """A request's turn has come; call :meth:`ended` when it is over."""
        self._began = time.monotonic()

    def ended(self) -> None:
        """The turn is over: the next one's begins."""
        self._took.append(time.monotonic() - self._began)
        self.turn.release()

    def check(self) -> None:
        """Whether there is a place.

        Raises:
            RequestError: 503 with ``Retry-After``, the line is full.
        """
        if self.present > self.length:
            raise self.full(f"{self.length} requests are waiting already")

    def full(self, why: str) -> RequestError:
        """503, with the time at which a place will be free: each that is refused gets another one,
        as far apart as answers take."""
        now = time.monotonic()
        running = now - self._began if self.running else 0.0
        mean = sum(self._took) / len(self._took) if self._took else 0.0
        each = max(LATER * mean or FIRST_GUESS, running)
        free = max(now + each - running, self._promised + each)
        self._promised = min(free, now + LONGEST_RETRY)
        seconds = max(1, math.ceil(self._promised - now))
        return RequestError(
            f"{why}; try again in {seconds} s",
            status=503,
            code="queue_full",
            headers={"Retry-After": str(seconds)},
        )

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the line, or raise as :meth:`check`."""
        self.check()
        self.present += 1
        try:
            yield
        finally:
            self.present -= 1


@dataclass
class Bodies:
    """Bytes of all bodies that are being read or waited with; at most ``most``."""

    most: int
    held: int = 0

    @contextmanager
    def room(self) -> Iterator[Callable[[int], bool]]:
        """For one request: a call takes so many bytes more, and says whether there was room."""
        own = 0

        def take(size: int) -> bool:
            nonlocal own
            if self.held + size > self.most:
                return False
            self.held += size
            own += size
            return True

        try:
            yield take
        finally:
            self.held -= own
