"""The speller and ALIGN from plain text: about 75 minutes on one core for 2,600 steps."""

from __future__ import annotations

import math
import time

import torch

from alignvlm.line_reader import ALPHABET
from alignvlm.train.spelling import LineMaker, spelling_loss

from .common import BLANK, OUT, arguments, kept_tokens, load, load_tokenizer, new_parts, save

RATE, BATCH, CANDIDATES, HELD_OUT = 1.5e-3, 96, 4096, 50


def main() -> None:
    asked = arguments(__doc__, steps=2600, threads=1)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    lines = (OUT / "lines.txt").read_text("utf-8").split("\n")
    tokenizer = load_tokenizer()
    kept = kept_tokens(lines, tokenizer)
    speller, align = new_parts(kept, tokenizer)
    cut, blank = len(lines) // HELD_OUT, tokenizer.convert_tokens_to_ids(BLANK)
    unseen, seen = (
        LineMaker(part, tokenizer, kept, ALPHABET, blank) for part in (lines[:cut], lines[cut:])
    )
    parameters = [p for part in (speller, align) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1, (s + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * s / asked.steps))),
    )
    parts = {"speller": speller, "align": align, "optimizer": optimizer, "schedule": schedule}
    stored, start = load("spell.pt"), 0
    if stored is not None:
        start = stored.pop("step")
        for name, part in parts.items():
            part.load_state_dict(stored[name])
    generator = torch.Generator().manual_seed(start)
    right = tokens = wrong = chars = 0
    clock = time.perf_counter()
    for step in range(start + 1, asked.steps + 1):
        result = spelling_loss(speller, align, seen.batch(BATCH, (1, step)), CANDIDATES, generator)
        optimizer.zero_grad()
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        right, tokens = right + result.right, tokens + result.tokens
        wrong, chars = wrong + result.start_errors, chars + result.characters
        if step % 50 == 0:
            rate = tokens / (time.perf_counter() - clock)
            shares = f"tokens {right / tokens:.4f}, starts wrong {wrong / chars:.4f}"
            print(f"{step}: {shares}, {rate:.0f}/s", flush=True)
            right = tokens = wrong = chars = 0
            clock = time.perf_counter()
        if step % 250 == 0 or step == asked.steps:
            with torch.no_grad():
                held = spelling_loss(speller, align, unseen.batch(256, (2, 0)), None)
            print(f"{step}: of unseen lines' tokens {held.right / held.tokens:.4f}", flush=True)
            save({**{k: v.state_dict() for k, v in parts.items()}, "step": step}, "spell.pt")


if __name__ == "__main__":
    main()
