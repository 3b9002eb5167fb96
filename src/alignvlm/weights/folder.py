"""Model folders as anybody may make them: what is loaded from one runs no code of its own, is never
unpickled, and lies in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import WeightsError

READ = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Suffixes of the files that are read."""
TEMPLATES = "additional_chat_templates"
"""The one folder within a model folder of which files are read."""
PARTS = ("text_config", "vision_config")
"""Without which a config means models of transformers' own choice, of billions of weights."""
OUTPUTS = ("output_hidden_states", "output_attentions", "return_dict")
MOST = {"size|dim|vocab|heads": 2**22, "channel": 2**16, "layer|depth|expert": 1024}
"""By parts of a key's name: weights that a config asks for are made before they are missed in the
files, and transformers fills them with random numbers before it says so."""
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
        config = json.loads((folder / "config.json").read_text("utf-8"))
        found = list(walk(config))
    except (OSError, ValueError, AttributeError, RecursionError):
        return  # the loader says it
    for part in PARTS if config.get("model_type") == "alignvlm" else ():
        if not (isinstance(config.get(part), dict) and config[part]):
            raise WeightsError(f"{folder}: config.json has no {part}")
    for key, value in found:
        limit = next((most for part, most in MOST.items() if re.search(part, key)), None)
        if isinstance(value, int) and limit is not None and value > limit:
            raise WeightsError(f"{folder}: config.json: {key} is {value}, more than {limit}")
        if key in OUTPUTS and not isinstance(value, bool | list | type(None)):
            raise WeightsError(f"{folder}: config.json: {key} is neither true nor false")


def _no_weights(folder: Path) -> WeightsError:
    pickled = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
    if pickled:
        return WeightsError(
            f"{folder}: its weights are pickled ({pickled[0]}), which are never loaded: save them "
            "as safetensors"
        )
    return WeightsError(f"{folder}: not a usable model: no *.safetensors in it")
