"""ALIGN in closed form: features from which it makes the distribution that one wants.

Eq. 1 of arXiv 2502.01341 with W2 the language model's head can say any token without training. Let
w_t be row t of W2 minus the mean row, C the covariance of the rows, both within the space that the
inner LayerNorm leaves (what is orthogonal to the vector of ones), and R = C⁻¹. With W1 = R a
feature F = Σ_t a_t w_t gives token s the logit

    z_s = γ (S a)_s / √(aᵀ S a) + β_s,      S_st = w_sᵀ R w_t,

for the LayerNorm over the vocabulary divides by √(xᵀ C x) with x ∝ R F. One token alone, F = w_t,
has z_t = γ n_t + β_t with n_t² = w_tᵀ R w_t, and others γ n_s cos(s, t) + β_s: its own wins by far
once β, which grows with n_s², holds back tokens whose every logit is large.

Several tokens with probabilities q: their logits must differ by the logarithms of q,

    z_s = L + log q_s   ⇔   S a / √(aᵀ S a) = b(L),   b_s = (L + log q_s - β_s) / γ,

which is solved by a = S⁻¹ b(L) where b(L)ᵀ S⁻¹ b(L) = 1: a quadratic equation in L, whose larger
root leaves least to all other tokens. Exact, and differentiable in q.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..ops import VocabStats

BETA = 0.36
"""β_t = -BETA γ n_t² / √D; n_t is √D on average."""
LEAST_VARIANCE = 1e-9
"""Directions of the head whose variance is this share of the mean are left out of R."""
LEAST_APART = 1e-4
"""Tokens are too alike to be told apart where a row's part that the others do not explain has less
than that share of its squared length: rounding would decide."""
BLOCK = 8192
"""Rows of the head in full precision at a time."""


@torch.no_grad()
def inverse_covariance(stats: VocabStats) -> Float[Tensor, "d d"]:
    """R of a head with these statistics: C⁻¹ in the space orthogonal to the vector of ones."""
    covariance = _without_ones(_without_ones(stats.covariance.double()).T)
    values, vectors = torch.linalg.eigh(covariance)
    useful = values > LEAST_VARIANCE * values.mean()
    inverse = (vectors[:, useful] / values[useful]) @ vectors[:, useful].T
    return _without_ones(_without_ones(inverse).T).to(stats.covariance.dtype)


@torch.no_grad()
def key_norms(
    head: Float[Tensor, "vocab d"], mean: Float[Tensor, " d"], inverse: Float[Tensor, "d d"]
) -> Float[Tensor, " vocab"]:
    """n_t of each row of a head, in blocks."""
    norms = []
    for block in head.split(BLOCK):
        centred = block.to(mean.dtype) - mean
        norms.append(((centred @ inverse) * centred).sum(-1).clamp_min(0).sqrt())
    return torch.cat(norms)


def _without_ones(matrix: Tensor) -> Tensor:
    return matrix - matrix.mean(0, keepdim=True)


def mixture_weights(
    gram: Float[Tensor, "n k k"],
    q: Float[Tensor, "n k"],
    beta: Float[Tensor, "n k"],
    gamma: Float[Tensor, "n k"],
    real: Bool[Tensor, "n k"],
) -> Float[Tensor, "n k"]:
    """Weights a of tokens' rows, so that P_vocab is q (see the module).

    Where tokens are too alike for ratios so far apart, the one with the largest q stands alone.

    Args:
        gram: S of each place's candidates.
        q: their probabilities, the largest first; differentiable.
        beta, gamma: of each candidate.
        real: which candidates there are; the others get the weight 0.
    """
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    both = real[:, :, None] & real[:, None, :]
    system = torch.where(both, gram, eye)
    apart = _apart(system.detach())
    system = torch.where(apart[:, None, None], system, eye)
    log_q = q.clamp_min(1e-12).log()
    offset = torch.where(real, (log_q - beta) / gamma, 0.0)
    slope = torch.where(real, 1 / gamma, 0.0)
    solved = torch.linalg.solve(system, torch.stack([slope, offset], -1))
    # bᵀ S⁻¹ b = 1 with b = L slope + offset
    a2 = (slope * solved[..., 0]).sum(-1)
    a1 = (offset * solved[..., 0]).sum(-1)
    a0 = (offset * solved[..., 1]).sum(-1) - 1
    root = a1 * a1 - a2 * a0
    level = (-a1 + root.clamp_min(1e-12).sqrt()) / a2
    weights = level[:, None] * solved[..., 0] + solved[..., 1]
    possible = apart & (root > 1e-9) & (a2 > 0) & torch.isfinite(weights).all(-1)
    alone = torch.zeros_like(weights)
    alone[:, 0] = 1.0
    return torch.where(possible[:, None] & real, weights, alone)


def _apart(system: Float[Tensor, "n k k"]) -> Bool[Tensor, " n"]:
    """Where the rows of a Gram matrix are told apart safely."""
    factor, failed = torch.linalg.cholesky_ex(system)
    own = torch.diagonal(factor, dim1=-2, dim2=-1).square()
    least = LEAST_APART * torch.diagonal(system, dim1=-2, dim2=-1)
    return (failed == 0) & (own > least).all(-1)
