"""A page and all questions about it as one sequence of soft tokens.

::

    <|im_start|>user ⏎ row ⏎ row ⏎ ⏎ │ question 1 … answer 1 <|im_end|>
                                     │ question 2 … answer 2 <|im_end|>

Every branch sees the page and itself, at the positions it has alone, so that the page is computed
once and each branch is the prompt of inference to the letter (``CHATML`` of the processor).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alignvlm.model.branches import attention, visible


class Sequence4D(NamedTuple):
    """A page with branches.

    Attributes:
        ids: int64 ``[n, k]``, candidates of each token.
        q: float ``[n, k]``, their probabilities.
        positions: int64 ``[n]``, as each branch would have them alone.
        owner: int64 ``[n]``, 0 for what all branches see, else the branch's number.
        labels: int64 ``[n]``, the token where it is part of an answer, else -100.
    """

    ids: Tensor
    q: Tensor
    positions: Tensor
    owner: Tensor
    labels: Tensor

    def seen(self) -> Tensor:
        """Bool ``[n, n]``: which tokens each token sees."""
        return visible(self.owner[None], None)[0]


def branch(ids: Tensor, q: Tensor, branches: Sequence[tuple[list[int], list[int]]]) -> Sequence4D:
    """A prefix and its branches; of each branch the ids before the answer and those of it."""
    size, width = ids.shape
    positions, owner = [torch.arange(size)], [torch.zeros(size)]
    labels = [torch.full((size,), -100)]
    all_ids, all_q = [ids], [q]
    for number, (asked, answer) in enumerate(branches, start=1):
        own = asked + answer
        all_ids.append(hard(own, width))
        all_q.append(sure(len(own), width))
        positions.append(torch.arange(size, size + len(own)))
        owner.append(torch.full((len(own),), number))
        labels.append(torch.tensor([-100] * len(asked) + answer))
    return Sequence4D(
        torch.cat(all_ids),
        torch.cat(all_q),
        torch.cat(positions),
        torch.cat(owner).long(),
        torch.cat(labels).long(),
    )


def hard(ids: Sequence[int], width: int) -> Tensor:
    """Tokens without doubt as candidates ``[n, width]``."""
    return nn.functional.pad(torch.tensor(ids, dtype=torch.long)[:, None], (0, width - 1))


def sure(count: int, width: int) -> Tensor:
    """Their probabilities ``[count, width]``."""
    return nn.functional.pad(torch.ones(count, 1), (0, width - 1))


def embed(ids: Tensor, q: Tensor, weight: Tensor) -> Tensor:
    """Mean embeddings ``[n, d]`` of soft tokens."""
    result = weight[ids[:, 0]] * q[:, :1].to(weight)
    soft = (q[:, 1:] > 0).any(1).nonzero()[:, 0]
    if len(soft):
        rest = (weight[ids[soft, 1:]] * q[soft, 1:, None].to(weight)).sum(1)
        result = result.index_add(0, soft, rest)
    return result


def loss_of(model: Any, sequence: Sequence4D) -> tuple[Tensor, Tensor]:
    """Loss ``[answers' tokens]`` and the branch of each.

    Args:
        model: a causal language model of transformers, without adapters or with them inside.
        sequence: its first token is never part of an answer.
    """
    weight = model.get_input_embeddings().weight
    hidden = model.model(
        inputs_embeds=embed(sequence.ids, sequence.q, weight.detach())[None],
        position_ids=sequence.positions[None],
        attention_mask=attention(sequence.seen()[None], weight.dtype, "sdpa"),
        use_cache=False,
    ).last_hidden_state[0]
    at = (sequence.labels >= 0).nonzero()[:, 0]
    # the token before an answer's first belongs to its branch, or to the prefix where that is empty
    before = at - 1
    logits = model.lm_head(hidden[before])
    losses = nn.functional.cross_entropy(logits, sequence.labels[at], reduction="none")
    return losses, sequence.owner[at]
