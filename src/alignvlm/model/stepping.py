"""One more token of a Llama on a CPU, in fewer and faster kernels than transformers' own layers.

A step reads every weight once. For one row MKL reads a weight that has more outputs than inputs
fastest where it lies in memory input by input, so :func:`prepare` lays those out that way, where
the modules see them as they did: queries, keys and values in one piece, gate and up in another.
:class:`Step` multiplies them with what is left of a layer when only one token is new. ``generate``
stays transformers'.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaModel
from transformers.cache_utils import DynamicCache, DynamicLayer

ROWS = 3
"""Sequences that are stepped together at most: beyond, products of more rows cost less."""


class _Layer:
    """A layer and its weights, the joined ones ``[in, out]``."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.module = layer
        self.qkv = _join([attention.q_proj, attention.k_proj, attention.v_proj])
        self.gate_up = _join([mlp.gate_proj, mlp.up_proj])
        self.o, self.down = attention.o_proj, mlp.down_proj
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        self._laid_out = [(one, one.weight.data_ptr()) for one in products(layer)]

    def current(self) -> bool:
        """Whether the layer still multiplies with this memory, and nothing changes its output."""
        return not self.module._forward_hooks and all(
            one is before and one.weight.data_ptr() == place
            for one, (before, place) in zip(products(self.module), self._laid_out, strict=True)
        )


class Step:
    """A model's next token.

    Args:
        model: one that :func:`prepare` suits.
    """

    def __init__(self, model: Any) -> None:
        text = model.model.language_model
        self.layers = [_Layer(layer) for layer in text.layers]
        self.kv_heads = text.config.num_key_value_heads
        self.head_dim = text.layers[0].self_attn.head_dim
        self.head = _Head(model.lm_head)

    def suits(
        self,
        model: Any,
        input_ids: Any,
        cache: Any,
        attention_mask: Any,
        *others: Any,
        use_cache: Any = None,
        **asked: Any,
    ) -> bool:
        """Whether a call of ``forward`` is a step that can be made here, with these weights.

        Args:
            others: inputs that a step has not.
            asked: for more than logits.
        """
        return (
            input_ids is not None
            and input_ids.shape[1] == 1
            and len(input_ids) <= ROWS
            and all(one is None for one in others)
            and use_cache is not False
            and not any(one is not None and one is not False for one in asked.values())
            and not torch.is_grad_enabled()
            and not model.training
            and type(cache) is DynamicCache
            and len(cache.layers) == len(self.layers)
            and all(type(one) is DynamicLayer and one.is_initialized for one in cache.layers)
            and (attention_mask is None or attention_mask.ndim == 2)
            and all(layer.current() for layer in self.layers)
        )

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        cache: DynamicCache,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[rows, 1, vocabulary]``; the cache has the token's keys and values.

        Hooks that run before a layer run, and may end the work; what they return is not used.
        """
        text = model.model.language_model
        x = text.embed_tokens(input_ids)[:, 0]
        if position_ids is None:
            position_ids = torch.full_like(input_ids, cache.get_seq_length())
        cos, sin = text.rotary_emb(x, position_ids=position_ids)  # [rows, 1, head_dim]
        mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            mask = attention_mask.bool()[:, None, None]
        for number, layer in enumerate(self.layers):
            for hook in layer.module._forward_pre_hooks.values():
                hook(layer.module, (x,))
            x = x + self._attended(layer, number, x, cache, (cos, sin), mask)
            hidden = _normed(x, layer.between)
            gate, up = torch.mm(hidden, layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.down.weight)
        return model.scaled_logits(self.head(_normed(x, text.norm)))[:, None]

    def _attended(
        self,
        layer: _Layer,
        number: int,
        x: Tensor,
        cache: DynamicCache,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        rows, groups = len(x), self.kv_heads
        qkv = torch.mm(_normed(x, layer.before), layer.qkv).view(rows, -1, self.head_dim)
        qk, v = qkv.split((qkv.shape[1] - groups, groups), 1)
        first, second = qk.chunk(2, -1)
        qk = qk * turn[0] + torch.cat((-second, first), -1) * turn[1]
        q, k = qk.split((qk.shape[1] - groups, groups), 1)
        keys, values = cache.update(k[:, :, None], v[:, :, None], number)
        # the query heads of a key head stand in the place of queries: nothing is repeated for them
        q = q.reshape(rows, groups, -1, self.head_dim)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return F.linear(y.reshape(rows, -1), layer.o.weight)


class _Head:
    """The head laid out as the other weights are, in memory of its own: elsewhere its rows are read
    one by one, as the embedding table."""

    def __init__(self, head: nn.Linear) -> None:
        self.module, self.made_of = head, None
        self._lay_out()

    def _lay_out(self) -> None:
        weight = self.module.weight
        self.made_of = (weight.data_ptr(), weight._version)
        self.weight = weight.detach().t().contiguous()

    def __call__(self, hidden: Tensor) -> Tensor:
        weight = self.module.weight
        if self.made_of != (weight.data_ptr(), weight._version):
            self._lay_out()
        return torch.mm(hidden, self.weight)


def prepare(model: Any) -> Step | None:
    """Lay a model's weights out and give its step; ``None``, and nothing is changed, where the
    model is not a plain Llama in fp32 on a CPU."""
    text = model.model.language_model
    if type(text) is not LlamaModel or text.config._attn_implementation not in ("sdpa", "eager"):
        return None
    plain = (
        all(p.device.type == "cpu" and p.dtype == torch.float32 for p in text.parameters())
        and text.config.hidden_act == "silu"
        and type(model.lm_head) is nn.Linear
        and model.lm_head.bias is None
    )
    linear = [one for layer in text.layers for one in products(layer)]
    if not plain or any(type(one) is not nn.Linear or one.bias is not None for one in linear):
        return None
    return Step(model)


@torch.no_grad()
def _join(modules: list[nn.Linear]) -> Tensor:
    """Weights side by side, ``[in, out]``; each module's own becomes a part of it."""
    joined = torch.cat([one.weight.t() for one in modules], 1).contiguous()
    start = 0
    for one in modules:
        size = one.weight.shape[0]
        one.weight.data = joined[:, start : start + size].t()
        start += size
    return joined


@torch.no_grad()
def restore(model: Any) -> None:
    """Undo what :func:`prepare` did to the weights."""
    for layer in model.model.language_model.layers:
        for one in products(layer):
            one.weight.data = one.weight.data.contiguous()


def products(layer: Any) -> list[Any]:
    """The modules of a layer that multiply."""
    a, m = layer.self_attn, layer.mlp
    return [a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj]


def _normed(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
