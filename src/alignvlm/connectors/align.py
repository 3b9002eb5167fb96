"""ALIGN: each visual feature becomes a distribution over the language model's vocabulary.

Eq. 1:  P_vocab = softmax(LayerNorm(W2 LayerNorm(W1 F)))
Eq. 2:  F'_align = P_vocabᵀ E_text                                  (arXiv 2502.01341)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import initialization as init

from ..errors import ConfigError
from ..ops import VocabMixture, VocabStats, normalised_logits, vocab_mixture, vocab_stats
from .closed_form import BETA, inverse_covariance, key_norms, mixture_weights
from .configs import AlignConfig
from .connector import VisualTokens, loaded
from .distinct import distinct, distinct_pairs
from .inspection import Inspected

STATS_BUFFERS = tuple(f"stats_{name}" for name in VocabStats._fields)
KEYS = ("w1", "inner_norm", "key_mean")
"""Parts that are in full precision where W1 is an inverse covariance (``init: keys``)."""
HALF = (torch.bfloat16, torch.float16)


class AlignConnector(Inspected):
    """ALIGN, Eq. 1-2 of arXiv 2502.01341.

    ``F'[n] = Σ_v P[n, v] E_text[v]``: a convex combination of the text embeddings.

    Parameters: ``w1`` [D, d_vision], ``inner_norm`` (D), ``w2`` [V, D] (starts as a copy of the
    language model's head), ``outer_norm_weight`` γ and ``outer_norm_bias`` β [V].

    With a pruned vocabulary (``config.kept_tokens`` or :meth:`prune`) only the rows of the kept
    tokens exist; ``token_ids`` says which language-model ids they are. A vocabulary pruned after
    training keeps the full vocabulary's LayerNorm statistics, so each kept token's logit is exactly
    what it was and only the softmax is renormalised. Those statistics, and W1 where it is an
    inverse covariance (``init: keys``), stay in full precision when the model is cast to half
    precision: small variances do not survive it.

    Args:
        config: its config.
        d_vision: channels of the vision features.
        d_text: the language model's width D.
        vocab_size: rows of the language model's vocabulary that P_vocab covers; rows added to the
            embedding later are never used.
    """

    config: AlignConfig
    # transformers collects this from a model's parts when it loads weights in half precision
    _keep_in_fp32_modules_strict = tuple(rf"connector\.{name}" for name in STATS_BUFFERS)

    def __init__(
        self,
        config: AlignConfig,
        d_vision: int,
        d_text: int,
        vocab_size: int,
        feature_grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        kept = config.kept_tokens or vocab_size
        if kept > vocab_size:
            raise ValueError(f"kept_tokens={kept} is more than the vocabulary's {vocab_size}")
        self.w1 = nn.Linear(d_vision, d_text, bias=config.w1_bias)
        self.inner_norm = nn.LayerNorm(d_text, eps=config.eps)
        self.w2 = nn.Linear(d_text, kept, bias=False)
        if config.outer_norm:
            self.outer_norm_weight = nn.Parameter(torch.full((kept,), config.gamma))
            self.outer_norm_bias = nn.Parameter(torch.zeros(kept))
        else:
            self.register_parameter("outer_norm_weight", None)
            self.register_parameter("outer_norm_bias", None)
        self.token_ids: Tensor | None
        self.register_buffer("token_ids", None)
        if config.kept_tokens is not None:
            self.register_buffer("token_ids", torch.arange(kept))
        self.key_mean: Tensor | None
        self.register_buffer("key_mean", None)
        if config.init == "keys":
            self.register_buffer("key_mean", torch.zeros(d_text))
            self._keep_in_fp32_modules_strict += tuple(rf"connector\.{name}" for name in KEYS)
        if config.full_statistics:
            full = torch.promote_types(torch.get_default_dtype(), torch.float32)
            shapes = ((d_text,), (d_text, d_text), (), (d_text,), ())
            for name, shape in zip(STATS_BUFFERS, shapes, strict=True):
                self.register_buffer(name, torch.zeros(shape, dtype=full))
            torch.nn.init.eye_(self.stats_covariance)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AlignConnector:
        # every cast and move of a module passes here
        buffers = {name: self._buffers.get(name) for name in (*STATS_BUFFERS, "key_mean")}
        parts = () if self.key_mean is None else (self.w1, self.inner_norm)
        before = [parameter.data for part in parts for parameter in part.parameters()]
        super()._apply(fn, recurse)
        for name, value in buffers.items():
            after = self._buffers.get(name)
            if value is not None and after is not None and after.dtype in HALF:
                self._buffers[name] = value.to(after.device, torch.float32)
        for value, after in zip(before, (p for part in parts for p in part.parameters())):
            if after.dtype in HALF:
                after.data = value.to(after.device, torch.float32)
        return self

    def reset_parameters(self) -> None:
        # transformers' init functions leave alone what was loaded from a checkpoint
        if self.outer_norm_weight is not None:
            init.constant_(self.outer_norm_weight, self.config.gamma)
            init.zeros_(self.outer_norm_bias)
        if self.token_ids is not None:
            init.copy_(self.token_ids, torch.arange(len(self.token_ids)))
        if self.key_mean is not None:
            init.zeros_(self.key_mean)
        if self.config.full_statistics:
            for name in STATS_BUFFERS:
                init.zeros_(getattr(self, name))
            init.eye_(self.stats_covariance)  # neutral until statistics are loaded

    @torch.no_grad()
    def init_from_lm_head(
        self, lm_head: Float[Tensor, "vocab d_text"], token_ids: Tensor | None = None
    ) -> None:
        """Copy the language model's head into W2 (the paper's initialisation).

        Args:
            lm_head: the head's weight; rows beyond the vocabulary are ignored.
            token_ids: for a connector with ``kept_tokens``: which ids to keep, int64 ``[kept]``.

        Raises:
            ValueError: missing or impossible token_ids.
        """
        head = lm_head[: self.vocab_size]
        if self.token_ids is not None:
            if token_ids is None or token_ids.shape != self.token_ids.shape:
                raise ValueError(f"needs token_ids of shape {tuple(self.token_ids.shape)}")
            self.token_ids.copy_(self._checked_ids(token_ids))
            if self.config.full_statistics:
                for name, value in zip(STATS_BUFFERS, vocab_stats(head), strict=True):
                    getattr(self, name).copy_(value)
            head = head[self.token_ids]
        self.w2.weight.copy_(head)

    @torch.no_grad()
    def init_keys(self) -> None:
        """Start in closed form (``init: keys``), after :meth:`init_from_lm_head`: with W1, γ and β
        from W2 alone, P_vocab of :meth:`features_of` is the distribution that was asked for; see
        :mod:`alignvlm.connectors.closed_form`.

        Takes 2·V·D² operations and an eigendecomposition of D x D.

        Raises:
            ConfigError: the config has another ``init``.
        """
        if self.key_mean is None:
            raise ConfigError(f"the connector's init is {self.config.init!r}, not 'keys'")
        stats = self._fixed_stats() or vocab_stats(self.w2.weight)
        inverse = inverse_covariance(stats)
        norms = key_norms(self.w2.weight, stats.mean, inverse)
        self.key_mean.copy_(stats.mean)
        self.w1.weight.copy_(inverse)
        self.outer_norm_weight.fill_(self.config.gamma)
        width = self.w2.in_features
        self.outer_norm_bias.copy_(-BETA * self.config.gamma * norms.square() / width**0.5)

    def features_of(
        self,
        ids: Int[Tensor, "n k"],
        q: Float[Tensor, "n k"],
        text_embedding: Float[Tensor, "vocab d_text"],
    ) -> Float[Tensor, "n d_vision"]:
        if self.key_mean is None:
            return super().features_of(ids, q, text_embedding)
        with loaded(self, self.w1, self.w2):
            return self._features_of(ids, q)

    def _features_of(self, ids: Tensor, q: Tensor) -> Tensor:
        assert self.key_mean is not None
        real = (ids >= 0) & (q > 0)
        rows = self.row_of(torch.where(real, ids, ids[:, :1])).to(self.w2.weight.device)
        # small systems of equations, which half precision cannot solve
        full = torch.promote_types(self.key_mean.dtype, torch.float32)
        real, q = real.to(rows.device), q.to(rows.device, full)
        keys = self.w2.weight.detach()[rows].to(q.dtype) - self.key_mean
        doubt = real.sum(-1) > 1
        features = keys[:, 0]
        if bool(doubt.any()):
            inverse = self.w1.weight.detach().to(q.dtype)
            weights = mixture_weights(
                torch.einsum("nkd,de,nle->nkl", keys[doubt], inverse, keys[doubt]),
                q[doubt],
                self.outer_norm_bias.detach()[rows[doubt]].to(q.dtype),
                self.outer_norm_weight.detach()[rows[doubt]].to(q.dtype),
                real[doubt],
            )
            mixed = (weights[..., None] * keys[doubt]).sum(1)
            features = features.index_copy(0, doubt.nonzero()[:, 0], mixed)
        return features.to(self.w1.weight.dtype)

    def _checked_ids(self, token_ids: Tensor) -> Tensor:
        ids = torch.unique(token_ids.to(self.w2.weight.device, torch.int64))
        if len(ids) != token_ids.numel():
            raise ValueError("token_ids has duplicates")
        if len(ids) == 0 or int(ids[0]) < 0 or int(ids[-1]) >= self.vocab_size:
            raise ValueError(f"token_ids must be in [0, {self.vocab_size})")
        return ids

    def hidden(self, features: Float[Tensor, "*n d_vision"]) -> Float[Tensor, "*n d_text"]:
        """LayerNorm(W1 F), the input of ``vocab_mixture``."""
        if self.key_mean is None:
            return self.inner_norm(self.w1(features))
        # an inverse covariance: small directions of the head weigh most, which half precision loses
        with torch.autocast(features.device.type, enabled=False):
            hidden = self.inner_norm(self.w1(features.to(self.w1.weight.dtype)))
        return hidden

    def forward(
        self,
        features: Float[Tensor, "tiles rows cols d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"],
    ) -> Float[Tensor, "tiles tokens d_text"]:
        self.check_grid(features)
        tokens = self._read(features, text_embedding, None, None).tokens
        assert tokens is not None
        return tokens

    def read(
        self,
        features: Float[Tensor, "tiles rows cols d_vision"],
        text_embedding: Float[Tensor, "vocab d_text"] | None,
        targets: Int[Tensor, "tiles tokens"] | None = None,
        blank_id: int | None = None,
    ) -> VisualTokens:
        """See :meth:`Connector.read`. Equal features cost one row."""
        if text_embedding is not None and targets is None and blank_id is None:
            return super().read(features, text_embedding)
        return self._read(features, text_embedding, targets, blank_id)

    def _read(
        self,
        features: Tensor,
        text_embedding: Tensor | None,
        targets: Tensor | None,
        blank_id: int | None,
    ) -> VisualTokens:
        shape = features.shape[0], features.shape[1] * features.shape[2]
        flat = features.flatten(0, 2)
        # which features are equal depends on the data, of which tracing and meta tensors have none
        fixed = flat.is_meta or torch.compiler.is_compiling()
        if fixed:
            first = index = torch.arange(len(flat), device=flat.device)
        elif targets is None:
            first, index = distinct(flat)
        else:
            first, index = distinct_pairs(flat, targets.flatten())
        shared = len(first) < len(flat)
        rows = flat[first] if shared else flat
        asked = torch.full((len(rows), 2), -1, device=flat.device)
        if targets is not None:
            asked[:, 0] = targets.flatten().to(flat.device)[first]
        if blank_id is not None:
            asked[:, 1] = blank_id
        wanted = targets is not None or blank_id is not None
        result = self.mixture(self.hidden(rows), text_embedding, asked if wanted else None)

        def each(values: Tensor) -> Tensor:
            return (values[index] if shared else values).view(*shape, *values.shape[1:])

        log_p = None
        if result.target_logits is not None:
            log_p = each(result.target_logits - result.logsumexp[..., None])
        return VisualTokens(
            None if result.output is None else each(result.output),
            log_p[..., 0] if log_p is not None and targets is not None else None,
            log_p[..., 1] if log_p is not None and blank_id is not None else None,
        )

    def mixture(
        self,
        hidden: Float[Tensor, "*n d_text"],
        text_embedding: Float[Tensor, "vocab d_text"] | None,
        targets: Int[Tensor, "..."] | None = None,
    ) -> VocabMixture:
        """The op on :meth:`hidden`'s output.

        Args:
            hidden: LayerNorm(W1 F).
            text_embedding: the language model's table, or ``None`` to skip the mixture.
            targets: language-model token ids to return the logits of, ``*n`` or ``*n k``;
                negative: none.

        Raises:
            ValueError: a target is not among the kept tokens.
        """
        rows = None if targets is None else self.row_of(targets)
        with loaded(self, self.w2):
            return vocab_mixture(
                hidden,
                self.w2.weight,
                self._table(text_embedding),
                targets=rows,
                impl=self.config.impl,
                keep_logits_gib=self.config.keep_logits_gib,
                **self._norm(),
            )

    def logits(self, hidden: Float[Tensor, "n d_text"]) -> Float[Tensor, "n kept"]:
        with loaded(self, self.w2):
            return normalised_logits(hidden, self.w2.weight, **self._norm())

    def row_of(self, ids: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Row of P_vocab for each language-model id; negative ids stay negative.

        Raises:
            ValueError: an id is not among the kept tokens.
        """
        if self.token_ids is None:
            return ids
        rows = torch.searchsorted(self.token_ids, ids.clamp_min(0).contiguous())
        rows = rows.clamp_max(len(self.token_ids) - 1)
        missing = (self.token_ids[rows] != ids) & (ids >= 0)
        if bool(missing.any()):
            raise ValueError(f"token id {int(ids[missing][0])} is not in the pruned vocabulary")
        return torch.where(ids < 0, ids, rows)

    def keeps(self, ids: Int[Tensor, "*n"]) -> Tensor:
        """Whether P_vocab covers each id; bool, same shape."""
        if self.token_ids is None:
            return (ids >= 0) & (ids < self.vocab_size)
        rows = torch.searchsorted(self.token_ids, ids.contiguous())
        return self.token_ids[rows.clamp_max(len(self.token_ids) - 1)] == ids

    def _table(self, text_embedding: Tensor | None) -> Tensor | None:
        if text_embedding is None:
            return None
        if self.token_ids is not None:
            return text_embedding[self.token_ids]
        if text_embedding.shape[0] == self.vocab_size:
            return text_embedding
        return text_embedding[: self.vocab_size]

    def _norm(self) -> dict[str, Any]:
        """What the op adds to W2: the LayerNorm over the vocabulary."""
        return {
            "norm_weight": self.outer_norm_weight,
            "norm_bias": self.outer_norm_bias,
            "normalize": self.config.outer_norm,
            "eps": self.config.eps,
            "stats": self._fixed_stats(),
        }

    def _fixed_stats(self) -> VocabStats | None:
        if not self.config.full_statistics:
            return None
        return VocabStats(*(getattr(self, name) for name in STATS_BUFFERS))

    def _set_stats(self, stats: VocabStats) -> None:
        for name, value in zip(STATS_BUFFERS, stats, strict=True):
            # a copy each: saving refuses tensors that share storage
            self.register_buffer(name, value.to(self.w2.weight.device, copy=True))

    @torch.no_grad()
    def prune(self, token_ids: Int[Tensor, " kept"]) -> None:
        """Keep only the given language-model ids, in place.

        The LayerNorm keeps the statistics of the vocabulary it was trained with, so every kept
        token's logit is unchanged.

        Raises:
            ValueError: duplicates, ids out of range, or ids already pruned away.
        """
        ids = self._checked_ids(token_ids)
        if not bool(self.keeps(ids).all()):
            raise ValueError("some token_ids were pruned before")
        rows = self.row_of(ids)
        stats = self._fixed_stats()
        if stats is None and self.config.outer_norm:
            stats = vocab_stats(self.w2.weight)
        kept = nn.Linear(self.w2.in_features, len(ids), bias=False, device="meta")
        kept.weight = nn.Parameter(
            self.w2.weight[rows].clone(), requires_grad=self.w2.weight.requires_grad
        )
        self.w2 = kept
        for name in ("outer_norm_weight", "outer_norm_bias"):
            parameter = getattr(self, name)
            if parameter is not None:
                setattr(self, name, nn.Parameter(parameter[rows].clone(), parameter.requires_grad))
        self.register_buffer("token_ids", ids)
        if stats is not None:
            self._set_stats(stats)
        self.config = self.config.model_copy(
            update={"kept_tokens": len(ids), "full_statistics": stats is not None}
        )
