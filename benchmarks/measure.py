"""What every benchmark shares: timing in alternating rounds, peak memory, hardware, csv rows.

Each configuration is measured in processes of its own. Times of competing implementations come
from one process that alternates between them, so that a drift of the machine hits all alike; peak
memory comes from a fresh process each, since what one leaves in the allocator would hide another's.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MIB = 2**20
ENVIRONMENT = ("date", "commit", "hardware", "cores", "threads", "python", "torch", "alignvlm")
"""Columns every csv starts with."""
FULLEST = 0.85
"""Share of the free memory a configuration may be expected to need before it is skipped."""

Times = dict[str, float]
"""Seconds of each phase of one run."""


# --- hardware and versions -----------------------------------------------------------------------


def hardware(device: str) -> str:
    """Name of the GPU, or of the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def commit() -> str:
    """Short commit id of the working tree, ``+`` behind it if tracked files differ; "" outside."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def environment(device: str, threads: int | None = None) -> dict[str, Any]:
    """The columns of :data:`ENVIRONMENT`."""
    import alignvlm

    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "hardware": hardware(device),
        "cores": cores(),
        "threads": threads or torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "alignvlm": alignvlm.__version__,
    }


def available_bytes(device: str) -> int:
    """Memory a new process could take."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def too_big(needed: int, device: str) -> str | None:
    """Why ``needed`` bytes do not fit, or ``None``."""
    free = available_bytes(device)
    if needed <= FULLEST * free:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def dtype_of(name: str) -> torch.dtype:
    """``float32``, ``bfloat16``, ``float16`` or ``float64``."""
    return getattr(torch, name)


# --- time ----------------------------------------------------------------------------------------


def clock(device: str) -> float:
    """Seconds; the device's queue is drained first."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def step_times(device: str, forward: Callable[[], Tensor], upstream: Tensor | None) -> Times:
    """``forward`` and, with an upstream gradient, ``backward`` of one run."""
    start = clock(device)
    output = forward()
    middle = clock(device)
    if upstream is None:
        return {"forward": middle - start}
    output.backward(upstream)
    return {"forward": middle - start, "backward": clock(device) - middle}


def time_rounds(
    runs: Mapping[str, Callable[[], Times]],
    repeats: int,
    patience_s: float = float("inf"),
    at_least: int = 3,
) -> dict[str, list[Times]]:
    """Run all once a round, each round starting with the next one (A B C, B C A, ...).

    Entry ``i`` of every list comes from round ``i``, so entries of two runs can be paired. A run
    that has taken ``patience_s`` in all drops out after ``at_least`` rounds.
    """
    taken: dict[str, list[Times]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    names = list(runs)
    for turn in range(repeats):
        shift = turn % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            if spent[name] > patience_s and len(taken[name]) >= at_least:
                continue
            gc.collect()
            start = time.perf_counter()
            taken[name].append(runs[name]())
            spent[name] += time.perf_counter() - start
    return taken


def with_both(times: Times) -> Times:
    """``times`` and, if forward and backward are there, their sum as ``both``."""
    if {"forward", "backward"} <= set(times):
        return {**times, "both": times["forward"] + times["backward"]}
    return dict(times)


def quantile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the sorted values; ``share`` 0.5 is the median."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def time_columns(
    taken: Sequence[Times], phase: str, baseline: Sequence[Times] | None = None
) -> dict[str, Any]:
    """``repeats``, median and 20/80 % quantiles in ms, and the paired ratio to ``baseline``."""
    own = [with_both(times)[phase] for times in taken]
    columns: dict[str, Any] = {
        "repeats": len(own),
        "median_ms": 1000 * quantile(own, 0.5),
        "q20_ms": 1000 * quantile(own, 0.2),
        "q80_ms": 1000 * quantile(own, 0.8),
    }
    if baseline is not None:
        pairs = zip(own, (with_both(times)[phase] for times in baseline), strict=False)
        ratios = [mine / other for mine, other in pairs]
        for name, share in (("ratio", 0.5), ("ratio_q20", 0.2), ("ratio_q80", 0.8)):
            columns[name] = quantile(ratios, share)
    return columns


# --- memory --------------------------------------------------------------------------------------

LIVE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""glibc then gives every freed tensor back at once: resident memory is what is alive, not what the
allocator keeps for later. Only processes that measure memory run with it: it costs time."""


class PeakMemory:
    """Peak memory over the moment of :meth:`start`.

    CPU: the kernel's high-water mark of resident memory, reset at every mark where the kernel
    allows it (Linux). CUDA: torch's count of allocated bytes, so without what its cache keeps.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.base = 0

    def start(self) -> None:
        """Everything alive now is not counted."""
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
            self.base = torch.cuda.memory_allocated(self.device)
        else:
            _trim()
            self.base = _status("VmRSS")
        self.mark()

    def mark(self) -> None:
        """Forget the peak so far, but not the base."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):  # without it the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes over the base at the highest point since the last mark."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self.base
        return max(_status("VmHWM") - self.base, 0)


def step_peaks(
    device: str, forward: Callable[[], Tensor], upstream: Tensor | None
) -> dict[str, int]:
    """Peak bytes over what is alive now: ``forward`` (with what is kept for the backward pass) and,
    with an upstream gradient, ``backward`` and ``both``."""
    peak = PeakMemory(device)
    peak.start()
    output = forward()
    found = {"forward": peak.peak()}
    if upstream is not None:
        peak.mark()
        output.backward(upstream)
        found["backward"] = peak.peak()
        found["both"] = max(found.values())
    return found


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status(key: str) -> int:
    """``VmRSS`` or ``VmHWM`` in bytes; the peak so far where there is no /proc."""
    try:
        for line in Path("/proc/self/status").read_text("utf-8").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- processes -----------------------------------------------------------------------------------


def run_worker(module: str, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run ``python -m MODULE --worker REQUEST``; its last line of output is a JSON object.

    Returns:
        that object, or ``{"skipped": why}`` if the process failed, was killed or took too long.
    """
    extra = LIVE_MEMORY if request.get("mode") == "memory" else {}
    command = [sys.executable, "-m", module, "--worker", json.dumps(request)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **extra},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"took longer than {timeout_s:.0f} s"}
    if done.returncode < 0:
        return {"skipped": f"killed by signal {-done.returncode}, most likely for its memory"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"skipped": lines[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def set_threads(threads: int | None) -> None:
    """Limit torch's threads in this process."""
    if threads:
        torch.set_num_threads(threads)


def reason(error: BaseException) -> str:
    """An error as one short line."""
    lines = str(error).strip().splitlines() or [repr(error)]
    return f"{type(error).__name__}: {lines[0]}"[:200]


# --- command line --------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser, *, repeats: int | None, patience: float) -> None:
    """What all benchmarks take. ``--dtype`` and ``--repeats`` may be ``None``: the preset's."""
    add = parser.add_argument
    add("--dtype", choices=("float32", "bfloat16", "float16", "float64"))
    add("--device", default="cpu")
    add("--threads", type=int)
    add("--repeats", type=int, default=repeats)
    add("--patience", type=float, default=patience, help="s one candidate may be repeated for")
    add("--timeout", type=float, default=3600, help="s one process may take")
    add("--out", type=Path, help="folder of the csv; a smoke run keeps none by default")
    add("--worker", type=json.loads, help=argparse.SUPPRESS)


def serve(work: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> int:
    """A worker process: print the result as JSON; a wrong configuration is one line."""
    try:
        print(json.dumps(work(request)))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return 0


def out_folder(chosen: Path | None, smoke: bool) -> Path:
    """Where the csv goes: a folder of its own for a smoke run, so that it is no result."""
    if chosen is None and smoke:
        return Path(tempfile.mkdtemp())
    return chosen or RESULTS


# --- csv -----------------------------------------------------------------------------------------


def result_file(kind: str, device: str, out: Path) -> Path:
    """``OUT/KIND-cpu-2026-01-31.csv``."""
    return out / f"{kind}-{device.split(':')[0]}-{date.today().isoformat()}.csv"


def write_rows(file: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows; a new file gets the header first. Floats keep five significant digits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    if not new:
        with file.open(encoding="utf-8", newline="") as stream:
            found = next(csv.reader(stream), [])
        if tuple(found) != tuple(fields):
            raise ValueError(f"{file}: other columns than now; move the file away")
    with file.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(fields), lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(row.get(key, "")) for key in fields})


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
    return value


def read_rows(file: Path) -> list[dict[str, str]]:
    """All rows of a csv as text."""
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
