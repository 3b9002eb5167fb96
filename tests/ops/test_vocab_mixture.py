"""``vocab_mixture``: the streamed op against the dense one, against attention, and at its limits.

Shapes: N rows, V vocabulary, D width, T width of the table.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignvlm.ops import VocabStats, normalised_logits, vocab_mixture, vocab_stats

NAMES = ("x", "weight", "table", "bias", "norm_weight", "norm_bias")


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


def values_and_gradients(a: SimpleNamespace, result, upstream_seed: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(upstream_seed)
    outputs = {k: value for k, value in result._asdict().items() if value is not None}
    upstream = [
        torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.dtype) for o in outputs.values()
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


# --- streamed == dense ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_chunked_equals_reference(data):
    flag = st.booleans()
    v = data.draw(st.integers(2, 40), "v")
    kind = data.draw(st.sampled_from(["tied", "untied", "frozen", "none"]), "table")
    a = case(
        data.draw(st.integers(1, 6), "n"), v, data.draw(st.integers(1, 8), "d"),
        data.draw(st.integers(1, 5), "t"), tied=kind == "tied", table=kind != "none",
        frozen=("table",) if kind == "frozen" else (), bias=data.draw(flag, "bias"),
        affine=data.draw(flag, "affine"), normalize=data.draw(flag, "normalize"),
        targets=data.draw(flag, "targets"), stats=data.draw(flag, "stats"),
        seed=data.draw(st.integers(0, 99), "seed"),
    )  # fmt: skip
    chunk = data.draw(st.integers(1, v + 3), "chunk")
    dense = values_and_gradients(a, call(a, impl="reference"))
    streamed = values_and_gradients(a, call(a, impl="chunked", chunk_size=chunk))
    # tiny vocabularies have rows of almost no variance, where 1/sigma magnifies both's rounding
    assert_same(streamed, dense, 1e-12 if v >= 8 else 1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 23, 24, None])
@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("x", "weight"), NAMES[1:]], ids=str)
def test_chunked_equals_reference_with_frozen_parts(chunk, frozen):
    a = case(bias=True, frozen=frozen)
    dense = values_and_gradients(a, call(a, impl="reference"))
    assert_same(values_and_gradients(a, call(a, chunk_size=chunk)), dense, 1e-12)


@pytest.mark.parametrize("used", ["output", "logsumexp", "target_logits"])
def test_each_output_alone_has_the_right_gradient(used):
    a = case(bias=True, tied=True, d=4)
    pair = []
    for impl in ("reference", "chunked"):
        loss = getattr(call(a, impl=impl), used).square().sum()
        gradients = torch.autograd.grad(loss, list(leaves(a).values()), allow_unused=True)
        pair.append(dict(zip(leaves(a), gradients, strict=True)))
    expected = {k: torch.zeros(()) if g is None else g for k, g in pair[0].items()}
    found = {k: torch.zeros(()) if g is None else g for k, g in pair[1].items()}
    assert_same(found, expected, 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": True},
        {"bias": True},
        {"bias": True, "tied": True},
        {"affine": False},
        {"frozen": ("table",)},
        {"frozen": ("weight",)},
        {"table": False},
        {"stats": True, "bias": True},
        {"targets": False},
        {"normalize": False},
        {"normalize": False, "bias": True, "tied": True},
    ],
    ids=str,
)
def test_gradcheck(options):
    a = case(3, 7, 3, 3 if options.get("tied") else 2, **options)
    wanted = leaves(a)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        changed = dict(zip(wanted, tensors, strict=True))
        if options.get("tied"):
            changed["table"] = changed["weight"]
        result = call(SimpleNamespace(**{**vars(a), **changed}), impl="chunked", chunk_size=3)
        return tuple(value for value in result if value is not None)

    assert torch.autograd.gradcheck(run, tuple(wanted.values()))


def test_leading_shape_is_kept():
    a = case(12)
    flat = call(a)
    a.x, a.targets = a.x.view(3, 2, 2, -1), a.targets.view(3, 2, 2)
    result = call(a)
    assert result.output.shape == (3, 2, 2, 4)
    assert result.logsumexp.shape == result.target_logits.shape == (3, 2, 2)
    assert torch.equal(result.output.flatten(0, 2), flat.output)


# --- other ways to compute the same --------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_equals_attention(bias):
    """q = [r x, -mu r, r, 1], k = [gamma W, gamma, gamma b, beta], v = E, scale 1."""
    a = case(9, 31, 6, 5, bias=bias, targets=False)
    b = a.bias if bias else a.weight.new_zeros(31)
    z = a.x @ a.weight.T + b
    mu = z.mean(-1, keepdim=True)
    r = ((z - mu).square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    gamma, beta = a.norm_weight[:, None], a.norm_bias[:, None]
    q = torch.cat((r * a.x, -mu * r, r, torch.ones_like(r)), 1)
    k = torch.cat((gamma * a.weight, gamma, gamma * b[:, None], beta), 1)
    attention = F.scaled_dot_product_attention(q[None], k[None], a.table[None], scale=1.0)[0]
    found = call(a, chunk_size=10)._replace(logsumexp=None)
    oracle = found._replace(output=attention)
    assert_same(values_and_gradients(a, found), values_and_gradients(a, oracle), 1e-12)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_cross_entropy_from_logsumexp_and_target_logits(impl):
    a = case(11, table=False, bias=True)
    ours = call(a, impl=impl)
    loss = ours.logsumexp - ours.target_logits
    logits = normalised_logits(a.x, a.weight, a.bias, a.norm_weight, a.norm_bias)
    theirs = F.cross_entropy(logits, a.targets.clamp(min=-1), ignore_index=-1, reduction="none")
    counted = a.targets >= 0
    assert 0 < counted.sum() < len(counted)
    torch.testing.assert_close(loss[counted], theirs[counted])
    assert (ours.target_logits[~counted] == 0).all()
    inputs = list(leaves(a).values())
    torch.testing.assert_close(
        torch.autograd.grad(loss[counted].sum(), inputs),
        torch.autograd.grad(theirs.sum(), inputs),
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 99), scale=st.floats(0, 30), chunk=st.integers(1, 30),
    normalize=st.booleans(),
)  # fmt: skip
def test_output_is_convex(seed, scale, chunk, normalize):
    a = case(seed=seed, normalize=normalize)
    with torch.no_grad():
        output = call(a, x=scale * a.x, chunk_size=chunk).output
        weights = call(a, x=scale * a.x, table=torch.eye(23).double(), chunk_size=chunk).output
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, dtype=torch.float64))
    assert (output >= a.table.amin(0) - 1e-9).all() and (output <= a.table.amax(0) + 1e-9).all()


def test_vocab_stats_are_the_moments_of_the_logits(monkeypatch):
    a = case(v=50, bias=True)
    z = a.x @ a.weight.T + a.bias
    for block in (7, 50):
        monkeypatch.setattr("alignvlm.ops.statistics.BLOCK", block)
        mu, variance = vocab_stats(a.weight, a.bias).moments(a.x)
        torch.testing.assert_close(mu, z.mean(-1))
        torch.testing.assert_close(variance, z.var(-1, correction=0))


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_given_stats_keep_the_logits_of_a_larger_vocabulary(impl):
    a = case(4, 60, bias=True)
    full = normalised_logits(a.x, a.weight, a.bias, a.norm_weight, a.norm_bias)
    kept = torch.arange(0, 60, 3)
    few = {name: getattr(a, name)[kept] for name in NAMES[1:]}
    targets = torch.tensor([0, 5, 19, -1])
    stats = vocab_stats(a.weight, a.bias)
    result = call(a, **few, targets=targets, stats=stats, impl=impl, chunk_size=None)
    expected = full[torch.arange(4), kept[targets]] * (targets >= 0)
    torch.testing.assert_close(result.target_logits, expected)
    torch.testing.assert_close(result.logsumexp, full[:, kept].logsumexp(-1))


# --- memory --------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Remembers the largest number of elements of any tensor an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize("tied", [False, True])
def test_never_holds_rows_times_vocabulary(tied):
    n, v, d, chunk = 200, 1000, 16, 128
    a = case(n, v, d, d, tied=tied, bias=True)
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    def largest(**options) -> int:
        saved.clear()
        with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            values_and_gradients(a, call(a, **options))
        return max(seen.numel, *saved)

    assert largest(impl="reference") >= n * v  # the check sees what it looks for
    assert largest(impl="chunked", chunk_size=chunk) <= max(n * chunk, v * d)
    assert max(saved) <= v * d


# --- limits --------------------------------------------------------------------------------------


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
    return copy


@pytest.mark.parametrize("change", [near_constant, loud, large_gamma])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("chunk", [100, 512])
def test_adversarial_inputs_are_as_exact_as_the_dense_op(change, normalize, chunk):
    if change is large_gamma and not normalize:
        pytest.skip("no gamma without the norm")
    a = case(16, 777, 32, 8, normalize=normalize)
    with torch.no_grad():
        change(a)
    single = in_dtype(a, torch.float32)
    double = in_dtype(single, torch.float64)
    oracle = values_and_gradients(double, call(double, impl="reference"))
    streamed = values_and_gradients(single, call(single, chunk_size=chunk))
    dense = values_and_gradients(single, call(single, impl="reference"))
    naive = errors(dense, oracle)
    for name, error in errors(streamed, oracle).items():
        scale = oracle[name].abs().max().item()
        assert streamed[name].isfinite().all()
        assert error <= 2 * naive[name] + 1e-5 * scale, (name, error, naive[name], scale)


def test_bf16_is_at_most_twice_as_wrong_as_naive_bf16():
    a = in_dtype(case(16, 777, 32, 8, bias=True), torch.bfloat16)
    double = in_dtype(a, torch.float64)
    oracle = values_and_gradients(double, call(double, impl="reference"))
    z = a.x @ a.weight.T + a.bias
    s = F.layer_norm(z, (777,), a.norm_weight, a.norm_bias)
    ids = a.targets.clamp_min(0)[:, None]
    result = call(a, chunk_size=100)
    naive = result._replace(
        output=s.softmax(-1) @ a.table,
        logsumexp=s.logsumexp(-1),
        target_logits=s.gather(1, ids)[:, 0] * (a.targets >= 0),
    )
    assert result.output.dtype == torch.bfloat16
    assert result.logsumexp.dtype == result.target_logits.dtype == torch.float32
    limit = errors(values_and_gradients(a, naive), oracle)
    found = values_and_gradients(a, result)
    for name, error in errors(found, oracle).items():
        assert error <= 2 * limit[name], (name, error, limit[name])
    assert all(found[f"d {name}"].dtype == torch.bfloat16 for name in leaves(a))


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("stats", [False, True])
def test_autocast_changes_nothing(impl, stats):
    a = in_dtype(case(bias=True, stats=stats), torch.float32)
    outside = values_and_gradients(a, call(a, impl=impl))
    with torch.autocast("cpu", torch.bfloat16):
        result = call(a, impl=impl)
        inside = values_and_gradients(a, result) if impl == "chunked" else None
    if inside is None:  # autograd's own formulas follow autocast, so PyTorch wants them outside
        inside = values_and_gradients(a, result)
    for name, value in outside.items():
        assert torch.equal(inside[name], value), name


def test_autocast_does_not_reach_the_statistics():
    a = in_dtype(case(v=50, bias=True), torch.float32)
    outside = vocab_stats(a.weight, a.bias)
    with torch.autocast("cpu", torch.bfloat16):
        inside = vocab_stats(a.weight, a.bias)
    assert all(torch.equal(one, two) for one, two in zip(outside, inside, strict=True))


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("lead", [(0,), (2, 0), (0, 3)], ids=str)
def test_no_rows(impl, lead):
    a = case()
    x = torch.zeros(*lead, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(lead, dtype=torch.int64)
    result = call(a, x=x, targets=targets, impl=impl)
    assert result.output.shape == (*lead, 4)
    assert result.logsumexp.shape == result.target_logits.shape == lead
    (result.output.sum() + result.logsumexp.sum()).backward()
    assert x.grad.shape == x.shape
    assert (a.weight.grad == 0).all() and (a.table.grad == 0).all()


def test_one_word_gets_all_the_probability():
    a = case(v=1, targets=False)
    assert torch.equal(call(a).output, a.table.expand(5, -1))


def test_targets_do_not_change_the_rest():
    a = case()
    without = call(a, targets=None)
    assert without.target_logits is None
    assert torch.equal(call(a).output, without.output)
    assert call(a, table=None).output is None
    assert torch.equal(call(a, table=None).logsumexp, without.logsumexp)


def test_inputs_are_not_changed():
    a = case(bias=True)
    before = {name: getattr(a, name).detach().clone() for name in NAMES}
    values_and_gradients(a, call(a, chunk_size=7))
    assert all(torch.equal(getattr(a, name), value) for name, value in before.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5, 7)}, "does not fit weight"),
        ({"weight": torch.zeros(23)}, "does not fit weight"),
        ({"table": torch.zeros(22, 4)}, "needs 23 rows"),
        ({"table": torch.zeros(23)}, "needs 23 rows"),
        ({"bias": torch.zeros(22)}, r"bias .* must be \[23\]"),
        ({"norm_weight": torch.zeros(23, 1)}, "norm_weight"),
        ({"norm_bias": torch.zeros(1)}, "norm_bias"),
        ({"normalize": False}, "need normalize=True"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, "targets"),
        ({"targets": torch.full((5,), 23)}, "target 23 is not below the vocabulary's 23"),
        ({"chunk_size": 0, "impl": "chunked"}, "chunk_size must be positive"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_raise(change, message):
    with pytest.raises(ValueError, match=message):
        call(case(), **change)


def test_stats_need_the_norm():
    a = case(normalize=False)
    stats = VocabStats(*(torch.zeros(()) for _ in VocabStats._fields))
    with pytest.raises(ValueError, match="need normalize=True"):
        call(a, stats=stats)
