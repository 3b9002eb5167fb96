"""All six connectors at the sizes of four language models: time and peak memory.

    python -m benchmarks.connectors
    python -m benchmarks.connectors --language-model llama-3.2-3b --device cuda --tiles 9

Features are those of SigLIP-so400m (27 x 27 cells a tile, 1,152 channels). Appends to
``benchmarks/results/connectors-DEVICE-DATE.csv``; docs/performance.md says what the columns mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignvlm.connectors import Connector, build_connector
from alignvlm.connectors.configs import CONNECTOR_TYPES, connector_config

from . import measure as m

FIELDS = (
    *m.ENVIRONMENT,
    *("device", "dtype", "language_model", "v", "d", "connector", "parameters_m", "tiles"),
    *("visual_tokens", "table", "phase", "repeats", "median_ms", "q20_ms", "q80_ms"),
    *("ratio", "ratio_q20", "ratio_q80", "peak_mib", "peak_beyond_gradients_mib", "skipped"),
)
BASELINE = "mlp"
"""``ratio`` is the time over this connector's, pair by pair."""
ACTIVATIONS = 80
"""Values a feature channel keeps in the deepest connector's training step, at most."""


@dataclass(frozen=True)
class Size:
    """V, D of a language model, and features of the encoder in front of it."""

    vocab: int
    width: int
    d_vision: int = 1152
    grid: tuple[int, int] = (27, 27)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)

    def config(self, connector: str) -> Any:
        """The connector's config: its defaults, smaller where the size says so."""
        return connector_config({"type": connector, **self.keys.get(connector, {})})


SIZES = {
    "smollm2-135m": Size(49152, 576),
    "llama-3.2-1b": Size(128256, 2048),
    "llama-3.2-3b": Size(128256, 3072),
    "llama-3.1-8b": Size(128256, 4096),
    "tiny": Size(
        512,
        32,
        d_vision=24,
        grid=(4, 4),
        keys={
            "perceiver": {"num_latents": 4, "depth": 1, "num_heads": 2, "head_dim": 8},
            "ovis": {"visual_vocab_size": 64},
            "c_abstractor": {"out_rows": 2, "out_cols": 2, "hidden_size": 16, "depth": 1},
        },
    ),
}


class ConnectorRun:
    """A connector with its features: inference, and one training step of the connector alone."""

    def __init__(self, request: dict[str, Any], name: str) -> None:
        torch.manual_seed(0)
        size = SIZES[request["language_model"]]
        self.config, self.device = size.config(name), request["device"]
        dtype = m.dtype_of(request["dtype"])
        with torch.device(self.device):
            self.connector = build(size, name)
            for module in self.connector.modules():
                if isinstance(module, Connector):
                    module.reset_parameters()
            self.features = torch.randn(request["tiles"], *size.grid, size.d_vision, dtype=dtype)
            # only ALIGN reads the language model's table
            rows = size.vocab if name == "align" else 1
            self.table = torch.randn(rows, size.width, dtype=dtype).mul_(0.05)
        self.connector.to(dtype)
        self.features.requires_grad_(True)
        self.table.requires_grad_(request["table"] == "trained" and name == "align")
        self.tokens = request["tiles"] * self.config.num_tokens(*size.grid)
        self.upstream = torch.randn(
            request["tiles"], self.config.num_tokens(*size.grid), size.width
        ).to(self.features)

    def weights(self) -> list[Tensor]:
        own = [*self.connector.parameters(), self.table]
        return [tensor for tensor in own if tensor.requires_grad]

    def forward(self) -> Tensor:
        return self.connector(self.features, self.table)

    def clear(self) -> None:
        for tensor in (*self.weights(), self.features):
            tensor.grad = None

    @torch.no_grad()
    def change(self) -> None:
        """Change the weights a little, as an optimiser's step would."""
        for tensor in self.weights():
            tensor[:1].mul_(1.001)

    def __call__(self) -> m.Times:
        self.change()
        times = m.step_times(self.device, self.forward, self.upstream)
        self.clear()
        with torch.no_grad():
            times["inference"] = m.step_times(self.device, self.forward, None)["forward"]
        return times


def build(size: Size, name: str) -> Connector:
    """A connector with fresh weights."""
    return build_connector(size.config(name), size.d_vision, size.width, size.vocab, size.grid)


def parameters(size: Size, name: str) -> int:
    """Parameters of a connector, counted without storage."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(size, name).parameters())


def estimated_bytes(size: Size, name: str, tiles: int, itemsize: int) -> int:
    """Rough peak of a training step, to skip what cannot fit."""
    weights = 4 * parameters(size, name)  # built in fp32, then weights, gradients, accumulators
    if name == "align":
        weights += 3 * size.vocab * size.width
    cells = tiles * size.grid[0] * size.grid[1]
    return itemsize * (weights + ACTIVATIONS * cells * size.d_vision) + 256 * m.MIB


def work(request: dict[str, Any]) -> dict[str, Any]:
    """What a worker process does."""
    m.set_threads(request["threads"])
    if request["mode"] == "time":
        return work_time(request)
    name = request["connectors"][0]
    warm = {**request, "language_model": "tiny", "tiles": 1}
    ConnectorRun(warm, name)()  # libraries only
    run = ConnectorRun(request, name)
    with torch.no_grad():
        inference = m.step_peaks(request["device"], run.forward, None)["forward"]
    run.change()
    peaks = m.step_peaks(request["device"], run.forward, run.upstream)
    gradients = sum(t.numel() * t.element_size() for t in run.weights())
    return {"peak": {**peaks, "inference": inference}, "gradients": gradients}


def work_time(request: dict[str, Any]) -> dict[str, Any]:
    """Times of several connectors, alternating."""
    runs = {name: ConnectorRun(request, name) for name in request["connectors"]}
    for run in runs.values():
        run()  # warm-up
    taken = m.time_rounds(runs, request["repeats"], request["patience"])
    return {
        name: {"times": times, "visual_tokens": runs[name].tokens} for name, times in taken.items()
    }


def rows_of(timed: dict[str, Any], name: str, memory: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a phase."""
    times = timed[name]["times"]
    baseline = timed.get(BASELINE, {}).get("times")
    rows = []
    for phase in ("inference", "forward", "backward", "both"):
        row = {"visual_tokens": timed[name]["visual_tokens"], "phase": phase}
        row.update(m.time_columns(times, phase, baseline))
        if phase in memory.get("peak", {}):
            grads = memory["gradients"] if phase in ("backward", "both") else 0
            row["peak_mib"] = memory["peak"][phase] / m.MIB
            row["peak_beyond_gradients_mib"] = (memory["peak"][phase] - grads) / m.MIB
        else:
            row["skipped"] = f"memory: {memory.get('skipped', 'not measured')}"
        rows.append(row)
    return rows


def configuration(request: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """All rows of one language model's size."""
    size = SIZES[request["language_model"]]
    itemsize = m.dtype_of(request["dtype"]).itemsize
    shown, rows, runnable, total = {}, [], [], 0
    for name in request["connectors"]:
        count = parameters(size, name)
        shown[name] = {"connector": name, "v": size.vocab, "d": size.width}
        shown[name]["parameters_m"] = count / 1e6
        needed = estimated_bytes(size, name, request["tiles"], itemsize)
        # all stay loaded in the process that times them
        why = m.too_big(total + needed, request["device"])
        if why:
            rows.append({**shown[name], "skipped": why})
        else:
            runnable.append(name)
            total += itemsize * count
    if not runnable:
        return rows
    module = "benchmarks.connectors"
    timed = m.run_worker(module, {**request, "mode": "time", "connectors": runnable}, timeout_s)
    if "skipped" in timed:
        return rows + [{**shown[name], **timed} for name in runnable]
    for name in runnable:
        alone = {**request, "mode": "memory", "connectors": [name]}
        memory = m.run_worker(module, alone, timeout_s)
        rows += [{**shown[name], **row} for row in rows_of(timed, name, memory)]
    return rows


def show(row: dict[str, Any]) -> str:
    """One line of progress."""
    where = f"{row['connector']:12s} {row.get('phase', ''):9s}"
    if "median_ms" not in row:
        return f"  {where} skipped: {row['skipped']}"
    peak = f"{row['peak_mib']:9.1f} MiB" if "peak_mib" in row else row["skipped"]
    return f"  {where} {row['median_ms']:10.2f} ms {peak}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.connectors", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--language-model", nargs="+", choices=SIZES, default=[n for n in SIZES if n != "tiny"])
    add("--connectors", nargs="+", choices=CONNECTOR_TYPES, default=list(CONNECTOR_TYPES))
    add("--tiles", type=int, default=1, help="of 729 features each; the paper's page has 9")
    add("--table", choices=("frozen", "trained"), default="frozen", help="ALIGN's E_text")
    add("--smoke", action="store_true", help="the tiny size, two rounds, no csv kept by default")
    m.add_options(parser, repeats=5, patience=120)
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or "float32"
    if options.smoke:
        options.language_model, options.repeats = ["tiny"], 2
    if options.tiles < 1 or options.repeats < 1:
        parser.error("--tiles and --repeats must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.worker:
        return m.serve(work, options.worker)
    out = m.out_folder(options.out, options.smoke)
    file = m.result_file("connectors", options.device, out)
    keys = ("dtype", "device", "threads", "repeats", "patience", "tiles", "table", "connectors")
    for name in options.language_model:
        request = {key: getattr(options, key) for key in keys} | {"language_model": name}
        print(f"{name}, {options.tiles} tiles, {options.dtype}", flush=True)
        rows = configuration(request, options.timeout)
        shared = m.environment(options.device, options.threads)
        shared.update({key: request[key] for key in ("dtype", "tiles", "table", "language_model")})
        shared["device"] = options.device.split(":")[0]
        m.write_rows(file, FIELDS, ({**shared, **row} for row in rows))
        print("\n".join(show(row) for row in rows), flush=True)
    print(f"written: {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
