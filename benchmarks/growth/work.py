"""One measurement in a process of its own: the inputs of a sweep's steps, and what runs on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import StoppingCriteria, StoppingCriteriaList

from alignvlm import AlignVLMForConditionalGeneration, AlignVLMProcessor
from alignvlm.data.synthetic.fonts import load_font, plain_font
from alignvlm.inference.ask import encode_pages, load_model
from alignvlm.inference.prompt import Prompt, build_prompts, chat, together
from benchmarks import competitors as c
from benchmarks import measure as m
from benchmarks.reading.cost import timed

Run = Callable[[], Any]

WORDS = "The invoice of 14 March names 27 parts and a sum of 1,234.50"
"""A line of drawn pages, about 60 characters."""
QUESTION = "What is the sum?"
FURTHER = 8
"""Tokens after the first that are timed together."""
SAMPLE = 64
"""Positions of each sample where their number grows."""
LEARNING_RATE = 1e-6


def drawn_page(width: int, height: int, lines: int, text: str, px: int = 20) -> Image.Image:
    """A white page with lines of one text, each with its own number."""
    page = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(page), load_font(plain_font(), px)
    for number in range(lines):
        pen.text((20, 20 + round(1.4 * px) * number), f"{number} {text}", fill="black", font=font)
    return page


class Model:
    """The model that reads and answers, and the runs of the sweeps that need it."""

    def __init__(self, reference: str) -> None:
        self.model: AlignVLMForConditionalGeneration
        self.processor: AlignVLMProcessor
        self.model, self.processor = load_model(reference, dtype=torch.float32, device="cpu")

    def reading(self, name: str, value: float) -> Run:
        """Pages from pixels to what the language model is given."""
        if name == "reading-lines":
            pages = [drawn_page(1000, 1000, int(value), WORDS)]
        elif name == "reading-pages":
            pages = [drawn_page(400, 300, 2, f"page {n}") for n in range(int(value))]
        else:
            side = math.isqrt(round(value * 1e6))
            pages = [drawn_page(side, side, 6, "short line")]
        return lambda: encode_pages(self.model, self.processor, pages)

    def prompt(self, pages: int, prompts: int) -> Prompt:
        """``prompts`` questions about ``pages`` pages each; a page is read once and repeated."""
        page = drawn_page(400, 300, 1, WORDS[:32], px=18)
        encoded = together([encode_pages(self.model, self.processor, [page])] * (pages * prompts))
        chats = [chat(QUESTION, [page] * pages)] * prompts
        return build_prompts(self.model, self.processor, chats, encoded=encoded)

    def answering(self, name: str, value: float) -> Run:
        """The first token of each answer; with ``token`` the mean of ``FURTHER`` more, whose times
        it returns."""
        count = int(value)
        many = name.endswith("prompts")
        prompt = self.prompt(1 if many else count, count if many else 1)
        tokens = 1 + FURTHER * name.startswith("token")

        @torch.inference_mode()
        def run() -> m.Times | None:
            moments = Moments()
            self.model.generate(
                **prompt.inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                stopping_criteria=StoppingCriteriaList([moments]),
            )  # type: ignore[operator]  # fmt: skip
            return moments.further() if tokens > 1 else None

        return run

    def training(self, name: str, value: float) -> Run:
        """A step of AdamW on the language model; half of the positions are supervised."""
        length = int(value) if name == "training-positions" else SAMPLE
        samples = 1 if name == "training-positions" else int(value)
        model = self.model.train()
        model.model.vision_model.requires_grad_(False)
        model.model.connector.requires_grad_(False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not hasattr(self, "optimizer"):
            self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
        seed = torch.Generator().manual_seed(0)
        ids = torch.randint(
            4, model.config.text_config.vocab_size, (samples, length), generator=seed
        )
        labels = ids.clone()
        labels[:, : length // 2] = -100

        def run() -> None:
            model(input_ids=ids, labels=labels, skip_logits=True).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return run


class Moments(StoppingCriteria):
    """Notes when each token is there; ends nothing."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def further(self) -> m.Times:
        """Seconds of each token after the first, on average."""
        found = {"cpu": self.cpu, "wall": self.wall}
        return {name: (all_[-1] - all_[0]) / (len(all_) - 1) for name, all_ in found.items()}


class Op:
    """The vocabulary mixture alone, forward and backward, all weights trained."""

    def __init__(self, smoke: bool) -> None:
        self.rows, self.vocab, self.width = (32, 128, 16) if smoke else (256, 16384, 576)

    def op(self, name: str, value: float) -> Run:
        """One call and its gradients; the weights count as changed, as after a step."""
        shape = c.Shape(self.rows, self.vocab, self.width)
        field = {"op-vocabulary": "vocab", "op-width": "width", "op-rows": "rows"}[name]
        shape = c.Shape(**{**vars(shape), field: int(value)})
        inputs = c.random_inputs(shape, "float32", "cpu", "trained", affine=True)
        function = c.implementation("chunked", None)

        def run() -> None:
            for leaf in inputs.leaves():
                leaf.grad = None
            with torch.no_grad():
                inputs.weight[:1].mul_(1.001)
            function(inputs).backward(inputs.upstream)

        return run


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Times or peaks of one sweep, from the smallest step to the largest.

    Every process does each step's kind of work once on the smallest step before it measures.

    Returns:
        for each value, in order, ``cpu`` and ``wall`` seconds of each round, or ``peak`` bytes over
        what was alive before the step.
    """
    m.set_threads(request["threads"])
    torch.manual_seed(0)
    name, values = request["sweep"], request["values"]
    section = name.split("-")[0].replace("token", "answering")
    owner = Op(request["smoke"]) if section == "op" else _loaded(request["model"])
    make: Callable[[str, float], Run] = getattr(owner, section)
    make(name, values[0])()
    if request["mode"] == "memory":
        return {"steps": [_peak(make(name, value)) for value in values]}
    return {"steps": [_times(make(name, value), request) for value in values]}


@cache
def _loaded(reference: str) -> Model:
    """The model, once in a process: a smoke run does everything in its own."""
    return Model(reference)


def _times(run: Run, request: dict[str, Any]) -> list[m.Times]:
    """Rounds of one step; a step that has taken its patience is not repeated."""

    def once() -> m.Times:
        said: list[Any] = []
        whole = timed(lambda: said.append(run()))
        return said[0] if isinstance(said[0], dict) else whole

    return m.time_rounds(
        {"run": once}, request["repeats"], request["patience"], at_least=1
    )["run"]  # fmt: skip


def _peak(run: Run) -> int:
    """Peak bytes of one step over what was alive when its inputs were there."""
    peak = m.PeakMemory("cpu")
    peak.start()
    run()
    return peak.peak()
