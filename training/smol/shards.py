"""Examples made ahead, so that a card for which one pays never waits for a page.

    python -m training.smol.shards --data ../shared/data --tokens 12000000

Draws from :mod:`.mix` and writes ``runs/smol/shards/<number>.npz``, about two bytes a token; a
rerun goes on where it was. Prompts without a page, which the untouched model answers itself on the
card, are written beside them as ``prompts.npz``.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from alignvlm.weights.resolve import resolve

from .mix import LONG_SHARES, TEXT_TOKENS, Mix
from .own_words import prompts as own_prompts
from .pages import TURN, USER, Prompts
from .readings import RUNS
from .sequences import Sequence4D
from .train import TEXT

KINDS = ("sroie", "form", "receipt", "deepform", "wtq", "tabfact", "chartqa", "instruct", "text")
EXAMPLES = 1000
"""Of a file."""
LONGEST, LONGEST_ASKED = 4000, 8000
"""Tokens of a sequence to learn from, and of one to be asked about; longer ones are left out."""
Arrays = dict[str, NDArray]
"""As they are stored; ``first``, ``owner`` and ``answer`` of all tokens, ``soft_*`` of doubts."""


def pack(sequences: Sequence[tuple[str, Sequence4D]]) -> Arrays:
    """Sequences as flat arrays; probabilities are kept to 1/255, what is less is not kept.

    Args:
        sequences: kind and sequence of each.
    """
    first, owner, answer, soft_at, soft_id, soft_q, counts = [], [], [], [], [], [], []
    for _, sequence in sequences:
        levels = (sequence.q[:, 1:] * 255).round().to(torch.uint8)
        at, column = levels.nonzero(as_tuple=True)
        first.append(sequence.ids[:, 0].numpy().astype(np.uint16))
        owner.append(sequence.owner.numpy().astype(np.uint8))
        answer.append((sequence.labels >= 0).numpy())
        soft_at.append(at.numpy().astype(np.uint16))
        soft_id.append(sequence.ids[at, column + 1].numpy().astype(np.uint16))
        soft_q.append(levels[at, column].numpy())
        counts.append((len(sequence.ids), len(at)))
    return {
        "kind": np.array([KINDS.index(kind) for kind, _ in sequences], np.uint8),
        "length": np.array([n for n, _ in counts], np.uint16),
        "soft_count": np.array([n for _, n in counts], np.uint16),
        "first": np.concatenate(first), "owner": np.concatenate(owner),
        "answer": np.packbits(np.concatenate(answer)), "soft_at": np.concatenate(soft_at),
        "soft_id": np.concatenate(soft_id), "soft_q": np.concatenate(soft_q),
    }  # fmt: skip


def write(path: Path, arrays: Arrays) -> None:
    """Write a file whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    partial = path.with_suffix(".partial")
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, path)


def prompt_arrays(prompts: Sequence[list[int]]) -> Arrays:
    """Prompts of different lengths as one array and their lengths."""
    return {
        "ids": np.array([token for ids in prompts for token in ids], np.uint16),
        "length": np.array([len(ids) for ids in prompts], np.uint16),
    }


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--tokens", type=int, default=12_000_000)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="of a file")
    parser.add_argument("--prompts", type=int, default=800, help="without a page")
    parser.add_argument("--variety", type=float, default=0.6)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = asked.out / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    prompts = Prompts(AutoTokenizer.from_pretrained(resolve(TEXT)))
    texts = own_prompts(asked.data / "rendering/enwiki.txt", asked.prompts)
    write(folder / "prompts.npz", prompt_arrays([prompts.encode(USER + t + TURN) for t in texts]))
    mix = Mix(asked.data, asked.out, LONG_SHARES, asked.variety)
    total, number, start = 0, 0, time.monotonic()
    while total < asked.tokens:
        path = folder / f"{number:03d}.npz"
        # a file depends on its number alone
        mix.load_state({"drawn": number * 1_000_000, "used": {kind: [] for kind in mix.sources}})
        if path.is_file():
            total += int(np.load(path)["length"].astype(np.int64).sum())
        else:
            made: list[tuple[str, Sequence4D]] = []
            while len(made) < asked.examples:
                example = mix.draw()
                sequence = (
                    prompts.text(example.text, TEXT_TOKENS)
                    if example.text
                    else prompts.sequence(example.pages, example.turns)
                )
                if len(sequence.ids) <= LONGEST:
                    made.append((example.kind, sequence))
            write(path, pack(made))
            total += sum(len(sequence.ids) for _, sequence in made)
        print(f"{path.name}: {total:,} tokens, {time.monotonic() - start:.0f} s", flush=True)
        number += 1


if __name__ == "__main__":
    main()
