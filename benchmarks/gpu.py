"""The first minutes on a rented card: what is worth measuring, in order of worth.

    python -m benchmarks.gpu --seconds 780 --out DIR     # on a machine with a GPU
    python -m benchmarks.gpu --steps tests mixture --seconds 300
    python -m benchmarks.gpu --rehearse                  # every step, tiny, on the CPU

Each step is a process with a time limit of its own; what it prints goes to ``DIR/<step>.log`` as it
comes, its csv lies in ``DIR`` when it ends, and ``DIR/steps.csv`` gains a line. A step that fails,
hangs or runs out of memory costs its own time and one line, nothing else; steps for which no time
is left are said to be skipped.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIELDS = ("step", "outcome", "seconds", "limit", "command")
STUDY = (
    *("-m", "studies.connectors", "run", "--device", "cuda"),
    *("--parallel", "3", "--side-by-side", "8"),
)
"""What it has to run on is made before: ``make study``; so is what ``smol`` is trained on."""
LEAST = 5.0
"""A step with fewer seconds left is not started."""


@dataclass(frozen=True)
class Step:
    """One thing to measure.

    Attributes:
        name: of its log.
        arguments: of Python, such as ``-m pytest``.
        seconds: it may take; less if less is left of the whole budget.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float


def gpu_tests() -> list[str]:
    """Files with tests for a card alone: what the others import need not be there."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text("utf-8")]


def steps(out: Path) -> list[Step]:
    """What a card is asked to do, most valuable first."""
    gpu = ("--device", "cuda", "--out", str(out))
    mixture = ("-m", "benchmarks.vocab_mixture", "--preset", "gpu", *gpu)
    whole = ("-m", "benchmarks.end_to_end", "--dtype", "bfloat16", "--grid", "3x3", *gpu)
    llama = ("--shape", "6561,128256,2048", "--setting", "trained", "inference")
    return [
        Step("tests", ("-m", "pytest", "-m", "gpu", "-q", "-p", "no:randomly", *gpu_tests()), 240),
        Step("mixture-llama-1b", (*mixture, *llama), 150),
        Step("end-to-end", (*whole, "--language-model", "smollm2-135m"), 120),
        Step("mixture", mixture, 240),
        Step("end-to-end-llama-1b", (*whole, "--language-model", "llama-3.2-1b"), 180),
        Step("connectors", ("-m", "benchmarks.connectors", *gpu), 120),
        Step("study", (*STUDY, "--seconds", "480"), 500),
        Step("smol", ("-m", "training.smol.train_gpu", "--seconds", "240"), 420),
    ]


def rehearsal(out: Path) -> list[Step]:
    """The same programs at their smallest, on the CPU; and two steps that go wrong."""
    small = ("--out", str(out))
    return [
        Step("tests", ("-m", "pytest", "-m", "gpu", "-q", "--collect-only", *gpu_tests()), 300),
        Step("mixture", ("-m", "benchmarks.vocab_mixture", "--preset", "smoke", *small), 300),
        Step("end-to-end", ("-m", "benchmarks.end_to_end", "--smoke", *small), 300),
        Step("study", ("-m", "pytest", "-q", "tests/studies/connectors/test_train.py"), 300),
        Step("smol", ("-m", "pytest", "-q", "tests/training/test_batches.py"), 300),
        Step("fails", ("-c", "raise MemoryError('a kernel that does not fit')"), 60),
        Step("hangs", ("-c", "import time; time.sleep(600)"), 2 * LEAST),
    ]


def run(step: Step, out: Path) -> dict[str, str | float]:
    """Run one step; its line of ``steps.csv``."""
    command = [sys.executable, *step.arguments]
    start = time.monotonic()
    with (out / f"{step.name}.log").open("w", encoding="utf-8") as log:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=step.seconds
            ).returncode
            outcome = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = "stopped at its limit"
    return {
        "step": step.name,
        "outcome": outcome,
        "seconds": round(time.monotonic() - start, 1),
        "limit": round(step.seconds, 1),
        "command": " ".join(("python", *step.arguments)),
    }


def run_all(chosen: Sequence[Step], out: Path, seconds: float) -> Iterator[dict[str, str | float]]:
    """Run steps until the time is used up; each line is on the disk before it is given."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    with (out / "steps.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for step in chosen:
            left = end - time.monotonic()
            if left < LEAST:
                row: dict[str, str | float] = {"step": step.name, "outcome": "skipped: no time"}
            else:
                row = run(replace(step, seconds=min(step.seconds, left)), out)
            table.writerow(row)
            file.flush()
            yield row


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=780, help="of the card, in all")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--steps", nargs="+", metavar="NAME", help="these alone, in this order")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    options = parser.parse_args(arguments)
    if not options.rehearse:
        import torch

        if not torch.cuda.is_available():
            parser.error("no GPU is at hand; --rehearse goes through the steps on the CPU")
    chosen = (rehearsal if options.rehearse else steps)(options.out)
    if options.steps:
        known = {step.name: step for step in chosen}
        unknown = [name for name in options.steps if name not in known]
        if unknown:
            parser.error(f"no step is called {unknown[0]!r}; there are {', '.join(known)}")
        chosen = [known[name] for name in options.steps]
    for row in run_all(chosen, options.out, options.seconds):
        print(f"{row['step']:20s} {row['outcome']} {row.get('seconds', '')}", flush=True)
    print(f"written: {options.out / 'steps.csv'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
