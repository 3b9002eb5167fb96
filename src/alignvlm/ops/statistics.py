"""Mean and variance over the vocabulary of ``W x + b``, for any x, without the N x V logits.

With w̄ the mean row of W and C = (W − 1w̄ᵀ)ᵀ(W − 1w̄ᵀ)/V:  μ = w̄·x + b̄  and
σ² = xᵀCx + 2 c·x + var(b), c = (W − 1w̄ᵀ)ᵀ(b − b̄)/V. Centre first and keep C in fp32: a raw
second moment or a bf16 Gram matrix loses the small variances (docs/adr/0002).
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

from .products import full_precision

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


@torch.no_grad()
def vocab_stats(weight: Tensor, bias: Tensor | None = None) -> VocabStats:
    """Compute :class:`VocabStats` of ``weight`` ``[V, D]``: 2·V·D² operations, fp32 or fp64."""
    with full_precision(weight):
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


class _Cached(NamedTuple):
    """Statistics, and what they were computed from."""

    fingerprint: Tensor
    bias: Tensor | None
    stats: tuple[Tensor, ...]


_CACHE: OrderedDict[tuple, _Cached] = OrderedDict()
CACHE_SIZE = 4
"""Weights remembered; each costs D x D numbers."""
CACHE_FROM = 2**18
"""Weights of fewer elements are not worth remembering."""


def cached_vocab_stats(weight: Tensor, bias: Tensor | None = None) -> VocabStats:
    """:func:`vocab_stats`, computed again only when the weight or the bias has changed.

    A tensor's version counter does not tell: writing through ``.data``, as optimisers of sharded
    training do, and FSDP2's all-gather leave it as it was. So the weight is compared by what it
    holds, through a fixed random projection of its rows: one read of V x D against the 2·V·D² of
    the statistics. (Their plain sum would not do: the LayerNorm's gradient never changes it.)
    """
    with torch.no_grad():
        return VocabStats(*_cached(weight, bias))


@torch.library.custom_op("alignvlm::vocab_stats", mutates_args=())
def _cached(weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    if weight.numel() < CACHE_FROM or weight.device.type == "meta":
        return [value.clone() for value in vocab_stats(weight, bias)]  # zeros may be shared
    with full_precision(weight):
        fingerprint = _fingerprint(weight)
    key = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, weight.device)
    found = _CACHE.pop(key, None)
    if found is None or not _same(found.fingerprint, fingerprint) or not _same(found.bias, bias):
        copy = None if bias is None else bias.detach().clone()
        found = _Cached(fingerprint, copy, tuple(vocab_stats(weight, bias)))
    _CACHE[key] = found
    while len(_CACHE) > CACHE_SIZE:
        _CACHE.popitem(last=False)
    return [value.clone() for value in found.stats]  # an operator's result is its caller's


@_cached.register_fake
def _(weight, bias):
    dtype, width = statistics_dtype(weight), weight.shape[1]
    shapes = ((width,), (width, width), (), (width,), ())
    return [weight.new_empty(shape, dtype=dtype) for shape in shapes]


def _same(one: Tensor | None, two: Tensor | None) -> bool:
    return one is two or (one is not None and two is not None and torch.equal(one, two))


def _fingerprint(weight: Tensor) -> Tensor:
    """Random weights times the rows, ``[D]``; the same bits for the same weight."""
    dtype = statistics_dtype(weight)
    probe = _probe(weight.shape[0], dtype, weight.device)
    if weight.dtype == dtype:
        return probe @ weight
    total = probe.new_zeros(weight.shape[1])
    for start in range(0, weight.shape[0], BLOCK):
        block = slice(start, start + BLOCK)
        total += probe[block] @ weight[block].to(dtype)
    return total


@functools.lru_cache(maxsize=CACHE_SIZE)
def _probe(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, generator=generator, dtype=torch.float64).to(device, dtype)
