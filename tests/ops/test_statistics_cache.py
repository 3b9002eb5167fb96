"""The cached row statistics are those of the weight as it is now, however it was changed.

Shapes: N rows, V vocabulary, D width, T width of the table.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tests.ops.mixture_cases import (
    assert_same,
    call,
    case,
    each_way,
    in_dtype,
    leaves,
    values_and_gradients,
)
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from alignvlm.ops import VocabStats, statistics, vocab_mixture, vocab_stats
from alignvlm.ops.statistics import cached_vocab_stats

V, D = 64, 8


@pytest.fixture(autouse=True)
def small_weights_are_cached(monkeypatch):
    monkeypatch.setattr(statistics, "CACHE_FROM", 0)
    statistics._CACHE.clear()
    yield
    statistics._CACHE.clear()


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """One entry each time statistics are computed and not found."""
    calls: list[int] = []

    def counted(weight: Tensor, bias: Tensor | None = None) -> VocabStats:
        calls.append(weight.data_ptr())
        return vocab_stats(weight, bias)

    monkeypatch.setattr(statistics, "vocab_stats", counted)
    return calls


def parameter(seed: int = 0, *shape: int, dtype=torch.float32) -> torch.nn.Parameter:
    g = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(*(shape or (V, D)), generator=g).to(dtype))


def assert_current(weight: Tensor, bias: Tensor | None = None) -> None:
    found, expected = cached_vocab_stats(weight, bias), vocab_stats(weight, bias)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_an_unchanged_weight_is_computed_once(computed, dtype):
    weight, bias = parameter(dtype=dtype), parameter(1, V, dtype=dtype)
    for _ in range(3):
        assert_current(weight, bias)
    assert len(computed) == 1


def test_small_weights_are_not_remembered(computed, monkeypatch):
    monkeypatch.setattr(statistics, "CACHE_FROM", V * D + 1)
    weight = parameter()
    for _ in range(2):
        assert_current(weight)
    assert len(computed) == 2 and not statistics._CACHE


def test_the_result_is_the_callers_own():
    weight = parameter()
    for value in cached_vocab_stats(weight):
        value.fill_(7)
    assert_current(weight)


# --- ways a weight changes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=1e-3),
        lambda p: torch.optim.SGD(p, lr=1e-3, foreach=True),
        lambda p: torch.optim.Adam(p, lr=1e-3),
        lambda p: torch.optim.AdamW(p, lr=1e-6, fused=True),
    ],
    ids=["sgd", "sgd-foreach", "adam", "adamw-fused"],
)
def test_optimiser_steps(make):
    weight, table, x = parameter(), parameter(1, V, 4), parameter(2, 5, D)
    optimiser = make([weight])
    for _ in range(3):
        assert_current(weight)
        result = vocab_mixture(x, weight, table, keep_logits_gib=0)
        (gradient,) = torch.autograd.grad(result.output.square().sum(), [weight])
        # the LayerNorm removes the mean over the vocabulary, so plain column sums never move
        assert gradient.sum(0).abs().max() < 1e-4 * gradient.abs().max()
        weight.grad = gradient
        before = weight.detach().clone()
        optimiser.step()
        assert not torch.equal(weight, before)
    assert_current(weight)


def test_two_rows_swapped():
    weight = parameter()
    bias = parameter(1, V)
    assert_current(weight, bias)
    with torch.no_grad():
        weight.data[:2] = weight.data[:2].flip(0).clone()  # same sums, same C; not the same c
    assert_current(weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", [(0, 0), (V - 1, D - 1)], ids=str)
def test_one_number_written_through_data(dtype, place):
    weight = parameter(dtype=dtype)
    assert_current(weight)
    version = weight._version
    weight.data[place] += 0.25
    assert weight._version == version
    assert_current(weight)


def test_added_through_data():
    weight = parameter()
    assert_current(weight)
    version = weight._version
    weight.data.add_(1e-3 * torch.randn(V, D))
    assert weight._version == version
    assert_current(weight)


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict(assign):
    head = torch.nn.Linear(D, V)
    assert_current(head.weight, head.bias)
    other = torch.nn.Linear(D, V)
    head.load_state_dict(other.state_dict(), assign=assign)
    assert_current(head.weight, head.bias)
    assert torch.equal(cached_vocab_stats(head.weight).mean, vocab_stats(other.weight).mean)


def test_a_bias_alone_changes(computed):
    weight, bias = parameter(), parameter(1, V)
    assert_current(weight, bias)
    bias.data.mul_(2)
    assert_current(weight, bias)
    assert_current(weight)
    assert_current(weight, bias)
    assert len(computed) == 4


def test_storage_of_a_freed_weight(computed):
    storage = torch.randn(V * D)
    for seed in range(3):
        weight = torch.nn.Parameter(storage.view(V, D))
        weight.data.copy_(parameter(seed))
        assert_current(weight)
        del weight
    assert len(set(computed)) == 1 and len(computed) == 3


def test_two_views_of_one_storage():
    storage = parameter(0, V, V).detach()
    for weight in (storage, storage.T, storage[:, :D], storage[: V // 2, :D]):
        assert_current(weight)


def test_two_weights_in_turn(computed):
    first, second = parameter(), parameter(1)
    for _ in range(3):
        assert_current(first)
        assert_current(second)
    assert len(computed) == 2


def test_only_the_latest_weights_are_remembered(computed):
    weights = [parameter(seed) for seed in range(statistics.CACHE_SIZE + 1)]
    for weight in (*weights, weights[0]):
        assert_current(weight)
    assert len(statistics._CACHE) == statistics.CACHE_SIZE
    assert len(computed) == len(weights) + 1


# --- under other machinery -----------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@each_way
def test_checkpoint(reentrant, keep):
    a = case(bias=True, tied=True, d=4)
    plain = values_and_gradients(a, call(a, keep_logits_gib=keep))
    wanted = leaves(a)

    def run(x: Tensor):
        return tuple(call(a, x=x, keep_logits_gib=keep))

    result = call(a)._replace(**dict.fromkeys(call(a)._fields))
    found = checkpoint(run, a.x, use_reentrant=reentrant)
    result = result._replace(**dict(zip(result._fields, found, strict=True)))
    if not reentrant:
        assert_same(values_and_gradients(a, result), plain, 0)
        return
    g = torch.Generator().manual_seed(3)  # the reentrant kind refuses torch.autograd.grad
    outputs = [value for value in result if value is not None]
    upstream = [torch.randn(o.shape, generator=g, dtype=torch.float64) for o in outputs]
    torch.autograd.backward(outputs, upstream)
    assert_same({f"d {name}": leaf.grad for name, leaf in wanted.items()},
                {f"d {name}": plain[f"d {name}"] for name in wanted}, 0)  # fmt: skip


@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(inputs):
    weight, x = parameter(dtype=inputs), parameter(1, 5, D, dtype=inputs)
    with torch.autocast("cpu", torch.bfloat16):
        first = vocab_mixture(x, weight, weight)
        assert_current(weight)
        weight.data.mul_(1.5)
        second = vocab_mixture(x, weight, weight)
    assert not torch.equal(first.logsumexp, second.logsumexp)
    assert torch.equal(second.logsumexp, vocab_mixture(x, weight, weight).logsumexp)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("keep", [0, None, 1])
def test_compile(backend, tied, keep):
    a = in_dtype(case(tied=tied, d=4), torch.float32)
    torch._dynamo.reset()
    # ids are checked against V on the host, which is a graph break
    compiled = torch.compile(
        lambda x: call(a, x=x, targets=None, keep_logits_gib=keep), backend=backend, fullgraph=True
    )
    for _ in range(2):
        expected = values_and_gradients(a, call(a, targets=None, keep_logits_gib=keep))
        assert_same(values_and_gradients(a, compiled(a.x)), expected, 1e-6)
        a.weight.data.add_(0.1 * a.weight.data.roll(1, 0))  # the graph's statistics must follow
    torch._dynamo.reset()


def leaves_of(arguments, *, requires_grad: bool):
    """The same numbers in new leaves; a tied table stays the weight itself."""
    copies: dict[int, Tensor] = {}

    def leaf(value):
        if not isinstance(value, Tensor):
            return value
        wanted = requires_grad and value.requires_grad
        return copies.setdefault(id(value), value.detach().requires_grad_(wanted))

    return tree_map(leaf, arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"tied": True, "d": 4},
        {"table": False},
        {"normalize": False, "targets": False},
        {"frozen": ("weight",), "affine": False},
    ],
    ids=str,
)
@each_way
def test_opcheck_of_the_mixture(options, keep, monkeypatch):
    """Schema, fake results, autograd registration and AOT dispatch of the operators as called."""
    recorded = {}

    def record(name: str):
        real = getattr(torch.ops.alignvlm, name).default

        def call_and_record(*args):
            recorded[name] = args
            return real(*args)

        return call_and_record

    from alignvlm.ops import chunked

    forward, backward = chunked._forward, chunked._backward
    monkeypatch.setattr(chunked, "_forward", record("vocab_mixture"))
    monkeypatch.setattr(chunked, "_backward", record("vocab_mixture_backward"))
    a = in_dtype(case(**{"n": 3, "v": 7, **options}), torch.float32)
    values_and_gradients(a, call(a, keep_logits_gib=keep))
    monkeypatch.setattr(chunked, "_forward", forward)
    monkeypatch.setattr(chunked, "_backward", backward)
    for name, arguments in recorded.items():
        once = name == "vocab_mixture"  # there is no second derivative
        torch.library.opcheck(
            getattr(torch.ops.alignvlm, name).default, leaves_of(arguments, requires_grad=once)
        )
    assert set(recorded) == {"vocab_mixture", "vocab_mixture_backward"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_opcheck_of_the_statistics(bias, cached, monkeypatch):
    monkeypatch.setattr(statistics, "CACHE_FROM", 0 if cached else 2**18)
    weight = parameter().detach()
    vector = parameter(1, V).detach() if bias else None
    torch.library.opcheck(torch.ops.alignvlm.vocab_stats.default, (weight, vector))


# --- sharded training ----------------------------------------------------------------------------

SHARDED = """
import copy, sys, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from alignvlm.ops import statistics, vocab_mixture

statistics.CACHE_FROM = 0
rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)


class Mixture(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, 8))
        self.table = torch.nn.Parameter(torch.randn(64, 4))

    def forward(self, x):
        return vocab_mixture(x, self.weight, self.table).output


torch.manual_seed(0)
plain = Mixture()
mesh = init_device_mesh("cpu", (world,))
sharded = fully_shard(copy.deepcopy(plain), mesh=mesh, reshard_after_forward=True)
pair = [(m, torch.optim.Adam(m.parameters(), lr=0.05)) for m in (plain, sharded)]
x = torch.randn(5, 8)
for step in range(3):
    outputs = []
    for module, optimiser in pair:
        optimiser.zero_grad()
        output = module(x)
        output.square().sum().backward()
        optimiser.step()
        outputs.append(output.detach())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    assert step == 0 or not torch.equal(outputs[0], first)
    first = outputs[0]
torch.testing.assert_close(sharded.weight.full_tensor(), plain.weight, rtol=1e-4, atol=1e-4)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("world", [1, 2])
def test_sharded_weights_follow_their_optimiser(world, tmp_path: Path):
    script, store = tmp_path / "sharded.py", tmp_path / "store"
    script.write_text(textwrap.dedent(SHARDED))
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world), str(store)],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)[-3000:]
