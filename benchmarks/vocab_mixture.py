"""The vocabulary mixture against what others would write: time, peak memory, distance to the limit.

    python -m benchmarks.vocab_mixture                                  # --preset cpu
    python -m benchmarks.vocab_mixture --preset gpu --device cuda
    python -m benchmarks.vocab_mixture --shape 1024,49152,576 --setting frozen --model demo/model

Appends to ``benchmarks/results/vocab_mixture-DEVICE-DATE.csv``; docs/performance.md says what the
columns mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from . import competitors as c
from . import measure as m

FIELDS = (
    *m.ENVIRONMENT,
    *("device", "dtype", "n", "v", "d", "activations", "setting", "affine", "impl", "chunk_size"),
    *("phase", "repeats", "median_ms", "q20_ms", "q80_ms", "ratio", "ratio_q20", "ratio_q80"),
    *("peak_mib", "peak_beyond_gradients_mib", "tflops", "matmul_tflops", "roofline"),
    *("gemm_tflop", "gemm_efficiency", "output_error", "dx_error", "skipped"),
)
BASELINE = "naive"
"""``ratio`` is the time over this implementation's, pair by pair."""
MATMUL = "matmul"
"""Rows of the plain products, without anything between them."""
MATMUL_BYTES = 512 * 2**20
"""The plain products run on a part of the vocabulary if ``N x V`` is larger than this."""
CHECKED_ROWS = 16

SMOLLM2, LLAMA_1B, LLAMA_3B, LLAMA_8B = (
    (49152, 576),
    (128256, 2048),
    (128256, 3072),
    (128256, 4096),
)


def _shapes(rows: int, *models: tuple[int, int]) -> list[str]:
    return [f"{rows},{vocab},{width}" for vocab, width in models]


PRESETS: dict[str, dict[str, Any]] = {
    # two cores: minutes a setting
    "cpu": {
        "shape": _shapes(1024, SMOLLM2, LLAMA_1B),
        "setting": ["trained", "frozen", "inference"],
    },
    # the paper's page of nine tiles, 6,561 visual tokens
    "page": {"shape": _shapes(6561, SMOLLM2, LLAMA_1B), "setting": ["trained"], "repeats": 3},
    "gpu": {
        "shape": _shapes(6561, SMOLLM2, LLAMA_1B, LLAMA_3B, LLAMA_8B),
        "setting": ["trained", "frozen", "inference"],
        "dtype": "bfloat16",
        "repeats": 20,
    },
    "smoke": {
        "shape": ["48,512,32"],
        "setting": ["trained", "inference"],
        "repeats": 2,
        "impls": ["chunked", "streamed", "naive", "checkpoint", "row-chunked", "attention"],
    },
}
DEFAULTS: dict[str, Any] = {"dtype": "float32", "repeats": 7, "impls": list(c.IMPLS)}


# --- in the worker process -----------------------------------------------------------------------


class MixtureRun:
    """One run of an implementation; ``forward`` and, with an upstream gradient, ``backward``."""

    def __init__(
        self, function: c.Implementation, inputs: c.Inputs, device: str, *, changes: bool = True
    ) -> None:
        self.function, self.inputs, self.device = function, inputs, device
        self.changes = changes

    def prepare(self) -> None:
        """Drop gradients; change the trained weights a little, as an optimiser's step would, so
        that nothing derived from them may be kept from the run before."""
        for leaf in self.inputs.leaves():
            leaf.grad = None
        if self.changes and self.inputs.weight.requires_grad:
            with torch.no_grad():
                self.inputs.weight[:1].mul_(1.001)

    def forward(self) -> torch.Tensor:
        with torch.set_grad_enabled(self.inputs.upstream is not None):
            return self.function(self.inputs)

    def __call__(self) -> m.Times:
        self.prepare()
        return m.step_times(self.device, self.forward, self.inputs.upstream)


class MatmulRun:
    """The products nobody can avoid, as plain ``torch.mm``: the machine's rate for these shapes."""

    def __init__(self, inputs: c.Inputs, device: str) -> None:
        vocab = inputs.weight.shape[0]
        fitting = MATMUL_BYTES // (len(inputs.x) * inputs.x.element_size())
        self.part = min(vocab, max(512, fitting // 64 * 64))
        self.scale = vocab / self.part
        self.x = inputs.x.detach()
        self.weight = inputs.weight.detach()[: self.part]
        self.table = inputs.table.detach()[: self.part]
        self.upstream = inputs.upstream
        self.with_table = inputs.table.requires_grad
        self.device = device

    @torch.no_grad()
    def __call__(self) -> m.Times:
        start = m.clock(self.device)
        p = self.x @ self.weight.T
        _ = p @ self.table
        middle = m.clock(self.device)
        times = {"forward": self.scale * (middle - start)}
        if self.upstream is not None:
            a = self.upstream @ self.table.T
            if self.with_table:
                _ = p.T @ self.upstream
            _ = a @ self.weight
            _ = a.T @ self.x
            times["backward"] = self.scale * (m.clock(self.device) - middle)
        return times


def counted_flops(run: MixtureRun) -> m.Times:
    """Operations of the matrix products that a run really does, forward and backward."""
    run.prepare()
    counts: m.Times = {}
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        output = run.forward()
    counts["forward"] = _products(record)
    if run.inputs.upstream is not None:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
            output.backward(run.inputs.upstream)
        counts["backward"] = _products(record)
    return m.with_both(counts)


def _products(record: profile) -> int:
    # the profiler also sees inside custom operators, where torch's FlopCounterMode sees nothing
    total = 0
    for event in record.events() or ():
        shapes = [shape for shape in event.input_shapes if len(shape) == 2]
        if event.name in ("aten::mm", "mkldnn::_linear_pointwise"):
            (rows, inner), (one, other) = shapes[:2]
            total += 2 * rows * inner * (other if event.name == "aten::mm" else one)
        elif event.name in ("aten::addmm", "aten::addmm_"):
            (rows, inner), (_, cols) = event.input_shapes[1:3]
            total += 2 * rows * inner * cols
    return total


def errors(function: c.Implementation, inputs: c.Inputs) -> dict[str, float]:
    """Deviation of the first rows' output and dx from fp64."""
    few = inputs.first_rows(CHECKED_ROWS)
    output = function(few)
    truth, dx = c.oracle(few)
    found = {"output_error": c.relative_error(output, truth)}
    if few.upstream is not None and dx is not None:
        (mine,) = torch.autograd.grad(output, few.x, few.upstream)
        found["dx_error"] = c.relative_error(mine, dx)
    return found


def make_inputs(request: dict[str, Any], shape: c.Shape | None = None) -> c.Inputs:
    """Inputs of a request: the model's own activations, or random ones."""
    shape = shape or c.Shape.parse(request["shape"])
    keys = {key: request[key] for key in ("dtype", "device", "setting")}
    if request["model"]:
        return c.model_inputs(request["model"], shape.rows, **keys)
    return c.random_inputs(shape, affine=request["affine"], **keys)


def work(request: dict[str, Any]) -> dict[str, Any]:
    """What a worker process does; the result is plain JSON."""
    m.set_threads(request["threads"])
    return work_time(request) if request["mode"] == "time" else work_memory(request)


def work_time(request: dict[str, Any]) -> dict[str, Any]:
    """Times of several implementations, alternating."""
    inputs = make_inputs(request)
    result: dict[str, Any] = {"inputs": c.describe(inputs), "impls": {}}
    runs: dict[str, Any] = {}
    for name in request["impls"]:
        function = c.implementation(name, request["chunk_size"])
        run = MixtureRun(function, inputs, request["device"], changes=name != c.WARM)
        try:
            run()  # warm-up; a compiler's own products must not be counted
            found: dict[str, Any] = {"flops": counted_flops(run), **errors(run.function, inputs)}
        except Exception as error:  # a compiler or kernel that is missing, or memory
            result["impls"][name] = {"skipped": m.reason(error)}
            continue
        result["impls"][name] = found
        runs[name] = run
    runs[MATMUL] = MatmulRun(inputs, request["device"])
    runs[MATMUL]()
    for name, times in m.time_rounds(runs, request["repeats"], request["patience"]).items():
        result["impls"].setdefault(name, {})["times"] = times
    if torch.device(request["device"]).type == "cuda":  # counted by its allocator, not by process
        for name in runs.keys() - {MATMUL}:
            try:
                found = work_memory({**request, "impls": [name]})
            except Exception as error:
                found = {"skipped": m.reason(error)}
            result["impls"][name]["memory"] = found
    return result


def work_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of one implementation's first run, in bytes over the inputs.

    Libraries are warmed up on a tiny shape. ``compiled`` is warmed up on the shape itself: what
    the compiler takes is not what the program needs.
    """
    name, device = request["impls"][0], request["device"]
    function = c.implementation(name, request["chunk_size"])
    small = {**request, "model": None}
    MixtureRun(function, make_inputs(small, c.Shape(8, 64, 16)), device)()
    inputs = make_inputs(request)
    run = MixtureRun(function, inputs, device)
    if name == "compiled":
        run()
    run.prepare()
    peaks = m.step_peaks(device, run.forward, inputs.upstream)
    return {"peak": peaks, "gradients": c.gradient_bytes(inputs)}


# --- rows of the csv -----------------------------------------------------------------------------


def rows_of(
    name: str, timed: dict[str, Any], memory: dict[str, Any], setting: c.Setting
) -> list[dict[str, Any]]:
    """One row a phase from what the workers measured, or one that says why there is none."""
    own = timed["impls"].get(name, {})
    shown = {**timed["inputs"], "impl": name}
    shown.update({key: own[key] for key in ("output_error", "dx_error") if key in own})
    if "skipped" in own or not own.get("times"):
        return [{**shown, "skipped": own.get("skipped", "not measured")}]
    shape = c.Shape(*(timed["inputs"][key] for key in ("n", "v", "d")))
    plain = timed["impls"][MATMUL]["times"]
    baseline = timed["impls"].get(BASELINE, {}).get("times")
    rows = []
    for phase in m.with_both(own["times"][0]):
        row = {**shown, "phase": phase, **m.time_columns(own["times"], phase, baseline)}
        seconds = row["median_ms"] / 1000
        standard = c.standard_flops(shape, setting, phase)
        row["tflops"] = standard / seconds / 1e12
        limit = m.time_columns(plain, phase)["median_ms"] / 1000
        row["matmul_tflops"] = standard / limit / 1e12
        row["roofline"] = limit / seconds
        # products inside compiled or fused code are not visible to the counter
        if own.get("flops", {}).get(phase, 0) >= standard:
            row["gemm_tflop"] = own["flops"][phase] / 1e12
            row["gemm_efficiency"] = row["gemm_tflop"] / seconds / row["matmul_tflops"]
        if phase in memory.get("peak", {}):
            row["peak_mib"] = memory["peak"][phase] / m.MIB
            grads = 0 if phase == "forward" else memory["gradients"]
            row["peak_beyond_gradients_mib"] = (memory["peak"][phase] - grads) / m.MIB
        elif name != MATMUL:
            row["skipped"] = f"memory: {memory.get('skipped', 'not measured')}"
        rows.append(row)
    return rows


def configuration(request: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """All rows of one shape and setting."""
    shape = c.Shape.parse(request["shape"])
    size = m.dtype_of(request["dtype"]).itemsize
    skipped, runnable = {}, []
    for name in request["impls"]:
        needed = c.estimated_bytes(name, shape, request["setting"], size, request["device"])
        why = m.too_big(needed, request["device"])
        runnable += [] if why else [name]
        skipped.update({name: why} if why else {})
    blank = {"n": shape.rows, "v": shape.vocab, "d": shape.width}
    blank["affine"] = "yes" if request["affine"] else "no"
    rows = [{**blank, "impl": name, "skipped": why} for name, why in skipped.items()]
    if not runnable:
        return rows
    module = "benchmarks.vocab_mixture"
    timed = m.run_worker(module, {**request, "mode": "time", "impls": runnable}, timeout_s)
    if "skipped" in timed:
        return rows + [{**blank, "impl": name, **timed} for name in runnable]
    rows += rows_of(MATMUL, timed, {}, request["setting"])
    for name in runnable:
        memory: dict[str, Any] = timed["impls"][name].get("memory", {})
        if not memory and "skipped" not in timed["impls"][name]:
            alone = {**request, "mode": "memory", "impls": [name]}
            memory = m.run_worker(module, alone, timeout_s)
        rows += rows_of(name, timed, memory, request["setting"])
    return rows


def show(row: dict[str, Any]) -> str:
    """One line of progress."""
    where = f"{row['impl']:12s} {row.get('phase', ''):8s}"
    if "median_ms" not in row:
        return f"  {where} skipped: {row['skipped']}"
    peak = f"{row['peak_mib']:9.1f} MiB" if "peak_mib" in row else " " * 13
    ratio = f"{row['ratio']:6.2f} x {BASELINE}" if "ratio" in row else ""
    return f"  {where} {row['median_ms']:10.2f} ms {peak} {row['roofline']:5.2f} of matmul {ratio}"


# --- command line --------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vocab_mixture", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="cpu")
    add("--shape", nargs="+", metavar="N,V,D", help="instead of the preset's")
    add("--setting", nargs="+", choices=c.SETTINGS, help="what gets a gradient")
    add("--impls", nargs="+", choices=(*c.IMPLS, "reference"))
    add("--no-affine", action="store_true", help="LayerNorm without γ and β")
    add("--chunk-size", type=int, help="vocabulary rows of a block of our op")
    add("--model", help="a trained ALIGN model: its activations and weights; only N of --shape")
    m.add_options(parser, repeats=None, patience=120)
    options = parser.parse_args(arguments)
    for key, value in {**DEFAULTS, **PRESETS[options.preset]}.items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    try:
        for shape in options.shape:
            c.Shape.parse(shape)
    except ValueError as error:
        parser.error(str(error))
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.worker:
        return m.serve(work, options.worker)
    out = m.out_folder(options.out, options.preset == "smoke")
    file = m.result_file("vocab_mixture", options.device, out)
    shared = {
        **m.environment(options.device, options.threads),
        "device": options.device.split(":")[0],
        "dtype": options.dtype,
        "activations": "model" if options.model else "random",
        "chunk_size": options.chunk_size or "",
    }
    keys = ("dtype", "device", "threads", "repeats", "impls", "chunk_size", "model", "patience")
    for shape in options.shape:
        for setting in options.setting:
            request = {key: getattr(options, key) for key in keys}
            request.update(shape=shape, setting=setting, affine=not options.no_affine)
            print(f"N,V,D = {shape}, {setting}, {options.dtype}", flush=True)
            rows = configuration(request, options.timeout)
            m.write_rows(file, FIELDS, ({**shared, "setting": setting, **row} for row in rows))
            print("\n".join(show(row) for row in rows), flush=True)
    print(f"written: {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
