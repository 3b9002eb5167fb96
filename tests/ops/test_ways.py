"""Which way ``vocab_mixture`` takes, and what it asks about the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.ops.mixture_cases import call, case

from alignvlm.ops import blocks, chunked
from alignvlm.ops.blocks import KEPT_ROWS, KEPT_SHARE, choose_blocks, free_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def free(monkeypatch):
    """A function: pretend so many free bytes on both devices."""

    def pretend(size: int) -> None:
        monkeypatch.setattr(blocks, "_FREE", {"cpu": size, "cuda:0": size})

    return pretend


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize(
    ("room", "budget", "grad", "kept"),
    [
        (1.0, None, True, True),  # what fits the share of the free memory is kept
        (0.9, None, True, False),
        (1.0, None, False, False),  # nothing follows that would read it
        (0.0, 1.0, True, True),  # a budget of the caller's own counts, not the memory
        (9.0, 0.9, True, False),
        (9.0, 0.0, True, False),
    ],
)
def test_logits_are_kept_where_they_fit(room, budget, grad, kept, device, free):
    size = 4096 * 1000 * 2
    free(round(room * size / KEPT_SHARE))
    budget = None if budget is None else budget * size
    chosen = choose_blocks(4096, 1000, 2, device, grad=grad, in_groups=True, budget=budget)
    assert chosen.kept is kept


@pytest.mark.parametrize(("count", "groups"), [(1, 1), (1024, 1), (2048, 2), (6561, 2)])
def test_rows_of_a_group(count, groups):
    """Two on a GPU, so that half the logits' memory is enough beside them; few rows stay one."""
    chosen = choose_blocks(count, 128256, 2, CUDA, in_groups=True, budget=2**40)
    assert -(-count // chosen.rows) == groups
    assert groups == 1 or chosen.rows >= KEPT_ROWS["cuda"]


@pytest.mark.parametrize(("count", "groups"), [(1, 1), (512, 1), (1024, 2), (4096, 8)])
def test_rows_of_a_group_on_a_cpu(count, groups):
    """So few that what is held beside the logits is small."""
    chosen = choose_blocks(count, 49152, 4, CPU, in_groups=True, budget=2**40)
    assert -(-count // chosen.rows) == groups


def test_memory_of_a_page_on_a_gpu():
    """Kept logits, half of them beside, and tiles: at most 0.40 of naive's 7,554 MiB."""
    chosen = choose_blocks(6561, 128256, 2, CUDA, in_groups=True, budget=2**40)
    logits = 2 * 6561 * 128256
    tiles = chosen.rows * chosen.columns * (4 + 2)  # the upstream product in fp32, p
    results = 6561 * 2048 * (4 + 4 + 2)
    assert logits + 2 * chosen.rows * 128256 + tiles + results < 0.40 * 7554 * 2**20


@pytest.mark.parametrize(
    ("options", "keep", "expected"),
    [
        ({}, 1, ["_sweep_statistics", "sweep_in_groups"]),
        ({}, 0, ["cached_vocab_stats", "_sweep_backward"]),
        ({"stats": True}, 1, ["_sweep_backward"]),
        ({"stats": True}, 0, ["_sweep_backward"]),
        ({"normalize": False}, 1, ["_sweep_backward"]),
        ({"normalize": False}, 0, ["_sweep_backward"]),
    ],
    ids=str,
)
def test_the_ways(options, keep, expected, monkeypatch):
    taken: list[str] = []
    for name in ("cached_vocab_stats", "_sweep_statistics", "_sweep_backward", "sweep_in_groups"):
        function = getattr(chunked, name)

        def watched(*args, name=name, function=function):
            taken.append(name)
            return function(*args)

        monkeypatch.setattr(chunked, name, watched)
    call(case(**options), keep_logits_gib=keep).output.sum().backward()
    assert taken == expected


def test_free_memory_is_asked_once(monkeypatch):
    monkeypatch.setattr(blocks, "_FREE", {})
    answers = iter([7, 5])
    monkeypatch.setattr(blocks, "_free_cpu_bytes", lambda: next(answers))
    assert [free_bytes("cpu"), free_bytes("cpu")] == [7, 7]
    assert free_bytes("meta") == 0


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_free_memory_of_a_cpu():
    assert 0 < blocks._free_cpu_bytes() < 2**50
