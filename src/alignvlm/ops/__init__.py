"""``vocab_mixture``: a distribution over the vocabulary and the mixture of its embeddings.

One op serves ALIGN and Ovis. For every row ``x`` (the output of ALIGN's inner LayerNorm)::

    z = W x + b                                   logits over the vocabulary
    s = γ (z − μ) / sqrt(σ² + eps) + β            LayerNorm over the vocabulary axis (optional)
    p = softmax(s)                                Eq. 1, arXiv 2502.01341
    o = pᵀ E                                      Eq. 2

``reference`` writes that down densely; ``chunked`` goes over the vocabulary in blocks. It keeps the
``N x V`` logits for the backward pass where they fit a budget, and otherwise streams: it then never
holds an ``N x V`` matrix, forward or backward. Both return the logsumexp of ``s`` and, for given
target ids, the logits ``s[target]``: a cross-entropy on P_vocab is ``logsumexp - target_logits``.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .chunked import chunked_vocab_mixture
from .reference import VocabMixture, normalised_logits, reference_vocab_mixture
from .statistics import VocabStats, vocab_stats

Impl = Literal["auto", "reference", "chunked"]

__all__ = [
    "Impl",
    "VocabMixture",
    "VocabStats",
    "normalised_logits",
    "vocab_mixture",
    "vocab_stats",
]


def vocab_mixture(
    x: Tensor,
    weight: Tensor,
    table: Tensor | None,
    *,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-5,
    stats: VocabStats | None = None,
    targets: Tensor | None = None,
    impl: Impl = "auto",
    chunk_size: int | None = None,
    keep_logits_gib: float | None = None,
) -> VocabMixture:
    """Distribution over the vocabulary for each row, and the mixture of the table's rows.

    Args:
        x: ``[..., D]`` floating.
        weight: W2, ``[V, D]``. May be the same tensor as ``table`` (a tied head); its gradient is
            then the sum of both roles'.
        table: E, ``[V, d_text]``, or ``None`` if only the loss on P_vocab is wanted: the mixture
            and its gradients are then not computed.
        bias: b, ``[V]``.
        norm_weight, norm_bias: γ and β of the LayerNorm over the vocabulary, ``[V]``.
        normalize: apply that LayerNorm. Without it γ, β and ``stats`` must be ``None``.
        eps: the LayerNorm's epsilon.
        stats: fixed row statistics, :func:`vocab_stats` of a larger vocabulary of which ``weight``
            holds some rows: every kept token then has exactly the logit it had there. No gradient
            flows into the weights through given statistics.
        targets: int64, ids to return the logit of: the leading shape of ``x``, or that and one more
            axis for several ids a row. Negative ids are
            ignored (logit 0, no gradient).
        impl: ``chunked`` (block by block), ``reference`` (dense) or ``auto`` (chunked).
        chunk_size: vocabulary rows per block; default: chosen from N so that a block of logits
            stays small.
        keep_logits_gib: ``chunked`` keeps the ``N x V`` logits for the backward pass where they
            take at most this much memory, and computes them again where they take more. Default:
            an eighth of the device's memory that was free when it was first asked for; 0: never.

    Returns:
        :class:`VocabMixture` ``(output [..., d_text] or None, logsumexp [...],
        target_logits [...] or None)``. ``output`` has the table's dtype, the others fp32 (fp64 for
        fp64 inputs).

    Raises:
        ValueError: shapes do not fit, a target is not below V (on a GPU, where asking would wait
            for it, the device's own assertion), or the arguments contradict.
    """
    _check(x, weight, table, bias, norm_weight, norm_bias, normalize, stats, targets)
    flat = x.reshape(-1, x.shape[-1])
    flat_targets = None
    if targets is not None:
        per_row = targets.shape[-1] if targets.ndim == x.ndim else 1
        flat_targets = targets.reshape(-1, per_row)
    run = reference_vocab_mixture if impl == "reference" else chunked_vocab_mixture
    kwargs = {"chunk_size": chunk_size, "keep_logits_gib": keep_logits_gib}
    kwargs = {} if impl == "reference" else kwargs
    result = run(
        flat, weight, table, bias, norm_weight, norm_bias, normalize, eps, stats, flat_targets,
        **kwargs,
    )  # fmt: skip
    lead, logits = x.shape[:-1], result.target_logits
    return VocabMixture(
        None if result.output is None else result.output.reshape(*lead, result.output.shape[-1]),
        result.logsumexp.reshape(lead),
        logits if logits is None or targets is None else logits.reshape(targets.shape),
    )


def _check(x, weight, table, bias, norm_weight, norm_bias, normalize, stats, targets) -> None:
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} does not fit weight {tuple(weight.shape)}")
    vocab = weight.shape[0]
    if table is not None and (table.ndim != 2 or table.shape[0] != vocab):
        raise ValueError(f"table {tuple(table.shape)} needs {vocab} rows, as weight has")
    for name, vector in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if vector is not None and vector.shape != (vocab,):
            raise ValueError(f"{name} {tuple(vector.shape)} must be [{vocab}]")
    if not normalize and any(v is not None for v in (norm_weight, norm_bias, stats)):
        raise ValueError("norm_weight, norm_bias and stats need normalize=True")
    if targets is not None:
        lead = x.shape[:-1]
        if targets.shape[: len(lead)] != lead or targets.ndim > len(lead) + 1:
            raise ValueError(
                f"targets {tuple(targets.shape)} must be {tuple(lead)} or one more axis"
            )
