"""An adapter and its base become one model folder: ``alignvlm merge``."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import ConfigError
from ..files import new_folder
from .adapter import load_adapted


def merge_adapter(
    adapter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write one self-contained model folder that answers as the adapter does.

    Args:
        adapter: folder with ``adapter_config.json``, or a fine-tuning run's folder.
        out: must not exist; appears whole.
        base: the adapter's model, if not the one that it names.
        dtype: the weights are added in fp32 and written in this.

    Returns:
        ``out``: a folder for ``from_pretrained``, with the processor.

    Raises:
        ConfigError: ``out`` exists.
        WeightsError: no adapter, no base model, or they do not fit.
    """
    out = Path(os.path.abspath(out))
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another folder")
    folder = Path(adapter).expanduser()
    inner = folder / "adapter"
    if (inner / "adapter_config.json").is_file():  # the folder of a whole run was given
        folder = inner
    model, processor = load_adapted(folder, base=base, dtype=torch.float32)
    with new_folder(out) as partial:
        model.to(dtype).save_pretrained(partial)
        processor.save_pretrained(partial)
    return out
