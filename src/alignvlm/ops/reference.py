"""``vocab_mixture`` written down densely: the readable definition and the oracle of the tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .products import full_precision
from .statistics import VocabStats, statistics_dtype


class VocabMixture(NamedTuple):
    """Result of :func:`alignvlm.ops.vocab_mixture`.

    Attributes:
        output: Σ_v p_v E_v, ``[..., d_text]``; ``None`` if no table was given.
        logsumexp: log Σ_v exp(s_v), ``[...]``.
        target_logits: s[target], ``[...]``; ``None`` if no targets were given.
    """

    output: Tensor | None
    logsumexp: Tensor
    target_logits: Tensor | None


def normalised_logits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-5,
    stats: VocabStats | None = None,
) -> Tensor:
    """s = LayerNorm(W x + b), dense ``[N, V]``, in fp32 (fp64 for fp64 inputs)."""
    dtype = statistics_dtype(x)
    with full_precision(x):
        z = x.to(dtype) @ weight.to(dtype).T
        if bias is not None:
            z = z + bias.to(dtype)
        if not normalize:
            return z
        if stats is None:
            mu = z.mean(-1)
            variance = (z - mu[:, None]).square().mean(-1)
        else:
            mu, variance = stats.moments(x.to(dtype))
    s = (z - mu[:, None]) * torch.rsqrt(variance + eps)[:, None]
    if norm_weight is not None:
        s = s * norm_weight.to(dtype)
    return s if norm_bias is None else s + norm_bias.to(dtype)


def reference_vocab_mixture(
    x: Tensor,
    weight: Tensor,
    table: Tensor | None,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    normalize: bool,
    eps: float,
    stats: VocabStats | None,
    targets: Tensor | None,
) -> VocabMixture:
    """See :func:`alignvlm.ops.vocab_mixture`; ``x`` is ``[N, D]``, ``targets`` ``[N, K]``."""
    s = normalised_logits(x, weight, bias, norm_weight, norm_bias, normalize, eps, stats)
    output = None
    if table is not None:
        with full_precision(x):
            output = (torch.softmax(s, dim=-1) @ table.to(s.dtype)).to(table.dtype)
    target_logits = None
    if targets is not None:
        check_targets(targets, weight.shape[0])
        picked = s.gather(1, targets.clamp_min(0))
        target_logits = picked * (targets >= 0)
    return VocabMixture(output, torch.logsumexp(s, dim=-1), target_logits)


def check_targets(targets: Tensor, vocab: int) -> None:
    """Raise ``ValueError`` for an id that is not below ``vocab``, where looking costs nothing."""
    if targets.device.type == "cpu" and targets.numel() and int(targets.max()) >= vocab:
        raise ValueError(f"target {int(targets.max())} is not below the vocabulary's {vocab}")
