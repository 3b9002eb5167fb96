"""Prompts of pages for one tokenizer, as sequences that :mod:`.sequences` describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignvlm.reader.characters import Characters
from alignvlm.reader.spelling import Speller

from .sequences import Sequence4D, branch, hard, sure

Rows = Sequence[Characters]
Turns = Sequence[tuple[str, str]]
USER, TURN, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"


def plain(text: str) -> Characters:
    """A row without doubt."""
    return Characters(text, ("",) * len(text), torch.zeros(len(text), 0))


class Prompts:
    """Makes sequences for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.speller = tokenizer, Speller.of(tokenizer)
        (self.newline,) = self.encode("\n")

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it stands."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prefix(self, pages: Sequence[Rows]) -> tuple[Tensor, Tensor]:
        """Candidates and probabilities ``[n, k]`` of what stands before a question."""
        spelled = self.speller.spell([row for page in pages for row in page])
        width = max((line.ids.shape[1] for line in spelled), default=1)
        ids, q = [hard(self.encode(USER), width)], [sure(len(self.encode(USER)), width)]
        end, certain = hard([self.newline], width), sure(1, width)
        lines = iter(spelled)
        for page in pages:
            for _ in page:
                line = next(lines)
                pad = width - line.ids.shape[1]
                ids += [nn.functional.pad(line.ids, (0, pad)).clamp(min=0), end]
                q += [nn.functional.pad(line.q, (0, pad)).float(), certain]
            ids.append(end)
            q.append(certain)
        return torch.cat(ids), torch.cat(q)

    def question(self, text: str) -> list[int]:
        """Ids from a question to where its answer begins."""
        return self.encode(text + TURN)

    def sequence(self, pages: Sequence[Rows], turns: Turns) -> Sequence4D:
        """The pages and the questions about them; without pages a question stands alone."""
        ids, q = self.prefix(pages)
        branches = [(self.question(asked), self.encode(answer + END)) for asked, answer in turns]
        return branch(ids, q, branches)

    def text(self, text: str, longest: int) -> Sequence4D:
        """Running text, every token of which is to be said."""
        ids = self.encode(text)[:longest]
        return branch(hard(ids[:1], 1), sure(1, 1), [([], ids[1:])])
