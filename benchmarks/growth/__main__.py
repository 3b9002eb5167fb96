"""Time and memory as the work grows: pixels, lines, pages, prompts, positions, vocabulary, width.

python -m benchmarks.growth                      # everything, minutes of two quiet cores
python -m benchmarks.growth --sweeps op-width    # one quantity
python -m benchmarks.growth page                 # docs/cost.md from the newest csv

Appends to ``benchmarks/results/growth-cpu-DATE.csv``. Each quantity is timed in one process and its
memory measured in another. ``cpu_ms`` is the least CPU time of the rounds, all cores together: what
else a machine does can only add to it. ``wall_ms`` is the median time on the clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignvlm.weights.resolve import resolve
from benchmarks import measure as m

from . import page
from .sweeps import NAMES, Sweep, sweep_of
from .work import work

MODULE = "benchmarks.growth"


def rows_of(sweep: Sweep, request: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """Rows of the csv of one sweep; what could not be measured is said in ``skipped``."""
    found = {
        mode: work({**request, "mode": mode})
        if request["smoke"]
        else m.run_worker(MODULE, {**request, "mode": mode}, timeout_s)
        for mode in sweep.modes
    }
    rows = []
    for place, value in enumerate(request["values"]):
        row: dict[str, Any] = {"sweep": sweep.name, "x": value}
        row["skipped"] = "; ".join(
            f"{mode}: {result['skipped']}" for mode, result in found.items() if "skipped" in result
        )
        if "steps" in found["time"]:
            taken: list[m.Times] = found["time"]["steps"][place]
            cpu = [times["cpu"] for times in taken]
            row["repeats"] = len(taken)
            row["cpu_ms"] = 1000 * min(cpu)
            row["cpu_median_ms"] = 1000 * m.quantile(cpu, 0.5)
            row["wall_ms"] = 1000 * m.quantile([times["wall"] for times in taken], 0.5)
        if "steps" in found.get("memory", {}):
            row["peak_mib"] = found["memory"]["steps"][place] / m.MIB
        rows.append(row)
    return rows


def show(row: dict[str, Any]) -> str:
    """One line of progress."""
    if "cpu_ms" not in row:
        return f"  {row['x']:>10g} {row['skipped']}"
    peak = f"{row['peak_mib']:10.1f} MiB" if "peak_mib" in row else f"  {row['skipped']}"
    return f"  {row['x']:>10g} {row['cpu_ms']:10.1f} ms CPU {row['wall_ms']:10.1f} ms{peak}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="?", choices=("run", "page"), default="run")
    add("--sweeps", nargs="+", choices=NAMES, default=NAMES, metavar="SWEEP", help=", ".join(NAMES))
    add("--most", type=float, help="leave out larger steps")
    add("--model", default="smol", help="reads, answers and trains")
    add("--smoke", action="store_true", help="tiny inputs, all in this process; no result")
    add("--results", type=Path, default=m.RESULTS, help="what the page is made from")
    add("--page", type=Path, default=page.PAGE)
    m.add_options(parser, repeats=2, patience=6)
    return parser.parse_args(arguments)


def run(asked: argparse.Namespace) -> None:
    """Measure the chosen sweeps, one after another; each is stored as soon as it is there."""
    chosen = [sweep_of(name) for name in asked.sweeps]
    if any(sweep.section != "op" for sweep in chosen):
        resolve(asked.model)  # put together before anything is timed
    file = m.result_file("growth", "cpu", m.out_folder(asked.out, asked.smoke))
    shared = {**m.environment("cpu", asked.threads), "model": asked.model}
    for sweep in chosen:
        steps = sweep.smoke if asked.smoke else sweep.values
        values = [x for x in steps if asked.most is None or x <= asked.most]
        if not values:
            continue
        request = {
            **{key: getattr(asked, key) for key in ("threads", "repeats", "patience", "smoke")},
            **{"sweep": sweep.name, "values": values, "model": asked.model},
        }
        print(f"{sweep.name}: {sweep.setting}", flush=True)
        rows = rows_of(sweep, request, asked.timeout)
        m.write_rows(file, page.FIELDS, ({**shared, **row} for row in rows))
        print("\n".join(show(row) for row in rows), flush=True)
    print(f"written: {file}")


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    if asked.worker is not None:
        return m.serve(work, asked.worker)
    if asked.what == "page":
        page.write(asked.results, asked.page)
        print(f"written: {asked.page}")
        return 0
    run(asked)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
