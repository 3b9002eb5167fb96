"""The lenses: vectors or hidden states in, the nearest tokens of the vocabulary out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BEST = 5
"""Nearest tokens that are kept."""
ROWS = 256
"""Visual tokens whose whole vocabulary is held at once."""

Head = Callable[[Tensor, int], Tensor]
"""Logits ``[n, vocab]`` of hidden states ``[n, d]`` behind so many layers."""


@dataclass(frozen=True)
class Corpus:
    """Text tokens as the language model has them, for the contextual lens.

    Attributes:
        ids: int64 ``[n]``.
        states: of each layer looked at, ``[n, d]``.
    """

    ids: Int[Tensor, " n"]
    states: dict[int, Float[Tensor, "n d"]]


def nearest_rows(
    vectors: Float[Tensor, "n d"], table: Float[Tensor, "vocab d"], best: int = BEST
) -> Int[Tensor, "n best"]:
    """Embedding lens: the tokens whose rows of the table have the highest cosine, best first."""
    rows = F.normalize(table.float(), dim=-1)
    parts = F.normalize(vectors.float(), dim=-1).split(ROWS)
    return torch.cat([(part @ rows.T).topk(best).indices for part in parts])


def head_tokens(
    states: Float[Tensor, "n d"], layer: int, head: Head, best: int = BEST
) -> Int[Tensor, "n best"]:
    """Logit lens: the most probable next tokens, were the later layers left out."""
    return torch.cat([head(part, layer).topk(best).indices for part in states.split(ROWS)])


def nearest_in_text(
    states: Float[Tensor, "n d"],
    layer: int,
    corpus: Corpus,
    vocabulary: int,
    best: int = BEST,
) -> Int[Tensor, "n best"]:
    """Contextual lens: the tokens whose nearest occurrence in a text has the highest cosine.

    A token counts once, by its nearest occurrence, so that ``best`` different ones come back.
    """
    known = F.normalize(corpus.states[layer].float(), dim=-1)
    found = []
    for part in F.normalize(states.float(), dim=-1).split(ROWS):
        cosine = part @ known.T
        highest = cosine.new_full((len(part), vocabulary), -2.0)
        highest.scatter_reduce_(1, corpus.ids.expand(len(part), -1), cosine, "amax")
        found.append(highest.topk(best).indices)
    return torch.cat(found)


def all_lenses(
    p_vocab: Tensor | None,
    outputs: Float[Tensor, "n d"],
    states: dict[int, Float[Tensor, "n d"]],
    table: Float[Tensor, "vocab d"],
    head: Head,
    corpus: Corpus | None,
) -> dict[str, dict[int, Int[Tensor, "n best"]]]:
    """Nearest tokens by lens and layer; P_vocab and the embedding lens have layer 0 alone.

    Args:
        p_vocab: the most probable tokens of P_vocab ``[n, best]``; ``None`` without ALIGN.
        outputs: of the connector.
        states: hidden states at the visual tokens, by layer; empty: neither the logit nor the
            contextual lens is asked.
        corpus: text for the contextual lens, if there are states.
    """
    found = {} if p_vocab is None else {"P_vocab": {0: p_vocab}}
    found["embedding lens"] = {0: nearest_rows(outputs, table)}
    if corpus is None or not states:
        return found
    found["logit lens"] = {n: head_tokens(h, n, head) for n, h in states.items()}
    found["contextual lens"] = {
        n: nearest_in_text(h, n, corpus, len(table)) for n, h in states.items()
    }
    return found


def layers_looked_at(count: int, every: int = 3) -> Sequence[int]:
    """Layers whose hidden states are looked at: the connector's output, each third, the last.

    >>> list(layers_looked_at(8))
    [0, 3, 6, 8]
    """
    return sorted({*range(0, count + 1, every), count})
