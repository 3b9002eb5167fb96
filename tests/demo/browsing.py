"""The command in a process of its own, and a real browser that opens its page."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
COMMAND = "import typer; from alignvlm.cli.serving import demo; typer.run(demo)"
WAIT = 120_000


def start(model: Path | str, *options: str, seconds: float = 300) -> tuple[Any, str]:
    """The command, and the address it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(model), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        # a shell's background jobs ignore Ctrl-C, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    found, seen, until = None, "", time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        # libraries may say something first
        while not found and selector.select(max(0.0, until - time.monotonic())):
            seen += (piece := os.read(process.stdout.fileno(), 4096).decode())
            found = re.search(r"http://127\.0\.0\.1:\d+/", seen)
            if not piece:
                break
    if not found:
        process.kill()
        process.wait()
        process.stdout.close()
        pytest.fail(f"no address printed, but {seen!r}")
    return process, found[0]


def end(process: subprocess.Popen, told: signal.Signals = signal.SIGINT) -> int:
    """Ctrl-C, or what an operating system sends."""
    process.send_signal(told)
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    finally:
        assert process.stdout is not None
        process.stdout.close()


class Visit:
    """A page in the browser, what it complained of, and whom it called."""

    def __init__(self, context: Any, address: str) -> None:
        self.page = context.new_page()
        self.address = address
        self.complaints: list[str] = []
        self.calls: list[str] = []
        page = self.page
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.calls.append(request.url))
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=WAIT)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def is_clean(self) -> bool:
        """Nothing on the console, nothing asked of anybody else."""
        assert self.complaints == []
        outside = [u for u in self.calls if not u.startswith((self.address, "data:", "blob:"))]
        assert outside == []
        return True

    def waits_for(self, selector: str, text: str) -> None:
        """Until that text is seen there."""
        self.page.locator(selector).filter(has_text=text).wait_for(timeout=WAIT)

    def answered(self) -> str:
        """Until there is an answer; returns it."""
        self.page.wait_for_selector("#copy-answer:not([hidden])", timeout=WAIT)
        return self.page.inner_text("#answer-text")

    def saved(self, selector: str) -> tuple[str, str]:
        """Name and text of what a link downloads."""
        with self.page.expect_download(timeout=WAIT) as waiting:
            self.page.click(selector)
        path = waiting.value.path()
        return waiting.value.suggested_filename, Path(path).read_text("utf-8")

    def slide(self, selector: str, value: int) -> None:
        """Move a slider as a hand does."""
        self.page.locator(selector).evaluate(
            "(slider, value) => { slider.value = value;"
            " slider.dispatchEvent(new Event('input'));"
            " slider.dispatchEvent(new Event('change')); }",
            value,
        )
