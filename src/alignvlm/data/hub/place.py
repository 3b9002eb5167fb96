"""Where a copy of a published data set lies: a folder, ``$ALIGNVLM_DATA``, or the hub's cache."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import DataError
from .catalogue import PublishedSet

DATA = "ALIGNVLM_DATA"
"""Environment variable: a folder that holds ``owner/name`` of each set that is here."""


def data_folder() -> Path | None:
    """The folder that ``$ALIGNVLM_DATA`` names, if it is set.

    Raises:
        DataError: it names no folder.
    """
    named = os.environ.get(DATA)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise DataError(f"{DATA}={named}: no such folder")
    return folder


def local_copy(reference: str) -> Path | None:
    """The file or folder that a source's path means on this machine; ``None``: it is a hub id.

    Raises:
        DataError: ``$ALIGNVLM_DATA`` names no folder.
    """
    for root in (Path(), data_folder()):
        if root is not None and (root / Path(reference).expanduser()).exists():
            return root / Path(reference).expanduser()
    return None


def is_hub_id(reference: str) -> bool:
    """Whether a name can be a data set on the hub: ``owner/name`` (old ones: ``name``), no path."""
    return reference.count("/") <= 1 and not reference.startswith((".", "/", "~"))


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` or ``HF_DATASETS_OFFLINE`` forbids the network."""
    from datasets import config
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE or config.HF_DATASETS_OFFLINE)


def how_to_get(reference: str) -> str:
    """The command that makes a copy of a set."""
    return (
        f"`hf download {reference} --repo-type dataset --local-dir DATA/{reference}`, and set "
        f"{DATA}=DATA"
    )


def fetched(known: PublishedSet, data_files: list[str], *, download: bool) -> Path:
    """The hub's cache of a set whose images lie in archives, which ``datasets`` does not open.

    Args:
        download: fetch what the cache lacks; else only look into it.

    Raises:
        DataError: it is not there, or the hub cannot be reached.
    """
    import huggingface_hub

    try:
        found = huggingface_hub.snapshot_download(
            known.id,
            repo_type="dataset",
            allow_patterns=[*data_files, *known.archives],
            local_files_only=not download or is_offline(),
        )
    except Exception as error:  # httpx, huggingface_hub and the disk fail each in its own way
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{known.id}: not on this machine ({known.size}); get it with {how_to_get(known.id)}"
        ) from error
    return Path(found)


def require_hub(reference: str) -> None:
    """Ask the hub once whether it has a set; streaming would ask for half a minute.

    Raises:
        DataError: the hub cannot be reached, or has no such set that one may read.
    """
    import huggingface_hub
    from huggingface_hub import errors

    missing = f"{reference}: not on this machine, and"
    if is_offline():
        why = "this run is offline (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)"
        raise DataError(f"{missing} {why}; get it with {how_to_get(reference)}")
    try:
        huggingface_hub.HfApi().dataset_info(reference, timeout=10)
    except errors.RepositoryNotFoundError as error:  # also where one has to ask for access
        why = "the hub has no such set, or it is private: check the name, or `hf auth login`"
        raise DataError(f"{missing} {why}") from error
    except Exception as error:  # whatever the network does
        why = f"the hub cannot be reached ({type(error).__name__})"
        raise DataError(f"{missing} {why}; get it with {how_to_get(reference)}") from error
