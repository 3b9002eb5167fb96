"""Waiting for another process's checkpoint, so as to kill that process right after it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from alignvlm.train.checkpoints import written_whole


def wait_for_checkpoint(
    folder: Path, process: subprocess.Popen, seconds: float, processes: int = 1
) -> None:
    """Until ``folder`` was written whole: a file that is there may still be half written."""
    end = time.monotonic() + seconds
    while not written_whole(folder, processes):
        assert process.poll() is None and time.monotonic() < end, "no checkpoint came"
        time.sleep(0.002)
