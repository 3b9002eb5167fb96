"""Branches: several questions in one prompt, each of which sees the pages but not the others.

The language model reads the pages once. What it computes for a question is what it would compute
for the pages and that question alone: the same tokens are visible at the same positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import AlignVLMError

KINDS = ("eager", "sdpa")
"""Attention implementations that take a mask of their own for each token."""
LOCAL = ("sliding_window", "attention_chunk_size", "window_size", "keep_window_size")
"""Config keys of attention that does not see everything before a token."""
PROBE = (5, 3, 4)
"""Lengths of what all see and of two turns, in :func:`can_branch`."""


def common_length(sequences: Sequence[Tensor]) -> int:
    """How many ids all sequences begin with."""
    length = min(map(len, sequences))
    same = torch.stack([ids[:length] == sequences[0][:length] for ids in sequences]).all(0)
    return length if bool(same.all()) else int((~same).nonzero()[0])


def visible(
    turn_ids: Int[Tensor, "batch length"], mask: Int[Tensor, "batch length"] | None
) -> Bool[Tensor, "batch length length"]:
    """Which tokens (last axis) each token sees: earlier ones of its own turn and of turn 0.

    Args:
        turn_ids: 0 for what every turn sees, 1, 2, ... for the turns.
        mask: 0 at padding, which sees itself alone.
    """
    length = turn_ids.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=turn_ids.device).tril()
    own = turn_ids[:, None, :] == turn_ids[:, :, None]
    seen = earlier & (own | (turn_ids[:, None, :] == 0))
    if mask is not None:
        seen &= mask.bool()[:, None, :]
    return seen | torch.eye(length, dtype=torch.bool, device=turn_ids.device)


def positions(
    seen: Bool[Tensor, "batch length length"],
) -> Int[Tensor, "batch length"]:
    """Position ids: how many tokens each one sees before itself."""
    return seen.sum(-1) - 1


def attention(
    seen: Bool[Tensor, "batch length length"], dtype: torch.dtype, kind: str
) -> Float[Tensor, "batch 1 length length"]:
    """What is added to attention scores, as transformers takes it.

    Args:
        kind: the language model's attention implementation.

    Raises:
        AlignVLMError: it takes no mask of this form.
    """
    if kind not in KINDS:
        raise AlignVLMError(
            f"turn_ids needs 'eager' or 'sdpa' attention, and the language model has {kind!r}"
        )
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return bias.masked_fill(~seen, torch.finfo(dtype).min)[:, None]


@torch.no_grad()
def can_branch(language_model: nn.Module) -> bool:
    """Try it on a language model as it is loaded: two short turns together must give what each
    gives alone. A recurrent state would run on between them; a sliding window is not in the mask.
    """
    config: Any = language_model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    local = any(getattr(config, key, None) for key in LOCAL) or kinds != {"full_attention"}
    if local or config._attn_implementation not in KINDS:
        return False
    training = language_model.training
    language_model.eval()
    try:
        return _agrees(language_model)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError):
        return False
    finally:
        language_model.train(training)


def _agrees(language_model: Any) -> bool:
    weight = language_model.get_input_embeddings().weight
    turns = torch.arange(len(PROBE)).repeat_interleave(torch.tensor(PROBE)).to(weight.device)
    ids = torch.arange(len(turns), device=weight.device) * 7919 % len(weight)
    embeds = language_model.get_input_embeddings()(ids[None])
    seen = visible(turns[None], None)

    def hidden(embeds: Tensor, **given: Any) -> Tensor:
        output = language_model(inputs_embeds=embeds, use_cache=False, return_dict=True, **given)
        return output.last_hidden_state[0]

    bias = attention(seen, embeds.dtype, language_model.config._attn_implementation)
    joint = hidden(embeds, attention_mask=bias, position_ids=positions(seen))
    tolerance = torch.finfo(weight.dtype).eps ** 0.5
    for turn in range(1, len(PROBE)):
        own = (turns == 0) | (turns == turn)
        alone = hidden(embeds[:, own], position_ids=torch.arange(int(own.sum()))[None].to(ids))
        difference = (joint[own] - alone).abs().max()
        if not difference <= tolerance * alone.abs().max():
            return False
    return True
