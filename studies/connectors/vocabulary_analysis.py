"""What P_vocab, averaged over pages, looks like.

The paper (arXiv 2502.01341) averages it over 100 pages: dense, its largest probability 0.0118,
whitespace tokens high, and about 3.4K of 128K tokens above 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

PAPER_VOCABULARY = 128_256
"""Rows of Llama 3's table."""
NEGLIGIBLE = 1e-6
"""Below it the paper calls a token's mean probability negligible."""


@dataclass(frozen=True)
class VocabularyUse:
    """Facts about an averaged distribution over ``vocabulary`` ids.

    Attributes:
        largest: the largest probability, and ``largest_token`` whose it is.
        effective: exp(entropy) of the averaged distribution; between 1 and ``vocabulary``.
        above: ids whose probability is above the paper's 1e-6, scaled so that it is the same
            fraction of the uniform probability here as there: 1e-6 * 128,256 / ``vocabulary``.
        whitespace: probability on ids that decode to white space alone.
        shares: K to the probability on the K most probable ids.
        for_99: how many of the most probable ids hold 99 % of it.
    """

    vocabulary: int
    largest: float
    largest_token: str
    effective: float
    above: int
    whitespace: float
    shares: dict[int, float]
    for_99: int


def vocabulary_use(
    mass: Float[Tensor, " vocab"], tokenizer: Any, top: Sequence[int] = (1, 10, 100, 1000)
) -> VocabularyUse:
    """Describe P_vocab summed over visual tokens, as ``vocabulary_mass`` returns it.

    Raises:
        ValueError: there is no mass.
    """
    total = mass.double().sum()
    if not total > 0:
        raise ValueError("no probability mass to describe")
    p = mass.double() / total
    ranked, order = torch.sort(p, descending=True)
    running = ranked.cumsum(0)
    entropy = -torch.special.xlogy(p, p).sum()
    texts = [tokenizer.decode([i]) for i in range(len(p))]
    blank = torch.tensor([bool(text) and text.isspace() for text in texts])
    return VocabularyUse(
        vocabulary=len(p),
        largest=ranked[0].item(),
        largest_token=texts[int(order[0])],
        effective=entropy.exp().item(),
        above=int((p > NEGLIGIBLE * PAPER_VOCABULARY / len(p)).sum()),
        whitespace=p[blank].sum().item(),
        shares={k: running[min(k, len(p)) - 1].item() for k in top if k <= len(p)},
        for_99=int((running < 0.99).sum()) + 1,
    )
