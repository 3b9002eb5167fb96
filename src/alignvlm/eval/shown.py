"""What a sample's answer was given to: each prediction keeps a digest of the pages shown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    from .tasks import Task

SHOWN = "pages_sha256"
"""Key of a prediction; answers that no page was shown for have none."""


def pages_sha256(pages: Sequence[Image.Image]) -> str:
    """SHA-256 of the pixels of pages, with their sizes and modes."""
    digest = hashlib.sha256()
    for page in pages:
        digest.update(f"{page.mode} {page.width} {page.height}\n".encode())
        digest.update(page.tobytes())
    return digest.hexdigest()


def check_shown(
    task: Task,
    indices: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    quiet: bool | None = None,
) -> None:
    """Check that answers which an earlier run left are about the pages there are now.

    Args:
        indices, rows: the answered samples, and what was kept of each.
        path: the file that holds the rows.

    Raises:
        DataError: a page changed since, or an earlier version did not note it.
    """
    named = zip(indices, rows, strict=True)
    # disable=None: where stderr is no terminal
    bar = tqdm(named, desc="comparing pages", unit="sample", total=len(rows), leave=False,
               disable=quiet)  # fmt: skip
    for index, row in bar:
        if SHOWN not in row:
            raise DataError(
                f"{path} does not say which pages its answers are about (an earlier version wrote "
                "it); name another file, or --overwrite"
            )
        if row[SHOWN] != pages_sha256(task.pages(index)):
            raise DataError(
                f"{path} answers sample {row['id']!r} about other pages than there are now; name "
                "another file, or --overwrite"
            )
