"""The checkpoint that comes with the project: ``smol``.

What is stored is what differs from public weights: the vision encoder, ALIGN without W2 (W2 is rows
of the language model's head), and low-rank changes of the language model. :func:`build` puts them
on SmolLM2-135M-Instruct and writes an ordinary model folder to the cache.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor, nn

from .compose import compose
from .errors import WeightsError
from .hub import SHIPPED, file_sha256, resolve, shipped_folder

WEIGHTS, SETTINGS, STAMP = "weights.safetensors", "settings.json", "shipped.json"
LORA = "text."
"""Prefix of the low-rank changes: ``text.<module>.a`` [r, in] and ``.b`` [out, r], scaled."""


def find(name: str) -> Path:
    """Folder of a shipped checkpoint's own files, in the package or in the repository.

    Raises:
        WeightsError: they are not there.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "models" / name, here.parents[2] / "models" / name):
        if (folder / WEIGHTS).is_file():
            return folder
    raise WeightsError(f"the files of {name!r} are missing from this installation")


def build(name: str, *, progress: bool = True) -> Path:
    """The model folder of a shipped checkpoint; made on the first call.

    Raises:
        WeightsError: unknown name, missing files, or the language model cannot be fetched.
    """
    if name not in SHIPPED:
        raise WeightsError(f"{name!r} is not shipped; known: {', '.join(SHIPPED)}")
    source, target = find(name), shipped_folder(name)
    settings = json.loads((source / SETTINGS).read_text("utf-8"))
    stamp = {"sha256": file_sha256(source / WEIGHTS), **settings}
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f"{name}.lock"):
        if _stamp_of(target) == stamp:
            return target
        partial = target.with_name(f"{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _write(source, settings, partial, progress)
        (partial / STAMP).write_text(json.dumps(stamp), "utf-8")
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    return target


def _stamp_of(folder: Path) -> Any:
    file = folder / STAMP
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _write(source: Path, settings: dict[str, Any], folder: Path, progress: bool) -> None:
    stored = load_file(source / WEIGHTS)
    ids = stored.pop("connector.token_ids").long()
    stored = {key: value.float() for key, value in stored.items()}
    model, processor = compose(
        settings["vision"],
        resolve(settings["text"], progress=progress),
        settings["connector"],
        token_ids=ids,
        tiling=settings["tiling"],
        **settings["options"],
    )
    core = model.model
    _load(core.vision_model, stored, "vision.")
    _load(core.connector, stored, "connector.", missing={"w2.weight", "token_ids"})
    add_low_rank(core.language_model, stored)
    model.save_pretrained(folder, max_shard_size="100GB")
    processor.save_pretrained(folder)


def _load(
    module: nn.Module, stored: dict[str, Tensor], prefix: str, missing: Iterable[str] = ()
) -> None:
    state = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    lacking, unknown = module.load_state_dict(state, strict=False)
    if set(lacking) - set(missing) or unknown:
        raise WeightsError(f"shipped weights do not fit: lacking {lacking}, unknown {unknown}")


@torch.no_grad()
def add_low_rank(language_model: nn.Module, stored: dict[str, Tensor]) -> None:
    """Add ``b a`` to each linear layer that ``stored`` has changes for."""
    for key, a in stored.items():
        if key.startswith(LORA) and key.endswith(".a"):
            name = key.removeprefix(LORA).removesuffix(".a")
            weight = language_model.get_submodule(name).weight
            weight += (stored[f"{LORA}{name}.b"] @ a).to(weight)
