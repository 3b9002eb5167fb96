"""Packing: several short prompts share one row of the language model.

A batch of unequal prompts is padded to the longest, and the language model computes the padding as
well. Packed, each row holds as many whole prompts as fit into the length of the longest. Positions
start at 0 with each prompt; where they do, transformers masks attention between prompts
(``find_packed_sequence_indices``). Packing comes after blank dropping, so it knows what really
remains, and its result goes back to the prompts' own places: labels and losses do not notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import AlignVLMError, ConfigError
from .outputs import CACHE

PROBE = (8, 5, 3)
"""Lengths of the prompts of :func:`check_packing`; the last two share a row."""


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the samples in each row, by first-fit decreasing; empty samples are in none."""
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[sample]
        if not length:
            continue
        row = next((r for r, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(sample)
        room[row] -= length
    return rows


class Packed(NamedTuple):
    """Where each place of the rows comes from, and where each token of the batch went.

    Attributes:
        source: int64 ``[R, C]``, index into the flattened batch; 0 at a row's unused end.
        target: int64 ``[B, L]``, index into the flattened rows; 0 at padding.
        mask: bool ``[B, L]``, false at padding.
        positions: int64 ``[R, C]``, 0 at each prompt's first token and at a row's unused end.
    """

    source: Int[Tensor, "rows capacity"]
    target: Int[Tensor, "batch length"]
    mask: Bool[Tensor, "batch length"]
    positions: Int[Tensor, "rows capacity"]

    @classmethod
    def of(cls, mask: Int[Tensor, "batch length"]) -> Packed:
        """Pack what ``mask`` says is there into rows as long as the longest sample."""
        found = [row.nonzero()[:, 0] for row in mask]
        lengths = [len(places) for places in found]
        capacity = max(lengths)
        rows = first_fit(lengths, capacity)
        source = mask.new_zeros((len(rows), capacity), dtype=torch.long)
        positions, target = torch.zeros_like(source), torch.zeros_like(mask, dtype=torch.long)
        for number, row in enumerate(rows):
            start = 0
            for sample in row:
                count, places = lengths[sample], found[sample]
                here = torch.arange(count, device=mask.device)
                source[number, start : start + count] = places + sample * mask.shape[1]
                positions[number, start : start + count] = here
                target[sample, places] = here + (number * capacity + start)
                start += count
        return cls(source, target, mask.bool(), positions)

    def pack(self, values: Tensor) -> Tensor:
        """``[B, L, ...]`` to ``[R, C, ...]``."""
        return values.flatten(0, 1)[self.source]

    def unpack(self, values: Tensor) -> Tensor:
        """``[R, C, ...]`` back to ``[B, L, ...]``, zero at padding."""
        found = values.flatten(0, 1)[self.target]
        return found * self.mask.view(*self.mask.shape, *[1] * (found.ndim - 2))


def run_packed(
    language_model: nn.Module,
    inputs_embeds: Float[Tensor, "batch length d"],
    attention_mask: Int[Tensor, "batch length"] | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """A language model's output for a batch that it reads packed, in the batch's own places.

    Args:
        attention_mask: 0 at padding; ``None``: there is none.
        position_ids: not used; each prompt's positions start at 0.
        kwargs: of the language model; without a cache, which would not fit the batch.

    Raises:
        AlignVLMError: attentions are asked for; those of packed prompts have no place in the batch.
    """
    if kwargs.get("output_attentions"):
        raise AlignVLMError("packed prompts give no attentions; leave output_attentions out")
    if attention_mask is None:
        attention_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2], dtype=torch.long)
    packed = Packed.of(attention_mask)
    kwargs |= {CACHE: None, "use_cache": False}
    output = language_model(
        inputs_embeds=packed.pack(inputs_embeds),
        attention_mask=None,  # transformers looks for prompts in the positions only without one
        position_ids=packed.positions,
        **kwargs,
    )
    output.last_hidden_state = packed.unpack(output.last_hidden_state)
    if output.hidden_states is not None:
        output.hidden_states = tuple(packed.unpack(h) for h in output.hidden_states)
    return output


@torch.no_grad()
def check_packing(language_model: nn.Module) -> None:
    """Try packing on a language model as it is loaded, with the attention it uses.

    Three short prompts, packed, must give what each gives alone.

    Raises:
        ConfigError: they do not, so one prompt would see another; says what to do.
    """
    config: Any = language_model.config
    kind = f"{config.model_type!r} with {config._attn_implementation!r} attention"
    advice = "set packing: false, or take another language model or attention"
    training = language_model.training
    language_model.eval()
    try:
        difference, scale = _probe(language_model)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"packing: {kind} cannot run packed samples ({why}); {advice}") from None
    finally:
        language_model.train(training)
    if not difference <= torch.finfo(next(language_model.parameters()).dtype).eps ** 0.5 * scale:
        raise ConfigError(f"packing: in {kind} a sample would see its neighbours; {advice}")


def _probe(language_model: Any) -> tuple[float, float]:
    """Largest difference between prompts packed and alone, and their largest value."""
    embedding = language_model.get_input_embeddings()
    device = embedding.weight.device
    ids = torch.arange(len(PROBE) * max(PROBE), device=device) * 7919 % len(embedding.weight)
    embeds = embedding(ids.view(len(PROBE), -1))
    places = torch.arange(max(PROBE), device=device)
    mask = (places < torch.tensor(PROBE, device=device)[:, None]).long()
    found = run_packed(language_model, embeds, mask, return_dict=True).last_hidden_state
    difference, scale = 0.0, 0.0
    for sample, length in enumerate(PROBE):
        alone = language_model(
            inputs_embeds=embeds[sample : sample + 1, :length],
            position_ids=places[None, :length],
            use_cache=False,
            return_dict=True,
        ).last_hidden_state[0]
        difference = max(difference, float((found[sample, :length] - alone).abs().max()))
        scale = max(scale, float(alone.abs().max()))
    return difference, scale
