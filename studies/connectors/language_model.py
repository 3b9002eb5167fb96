"""The language model of the study: a Llama read from its folder, lean enough for many short steps.

transformers' own takes three times as many kernels a layer, and the study's steps are so short that
starting them is what they cost. Same numbers (tests/studies/prior/test_language_model.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, ``[batch, heads, places, head_dim]``."""


class LowRank(nn.Module):
    """A frozen linear layer, and what models learn on top: ``W x + 2 B A x`` (LoRA, alpha = 2 r).

    Args:
        weight: W ``[out, in]``.
    """

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.changes: tuple[Tensor, Tensor] | None = None
        """A ``[models, r, in]`` and B ``[models, out, r]`` in W's precision, for a forward pass."""

    def forward(self, x: Float[Tensor, "b n in"]) -> Float[Tensor, "b n out"]:
        """With changes of several models, the first of b / models rows are the first model's."""
        y = F.linear(x, self.weight)
        if self.changes is None:
            return y
        a, b = self.changes
        models, _, width = a.shape
        low = torch.bmm(x.reshape(models, -1, width), a.transpose(1, 2))
        high = y.view(models, -1, y.shape[-1])
        return torch.baddbmm(high, low, b.transpose(1, 2), alpha=2).view_as(y)


class Layer(nn.Module):
    """One block; q, k, v are one product, so are gate and up."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        super().__init__()
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.eps = config["rms_norm_eps"]
        attention = [weights[f"self_attn.{n}_proj.weight"] for n in "qkv"]
        mlp = [weights[f"mlp.{n}_proj.weight"] for n in ("gate", "up")]
        self.qkv = LowRank(torch.cat(attention))
        self.o = LowRank(weights["self_attn.o_proj.weight"])
        self.gate_up = LowRank(torch.cat(mlp))
        self.down = LowRank(weights["mlp.down_proj.weight"])
        self.register_buffer("before", weights["input_layernorm.weight"])
        self.register_buffer("between", weights["post_attention_layernorm.weight"])

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        turn: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor] | None = None,
        at: Int[Tensor, " b"] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "b n d"], tuple[Tensor, Tensor]]:
        """Without a cache causal; with one the places ``at`` of it are written, and ``mask`` says
        what each may see."""
        b, n, d = x.shape
        h = F.rms_norm(x, (d,), self.before, self.eps)
        qkv = self.qkv(h).view(b, n, self.heads + 2 * self.kv_heads, -1).transpose(1, 2)
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), 1)
        q, k = rotated(qk, turn).split((self.heads, self.kv_heads), 1)
        if cache is not None and at is not None:
            row = torch.arange(b, device=x.device)
            cache[0][row, :, at] = k[:, :, 0]
            cache[1][row, :, at] = v[:, :, 0]
            k, v = cache
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        gate, up = self.gate_up(F.rms_norm(x, (d,), self.between, self.eps)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up), (k, v)


def rotated(x: Float[Tensor, "b h n d"], turn: tuple[Tensor, Tensor]) -> Float[Tensor, "b h n d"]:
    """Rotary places: ``turn`` holds cosines and sines, broadcast over heads."""
    cos, sin = turn
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class LanguageModel(nn.Module):
    """Frozen, or with low-rank changes to every linear layer; of several models at once if asked.

    Args:
        folder: with ``config.json`` and ``model.safetensors`` of a Llama with tied embeddings.
        dtype: of the frozen weights.
    """

    def __init__(
        self, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        super().__init__()
        config = json.loads((folder / "config.json").read_text("utf-8"))
        stored = load_file(folder / "model.safetensors")
        weights = {k.removeprefix("model."): v.to(device, dtype) for k, v in stored.items()}
        self.config = config
        self.width: int = config["hidden_size"]
        self.register_buffer("table", weights["embed_tokens.weight"])
        self.register_buffer("norm", weights["norm.weight"])
        self.layers = nn.ModuleList(
            Layer(_of_layer(weights, i), config) for i in range(config["num_hidden_layers"])
        )
        self.to(device)
        self.head_dim = config.get("head_dim") or self.width // config["num_attention_heads"]
        rope = config.get("rope_parameters") or config
        base = rope["rope_theta"]
        exponent = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
        self.frequencies = base**-exponent
        self.rank = 0
        self.only: int | None = None
        """One of several models, to run alone."""

    def adapt(self, rank: int, seeds: Sequence[int] = (0,)) -> None:
        """Low-rank changes that are still nothing, one set a seed; ``rank`` 0 takes them away.

        They are one parameter, ``changes`` ``[models, numbers]``: cast, clipped and updated in one
        kernel, not hundreds.
        """
        self.rank, self.only = rank, None
        self.register_parameter("changes", None)
        for module in self.changed():
            module.changes = None
        if not rank:
            return
        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for module in self.changed():
                out, width = module.weight.shape
                a = (torch.rand(rank * width, generator=generator) * 2 - 1) / math.sqrt(width)
                rows += [a, torch.zeros(out * rank)]
        flat = torch.cat(rows).view(len(seeds), -1).to(self.table.device)
        self.register_parameter("changes", nn.Parameter(flat))

    def changed(self) -> list[LowRank]:
        """Layers that low-rank changes are added to."""
        return [module for module in self.modules() if isinstance(module, LowRank)]

    def cast_changes(self) -> None:
        """Hand each layer its changes in the weights' precision."""
        if not self.rank:
            return
        changes = self.changes if self.only is None else self.changes[self.only : self.only + 1]
        modules = self.changed()
        sizes = [self.rank * n for module in modules for n in reversed(module.weight.shape)]
        parts = changes.to(self.table.dtype).split(sizes, 1)
        for module, a, b in zip(modules, parts[::2], parts[1::2], strict=True):
            out, width = module.weight.shape
            module.changes = a.view(-1, self.rank, width), b.view(-1, out, self.rank)

    def turn(self, places: Int[Tensor, "b n"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of places, ``[b, 1, n, head_dim]``."""
        angle = places[..., None].float() * self.frequencies
        angle = torch.cat((angle, angle), -1)[:, None]
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Last hidden states of input embeddings; later places are padding where there is any."""
        return self.with_cache(x, keep=False)[0]

    def by_length(
        self, x: Float[Tensor, "b n d"], lengths: Int[Tensor, " b"], at_once: int = 2
    ) -> Float[Tensor, "b n d"]:
        """The same, rows of like length together: what stands behind a row's end is not computed.

        A processor takes as long for padding as for text; a card rather takes all rows at once.
        """
        order = lengths.argsort()
        parts = []
        for rows in order.split(at_once):
            longest = int(lengths[rows].max())
            hidden = self(x[rows, :longest])
            parts.append(F.pad(hidden, (0, 0, 0, x.shape[1] - longest)))
        return torch.cat(parts)[order.argsort()]

    def with_cache(self, x: Float[Tensor, "b n d"], keep: bool = True) -> tuple[Tensor, Cache]:
        """Hidden states, and what :meth:`step` needs to go on."""
        x = x.to(self.table.dtype)
        self.cast_changes()
        turn = self.turn(torch.arange(x.shape[1], device=x.device)[None], x.dtype)
        cache: Cache = []
        for layer in self.layers:
            x, own = layer(x, turn)
            if keep:
                cache.append(own)
        return F.rms_norm(x, (self.width,), self.norm, self.config["rms_norm_eps"]), cache

    def logits(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
        """Of the next token, fp32; the table is the head."""
        return F.linear(hidden.to(self.table.dtype), self.table).float()

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Rows of the table."""
        return self.table[ids]

    @torch.no_grad()
    def generate(
        self, x: Float[Tensor, "b n d"], lengths: Int[Tensor, " b"], most: int, stop: int
    ) -> Int[Tensor, "b most"]:
        """Greedy answers to prompts padded at the right; filled up with ``stop``.

        Args:
            lengths: places of each prompt.
            most: tokens of an answer.
        """
        b, n, _ = x.shape
        hidden, cache = self.with_cache(x)
        cache = [(F.pad(k, (0, 0, 0, most)), F.pad(v, (0, 0, 0, most))) for k, v in cache]
        row = torch.arange(b, device=x.device)
        ids = self.logits(hidden[row, lengths - 1]).argmax(-1)
        answer = ids.new_full((b, most), stop)
        ended = torch.zeros(b, dtype=torch.bool, device=x.device)
        for i in range(most):
            ended = ended | (ids == stop)
            answer[:, i] = torch.where(ended, stop, ids)
            if i == most - 1 or (i % 8 == 7 and bool(ended.all())):
                break
            at = lengths + i
            seen = torch.arange(n + most, device=x.device)[None] <= at[:, None]
            h = self.embed(ids)[:, None]
            turn = self.turn(at[:, None], h.dtype)
            for layer, own in zip(self.layers, cache, strict=True):
                h, _ = layer(h, turn, own, at, seen[:, None, None])
            hidden = F.rms_norm(h, (self.width,), self.norm, self.config["rms_norm_eps"])
            ids = self.logits(hidden[:, 0]).argmax(-1)
        return answer


def _of_layer(weights: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    prefix = f"layers.{number}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
