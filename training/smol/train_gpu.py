"""The same training as :mod:`.train` on a card, from examples made ahead, in some minutes.

    python -m training.smol.shards --data ../shared/data       # before, on any CPU
    python -m training.smol.train_gpu --seconds 240 --language-model DIR

Low-rank changes are added to the weights once a step rather than to the activations of each token,
so that a step costs what a step of all weights costs; what is trained and stored is the same.
Writes ``weights.safetensors`` as :mod:`.export` does, and ``curve.jsonl``.
``--device cpu --tokens 2000`` rehearses it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM

from alignvlm.weights.resolve import resolve

from .batches import Batch, Examples, answer_loss, drift
from .export import PREFIX, shipped_changes
from .mix import SOURCES_OF
from .readings import RUNS
from .shards import KINDS
from .train import LINEAR, TEXT

TEXTS, TEXT_SHARE = 8, 0.06
"""Pieces of plain text a step, and the share of the loss that is theirs."""
SAVE_EVERY = 60.0
OWN_TOKENS = 64
"""Of the untouched model's answers to prompts without a page."""


class LowRank(nn.Module):
    """A weight ``[out, in]`` plus ``scale * b a``, in the dtype of the model.

    Args:
        weight: kept in float32.
        rank: of the change.
        scale: alpha / rank.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        out, size = weight.shape
        self.scale = scale
        self.register_buffer("base", weight.detach().float().clone(), persistent=False)
        self.a = nn.Parameter(torch.empty(rank, size, device=weight.device))
        self.b = nn.Parameter(torch.zeros(out, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, original: Tensor) -> Tensor:
        return (self.base + self.scale * self.b @ self.a).to(original.dtype)


def low_rank(model: nn.Module, rank: int, scale: float) -> dict[str, LowRank]:
    """Put changes on all linear layers; those by the layer's name below ``model.``."""
    found = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in LINEAR:
            change = LowRank(module.weight, rank, scale)
            module.weight.requires_grad_(False)
            parametrize.register_parametrization(module, "weight", change, unsafe=True)
            found[name.removeprefix("model.")] = change
    return found


def adapters(changes: dict[str, LowRank]) -> dict[str, Tensor]:
    """The changes under the names that peft gives adapters, as :mod:`.train` stores them."""
    return {
        f"{PREFIX}{name}.lora_{side}.weight": value.detach().cpu()
        for name, change in changes.items()
        for side, value in (("A", change.a), ("B", change.b))
    }


@torch.inference_mode()
def own_answers(model: Any, prompts: Path, limit: int, device: torch.device) -> list[Batch]:
    """The untouched model's greedy answers, as texts whose every token after the prompt counts."""
    stored = np.load(prompts)
    ends = stored["length"].astype(np.int64).cumsum()
    ids = [torch.from_numpy(p.astype(np.int64)) for p in np.split(stored["ids"], ends[:-1])][:limit]
    made = []
    for begin in range(0, len(ids), 400):
        own = ids[begin : begin + 400]
        size = max(map(len, own))
        padded = torch.stack([nn.functional.pad(p, (size - len(p), 0)) for p in own]).to(device)
        mask = torch.stack([(torch.arange(size) >= size - len(p)).long() for p in own]).to(device)
        said = model.generate(
            padded, attention_mask=mask, max_new_tokens=OWN_TOKENS, do_sample=False, pad_token_id=0
        )[:, size:].cpu()
        made += [torch.cat([p, _without_padding(answer)]) for p, answer in zip(own, said)]
    lengths = [len(p) for p in ids]
    return [
        _texts(made[i : i + TEXTS], lengths[i : i + TEXTS], device)
        for i in range(0, len(made), TEXTS)
    ]


def _without_padding(answer: Tensor) -> Tensor:
    real = answer.nonzero()
    return answer[: int(real[-1]) + 1] if len(real) else answer[:0]


def _texts(texts: list[Tensor], asked: list[int], device: torch.device) -> Batch:
    size = max(map(len, texts))
    ids = torch.stack([nn.functional.pad(t, (0, size - len(t))) for t in texts]).to(device)
    place = torch.arange(size, device=device)
    real = place < torch.tensor([len(t) for t in texts], device=device)[:, None]
    said = real & (place >= torch.tensor(asked, device=device)[:, None] - 1)
    none = torch.zeros(0, dtype=torch.long, device=device)
    rest = torch.ones(ids.shape, device=device)
    labels = torch.where(said, ids, -100)
    return Batch(ids, rest, (none, none, none.float()), place.expand_as(ids), 0 * ids, labels)


class Run:
    """A model in training."""

    def __init__(self, model: Any, examples: Examples, asked: argparse.Namespace) -> None:
        self.asked, self.examples = asked, examples
        self.untouched = copy.deepcopy(model).eval().requires_grad_(False)
        self.changes = low_rank(model.requires_grad_(False), asked.rank, asked.alpha / asked.rank)
        self.model = model.train()
        self.parameters = [p for c in self.changes.values() for p in c.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=asked.rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.generator = np.random.default_rng(asked.seed)
        self.own = own_answers(
            self.untouched, asked.shards / "prompts.npz", asked.prompts, examples.device
        )
        self.step = self.tokens = 0
        self.parts = 1

    def batches(self) -> Iterator[list[int]]:
        """Epoch after epoch."""
        while True:
            yield from self.examples.epoch(self.asked.tokens, self.generator)

    def text(self) -> Batch:
        """Pieces of plain text, or of the model's own answers."""
        if self.own and self.generator.random() < 0.4:
            return self.own[self.generator.integers(len(self.own))]
        return self.examples.batch(self.generator.choice(self.examples.texts(), TEXTS).tolist())

    def pages(self, chosen: list[int]) -> Tensor:
        """The loss of each page, its gradient taken; in more parts when memory does not suffice."""
        try:
            found = []
            for part in np.array_split(np.asarray(chosen), min(self.parts, len(chosen))):
                batch = self.examples.batch(part.tolist())
                losses = answer_loss(self.model, batch)
                ((1 - TEXT_SHARE) * losses.sum() / len(chosen)).backward()
                found.append(losses.detach())
                self.tokens += batch.ids.numel()
            return torch.cat(found)
        except torch.OutOfMemoryError:
            if self.parts >= len(chosen):
                raise
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        self.parts *= 2
        print(f"out of memory: {self.parts} parts a step", flush=True)
        return self.pages(chosen)

    def one_step(self, chosen: list[int], rate: float) -> tuple[Tensor, Tensor]:
        """A step; the loss of each page, and of texts, still on the device."""
        pages = self.pages(chosen)
        texts = drift(self.model, self.untouched, self.text())
        (TEXT_SHARE * texts.mean()).backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return pages, texts.detach().mean()

    def train(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Until the time is used up; the weights are written every minute and at the end."""
        start, every, saved = clock(), self.asked.log_every, 0.0
        seen: list[tuple[list[int], Tensor, Tensor]] = []
        with (folder / "curve.jsonl").open("a", encoding="utf-8") as file:
            for chosen in self.batches():
                spent = clock() - start
                if spent >= self.asked.seconds:
                    break
                left = 1 - spent / self.asked.seconds
                rate = self.asked.rate * min(1.0, (self.step + 1) / self.asked.warmup) * left
                seen.append((chosen, *self.one_step(chosen, rate)))
                if self.step % every == 0:
                    line = {"step": self.step, "tokens": self.tokens, "seconds": round(spent, 1)}
                    line |= self._means(seen)
                    seen.clear()
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    print(line, flush=True)
                if spent - saved > SAVE_EVERY:
                    self.save(folder, spent)
                    saved = spent
        self.save(folder, clock() - start)

    def save(self, folder: Path, seconds: float) -> None:
        """Write the changes, and what they cost."""
        about = {
            "step": self.step, "tokens": self.tokens, "rank": self.asked.rank,
            "alpha": self.asked.alpha, "seconds": round(seconds),
        }  # fmt: skip
        changes = shipped_changes(adapters(self.changes), self.asked.alpha / self.asked.rank)
        texts = {key: str(value) for key, value in about.items()}
        save_file(changes, folder / "weights.safetensors", texts)
        print(f"written: {about}", flush=True)

    def _means(self, seen: list[tuple[list[int], Tensor, Tensor]]) -> dict[str, float]:
        kinds = np.concatenate([self.examples.kind[chosen] for chosen, _, _ in seen])
        losses = torch.cat([pages for _, pages, _ in seen]).cpu().numpy()
        means = {name: losses[kinds == n] for n, name in enumerate(KINDS)}
        found = {name: round(float(own.mean()), 3) for name, own in means.items() if len(own)}
        return found | {"text": round(float(torch.stack([t for _, _, t in seen]).mean()), 4)}


def arguments() -> argparse.Namespace:
    """What is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--language-model", type=Path, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--shards", type=Path, default=RUNS / "shards")
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--tokens", type=int, default=49_152, help="of a step, pads included")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--alpha", type=int, default=128)
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--warmup", type=int, default=30, help="steps")
    parser.add_argument("--prompts", type=int, default=800, help="that the model answers itself")
    parser.add_argument("--log-every", type=int, default=20, help="steps")
    parser.add_argument("--without", choices=SOURCES_OF, help="a kind of document never seen")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train and write."""
    asked = arguments()
    torch.manual_seed(asked.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device(asked.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    files = sorted(path for path in asked.shards.glob("*.npz") if path.stem.isdigit())
    examples = Examples(files, device, SOURCES_OF[asked.without] if asked.without else ())
    print(f"{len(examples)} examples, {examples.length.sum():,} tokens", flush=True)
    folder = asked.language_model or resolve(TEXT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    asked.out.mkdir(parents=True, exist_ok=True)
    run = Run(model, examples, asked)
    print(f"{len(run.own)} batches of own answers", flush=True)
    run.train(asked.out)


if __name__ == "__main__":
    main()
