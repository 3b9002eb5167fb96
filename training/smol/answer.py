"""Greedy answers to what :mod:`.asked` wrote, many at once.

    python -m training.smol.answer --language-model DIR --weights runs/smol/weights.safetensors

Writes ``runs/smol/answers/<task>-<given>.json``; what is there already is not answered again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from alignvlm.compose.shipped import add_low_rank
from alignvlm.model.outputs import CACHE
from alignvlm.weights.resolve import resolve

from .batches import Examples
from .readings import RUNS
from .train import TEXT


def prompts_of(examples: Examples, number: int, weight: Tensor) -> list[Tensor]:
    """Each question of a document with what is seen before it, ``[tokens, d]``."""
    batch = examples.batch([number])
    size = int(examples.length[number])
    inputs, owner = batch.embed(weight)[0, :size], batch.owner[0, :size]
    return [inputs[(owner == 0) | (owner == n)] for n in range(1, int(owner.max()) + 1)]


@torch.inference_mode()
def answers(model: Any, prompts: list[Tensor], longest: int, tokens: int) -> list[list[int]]:
    """Greedy answers, in the order of the prompts.

    Args:
        longest: tokens of an answer at most.
        tokens: of a batch, about.
    """
    end = model.generation_config.eos_token_id
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    found: list[list[int]] = [[] for _ in prompts]
    place = 0
    while place < len(order):
        size = len(prompts[order[place]])
        own = order[place : place + max(1, tokens // (size + longest))]
        place += len(own)
        pads = [size - len(prompts[n]) for n in own]
        inputs = torch.stack(
            [nn.functional.pad(prompts[n], (0, 0, p, 0)) for n, p in zip(own, pads)]
        )
        steps = torch.arange(size, device=inputs.device)
        mask = (steps >= torch.tensor(pads, device=inputs.device)[:, None]).long()
        said = model.generate(
            inputs_embeds=inputs, attention_mask=mask, max_new_tokens=longest, do_sample=False,
            pad_token_id=end,
        ).tolist()  # fmt: skip
        for n, row in zip(own, said):
            found[n] = row[: row.index(end)] if end in row else row
    return found


def one_by_one(model: Any, examples: Examples, number: int, longest: int) -> list[list[int]]:
    """Greedy answers about one document: the way for a CPU."""
    weight = model.get_input_embeddings().weight.detach()
    batch, size = examples.batch([number]), int(examples.length[number])
    inputs, owner = batch.embed(weight)[0, :size], batch.owner[0, :size]
    questions = [inputs[owner == n] for n in range(1, int(owner.max()) + 1)]
    return after_prefix(model, inputs[owner == 0], questions, longest)


@torch.inference_mode()
def after_prefix(
    model: Any, prefix: Tensor, questions: Sequence[Tensor], longest: int
) -> list[list[int]]:
    """Greedy answers to questions ``[n, d]`` behind a prefix ``[p, d]`` that is computed once."""
    weight, end = model.get_input_embeddings().weight, model.generation_config.eos_token_id
    seen = model(inputs_embeds=prefix[None], use_cache=True, logits_to_keep=1)[CACHE]
    found = []
    for question in questions:
        cache, said, new = copy.deepcopy(seen), [], question[None]
        while len(said) < longest:
            given = {"inputs_embeds": new, CACHE: cache}
            out = model(**given, use_cache=True, logits_to_keep=1)
            token = int(out.logits[0, -1].argmax())
            if token == end:
                break
            said.append(token)
            new = weight[token][None, None]
        found.append(said)
    return found


def main() -> None:
    """Answer and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language-model", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--weights", type=Path, help="low-rank changes")
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--only", nargs="+", metavar="TASK-GIVEN", help="these alone")
    parser.add_argument("--documents", type=int, help="of each, at most")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=200_000, help="of a batch, about")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    torch.set_float32_matmul_precision("high")
    folder = asked.language_model or resolve(TEXT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if asked.weights:
        add_low_rank(model.model, {k: v.float() for k, v in load_file(asked.weights).items()})
    model.to(device).eval()
    weight = model.get_input_embeddings().weight.detach()
    out = asked.out / "answers"
    out.mkdir(parents=True, exist_ok=True)
    names = asked.only or [path.stem for path in sorted((asked.out / "asked").glob("*.npz"))]
    for name in names:
        target, start = out / f"{name}.json", time.monotonic()
        if target.is_file():
            continue
        about = json.loads((asked.out / "asked" / f"{name}.json").read_text("utf-8"))
        examples = Examples([asked.out / "asked" / f"{name}.npz"], device)
        if asked.documents is not None:
            about["documents"] = about["documents"][: asked.documents]
        documents, longest = range(len(about["documents"])), about["max_new_tokens"]
        numbers = [number for one in about["documents"] for number in one["numbers"]]
        if device.type == "cpu":
            said = [ids for n in documents for ids in one_by_one(model, examples, n, longest)]
        else:
            prompts = [p for n in documents for p in prompts_of(examples, n, weight)]
            said = answers(model, prompts, longest, asked.tokens)
        about["said"] = [[number, ids] for number, ids in zip(numbers, said, strict=True)]
        target.write_text(json.dumps(about), "utf-8")
        spent = time.monotonic() - start
        print(f"{name}: {len(said)} questions, {spent:.1f} s", flush=True)


if __name__ == "__main__":
    main()
