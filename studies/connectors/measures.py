"""What is measured on a trained cell; answers are kept as text, and scored when reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .batches import Batch, Batcher, Question, held_out, several, unseen
from .reader import AlignConnector, Reader
from .settings import SIGMAS
from .store import CHANNELS

BATCH = 192
MOST_TOKENS = 24
"""Of an answer that is generated."""
PARTS = ("test", "receipts", "layouts", "scans", "look-alikes")
UNSEEN = 192
"""Pages that choose the learning rate."""
SEVERAL_PAGES = (2, 4, 8)
"""Pages of one prompt."""
NOISY = 96
"""Questions of the noise sweep."""
NEGLIGIBLE = 1e-6 * 128_256
"""The paper's threshold on mean probabilities, times its vocabulary: the same fraction
of the uniform probability for any vocabulary."""
ROWS = 512
"""Cells whose dense distribution is held at once."""


class Measures:
    """Measures one model on one device."""

    def __init__(self, reader: Reader, batcher: Batcher, device: str) -> None:
        self.reader, self.batcher, self.device = reader, batcher, device
        self.batch = BATCH if device == "cuda" else 8

    def batches(self, questions: Sequence[Question], *, answers: bool) -> list[Batch]:
        """Questions in batches on the device."""
        size = max(1, self.batch // len(questions[0].pages))
        parts = (questions[i : i + size] for i in range(0, len(questions), size))
        return [self.batcher.batch(part, answers=answers).to(self.device) for part in parts]

    @torch.no_grad()
    def loss(
        self, questions: Sequence[Question], sigma: float = 0.0, *, white: bool = False
    ) -> dict[str, float]:
        """Nats a token of the right answers, and how many tokens come first."""
        nats, right, count = 0.0, 0, 0
        for number, batch in enumerate(self.batches(questions, answers=True)):
            x, shift, _ = self.reader.inputs(batch, self.seen(batch, sigma, number, white))
            logits = self.reader.answer_logits(x, shift, batch)
            nats += F.cross_entropy(logits, batch.wanted, reduction="sum").item()
            right += int((logits.argmax(-1) == batch.wanted).sum())
            count += len(batch.wanted)
        return {"loss": nats / count, "tokens_right": right / count}

    @torch.no_grad()
    def answers(
        self, questions: Sequence[Question], sigma: float = 0.0, *, white: bool = False
    ) -> list[str]:
        """What the model says to each question."""
        said: list[str] = []
        for number, batch in enumerate(self.batches(questions, answers=False)):
            cells = self.seen(batch, sigma, number, white)
            ids = self.reader.generate(batch, MOST_TOKENS, self.batcher.end, cells)
            said += self.batcher.tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)
        return [text.strip() for text in said]

    def seen(self, batch: Batch, sigma: float, number: int, white: bool) -> Tensor:
        """The cells, with N(0, sigma²) on the features, or a white page's: nothing at all."""
        if white:
            return torch.zeros_like(batch.cells)
        if not sigma:
            return batch.cells
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(batch.cells.shape, generator=generator).to(batch.cells)
        noise[..., CHANNELS:] = 0
        real = torch.zeros_like(batch.cells[..., 0]).flatten()
        real[batch.kept] = 1
        return batch.cells + sigma * noise * real.view(*batch.cells.shape[:2], 1)

    @torch.no_grad()
    def distance(self, questions: Sequence[Question], sigma: float) -> float:
        """Mean cosine distance between clean and noisy visual tokens."""
        far, count = 0.0, 0
        for number, batch in enumerate(self.batches(questions, answers=False)):
            clean, _ = self.reader.visual(batch, batch.cells)
            noisy, _ = self.reader.visual(batch, self.seen(batch, sigma, number, False))
            cosine = F.cosine_similarity(clean.float(), noisy.float(), dim=-1)
            far, count = far + (1 - cosine).sum().item(), count + len(cosine)
        return far / count

    def without_changes(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The same with the untouched language model: what the connector takes along."""
        rank, self.reader.language.rank = self.reader.language.rank, 0
        layers = self.reader.language.changed()
        before = [layer.changes for layer in layers]
        for layer in layers:
            layer.changes = None
        try:
            return {"answers": self.answers(questions), **self.loss(questions)}
        finally:
            self.reader.language.rank = rank
            for layer, changes in zip(layers, before, strict=True):
                layer.changes = changes


def unseen_loss(reader: Reader, batcher: Batcher, device: str, seed: int) -> dict[str, Any]:
    """Losses on training pages that a cell of the sweep did not see: they choose the rate."""
    own, pages = Measures(reader, batcher, device), batcher.pages
    return {
        name: own.loss(unseen(pages, seed, UNSEEN, read=read))
        for name, read in (("reading", True), ("asking", False))
    }


def measure(reader: Reader, batcher: Batcher, device: str, *, everything: bool) -> dict[str, Any]:
    """Losses and answers, before a white page as well; with ``everything`` all the rest."""
    own, pages = Measures(reader, batcher, device), batcher.pages
    reading = held_out(pages, "test", read=True)
    asked = held_out(pages, "test", read=False)
    found: dict[str, Any] = {"reading": own.loss(reading), "asking": own.loss(asked)}
    found["receipts"] = own.loss(held_out(pages, "receipts", read=False))
    parts = PARTS if everything else PARTS[:2]
    found["answers"] = {part: own.answers(held_out(pages, part, read=False)) for part in parts}
    if reader.kind != "text":
        found["white"] = {
            "answers": own.answers(asked, white=True),
            **own.loss(reading, white=True),
        }
    if not everything:
        return found
    found["several"] = {str(k): own.answers(several(pages, k)) for k in SEVERAL_PAGES}
    if reader.language.rank:
        found["without_changes"] = own.without_changes(asked)
    if reader.kind == "text":
        return found
    found["noise"] = [
        {
            "sigma": sigma,
            "answers": own.answers(asked[:NOISY], sigma),
            "cosine_distance": own.distance(asked[:NOISY], sigma),
            **own.loss(reading[:NOISY], sigma),
        }
        for sigma in SIGMAS
    ]
    if isinstance(reader.connector, AlignConnector):
        found |= vocabulary(own, asked)
    return found


@torch.no_grad()
def vocabulary(own: Measures, questions: Sequence[Question]) -> dict[str, Any]:
    """The averaged P_vocab, the share of cells that name their token, and pruning."""
    align = own.reader.connector
    assert isinstance(align, AlignConnector)
    mass = torch.zeros(align.vocab_size, device=own.device, dtype=torch.float64)
    entropy, named, starts, count = 0.0, 0, 0, 0
    for batch in own.batches(questions, answers=False):
        rows = batch.cells.flatten(0, 1)[batch.kept]
        for cells, targets in zip(rows.split(ROWS), batch.targets.split(ROWS), strict=True):
            log_p = torch.log_softmax(align.logits(align.hidden(cells)), -1)
            p = log_p.exp()
            mass += p.sum(0).double()
            entropy -= (p * log_p).sum().item()
            text = targets != own.reader.blank
            named += int(((log_p.argmax(-1) == targets) & text).sum())
            starts, count = starts + int(text.sum()), count + len(cells)
    use = described(mass, own.batcher)
    kept = torch.sort(mass, descending=True).indices[: max(2, use["for_99"])]
    table = own.reader.float_table
    return {
        "vocabulary_use": {**use, "entropy": entropy / count, "named": named / max(1, starts)},
        "spread": [round(v, 4) for v in spread(table, kept).tolist()],
        "pruned": pruned(own, questions, kept),
    }


def described(mass: Float[Tensor, " vocab"], batcher: Batcher) -> dict[str, Any]:
    """Facts about an averaged distribution, as the paper has them."""
    p = mass / mass.sum()
    ranked, order = torch.sort(p, descending=True)
    texts = batcher.tokenizer.decode_batch([[i] for i in range(len(p))], skip_special_tokens=False)
    white = torch.tensor([bool(t) and t.isspace() for t in texts], device=p.device)
    return {
        "vocabulary": len(p),
        "largest": ranked[0].item(),
        "best": [texts[int(i)] for i in order[:10]],
        "effective": torch.special.entr(p).sum().exp().item(),
        "above": int((p > NEGLIGIBLE / len(p)).sum()),
        "whitespace": p[white].sum().item(),
        "for_99": int((ranked.cumsum(0) < 0.99).sum()) + 1,
    }


def spread(table: Tensor, used: Tensor, axes: int = 10) -> Tensor:
    """Standard deviation of the used rows over that of all rows, along the first components."""
    rows = table.double()
    centred = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    projected = centred @ vectors.flip(1)[:, :axes]
    return projected[used].std(0) / projected.std(0).clamp_min(1e-12)


def pruned(own: Measures, questions: Sequence[Question], kept: Tensor) -> dict[str, Any]:
    """Answers with the ids that hold 99 % of the mass alone; the others get none."""
    align = own.reader.connector
    assert isinstance(align, AlignConnector)
    bias = align.outer_norm_bias
    if bias is None:
        return {}
    before = bias.data.clone()
    gone = torch.ones(len(bias), dtype=torch.bool, device=bias.device)
    gone[kept] = False
    bias.data[gone] = -1e4
    try:
        return {"kept": len(kept), "answers": own.answers(questions)}
    finally:
        bias.data.copy_(before)
