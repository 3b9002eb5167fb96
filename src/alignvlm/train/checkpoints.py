"""What an interrupted run goes on from: the newest of the Trainer's checkpoints that is whole."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from zipfile import is_zipfile

from accelerate import PartialState

CHECKPOINT_FILES = (("*model*", "global_step*"), ("optimizer*", "global_step*"))
"""What a checkpoint must hold, one of each; DeepSpeed keeps the first two in ``global_step*``."""


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole; others were cut short by a crash, and go."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for checkpoint in reversed(found):
        if written_whole(checkpoint, PartialState().num_processes):
            return checkpoint
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def written_whole(checkpoint: Path, processes: int) -> bool:
    """Whether a checkpoint has weights, optimiser, and each process's random state.

    The Trainer's first process writes its state file last, but does not wait for the random states
    of the others: they may be missing or cut short beside it.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        names = [path.name for path in checkpoint.iterdir()]
    except (OSError, ValueError):
        return False
    states = list(checkpoint.glob("rng_state*"))
    kinds = all(any(fnmatch(n, p) for n in names for p in kind) for kind in CHECKPOINT_FILES)
    return kinds and len(states) >= processes and all(map(is_zipfile, states))
