"""``vocab_mixture``: the streamed op against the dense one and against attention; its memory.

Shapes: N rows, V vocabulary, D width, T width of the table.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.mixture_cases import (
    NAMES,
    assert_same,
    call,
    case,
    each_way,
    leaves,
    reads_in_pieces,
    values_and_gradients,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignvlm.ops import VocabStats, chunked, normalised_logits, vocab_stats
from alignvlm.ops.corrections import Gradients

# --- streamed == dense ---------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
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
    keep = data.draw(st.sampled_from([0, 1]), "keep_logits_gib")
    with pytest.MonkeyPatch.context() as patch:
        reads_in_pieces(patch, data.draw(st.integers(1, 6), "rows of a tile"))
        options = {"impl": "chunked", "chunk_size": chunk, "keep_logits_gib": keep}
        streamed = values_and_gradients(a, call(a, **options))
    # tiny vocabularies have rows of almost no variance, where 1/sigma magnifies both's rounding
    assert_same(streamed, dense, 1e-12 if v >= 8 else 1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 23, 24, None])
@pytest.mark.parametrize("frozen", [(), ("x",), ("weight",), ("x", "weight"), NAMES[1:]], ids=str)
@each_way
def test_chunked_equals_reference_with_frozen_parts(chunk, frozen, keep):
    a = case(bias=True, frozen=frozen)
    dense = values_and_gradients(a, call(a, impl="reference"))
    chunked = values_and_gradients(a, call(a, chunk_size=chunk, keep_logits_gib=keep))
    assert_same(chunked, dense, 1e-12)


@pytest.mark.parametrize("used", ["output", "logsumexp", "target_logits"])
@each_way
def test_each_output_alone_has_the_right_gradient(used, keep):
    a = case(bias=True, tied=True, d=4)
    pair = []
    for impl in ("reference", "chunked"):
        loss = getattr(call(a, impl=impl, keep_logits_gib=keep), used).square().sum()
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
@each_way
def test_gradcheck(options, keep, monkeypatch):
    reads_in_pieces(monkeypatch)
    a = case(3, 7, 3, 3 if options.get("tied") else 2, **options)
    wanted = leaves(a)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        changed = dict(zip(wanted, tensors, strict=True))
        if options.get("tied"):
            changed["table"] = changed["weight"]
        changed = SimpleNamespace(**{**vars(a), **changed})
        result = call(changed, impl="chunked", chunk_size=3, keep_logits_gib=keep)
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
@each_way
def test_equals_attention(bias, keep):
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
    found = call(a, chunk_size=10, keep_logits_gib=keep)._replace(logsumexp=None)
    oracle = found._replace(output=attention)
    assert_same(values_and_gradients(a, found), values_and_gradients(a, oracle), 1e-12)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@each_way
def test_cross_entropy_from_logsumexp_and_target_logits(impl, keep):
    a = case(11, table=False, bias=True)
    ours = call(a, impl=impl, keep_logits_gib=keep)
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
    """Remembers the largest number of elements of any tensor an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [] if func.is_view else tree_leaves(result)
        sizes = [leaf.numel() for leaf in made if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.fixture
def largest(monkeypatch):
    """A function: the largest tensor inside a call and its backward, the largest that the
    operators return, and the largest saved."""
    seen: list[Largest] = []

    def watch(owner, name: str) -> None:
        function = getattr(owner, name)

        def watched(*args, **kwargs):
            with seen[-1]:
                return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    # a dispatch mode does not see inside a custom operator, so it is entered there
    for name in ("_sweep_statistics", "_sweep_forward", "_sweep_backward", "sweep_in_groups"):
        watch(chunked, name)
    watch(Gradients, "correct")

    def measure(a: SimpleNamespace, **options) -> tuple[int, int, int]:
        saved: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        seen.append(Largest())
        outside = Largest()
        with outside, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            values_and_gradients(a, call(a, **options))
        assert options["impl"] == "reference" or seen[-1].numel > 0  # it was entered
        return seen[-1].numel, outside.numel, max(saved)

    return measure


@pytest.mark.parametrize("tied", [False, True])
def test_never_holds_rows_times_vocabulary(tied, largest):
    n, v, d, chunk = 200, 1000, 16, 128
    a = case(n, v, d, d, tied=tied, bias=True)
    # the check sees what it looks for
    assert min(largest(a, impl="reference")[1:]) >= n * v
    inside, returned, saved = largest(a, impl="chunked", chunk_size=chunk, keep_logits_gib=0)
    assert max(inside, returned) <= max(n * chunk, v * d)
    assert saved <= v * d


@pytest.mark.parametrize("n", [4, 6])
def test_kept_logits_and_half_as_much_beside_them(n, largest, monkeypatch):
    reads_in_pieces(monkeypatch, rows=n // 2)
    a = case(n, 1000, 2, 2, bias=True)
    inside, returned, saved = largest(a, impl="chunked", chunk_size=128, keep_logits_gib=1)
    assert returned == saved == n * 1000
    assert inside == n * 1000 // 2


# --- arguments ------------------------------------------------------------------------------------


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
