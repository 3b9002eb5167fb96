"""The connector study: resumable, scaled by one knob.

    python -m studies.connectors --jobs 2 --out runs/study      # about an hour of two cores
    python -m studies.connectors report                         # docs/study.md from what is stored

A cell is one (variant, seed); its JSON is written whole or not at all, and a cell that is there is
skipped, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from alignvlm.errors import AlignVLMError, ConfigError

from .settings import SEEDS, VARIANTS, Settings, cells

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "study"
CEILING = 0.5
"""Below it the language model itself is the limit of every cell."""


def scale_name(scale: float) -> str:
    """Folder of a scale's models and results: scales never mix."""
    return f"scale-{scale:g}"


def fullest(results: Path) -> Path:
    """The folder with most cells; of equal ones the larger scale."""
    found = [
        (len(list(folder.glob("*.json"))), float(folder.name.removeprefix("scale-")), folder)
        for folder in results.glob("scale-*")
    ]
    return max(found)[2] if found else results


def prepare(folder: Path, settings: Settings) -> None:
    """What all cells share: passages, language model, vision encoder, and the study's settings."""
    from . import data, language, vision

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "passages-test.txt").is_file():
        data.write_passages(folder)
    facts = language.prepare(folder / "language-model", settings) / "study.json"
    ceiling = json.loads(facts.read_text("utf-8"))["exact_from_text"]
    if ceiling < CEILING:
        print(f"warning: the language model answers {ceiling:.2f} of the questions from text; no "
              "connector can do better, so most claims will not be testable")  # fmt: skip
    vision.prepare(folder / "vision", settings)


def check(results: Path, settings: Settings) -> None:
    """Refuse to mix cells of different sizes in one study.

    Raises:
        ConfigError: a stored cell has other settings.
    """
    for file in sorted(results.glob("*.json")):
        stored = json.loads(file.read_text("utf-8"))["settings"]
        if stored != settings.to_dict():
            raise ConfigError(
                f"{file} was made at --scale {stored['scale']:g} or by another version of the "
                "study; choose another --results, or remove it"
            )


def run(options: argparse.Namespace) -> int:
    settings = Settings.smallest() if options.smoke else Settings.at(options.scale)
    name = "smoke" if options.smoke else scale_name(options.scale)
    folder = options.out / name
    results = options.results or (folder / "results" if options.smoke else RESULTS / name)
    check(results, settings)
    wanted = [
        (variant, seed)
        for variant, seed in cells(options.seeds)
        if not options.only or variant in options.only
    ]
    missing = [(v, s) for v, s in wanted if not (results / f"{v}-{s}.json").is_file()]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} cells are there", flush=True)
    if not missing:
        return 0
    import torch

    from .cell import work  # not of this module: spawned processes cannot import it

    torch.set_num_threads(options.jobs)
    prepare(folder, settings)
    end = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    if options.jobs == 1:
        for variant, seed in missing:
            if time.monotonic() >= end:
                break
            print(work(variant, seed, folder, results, settings), flush=True)
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            waiting = [pool.submit(work, v, s, folder, results, settings) for v, s in missing]
            for done in as_completed(waiting):
                print(done.result(), flush=True)
                if time.monotonic() >= end:
                    pool.shutdown(cancel_futures=True)
                    break
    left = sum(not (results / f"{v}-{s}.json").is_file() for v, s in wanted)
    print(f"{left} cells left; the same command goes on" if left else "all cells are there")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.connectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--scale", type=float, default=0.5, help="pages a cell trains on")
    parser.add_argument("--smoke", action="store_true", help="everything once, nothing learnt")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="models and passages")
    parser.add_argument(
        "--results", type=Path, help="JSON files; default: benchmarks/results/study/scale-N"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "study.md")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds")
    parser.add_argument("--only", nargs="*", choices=tuple(VARIANTS), help="these variants alone")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, one core each")
    parser.add_argument("--minutes", type=float, help="start no cell after so many minutes")
    options = parser.parse_args(arguments)
    try:
        if options.what == "report":
            from .report import write

            print(f"written: {write(options.results or fullest(RESULTS), options.page)}")
            return 0
        return run(options)
    except AlignVLMError as error:
        print(f"error: {error}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
