"""What comes with the project: ``reader``, a page encoder, and ``smol``, a whole small model.

``reader`` is an ordinary model folder. Of ``smol`` only the low-rank changes of the language model
are stored: the rest follows from the reader and from SmolLM2-135M-Instruct, on which :func:`build`
puts them, writing an ordinary model folder to the cache.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import WeightsError
from ..files import file_sha256, new_folder
from ..weights.resolve import SHIPPED, home, resolve
from .assemble import compose

WEIGHTS, SETTINGS, STAMP = "weights.safetensors", "settings.json", "shipped.json"
CALIBRATION = "calibration.json"
"""Beside the weights, if ``extract``'s confidence was calibrated; goes into the model's folder."""
READER = "reader"
FORM = 1
"""Raise it when composing changes: folders of an older form are made again."""
LORA = "text."
"""Prefix of the low-rank changes: ``text.<module>.a`` [r, in] and ``.b`` [out, r], scaled."""


def find(name: str, file: str = WEIGHTS) -> Path:
    """Folder of what is shipped under a name, in the package or in the repository.

    Raises:
        WeightsError: it is not there.
    """
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "models" / name, here.parents[3] / "models" / name):
        if (folder / file).is_file():
            return folder
    raise WeightsError(f"the files of {name!r} are missing from this installation")


def build(name: str, *, offline: bool = False, progress: bool = True) -> Path:
    """The model folder of what is shipped under a name; ``smol``'s is made on the first call.

    Args:
        offline: do not fetch the language model.
        progress: show bars on stderr.

    Raises:
        WeightsError: unknown name, missing files, or the language model cannot be fetched.
    """
    if name not in SHIPPED:
        raise WeightsError(f"{name!r} is not shipped; known: {', '.join(SHIPPED)}")
    if name == READER:
        return find(name, "config.json")
    source, target = find(name), home() / "shipped" / name
    settings = json.loads((source / SETTINGS).read_text("utf-8"))
    reader = file_sha256(find(READER, "config.json") / "model.safetensors")
    stamp = {"sha256": file_sha256(source / WEIGHTS), "reader": reader, "form": FORM, **settings}
    if (source / CALIBRATION).is_file():
        stamp["calibration"] = file_sha256(source / CALIBRATION)
    if _stamp_of(target) == stamp:  # also where the cache cannot be written
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f"{name}.lock"):
            if _stamp_of(target) == stamp:
                return target
            with new_folder(target) as partial:
                _write(source, settings, partial, offline, progress)
                (partial / STAMP).write_text(json.dumps(stamp), "utf-8")
    except OSError as error:
        why = error.strerror or error
        raise WeightsError(
            f"cannot write {target}: {why}; set ALIGNVLM_HOME to a writable folder with 2 GB free"
        ) from None
    return target


def _stamp_of(folder: Path) -> Any:
    file = folder / STAMP
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _write(
    source: Path, settings: dict[str, Any], folder: Path, offline: bool, progress: bool
) -> None:
    text = resolve(settings["text"], offline=offline, progress=progress)
    model, processor = compose(READER, text, **settings["options"])
    stored = {key: value.float() for key, value in load_file(source / WEIGHTS).items()}
    add_low_rank(model.model.language_model, stored)
    model.save_pretrained(folder, max_shard_size="100GB")
    processor.save_pretrained(folder)
    if (source / CALIBRATION).is_file():
        shutil.copy(source / CALIBRATION, folder)


@torch.no_grad()
def add_low_rank(language_model: nn.Module, stored: dict[str, Tensor]) -> None:
    """Add ``b a`` to each linear layer that ``stored`` has changes for."""
    for key, a in stored.items():
        if key.startswith(LORA) and key.endswith(".a"):
            name = key.removeprefix(LORA).removesuffix(".a")
            weight = language_model.get_submodule(name).weight
            weight += (stored[f"{LORA}{name}.b"] @ a).to(weight)
