"""The trained changes as ``alignvlm.compose.shipped`` puts them on: ``text.<module>.a``, ``.b``.

    python -m training.smol.export --out runs/smol/weights.safetensors

A checkpoint of training that goes on can be exported at any time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from alignvlm.compose.shipped import LORA

from .readings import RUNS

PREFIX = "base_model.model.model."


def shipped_changes(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """peft's adapters as ``W += b a``; the scale is shared between both sides.

    Args:
        state: of ``get_peft_model_state_dict``.
        scale: alpha / r.
    """
    result = {}
    for key, value in state.items():
        name, _, _ = key.removeprefix(PREFIX).partition(".lora_")
        side = "a" if ".lora_A." in key else "b"
        scaled = value.float() * scale**0.5
        result[f"{LORA}{name}.{side}"] = scaled.to(torch.float16).contiguous()
    return result


def from_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The changes of a checkpoint, and where its training stood."""
    stored = torch.load(path, map_location="cpu", weights_only=False)
    changes = shipped_changes(stored["lora"], stored["alpha"] / stored["rank"])
    return changes, {key: stored[key] for key in ("step", "tokens", "seconds", "rank", "alpha")}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=RUNS / "checkpoint.pt")
    parser.add_argument("--out", type=Path, default=RUNS / "weights.safetensors")
    asked = parser.parse_args()
    changes, about = from_checkpoint(asked.checkpoint)
    save_file(changes, asked.out, {key: str(value) for key, value in about.items()})
    print(f"{asked.out}: {asked.out.stat().st_size / 1e6:.1f} MB, {about}")


if __name__ == "__main__":
    main()
