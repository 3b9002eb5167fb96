"""Work that may never end, in a fork of this process that has little time and memory."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CPU_SECONDS, SECONDS = 2, 60
"""Of the processor, and on the clock of a busy machine."""
MEMORY = 512 * 2**20
"""Bytes beside those that this process has."""
MAX_ANSWER = 2 * 2**20
"""Bytes of the answer as JSON."""


class TooMuchWork(RuntimeError):
    """The work took too much time or memory, or its answer is too long."""


def in_limited_fork(call: Callable[[], Any]) -> Any:
    """What a function returns, as JSON gives it back; nothing else of what it does remains.

    It must not touch a GPU nor wait for other threads, of which the copy has none.

    Raises:
        TooMuchWork: see there.
        RuntimeError: the function raised; its error in one line.
    """
    if not hasattr(os, "fork"):  # Windows
        return call()
    answers, to = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of threads; see above
        child = os.fork()
    if not child:
        _answer(call, to)
    os.close(to)
    try:
        answer = _read(answers)
    finally:
        os.close(answers)
        os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):  # somebody else waits for all of this process's children
            os.waitpid(child, 0)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["value"]


def _answer(call: Callable[[], Any], to: int) -> None:
    """In the copy: work, write a line, and end without this process's clean-up."""
    import resource  # not on Windows

    try:
        _limit(resource, resource.RLIMIT_CPU, CPU_SECONDS)
        with suppress(OSError):  # /proc is Linux's
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
            _limit(resource, resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)
        try:
            answer = {"value": call()}
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            answer = {"error": (str(error).strip().splitlines() or [repr(error)])[0]}
        with open(to, "wb") as file:
            file.write(json.dumps(answer).encode() + b"\n")
    finally:
        os._exit(0)


def _limit(resource: Any, what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _read(answers: int) -> dict[str, Any]:
    """The copy's line.

    Raises:
        TooMuchWork: it ended without one, or has not ended.
    """
    data, until = bytearray(), time.monotonic() + SECONDS
    while not data.endswith(b"\n"):  # another thread's copy may hold this pipe open as well
        ready = select.select([answers], [], [], max(0.0, until - time.monotonic()))[0]
        more = os.read(answers, 2**16) if ready else b""
        data += more
        if not more or len(data) > MAX_ANSWER:
            raise TooMuchWork
    return json.loads(data)
