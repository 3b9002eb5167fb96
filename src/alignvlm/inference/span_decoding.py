"""Decoding that leaves an answer only spans of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from ..model.generation import AlignVLMForConditionalGeneration
from .page_spans import LiveSpan, PageSpans
from .token_bytes import TokenBytes


class ExtractiveDecoding(LogitsProcessor):
    """Leaves a prompt's answer only what is one of its spans, or :data:`.page_spans.ABSENT`.

    It serves one call of ``generate``: the first step's ids are the prompts. Beams and returned
    sequences of a prompt stand side by side, as ``generate`` keeps them.

    Args:
        spans: of each prompt's pages; all, or those of a kind.
        tokens: the vocabulary.
        ends: ids that end an answer.
    """

    def __init__(self, spans: Sequence[PageSpans], tokens: TokenBytes, ends: Sequence[int]) -> None:
        self._spans, self._tokens, self._ends = spans, tokens, list(ends)
        self._prompt: int | None = None
        places = {id(own): number for number, own in reversed(list(enumerate(spans)))}
        self._same = [places[id(own)] for own in spans]  # questions about one page are alike
        self._known: dict[tuple[int, tuple[int, ...]], list[LiveSpan]] = {}
        self._after: dict[tuple[int, tuple[int, ...]], list[int]] = {}

    def _live(self, prompt: int, said: tuple[int, ...]) -> list[LiveSpan]:
        key = prompt, said
        if key not in self._known:
            spans = self._spans[prompt]
            if said:
                spelled = self._tokens.of.get(said[-1])
                before = self._live(prompt, said[:-1]) if spelled else []
                self._known[key] = spans.follow(before, spelled or b"")
            else:
                self._known[key] = spans.begin(spaced=not self._tokens.byte_level)
        return self._known[key]

    def _allowed(self, prompt: int, said: tuple[int, ...]) -> list[int]:
        key = prompt, said
        if key not in self._after:
            live, spans = self._live(prompt, said), self._spans[prompt]
            found = list(spans.allowed(live, self._tokens))
            self._after[key] = found + self._ends if spans.ended(live) or not found else found
        return self._after[key]

    def __call__(
        self, input_ids: Int[Tensor, "rows length"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        """The scores, with -inf for what may not follow."""
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
        beams = len(input_ids) // len(self._spans)
        masked = torch.full_like(scores, -math.inf)
        for row, ids in enumerate(input_ids[:, self._prompt :].tolist()):
            allowed = self._allowed(self._same[row // beams], tuple(ids))
            masked[row, allowed] = scores[row, allowed]
        return masked


def end_ids(model: AlignVLMForConditionalGeneration) -> list[int]:
    """The ids that end an answer."""
    ends = model.generation_config.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or ())
