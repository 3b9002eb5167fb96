"""Model folders as anybody may make them: what is loaded from one runs no code of its own, is never
unpickled, and lies in it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import WeightsError

READ = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Suffixes of the files that are read."""
TEMPLATES = "additional_chat_templates"
"""The one folder within a model folder of which files are read."""
OUTPUTS = ("output_hidden_states", "output_attentions", "return_dict")
MOST_LAYERS = 1024
"""Or experts, of a model."""
MOST_WANTED = 8, 10_000_000
"""A config may ask for so many times the numbers that the files hold (packed weights hold fewer),
and so many more."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_folder(folder: Path) -> None:
    """Whether everything that a loader reads lies in the folder, or in the hub cache it is part of.

    Raises:
        WeightsError: a link that leads elsewhere, an index that names files elsewhere or of another
            kind, or something that is no file.
    """
    root = folder.resolve()
    inside = [root]
    if root.parent.name == "snapshots":  # a hub cache: names here are links to ../../blobs
        inside.append(root.parents[1] / "blobs")
    for path in _read(root):
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in inside):
            raise WeightsError(
                f"{folder}: {path.name} is a link out of the folder; put the file itself there"
            )
        if target.exists() and not target.is_file():
            raise WeightsError(f"{folder}: {path.name} is not a file")
    for index in root.glob("*.index.json"):
        _check_index(folder, index)


def _read(root: Path) -> Iterator[Path]:
    """What stands under a name that a loader would read."""
    yield from (path for path in root.iterdir() if path.suffix in READ and not path.is_dir())
    if (root / TEMPLATES).exists():
        yield from (root / TEMPLATES).iterdir()


def _check_index(folder: Path, index: Path) -> None:
    try:
        files = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        names = {str(name) for name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WeightsError(f"{folder}: {index.name} cannot be read as an index") from None
    for name in sorted(names):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise WeightsError(
                f"{folder}: {index.name} names {name[:100]!r}, which is no *.safetensors file of "
                "this folder"
            )


def loaded(loader: Any, folder: Path, **keys: Any) -> Any:
    """What one of transformers' Auto classes makes of a folder.

    Args:
        keys: for its ``from_pretrained``.

    Raises:
        WeightsError: as :func:`check_folder`; no safetensors where weights are wanted, or an
            adapter beside them; code of its own, which is never run; or damaged.
    """
    check_folder(folder)
    if hasattr(loader, "from_config"):  # a class of models, not of configs or tokenizers
        if (folder / "adapter_config.json").is_file():
            raise WeightsError(
                f"{folder}: a model with an adapter in its folder, which names another model: join "
                "adapter and model with `alignvlm merge`, or remove adapter_config.json"
            )
        if not any(folder.glob("*.safetensors")):
            raise _no_weights(folder)
        _check_config(folder)
        _check_size(loader, folder)
        keys["use_safetensors"] = True
    try:
        return loader.from_pretrained(folder, trust_remote_code=False, **keys)
    except Exception as error:  # the loaders raise many kinds for a damaged folder
        lines = str(error).strip().splitlines() or [repr(error)]
        if "trust_remote_code" in str(error):
            raise WeightsError(
                f"{folder}: its config asks for code of its own (auto_map), which is never run; "
                "use a model that transformers knows"
            ) from None
        raise WeightsError(f"{folder}: not a usable model: {lines[0]}") from None


def _check_config(folder: Path) -> None:
    """What loaders take as it is: a billion layers, which would be made before weights are missed,
    and a number where a forward pass wants to know what to give."""

    def walk(value: Any) -> Iterator[tuple[str, Any]]:
        for key, inner in value.items():
            yield key, inner
            if isinstance(inner, dict):
                yield from walk(inner)

    try:
        found = list(walk(json.loads((folder / "config.json").read_text("utf-8"))))
    except (OSError, ValueError, AttributeError, RecursionError):
        return  # the loader says it
    for key, value in found:
        if isinstance(value, int) and value > MOST_LAYERS and re.search("layer|depth|expert", key):
            raise WeightsError(f"{folder}: config.json: {key} is {value}, more than {MOST_LAYERS}")
        if key in OUTPUTS and not isinstance(value, bool | list | type(None)):
            raise WeightsError(f"{folder}: config.json: {key} is neither true nor false")


def _check_size(loader: Any, folder: Path) -> None:
    """What a config asks for and the files lack, transformers fills with random numbers, gigabytes
    of them, before it says so: the model is made without memory first, and counted."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig

    held = 0
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = loader.from_config(config, trust_remote_code=False)
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as stored:
                names = list(stored.keys())
                held += sum(math.prod(stored.get_slice(name).get_shape()) for name in names)
    except Exception:  # the loader says it
        return
    wanted = sum(parameter.numel() for parameter in model.parameters())
    times, more = MOST_WANTED
    if wanted > times * held + more:
        raise WeightsError(
            f"{folder}: config.json asks for a model of {wanted:,} numbers, but the weights in it "
            f"are {held:,}"
        )


def _no_weights(folder: Path) -> WeightsError:
    pickled = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
    if pickled:
        return WeightsError(
            f"{folder}: its weights are pickled ({pickled[0]}), which are never loaded: save them "
            "as safetensors"
        )
    return WeightsError(f"{folder}: not a usable model: no *.safetensors in it")
