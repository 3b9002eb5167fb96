"""Prompts without a page, answered by the untouched language model itself: what it must not forget.

    python -m training.smol.own_words --data ../shared/data

Writes ``runs/smol/instructions.jsonl``, and ``instructions-val.jsonl`` for scores alone.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignvlm.weights.resolve import resolve

from .mix import HELD_OUT
from .pages import TURN, USER
from .readings import RUNS
from .train import TEXT

ASKED = (
    "What is {}?", "Tell me about {}.", "Write one sentence about {}.", "Explain {} to a child.",
    "Why does {} matter?", "Give three facts about {}.", "Write a short question about {}.",
    "Is {} a person, a place or a thing?", "Write the title of a book about {}.",
    "What comes to your mind when you hear {}?", "Use {} in a sentence.",
)  # fmt: skip
OTHERS = (
    "What is {a} plus {b}?", "Write the numbers from {a} to {b}.", "Is {a} larger than {b}?",
    "Write a short poem about the number {a}.", "Say hello in {a} different ways.",
    "Give me {a} names for a cat.", "What happened in the year 19{b}?",
)  # fmt: skip
LONGEST, BATCH, HELD_OUT_PROMPTS = 64, 16, 40


def prompts(corpus: Path, count: int) -> list[str]:
    """Short prompts about names and things that the corpus speaks of."""
    rng = random.Random(3)
    lines = corpus.read_text("utf-8").splitlines()[:-HELD_OUT]
    topics = []
    for line in lines:
        topics += re.findall(r"(?:the|a|of|in) ((?:[A-Z]?[a-z]{4,} ?){1,2})(?=[,. ])", line)
    made = []
    for _ in range(count):
        if rng.random() < 0.2:
            made.append(rng.choice(OTHERS).format(a=rng.randint(2, 12), b=rng.randint(13, 99)))
        elif rng.random() < 0.15:
            sentence = rng.choice(rng.choice(lines).split(". ")[1:] or [""])[:200]
            made.append(f"Say this in fewer words: {sentence}")
        else:
            made.append(rng.choice(ASKED).format(rng.choice(topics).strip()))
    return list(dict.fromkeys(made))


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, asked: list[str]) -> list[str]:
    """Greedy answers; those that do not end are cut after their last sentence."""
    tokenizer.padding_side = "left"
    inputs = tokenizer([USER + a + TURN for a in asked], padding=True, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    texts = []
    for row in out[:, inputs["input_ids"].shape[1] :]:
        text = tokenizer.decode(row, skip_special_tokens=True)
        ended = bool((row == tokenizer.eos_token_id).any())
        texts.append(text if ended else re.sub(r"(?<=[.!?])\s[^.!?]*$", "", text))
    return texts


def main() -> None:
    """Ask and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--count", type=int, default=300)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    folder = resolve(TEXT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = prompts(wanted.data / "rendering/enwiki.txt", wanted.count)
    lines = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        for prompt, answer in zip(batch, answers(model, tokenizer, batch)):
            if answer.strip():
                lines.append(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False))
    held = min(HELD_OUT_PROMPTS, len(lines) // 4)
    for name, own in (("-val", lines[:held]), ("", lines[held:])):
        partial = wanted.out / "instructions.partial"
        partial.write_text("\n".join(own) + "\n", "utf-8")
        partial.replace(wanted.out / f"instructions{name}.jsonl")
    print(f"{len(lines)} prompts")


if __name__ == "__main__":
    main()
