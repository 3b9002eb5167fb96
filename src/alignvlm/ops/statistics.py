"""Mean and variance over the vocabulary of ``W x + b``, for any x, without the N x V logits.

With w̄ the mean row of W and C = (W − 1w̄ᵀ)ᵀ(W − 1w̄ᵀ)/V:  μ = w̄·x + b̄  and
σ² = xᵀCx + 2 c·x + var(b), c = (W − 1w̄ᵀ)ᵀ(b − b̄)/V. Centre first and keep C in fp32: a raw
second moment or a bf16 Gram matrix loses the small variances (docs/adr/0002).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 8192
"""Vocabulary rows centred at a time, to keep the copy small."""


class VocabStats(NamedTuple):
    """Statistics of the rows of a weight ``[V, D]`` (and bias ``[V]``).

    Attributes:
        mean: w̄, ``[D]``.
        covariance: C, ``[D, D]``.
        bias_mean: b̄, scalar. Zero without a bias.
        bias_covariance: c, ``[D]``.
        bias_variance: scalar.
    """

    mean: Tensor
    covariance: Tensor
    bias_mean: Tensor
    bias_covariance: Tensor
    bias_variance: Tensor

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and σ² of the logits of each row of ``x`` ``[N, D]``; both ``[N]``, in x's dtype."""
        stats = VocabStats(*(value.to(x.dtype) for value in self))
        mu = x @ stats.mean + stats.bias_mean
        variance = ((x @ stats.covariance + 2 * stats.bias_covariance) * x).sum(-1)
        return mu, (variance + stats.bias_variance).clamp_min(0)


def statistics_dtype(tensor: Tensor) -> torch.dtype:
    """fp64 for fp64 inputs, else fp32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Context in which matmuls on ``tensor``'s device keep the dtype they are given."""
    kind = tensor.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


@torch.no_grad()
def vocab_stats(weight: Tensor, bias: Tensor | None = None) -> VocabStats:
    """Compute :class:`VocabStats` of ``weight`` ``[V, D]``: 2·V·D² operations, fp32 or fp64."""
    with without_autocast(weight):
        return _vocab_stats(weight, bias)


def _vocab_stats(weight: Tensor, bias: Tensor | None) -> VocabStats:
    dtype = statistics_dtype(weight)
    vocab, width = weight.shape
    mean = torch.zeros(width, dtype=dtype, device=weight.device)
    for start in range(0, vocab, BLOCK):
        mean += weight[start : start + BLOCK].to(dtype).sum(0)
    mean /= vocab
    zero = mean.new_zeros(())
    bias_mean = zero if bias is None else bias.to(dtype).mean()
    covariance = mean.new_zeros(width, width)
    bias_covariance = mean.new_zeros(width)
    for start in range(0, vocab, BLOCK):
        centred = weight[start : start + BLOCK].to(dtype) - mean
        covariance.addmm_(centred.T, centred)
        if bias is not None:
            bias_covariance += centred.T @ (bias[start : start + BLOCK].to(dtype) - bias_mean)
    bias_variance = zero if bias is None else bias.to(dtype).var(correction=0)
    return VocabStats(mean, covariance / vocab, bias_mean, bias_covariance / vocab, bias_variance)
