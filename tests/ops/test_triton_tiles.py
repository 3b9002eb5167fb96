"""The fused tiles against the plain ones: in Triton's interpreter, and on a GPU where there is one.

Run as a script this file checks the kernels; Triton reads TRITON_INTERPRET when it is imported, so
the interpreter needs a process of its own.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor

from alignvlm.ops import select, tiles, vocab_mixture
from alignvlm.ops.tiles import Columns, Rows, Sums

has_triton = importlib.util.find_spec("triton") is not None
FLAGS = ("bias", "affine", "norm", "upstream", "sums", "by_column", "kept")
SHAPES = ((1, 1), (5, 7), (4, 16), (9, 33))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}


def draw_tile(shape, flags: dict[str, bool], device="cpu"):
    """z, upstream, rows, columns, and vectors ``[R]`` and ``[K]`` of a random tile."""
    g = torch.Generator().manual_seed(hash(shape) % 1000)
    count, width = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=g).to(device)

    z = draw(width, count).T if flags["by_column"] else draw(count, width)
    rows = Rows(draw(count), 0.5 + draw(count).abs()) if flags["norm"] else Rows(None, None)
    bias = draw(width) if flags["bias"] else None
    affine = (draw(width), draw(width)) if flags["affine"] else (None, None)
    upstream = draw(count, width) if flags["upstream"] else None
    return z, upstream, rows, Columns(bias, *affine), [draw(count) for _ in range(4)], draw(width)


def kept_in(z: Tensor, operand: torch.dtype) -> Tensor:
    """The tile in the operands' dtype, inside a larger array."""
    wide = z.new_zeros(len(z), z.shape[1] + 3, dtype=operand)
    wide[:, 2:-1] = z
    return wide[:, 2:-1]


def run_forward(module, tile, operand):
    z, _, rows, columns, vectors, _ = tile
    before = z.clone()
    peak, total = vectors[0].clone(), vectors[1].abs()
    peak[0] = -torch.inf  # as before the first block
    p, rescale = module.forward_tile(z, rows, columns, peak, total, operand)
    assert torch.equal(z, before), "z was changed"
    return {"p": p, "rescale": rescale, "peak": peak, "total": total}


def run_backward(module, tile, operand, wanted: bool):
    z, upstream, rows, columns, (lse, offset, s1, s2), column = tile
    lse, before = 3 + lse.abs(), z.clone()
    starts = (s1, s2, s1 + s2, column, 2 * column, 3 * column)
    sums = Sums(*(start.clone() if wanted else None for start in starts))
    up = None if upstream is None else upstream.clone()
    p, a = module.backward_tile(z, up, rows, columns, lse, offset, sums, operand)
    assert torch.equal(z, before), "z was changed"
    return {"p": p, "a": a, **{k: v for k, v in sums._asdict().items() if v is not None}}


def run_correct(module, tile, operand, wanted: bool):
    z, upstream, rows, columns, (s1, s2, *_), column = tile
    a = kept_in(torch.cos(z) if upstream is None else upstream, operand)
    sums = column.clone() if wanted else None
    dz = module.correct_tile(z, a, rows, columns.bias, s1, s2, sums)
    assert dz.data_ptr() == a.data_ptr()
    return {"a": dz, **({} if sums is None else {"bias": sums})}


def run_statistics(module, tile, _, wanted: bool):
    z, _, _, columns, (mean, moved, *_), _ = tile
    mean, moved = (mean.clone(), moved.abs()) if wanted else (0 * mean, 0 * moved)
    module.statistics_tile(z, columns.bias, 9 if wanted else 0, mean, moved)
    return {"mean": mean, "moved": moved}


def compare(found: dict[str, Tensor], expected: dict[str, Tensor], operand, name: str) -> None:
    for key, value in expected.items():
        assert found[key].dtype == value.dtype == (operand if key in "pa" else torch.float32)
        bound = TOLERANCE[value.dtype]
        torch.testing.assert_close(
            found[key], value, rtol=bound, atol=bound * 1e-2 if key in "pa" else bound,
            msg=lambda text, key=key: f"{name} {key}: {text}",
        )  # fmt: skip


def check_kernels(device: str = "cpu", count: int = 60) -> None:
    """All kernels on so many combinations of flags; rows and columns fit no block.

    The interpreter is slow, and on a GPU each combination is compiled for a second or two.
    """
    from alignvlm.ops import triton_tiles

    cases = list(itertools.product(SHAPES, TOLERANCE, *[(False, True)] * len(FLAGS)))
    cases = random.Random(0).sample(cases, count)
    for shape, operand, *on in cases:
        flags = dict(zip(FLAGS, on, strict=True))
        tile, name = draw_tile(shape, flags, device), f"{shape} {flags} {operand}"
        if flags["kept"]:
            tile = (kept_in(tile[0], operand), *tile[1:])
        modules = (triton_tiles, tiles)
        pair = [run_forward(module, tile, operand) for module in modules]
        compare(*pair, operand, f"forward {name}")
        pair = [run_backward(module, tile, operand, flags["sums"]) for module in modules]
        compare(*pair, operand, f"backward {name}")
        if flags["norm"]:
            pair = [run_correct(module, tile, operand, flags["sums"]) for module in modules]
            compare(*pair, operand, f"correct {name}")
        pair = [run_statistics(module, tile, operand, flags["sums"]) for module in modules]
        compare(*pair, operand, f"statistics {name}")


def check_double() -> None:
    """fp64 takes the plain tiles."""
    from alignvlm.ops import triton_tiles

    flags = dict.fromkeys(FLAGS, True)
    z, up, rows, columns, vectors, column = draw_tile((5, 7), flags)
    tile = (
        z.double(), up.double(), Rows(*(v.double() for v in rows)),
        Columns(*(v.double() for v in columns)), [v.double() for v in vectors], column.double(),
    )  # fmt: skip
    runs = (run_backward, run_correct, run_statistics)
    for run, extra in ((run_forward, ()), *((run, (True,)) for run in runs)):
        pair = [run(module, tile, torch.float64, *extra) for module in (triton_tiles, tiles)]
        assert all(torch.equal(pair[0][key], value) for key, value in pair[1].items())


def check_empty() -> None:
    from alignvlm.ops import triton_tiles

    for shape in ((0, 4), (3, 0)):
        tile = draw_tile(shape, dict.fromkeys(FLAGS, True))
        found = run_backward(triton_tiles, tile, torch.bfloat16, True)
        assert found["p"].shape == found["a"].shape == shape
        assert torch.equal(found["gamma"], tile[-1])
        assert run_correct(triton_tiles, tile, torch.bfloat16, True)["a"].shape == shape
        if 0 in shape[1:]:
            run_statistics(triton_tiles, tile, torch.bfloat16, True)


def check_op(device: str = "cpu") -> None:
    """The whole op with the kernels in it, several row tiles and blocks, against the dense op."""
    from alignvlm.ops import blocks, chunked, triton_tiles

    chunked.select_tiles = lambda device: triton_tiles
    blocks.CPU_ROWS, blocks.KEPT_ROWS = 5, {"cpu": 5, "cuda": 5}
    for keep in (0, 1):
        g = torch.Generator().manual_seed(0)
        arguments = [
            torch.randn(*shape, generator=g).to(device).requires_grad_()
            for shape in ((11, 6), (29, 6), (29, 4), (29,), (29,), (29,))
        ]
        found = []
        for impl in ("reference", "chunked"):
            x, weight, table, bias, gamma, beta = arguments
            result = vocab_mixture(
                x, weight, table, bias=bias, norm_weight=gamma, norm_bias=beta, impl=impl,
                chunk_size=None if impl == "reference" else 13, keep_logits_gib=keep,
            )  # fmt: skip
            loss = result.output.square().sum() + result.logsumexp.square().sum()
            found.append([result.output, result.logsumexp, *torch.autograd.grad(loss, arguments)])
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def main() -> None:
    assert "alignvlm.ops.triton_tiles" not in sys.modules, "the package imports the kernels"
    from alignvlm.ops import triton_tiles

    triton_tiles.FORWARD_BLOCK, triton_tiles.BACKWARD_BLOCK = (2, 8), (4, 8)
    triton_tiles.STATISTICS_BLOCK, triton_tiles.SEGMENT = (2, 8), 16
    check_kernels()
    check_double()
    check_empty()
    check_op()


# --- tests ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_triton, reason="needs triton")
def test_kernels_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and has_triton), reason="needs a GPU and triton")
def test_kernels_on_a_gpu(monkeypatch):
    from alignvlm.ops import triton_tiles

    check_kernels("cuda", 16)
    monkeypatch.setattr(triton_tiles, "FORWARD_BLOCK", (2, 16))
    monkeypatch.setattr(triton_tiles, "BACKWARD_BLOCK", (4, 16))
    monkeypatch.setattr(triton_tiles, "STATISTICS_BLOCK", (2, 16))
    monkeypatch.setattr(triton_tiles, "SEGMENT", 16)
    check_kernels("cuda", 8)


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and has_triton), reason="needs a GPU and triton")
def test_two_runs_on_a_gpu_give_the_same_bits():
    from alignvlm.ops import triton_tiles

    tile = draw_tile((1000, 3000), dict.fromkeys(FLAGS, True), "cuda")
    runs = [run_backward(triton_tiles, tile, torch.bfloat16, True) for _ in range(2)]
    assert all(torch.equal(runs[1][key], value) for key, value in runs[0].items())


@pytest.fixture
def fresh_selection():
    select._gpu_tiles.cache_clear()
    yield
    select._gpu_tiles.cache_clear()


def test_a_cpu_gets_the_plain_tiles():
    assert select.select_tiles(torch.device("cpu")) is tiles


def test_a_gpu_without_triton_is_told_once(monkeypatch, fresh_selection):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "alignvlm.ops.triton_tiles", raising=False)
    with pytest.warns(UserWarning, match="Triton cannot be imported"):
        assert select.select_tiles(torch.device("cuda", 0)) is tiles
    assert select.select_tiles(torch.device("cuda", 1)) is tiles  # a second warning would raise


@pytest.mark.skipif(not has_triton, reason="needs triton")
def test_a_gpu_with_triton_gets_the_fused_tiles(fresh_selection):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = select.select_tiles(torch.device("cuda", 0))
    assert chosen.__name__ == "alignvlm.ops.triton_tiles"


if __name__ == "__main__":
    main()
