"""``vocab_mixture`` at its limits: adversarial numbers, half precision, autocast, no rows.

Shapes: N rows, V vocabulary, D width, T width of the table.
"""

from __future__ import annotations

import pytest
import torch
from tests.ops.mixture_cases import (
    NAMES,
    assert_at_most_twice_naive,
    call,
    case,
    each_way,
    errors,
    in_dtype,
    large_gamma,
    loud,
    near_constant,
    values_and_gradients,
)

from alignvlm.ops import vocab_stats

CHANGES = [near_constant, loud, large_gamma]


def adversarial(change, normalize: bool, *, n: int, v: int, d: int, tied: bool = False):
    """A case with ``change`` made to it."""
    if change is large_gamma and not normalize:
        pytest.skip("no gamma without the norm")
    a = case(n, v, d, d if tied else 8, normalize=normalize, tied=tied)
    with torch.no_grad():
        change(a)
    if tied:
        a.table = a.weight
    return a


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("chunk", [100, 512])
@each_way
def test_adversarial_inputs_are_as_exact_as_the_dense_op(change, normalize, chunk, keep):
    a = adversarial(change, normalize, n=16, v=777, d=32)
    single = in_dtype(a, torch.float32)
    double = in_dtype(single, torch.float64)
    oracle = values_and_gradients(double, call(double, impl="reference"))
    options = {"chunk_size": chunk, "keep_logits_gib": keep}
    streamed = values_and_gradients(single, call(single, **options))
    dense = values_and_gradients(single, call(single, impl="reference"))
    naive = errors(dense, oracle)
    for name, error in errors(streamed, oracle).items():
        scale = oracle[name].abs().max().item()
        assert streamed[name].isfinite().all()
        assert error <= 2 * naive[name] + 1e-5 * scale, (name, error, naive[name], scale)


@each_way
def test_bf16_is_at_most_twice_as_wrong_as_naive_bf16(keep):
    a = in_dtype(case(16, 777, 32, 8, bias=True), torch.bfloat16)
    assert_at_most_twice_naive(a, chunk_size=100, keep_logits_gib=keep)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tied", [False, True])
@each_way
def test_adversarial_inputs_in_half_precision(change, normalize, dtype, tied, keep):
    a = adversarial(change, normalize, n=16, v=777, d=32, tied=tied)
    assert_at_most_twice_naive(in_dtype(a, dtype), chunk_size=100, keep_logits_gib=keep)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("chunk", [1000, None])
@each_way
def test_adversarial_inputs_on_a_gpu(change, normalize, dtype, chunk, keep, monkeypatch):
    monkeypatch.setattr("alignvlm.ops.blocks.CUDA_ROWS", 128)  # several tiles, the last ragged
    a = adversarial(change, normalize, n=301, v=5003, d=64)
    for name in (*NAMES, "targets"):
        if getattr(a, name) is not None:
            setattr(a, name, getattr(a, name).cuda())
    assert_at_most_twice_naive(in_dtype(a, dtype), chunk_size=chunk, keep_logits_gib=keep)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("stats", [False, True])
@each_way
def test_autocast_changes_nothing(impl, stats, keep):
    a = in_dtype(case(bias=True, stats=stats), torch.float32)
    outside = values_and_gradients(a, call(a, impl=impl, keep_logits_gib=keep))
    with torch.autocast("cpu", torch.bfloat16):
        result = call(a, impl=impl, keep_logits_gib=keep)
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
@each_way
def test_no_rows(impl, lead, keep):
    a = case()
    x = torch.zeros(*lead, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(lead, dtype=torch.int64)
    result = call(a, x=x, targets=targets, impl=impl, keep_logits_gib=keep)
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


@each_way
def test_inputs_are_not_changed(keep):
    a = case(bias=True)
    before = {name: getattr(a, name).detach().clone() for name in NAMES}
    values_and_gradients(a, call(a, chunk_size=7, keep_logits_gib=keep))
    assert all(torch.equal(getattr(a, name), value) for name, value in before.items())
