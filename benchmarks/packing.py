"""Tokens a second of a training step, packed against padded.

    python -m benchmarks.packing                        # smol, rendered pages, batches of 8
    python -m benchmarks.packing --batch-size 16 --batches 4

The same batches go through both ways in alternation: pages read by the encoder, loss and gradients
of the language model. Prints one line a way; docs/performance.md says what came out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from alignvlm.data.collate import Collator
from alignvlm.inference.loading import load_model
from alignvlm.train.recipe import StageSpec
from alignvlm.train.stages import StageDataset, build_mix, set_trainable

from . import measure as m

LARGE = {"width": 560, "height": 320, "font_px": [18, 18]}
PAGES = [
    {"type": "render", "weight": 2, "task": "qa", "page": {"layout": "form"}},
    {"type": "render", "weight": 1, "task": "both", "page": {"layout": "receipt"}},
    {"type": "render", "weight": 1, "task": "transcribe", "page": {"layout": "text", **LARGE}},
]
"""Small pages with short answers beside large ones read aloud: samples of unequal length."""


class Way(NamedTuple):
    """One way's batches: seconds of processor time (on a GPU: of the clock), of which the page
    encoder took some; tokens that were there, and places that the language model computed."""

    seconds: float = 0
    encoder: float = 0
    tokens: int = 0
    places: int = 0

    def plus(self, other: Way) -> Way:
        """Both together."""
        return Way(*(mine + its for mine, its in zip(self, other, strict=True)))


def stage(batch_size: int, batches: int) -> StageSpec:
    """The language model trains on rendered pages."""
    return StageSpec.model_validate(
        {
            "name": "packing",
            "steps": batches,
            "batch_size": batch_size,
            "train": {"text": 1e-5},
            "sources": PAGES,
        }
    )


class Steps:
    """Runs steps of a model and counts what its language model is given."""

    def __init__(self, model: Any) -> None:
        self.model, self.tokens, self.places, self.encoder = model, 0, 0, 0.0
        model.model.language_model.register_forward_pre_hook(self._count, with_kwargs=True)
        encode = model.model.encode

        def timed(*args: Any) -> Any:
            start = self._now()
            encoded = encode(*args)
            self.encoder = self._now() - start
            return encoded

        model.model.encode = timed

    def _now(self) -> float:
        # other programs on the machine do not count
        on_cpu = self.model.device.type == "cpu"
        return time.process_time() if on_cpu else m.clock(str(self.model.device))

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        mask = kwargs.get("attention_mask")
        self.places = kwargs["inputs_embeds"].shape[:2].numel()
        self.tokens = 0 if mask is None else int(mask.sum())

    def step(self, batch: dict[str, Any], packing: bool) -> Way:
        """Loss and gradients of one batch."""
        self.model.zero_grad()
        start = self._now()
        loss = self.model(**batch, skip_logits=True, use_cache=False, packing=packing).lm_loss
        loss.backward()
        return Way(self._now() - start, self.encoder, self.tokens, self.places)


def measure(reference: str, batch_size: int, batches: int) -> dict[str, Way]:
    """Both ways over the same batches, in alternation; the first batch once more as a warm-up."""
    model, processor = load_model(reference, dtype=torch.float32)
    spec = stage(batch_size, batches)
    set_trainable(model.train(), spec.train)
    data = StageDataset(build_mix(spec, 0), spec, processor, model, 0)
    collate, steps = Collator(processor.tokenizer.pad_token_id), Steps(model)
    found = {"padded": Way(), "packed": Way()}
    for number in range(-1, batches):
        start = max(number, 0) * batch_size
        batch = collate([data[start + i] for i in range(batch_size)])
        batch = {key: value.to(model.device) for key, value in batch.items()}
        for name in sorted(found, reverse=number % 2 == 0):
            way = steps.step(batch, name == "packed")
            found[name] = found[name].plus(way) if number >= 0 else Way()
    # packed rows have no mask; their tokens are those that the padded ones counted
    found["packed"] = found["packed"]._replace(tokens=found["padded"].tokens)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print tokens a second of both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="smol")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4)
    options = parser.parse_args(arguments)
    found = measure(options.model, options.batch_size, options.batches)
    print(f"{options.batches} batches of {options.batch_size}, {torch.get_num_threads()} threads")
    for name, way in found.items():
        print(
            f"{name}: {way.tokens / way.seconds:,.1f} tokens/s; {way.seconds:.0f} s, of which the "
            f"encoder {way.encoder:.0f} s; {way.tokens:,} tokens in {way.places:,} places "
            f"({way.tokens / way.places:.0%} used)"
        )
    padded, packed = found["padded"], found["packed"]
    rest = (padded.seconds - padded.encoder) / (packed.seconds - packed.encoder)
    whole = padded.seconds / packed.seconds
    print(f"packed is {whole:.2f} times as fast, {rest:.2f} without the encoder")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
