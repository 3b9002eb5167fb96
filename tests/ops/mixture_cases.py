"""Arguments of ``vocab_mixture`` for its tests, and ways to compare two results.

Shapes: N rows, V vocabulary, D width, T width of the table.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from alignvlm.ops import VocabMixture, vocab_mixture, vocab_stats

NAMES = ("x", "weight", "table", "bias", "norm_weight", "norm_bias")
each_way = pytest.mark.parametrize("keep", [0, 2**10], ids=["streamed", "kept"])
"""``keep_logits_gib`` for a test of both ways."""


def case(
    n=5, v=23, d=6, t=4, *, tied=False, table=True, bias=False, affine=True, normalize=True,
    targets=True, stats=False, frozen=(), seed=0,
) -> SimpleNamespace:  # fmt: skip
    """fp64 arguments of the op, leaves of autograd except those named in ``frozen``."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    a = SimpleNamespace(x=draw(n, d), weight=draw(v, d), table=draw(v, t) if table else None)
    a.bias = draw(v) if bias else None
    a.norm_weight = 1 + draw(v) if affine and normalize else None
    a.norm_bias = draw(v) if affine and normalize else None
    a.normalize = normalize
    a.targets = torch.randint(-2, v, (n,), generator=g) if targets else None
    a.stats = vocab_stats(draw(3 * v, d), draw(3 * v)) if stats and normalize else None
    if tied:
        a.table = a.weight
    for name in NAMES:
        tensor = getattr(a, name)
        if tensor is not None and name not in frozen:
            tensor.requires_grad_()
    return a


def call(a: SimpleNamespace, **overrides):
    arguments = {**vars(a), **overrides}
    lead = [arguments.pop(name) for name in ("x", "weight", "table")]
    return vocab_mixture(*lead, **arguments)


def leaves(a: SimpleNamespace) -> dict[str, Tensor]:
    """The distinct tensors that want a gradient."""
    found: dict[str, Tensor] = {}
    for name in NAMES:
        tensor = getattr(a, name)
        seen = any(tensor is other for other in found.values())
        if tensor is not None and tensor.requires_grad and not seen:
            found[name] = tensor
    return found


def reads_in_pieces(monkeypatch, rows: int = 2) -> None:
    """Several tiles and groups of rows, few as a test's rows are."""
    monkeypatch.setattr("alignvlm.ops.blocks.CPU_ROWS", rows)
    monkeypatch.setattr("alignvlm.ops.blocks.KEPT_ROWS", {"cpu": rows, "cuda": rows})


def values_and_gradients(a: SimpleNamespace, result, upstream_seed: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(upstream_seed)
    outputs = {k: value for k, value in result._asdict().items() if value is not None}
    upstream = [
        torch.randn(o.shape, generator=g, dtype=torch.float64).to(o) for o in outputs.values()
    ]
    wanted = leaves(a)
    gradients = torch.autograd.grad(list(outputs.values()), list(wanted.values()), upstream)
    return {
        **{name: value.detach() for name, value in outputs.items()},
        **{f"d {name}": value for name, value in zip(wanted, gradients, strict=True)},
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).abs().max().item()
        assert error <= tolerance * max(value.abs().max().item(), 1.0), (name, error)


def errors(found: dict[str, Tensor], oracle: dict[str, Tensor]) -> dict[str, float]:
    return {k: (found[k].double() - v).abs().max().item() for k, v in oracle.items()}


def near_constant(a: SimpleNamespace) -> None:
    a.weight = a.weight[:1] + 1e-3 * a.weight  # every row of logits is almost one number
    a.bias = None


def loud(a: SimpleNamespace) -> None:
    z = a.x @ a.weight.T
    a.x = a.x * (100 / z.abs().amax(-1, keepdim=True))


def large_gamma(a: SimpleNamespace) -> None:
    a.norm_weight = a.norm_weight * (50 / a.norm_weight.abs().max())


def in_dtype(a: SimpleNamespace, dtype: torch.dtype) -> SimpleNamespace:
    """Leaves of another dtype, with the same numbers as far as the dtype can hold them."""
    copy = SimpleNamespace(**vars(a))
    for name in NAMES:
        if getattr(a, name) is not None:
            setattr(copy, name, getattr(a, name).detach().to(dtype).requires_grad_())
    if a.table is a.weight:
        copy.table = copy.weight
    return copy


def naive(a: SimpleNamespace) -> VocabMixture:
    """The op as one would write it, every step in the dtype of its inputs."""
    s = a.x @ a.weight.T
    if a.bias is not None:
        s = s + a.bias
    if a.normalize:
        s = F.layer_norm(s, s.shape[-1:], a.norm_weight, a.norm_bias)
    target_logits = None
    if a.targets is not None:
        picked = s.gather(1, a.targets.clamp_min(0)[:, None])[:, 0]
        target_logits = picked * (a.targets >= 0)
    return VocabMixture(s.softmax(-1) @ a.table, s.logsumexp(-1), target_logits)


def assert_at_most_twice_naive(a: SimpleNamespace, **options) -> None:
    """The streamed op's error in the dtype of ``a`` against fp64, next to the naive op's.

    Half a unit of the last place of the largest value is allowed on top: a perfect result, rounded,
    is that wrong, and the naive one may be lucky.
    """
    double = in_dtype(a, torch.float64)
    oracle = values_and_gradients(double, call(double, impl="reference"))
    limit = errors(values_and_gradients(a, naive(a)), oracle)
    result = call(a, impl="chunked", **options)
    assert result.output is not None
    assert result.output.dtype == a.table.dtype
    assert result.logsumexp.dtype == torch.float32
    found = values_and_gradients(a, result)
    for name, error in errors(found, oracle).items():
        rounding = torch.finfo(found[name].dtype).eps / 2 * oracle[name].abs().max().item()
        assert found[name].isfinite().all(), name
        assert error <= 2 * limit[name] + rounding, (name, error, limit[name], rounding)
    assert all(found[f"d {name}"].dtype == leaf.dtype for name, leaf in leaves(a).items())
