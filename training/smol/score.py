"""Scores of rendered forms and receipts, and what was kept of the language model.

    python -m training.smol.score --data ../shared/data --weights runs/smol/weights.safetensors

Kept: its loss on plain text and on its own answers. :mod:`.judge` scores the benchmarks.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignvlm.compose.shipped import add_low_rank
from alignvlm.data.synthetic.render import RenderSpec, render_page
from alignvlm.eval.metrics import METRICS
from alignvlm.weights.resolve import resolve

from .answer import after_prefix
from .excerpt import rows_of
from .mix import HELD_OUT, TEXT_TOKENS
from .pages import Prompts, Rows, plain
from .readings import RUNS
from .sequences import embed, loss_of
from .train import TEXT

Asked = list[tuple[str, tuple[str, ...]]]
"""Questions as they are asked, and the accepted answers."""
LONGEST = 96
"""Tokens of an answer."""


def answer(model: Any, prompts: Prompts, pages: list[Rows], questions: list[str]) -> list[str]:
    """Greedy answers to questions about the same pages."""
    weight = model.get_input_embeddings().weight.detach()
    prefix = embed(*prompts.prefix(pages), weight)
    asked = [weight[prompts.question(question)] for question in questions]
    return [prompts.tokenizer.decode(ids) for ids in after_prefix(model, prefix, asked, LONGEST)]


def rendered(count: int) -> Iterator[tuple[list[str], Asked]]:
    """Forms and receipts that training cannot have drawn."""
    rng = random.Random(990_001)
    for number in range(count):
        layout: Any = ("form", "receipt")[number % 2]
        spec = RenderSpec(layout=layout, width=600, height=400, font_px=(22, 26))
        page = render_page(spec, (1 << 32) + rng.randrange(1 << 31))
        yield rows_of(page.words), [(fact.question, (fact.answer,)) for fact in page.facts[:4]]


def kept(model: Any, prompts: Prompts, data: Path, runs: Path) -> dict[str, float]:
    """Loss on plain text and on the model's own answers, in nats a token."""
    lines = (data / "rendering/enwiki.txt").read_text("utf-8").splitlines()[-HELD_OUT:]
    texts = [prompts.text(line[start : start + 1500], TEXT_TOKENS)
             for line in lines for start in (2000, 9000) if len(line) > start + 1500]  # fmt: skip
    sequences = {"plain text": texts}
    path = runs / "instructions-val.jsonl"
    if path.is_file():
        entries = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        sequences["own answers"] = [
            prompts.sequence([], [(e["prompt"], e["answer"])]) for e in entries
        ]
    result = {}
    for name, own in sequences.items():
        with torch.inference_mode():
            losses = torch.cat([loss_of(model, sequence)[0] for sequence in own])
        result[name] = round(float(losses.mean()), 4)
    return result


def main() -> None:
    """Score and print; appended to ``scores.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="of export; without: the untouched model")
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--rendered", type=int, default=20, help="pages")
    parser.add_argument("--show", action="store_true", help="wrong answers")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = resolve(TEXT)
    prompts = Prompts(AutoTokenizer.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if asked.weights:
        add_low_rank(model.model, {k: v.float() for k, v in load_file(asked.weights).items()})
    result: dict[str, Any] = {"weights": str(asked.weights)}
    result |= kept(model, prompts, asked.data, asked.out)
    print(result, flush=True)
    verdicts, exact = [], 0
    for rows, questions in rendered(asked.rendered):
        said = answer(model, prompts, [[plain(row) for row in rows]], [q for q, _ in questions])
        for text, (question, gold) in zip(said, questions):
            verdicts.append(METRICS["anls"].verdict(text, gold))
            exact += text == gold[0]
            if asked.show and text != gold[0]:
                print("rendered", question, repr(text), gold, flush=True)
    if verdicts:
        result["rendered anls"] = round(METRICS["anls"].aggregate(verdicts), 4)
        result["rendered exact"] = round(exact / len(verdicts), 4)
    with (asked.out / "scores.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
