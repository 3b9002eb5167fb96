"""Waiting for another process's checkpoint, so as to kill that process right after it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path


def wait_for_checkpoint(folder: Path, process: subprocess.Popen, seconds: float) -> None:
    """Until ``folder`` was written whole: a state file that is there may still be half written."""
    end = time.monotonic() + seconds
    while not _whole(folder / "trainer_state.json"):
        assert process.poll() is None and time.monotonic() < end, "no checkpoint came"
        time.sleep(0.002)


def _whole(file: Path) -> bool:
    try:
        json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True
