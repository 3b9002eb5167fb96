"""How probable each token of an answer was: OpenAI's ``logprobs``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from transformers import StoppingCriteria

from ..inference.generate import LastScores
from ..inference.span_decoding import TokenBytes

LEAST = -9999.0
"""What OpenAI's server says of a token that cannot be: JSON has no infinity."""


class _Scored(NamedTuple):
    token: int
    log_probability: float
    best: list[tuple[int, float]]


class _After(StoppingCriteria):
    """Notes the token that was chosen; ends nothing."""

    def __init__(self, before: LastScores, best: int) -> None:
        self.before, self.best = before, best
        self.found: list[_Scored] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        log_p = self.before.last[0].float().log_softmax(-1)
        token = int(input_ids[0, -1])
        top = log_p.topk(self.best)
        pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        self.found.append(_Scored(token, float(log_p[token]), pairs))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class TokenScores:
    """Log-probabilities of one answer's tokens, as the model has them after ``frequency_penalty``
    and before ``temperature`` and ``top_p``.

    Args:
        spells: what the vocabulary's tokens spell.
        best: how many of the likeliest tokens are told beside each.

    Attributes:
        processor, criteria: to be given to ``generate``, which must have one sequence.
    """

    def __init__(self, spells: TokenBytes, best: int) -> None:
        self.spells = spells
        self.processor = LastScores()
        self.criteria = _After(self.processor, best)
        self._told = 0
        self._bytes = 0

    def until(self, size: int) -> list[ChatCompletionTokenLogprob]:
        """Tokens not told before that begin within the answer's first ``size`` bytes; tokens that
        spell nothing, such as the end's, are left out."""
        told = []
        while self._told < len(self.criteria.found) and self._bytes < size:
            one = self.criteria.found[self._told]
            self._told += 1
            if spelled := self.spells.of.get(one.token):
                self._bytes += len(spelled)
                told.append(self._shown(one))
        return told

    def _shown(self, one: _Scored) -> ChatCompletionTokenLogprob:
        top = [TopLogprob(**self._token(token, log_p)) for token, log_p in one.best]
        own = self._token(one.token, one.log_probability)
        return ChatCompletionTokenLogprob(**own, top_logprobs=top)

    def _token(self, token: int, log_probability: float) -> dict[str, Any]:
        spelled = self.spells.of.get(token, b"")
        return {
            "token": spelled.decode("utf-8", "replace"),
            "bytes": list(spelled),
            "logprob": max(log_probability, LEAST),
        }
