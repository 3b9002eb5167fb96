"""The folder of an unfinished run: begun, gone on with, or started over; and full disks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import AlignVLMError, ConfigError, WeightsError
from ..files import is_disk_full


def begin(
    out: Path,
    work: Path,
    note: tuple[str, str],
    kind: tuple[str, str],
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Make ``work`` with a note of what the run depends on, or check that it goes on there.

    Args:
        out: where the run will end; has a file of the note's name if it is of an earlier run.
        note: the note's file name and text.
        kind: what ``out`` is to be, and what the text is, such as ``("trained model", "recipe")``.
        resume: go on where the run in ``work`` stopped.
        overwrite: an ``out`` of this kind may be there; start over where a run is unfinished.

    Raises:
        ConfigError: ``out`` exists, or ``work`` does and is not to be resumed or differs.
    """
    name, text = note
    if out.exists():
        if not overwrite:
            raise ConfigError(f"{out} exists; choose another --out or pass --overwrite")
        if not (out / name).is_file():
            raise ConfigError(f"{out} is not a {kind[0]}, so --overwrite leaves it alone")
    saved = work / name
    if work.exists() and resume:
        if not saved.is_file():
            raise ConfigError(f"{work} is not a run that can be resumed; remove it")
        if saved.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"the {kind[1]} changed since {work} was started; resume with the same, or start "
                "over with --overwrite"
            )
        return
    if work.exists():
        if not overwrite:
            raise ConfigError(
                f"an unfinished run is in {work}; go on with --resume or start over with "
                "--overwrite"
            )
        shutil.rmtree(work)
    try:
        work.mkdir(parents=True)
        saved.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot create {work}: {error.strerror}") from None


@contextmanager
def writing(work: Path) -> Iterator[None]:
    """Within, an error of a full or broken disk is a WeightsError that says how to go on."""
    try:
        yield
    except AlignVLMError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif is_disk_full(error):
            reason = "no space left on the device"
        else:
            raise
        raise WeightsError(
            f"could not write to {work}: {reason}; free some room, then run the same command with "
            "--resume"
        ) from None


def finish(final: Path, work: Path, out: Path, overwrite: bool) -> None:
    """Put the finished folder at ``out``, in place of an older one, and remove ``work``."""
    if overwrite and out.exists():
        shutil.rmtree(out)
    final.rename(out)
    shutil.rmtree(work, ignore_errors=True)
