"""The speller and ALIGN from plain text: about 40 minutes on one core for 1,000 steps.

``--on 1`` goes on from what ``models/smol`` has, ``--on 0`` starts anew.
"""

from __future__ import annotations

import math
import time

import torch

from alignvlm.line_reader import ALPHABET
from alignvlm.train.spelling import LineMaker, nearest_rows, spell, spelling_loss

from .common import (
    BLANK,
    OUT,
    arguments,
    kept_tokens,
    load,
    load_tokenizer,
    new_parts,
    save,
    shipped,
)

RATE, BATCH, CANDIDATES, ALIKE, HELD_OUT = 1e-3, 96, 1024, 4, 50
MEMORY_RATE = 0.01


def main() -> None:
    asked = arguments(__doc__, steps=1000, threads=1, on=1)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    lines = (OUT / "lines.txt").read_text("utf-8").split("\n")
    tokenizer = load_tokenizer()
    own = {"speller": "vision.speller.", "align": "connector."}
    warm = {part: shipped(name) for part, name in own.items()} if asked.on else {}
    kept = warm["align"]["token_ids"].long() if warm else kept_tokens(tokenizer)
    tokens = tokenizer.batch_decode(kept[:, None])
    speller, align = new_parts(kept, tokenizer)
    cut, blank = len(lines) // HELD_OUT, tokenizer.convert_tokens_to_ids(BLANK)
    unseen, seen = (
        LineMaker(part, tokenizer, kept, ALPHABET, blank) for part in (lines[:cut], lines[cut:])
    )
    speller.memory.sparse = True  # a step sees a hundredth of it
    memory = torch.optim.SparseAdam(speller.memory.parameters(), lr=MEMORY_RATE)
    speller.memory.requires_grad_(False)
    parameters = [p for part in (speller, align) for p in part.parameters() if p.requires_grad]
    speller.memory.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1, (s + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * s / asked.steps))),
    )
    parts = {
        "speller": speller, "align": align, "optimizer": optimizer, "schedule": schedule,
        "memory": memory,
    }  # fmt: skip
    stored, start = load("spell.pt"), 0
    if stored is not None:
        start = stored.pop("step")
        for name, part in parts.items():
            part.load_state_dict(stored[name])
    elif warm:
        speller.load_state_dict(warm["speller"])
        align.load_state_dict({**warm["align"], "w2.weight": align.w2.weight, "token_ids": kept})
    alike = nearest_rows(align.w2.weight, ALIKE)
    generator = torch.Generator().manual_seed(start)
    counts, clock = torch.zeros(4), time.perf_counter()
    for step in range(start + 1, asked.steps + 1):
        batch = seen.batch(BATCH, (1, step))
        result = spelling_loss(speller, align, batch, CANDIDATES, alike, generator)
        optimizer.zero_grad()
        memory.zero_grad()
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for group in memory.param_groups:
            group["lr"] = MEMORY_RATE * schedule.get_last_lr()[0] / RATE
        memory.step()
        schedule.step()
        counts += torch.tensor(result[1:])
        if step % 50 == 0:
            rate = counts[1] / (time.perf_counter() - clock)
            shares = f"tokens {counts[0] / counts[1]:.4f}, lengths {counts[2] / counts[3]:.4f}"
            print(f"{step}: {shares}, {rate:.0f}/s", flush=True)
            counts, clock = torch.zeros(4), time.perf_counter()
        if step % 100 == 0 or step == asked.steps:
            held = spell(speller, align, unseen.batch(256, (2, 0), inside=0.0), tokens)
            print(
                f"{step}: unseen lines: tokens {held.right / held.tokens:.4f}, "
                f"words whole {held.whole / held.words:.4f}",
                flush=True,
            )
            save({**{k: v.state_dict() for k, v in parts.items()}, "step": step}, "spell.pt")


if __name__ == "__main__":
    main()
