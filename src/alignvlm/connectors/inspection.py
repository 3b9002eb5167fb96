"""P_vocab written out, to be looked at: dense, its best tokens, and how sharp it is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .connector import Connector
from .distinct import distinct

DENSE_BYTES = 64 * 2**20
"""Works on blocks of rows whose dense distribution is at most this large."""


class VocabTelemetry(NamedTuple):
    """How sharp P_vocab is, averaged over visual tokens.

    Attributes:
        entropy: nats.
        effective_vocab: exp(entropy), averaged per visual token; between 1 and the vocabulary.
        top_probability: the largest probability.
    """

    entropy: float
    effective_vocab: float
    top_probability: float


class Inspected(Connector):
    """A connector with a P_vocab that can be looked at.

    ``w2`` has a row for each token of P_vocab, ``token_ids`` says which they are (``None``: all
    ``vocab_size``).
    """

    vocab_size: int
    w2: nn.Linear
    token_ids: Tensor | None

    @abstractmethod
    def hidden(self, features: Float[Tensor, "*n d_vision"]) -> Float[Tensor, "*n d_text"]:
        """What ``logits`` takes."""

    @abstractmethod
    def logits(self, hidden: Float[Tensor, "n d_text"]) -> Float[Tensor, "n kept"]:
        """Whose softmax is P_vocab, dense; fp32 (fp64 for fp64)."""

    @torch.no_grad()
    def vocab_distribution(
        self, features: Float[Tensor, "*n d_vision"]
    ) -> Float[Tensor, "*n vocab"]:
        """P_vocab, dense, for inspection; over all ``vocab_size`` ids, pruned ones at 0.

        fp32 (fp64 for fp64 features). Holds ``n x vocab``: use :meth:`top_tokens` for whole pages.
        """
        hidden = self.hidden(features).flatten(0, -2)
        p = torch.softmax(self.logits(hidden), dim=-1)
        if self.token_ids is not None:
            full = p.new_zeros(p.shape[0], self.vocab_size)
            full[:, self.token_ids] = p
            p = full
        return p.view(*features.shape[:-1], self.vocab_size)

    @torch.no_grad()
    def top_tokens(
        self, features: Float[Tensor, "*n d_vision"], k: int
    ) -> tuple[Float[Tensor, "*n k"], Int[Tensor, "*n k"]]:
        """Probabilities and language-model ids of the ``k`` most probable tokens, best first."""
        flat = features.flatten(0, -2)
        first, index = distinct(flat)
        index = index.view(features.shape[:-1])
        probabilities, ids = [], []
        for logits in self._blocks(self.hidden(flat[first])):
            best = torch.softmax(logits, dim=-1).topk(min(k, self.w2.out_features), dim=-1)
            probabilities.append(best.values)
            ids.append(best.indices if self.token_ids is None else self.token_ids[best.indices])
        return torch.cat(probabilities)[index], torch.cat(ids)[index]

    @torch.no_grad()
    def entropy(self, features: Float[Tensor, "*n d_vision"]) -> Float[Tensor, "*n"]:
        """Entropy of P_vocab for each visual token, nats."""
        return self._entropy_and_top(features)[0]

    @torch.no_grad()
    def telemetry(self, features: Float[Tensor, "*n d_vision"]) -> VocabTelemetry:
        """Entropy, effective vocabulary and top probability, averaged over the visual tokens."""
        entropy, top = self._entropy_and_top(features)
        return VocabTelemetry(entropy.mean().item(), entropy.exp().mean().item(), top.mean().item())

    def _entropy_and_top(self, features: Tensor) -> tuple[Tensor, Tensor]:
        flat = features.flatten(0, -2)
        first, index = distinct(flat)
        index = index.view(features.shape[:-1])
        entropy, top = [], []
        for logits in self._blocks(self.hidden(flat[first])):
            log_p = torch.log_softmax(logits, dim=-1)
            entropy.append(-(log_p.exp() * log_p).sum(-1))
            top.append(log_p.amax(-1).exp())
        return torch.cat(entropy)[index], torch.cat(top)[index]

    def _blocks(self, hidden: Tensor) -> Iterator[Tensor]:
        rows = max(1, DENSE_BYTES // (4 * self.w2.out_features))
        for block in hidden.split(rows):
            yield self.logits(block)
