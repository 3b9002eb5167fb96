"""Prune P_vocab to the tokens that pages use, and say what that changes.

Pruning keeps the statistics of the whole vocabulary's LayerNorm, so each kept token's logit stays
what it was (:meth:`alignvlm.connectors.AlignConnector.prune`). *Naive* pruning computes that
LayerNorm over the kept rows alone; it is measured beside it, never saved.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..connectors import AlignConnector
from ..errors import ConfigError
from ..files import new_folder
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from .usage import ROWS, most_used, page_features, prunable, spelling_ids, vocabulary_mass

TIMING_ROUNDS = 5


class Question(NamedTuple):
    """What is asked before and after pruning: a name for the report, pages, and the question."""

    where: str
    pages: list[Image.Image]
    text: str


Ask = Callable[[list[Image.Image], str], str]
"""Answers a question about pages with the model as it is now."""


@dataclass(frozen=True)
class PruningChange:
    """How a pruned P_vocab differs from the one before.

    Attributes:
        kl: KL(pruned ‖ before), nats, averaged over the visual tokens.
        top_changed: share of the visual tokens whose most probable token changed.
        text_top_changed: the same among those that were not blank before.
        same_answers: questions answered with the very same text.
    """

    kl: float
    top_changed: float
    text_top_changed: float
    same_answers: int


@dataclass(frozen=True)
class PruningReport:
    """What pruning kept and changed.

    Attributes:
        vocabulary: the language model's ids that P_vocab covered when it was new.
        before, kept: ids of P_vocab.
        always_kept: of the kept ids, how many are kept whatever their mass: blank, newline and
            single bytes.
        pages, visual_tokens: what P_vocab was measured on.
        mass_kept: probability of the kept ids before pruning, averaged over the visual tokens.
        pruned: with the whole vocabulary's statistics, as saved.
        naive: with LayerNorm over the kept rows; ``None`` for a connector without that LayerNorm.
        questions: how many were asked.
        answers: those that came out differently, as ``where, question, before, pruned, naive``.
        parameters, bytes: of the whole model's parameters and buffers, before and after.
        connector_ms: one page through the connector, before and after; median.
        connector_tokens: visual tokens of that page.
    """

    vocabulary: int
    before: int
    kept: int
    always_kept: int
    pages: int
    visual_tokens: int
    mass_kept: float
    pruned: PruningChange
    naive: PruningChange | None
    questions: int
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    connector_ms: tuple[float, float]
    connector_tokens: int
    answers: list[dict[str, str | None]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """For people."""
        changes = [self.pruned, *([self.naive] if self.naive else [])]
        titles = ["pruned", "naive"][: len(changes)]

        def row(name: str, cells: Iterable[str]) -> str:
            return f"{name:<34}" + "".join(f"{cell:>15}" for cell in cells)

        lines = [
            f"P_vocab: {self.kept:,} of {self.before:,} ids kept, by their probability on "
            f"{self.visual_tokens:,} visual tokens of {self.pages} page(s)",
            f"always kept: {self.always_kept} ids (blank, newline, single bytes), so that "
            "everything can still be spelled",
            f"probability that was on the kept ids: {self.mass_kept:.2%}",
            row("", titles),
            row("KL(pruned || before), nats", (f"{c.kl:.4f}" for c in changes)),
            row("most probable token changed", (f"{c.top_changed:.2%}" for c in changes)),
            row("  where it was not blank", (f"{c.text_top_changed:.2%}" for c in changes)),
            row("same answers", (f"{c.same_answers} of {self.questions}" for c in changes)),
            row("", ("before", "after")),
            row("parameters", (f"{n:,}" for n in self.parameters)),
            row("MiB", (f"{n / 2**20:.1f}" for n in self.bytes)),
            row(
                f"connector, ms for {self.connector_tokens} tokens",
                (f"{ms:.1f}" for ms in self.connector_ms),
            ),
        ]
        if self.naive:
            lines.append("(naive: LayerNorm over the kept rows alone; measured, not saved)")
        return "\n".join(lines)


def prune_model(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: Iterable[Image.Image],
    keep: int,
    questions: Sequence[Question] = (),
    ask: Ask | None = None,
) -> PruningReport:
    """Prune the model in place to the ``keep`` ids its P_vocab uses most, and measure the change.

    Args:
        pages: gone through twice, so not an iterator: first to choose the ids, then to compare.
        keep: ids to keep; blank, newline and single bytes always are.
        questions: asked before, after, and after naive pruning.
        ask: answers them; needed if there are any.

    Raises:
        ConfigError: no P_vocab, ``keep`` does not fit, or no page.
    """
    whole = prunable(model, keep)
    spelling = spelling_ids(model.config, processor.tokenizer)
    ids = torch.tensor(spelling, dtype=torch.long, device=whole.w2.weight.device)
    always = ids[whole.keeps(ids)].tolist()
    if len(always) > keep:
        raise ConfigError(
            f"cannot keep {keep} vocabulary ids: blank, newline and single bytes, which are always "
            f"kept, are {len(always)}"
        )
    mass = vocabulary_mass(model, processor, pages)
    exact, naive = _pruned(whole, most_used(whole, mass, keep, always))
    comparison = _compare(model, processor, pages, whole, exact, naive)
    answers = [_answers(model, c, questions, ask) for c in (whole, exact, naive) if c is not None]
    same = [sum(a == b for a, b in zip(answers[0], other, strict=True)) for other in answers[1:]]
    times = _connector_ms(model, comparison.features, [whole, exact])
    size = _size(model)
    model.model.connector = exact
    model.config.connector_config = exact.config.model_dump()
    after = _size(model)
    return PruningReport(
        vocabulary=whole.vocab_size,
        before=whole.w2.out_features,
        kept=keep,
        always_kept=len(always),
        pages=comparison.pages,
        visual_tokens=comparison.tokens,
        mass_kept=comparison.mass_kept,
        pruned=PruningChange(*comparison.exact, same[0]),
        naive=None if naive is None else PruningChange(*comparison.naive, same[1]),
        questions=len(questions),
        parameters=(size[0], after[0]),
        bytes=(size[1], after[1]),
        connector_ms=times,
        connector_tokens=comparison.features.shape[:3].numel(),
        answers=_differing(questions, answers),
    )


def _pruned(whole: AlignConnector, ids: Tensor) -> tuple[AlignConnector, AlignConnector | None]:
    exact = copy.deepcopy(whole)
    exact.prune(ids)
    if not exact.config.full_statistics:
        return exact, None
    naive = copy.deepcopy(exact)
    naive.config = naive.config.model_copy(update={"full_statistics": False})
    return exact, naive


class _Comparison(NamedTuple):
    pages: int
    tokens: int
    mass_kept: float
    exact: tuple[float, float, float]
    naive: tuple[float, float, float]
    features: Tensor


@torch.no_grad()
def _compare(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: Iterable[Image.Image],
    whole: AlignConnector,
    exact: AlignConnector,
    naive: AlignConnector | None,
) -> _Comparison:
    """P_vocab of each visual token by the three connectors; means over the tokens."""
    blank = model.config.blank_token_id
    tokens = text = count = 0
    mass, sums = 0.0, torch.zeros(2, 3, dtype=torch.float64)
    features = None
    for page in pages:
        count += 1
        blocks = page_features(model, processor, page).split(ROWS)
        features = torch.cat(blocks)[None, None] if features is None else features
        for block in blocks:
            p = whole.vocab_distribution(block)
            best = p.argmax(-1)
            written = best != blank if blank is not None else torch.ones_like(best).bool()
            kept = p[:, exact.token_ids].double()
            mass += kept.sum().item()
            tokens, text = tokens + len(block), text + int(written.sum())
            for total, connector in zip(sums, (exact, naive), strict=True):
                if connector is not None:
                    q = connector.vocab_distribution(block)
                    changed = q.argmax(-1) != best
                    q = q[:, exact.token_ids].double()
                    kl = torch.special.xlogy(q, q / kept.clamp_min(1e-45)).sum()
                    total += torch.stack([kl, changed.sum(), (changed & written).sum()]).cpu()
    if features is None:
        raise ConfigError("no page to compare on: the pages must be a list, not an iterator")
    means = sums / torch.tensor([tokens, tokens, max(1, text)])
    (one, two) = ((kl, top, text_top) for kl, top, text_top in means.tolist())
    return _Comparison(count, tokens, mass / tokens, one, two, features)


def _answers(
    model: AlignVLMForConditionalGeneration,
    connector: AlignConnector,
    questions: Sequence[Question],
    ask: Ask | None,
) -> list[str]:
    if not questions:
        return []
    if ask is None:
        raise ValueError("questions need ask")
    before, model.model.connector = model.model.connector, connector
    try:
        return [ask(question.pages, question.text) for question in questions]
    finally:
        model.model.connector = before


def _differing(
    questions: Sequence[Question], answers: list[list[str]]
) -> list[dict[str, str | None]]:
    rows = []
    for question, *said in zip(questions, *answers, strict=True):
        if len(set(said)) > 1:
            names = dict(zip(("before", "pruned", "naive"), [*said, None], strict=False))
            rows.append({"where": question.where, "question": question.text, **names})
    return rows


@torch.inference_mode()
def _connector_ms(
    model: AlignVLMForConditionalGeneration, features: Tensor, connectors: list[AlignConnector]
) -> tuple[float, float]:
    """Median time of each on one page's features; they take turns, after one round to warm up."""
    table = model.model.text_embedding()
    times: list[list[float]] = [[] for _ in connectors]
    for _ in range(TIMING_ROUNDS + 1):
        for spent, connector in zip(times, connectors, strict=True):
            start = time.perf_counter()
            connector(features, table)
            if features.device.type == "cuda":
                torch.cuda.synchronize()
            spent.append((time.perf_counter() - start) * 1000)
    before, after = (round(statistics.median(spent[1:]), 3) for spent in times)
    return before, after


def _size(model: torch.nn.Module) -> tuple[int, int]:
    """Parameters, and bytes of parameters and saved buffers; tied ones once."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.dtype != torch.bool)]
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, sum(t.numel() * t.itemsize for t in tensors)


def save_pruned(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    report: PruningReport,
    out: Path,
    origin: dict[str, Any] | None = None,
) -> None:
    """Write model, processor and ``pruning.json`` beside ``out``, then make them visible at once.

    Args:
        origin: more keys for ``pruning.json``, such as the model and files it was made from.

    Raises:
        ConfigError: ``out`` exists.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another folder")
    with new_folder(out) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        data = {**(origin or {}), **report.to_dict()}
        text = json.dumps(data, ensure_ascii=False, indent=1)
        (partial / "pruning.json").write_text(text + "\n", encoding="utf-8")
