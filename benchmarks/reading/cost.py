"""Tables 4 to 6: time of a page, memory of a page, time to the first token of an answer.

Readers take turns on each page, each round beginning with the next one; ratios are of the same
round. Memory is measured in a fresh process for each reader, page and round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import measure as m

from . import metrics, pages
from .pages import TruePage
from .readers import Contestant, contestants

MODULE = "benchmarks.reading"
CLOCKS = ("cpu", "wall")
"""Seconds of all cores of the process together, and on the clock."""
RECEIPTS, A4 = 12, 4
"""Pages whose time is taken, unless the command says otherwise."""
ANSWERED = 4, 2
"""The same for the first token of an answer."""
QUESTIONS = "What is the total amount on this receipt?", "What is the first word on this page?"
LARGE = {"A4, 300 dpi": lambda: pages.a4(300), "black, 6000 x 6000 px": pages.black}
"""Pages whose memory is taken."""
TIMEOUT_S = 1800.0


def timed(run: Callable[[], Any]) -> m.Times:
    """CPU and wall seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def take_turns(
    found: Iterable[TruePage], runs: Mapping[str, Callable[[Image.Image], Any]], rounds: int
) -> dict[str, Any]:
    """Time all runs on every page; the first page warms them up.

    Returns:
        ids of the pages; by clock the seconds of each run, page and round, medians over pages, and
        ratios of the first run to each other one.
    """
    ids: list[str] = []
    seconds: dict[str, dict[str, list[list[float]]]] = {
        clock: {name: [] for name in runs} for clock in CLOCKS
    }
    for page in found:
        calls = {
            name: (lambda run=run, image=page.image: timed(lambda: run(image)))
            for name, run in runs.items()
        }
        if not ids:
            for call in calls.values():
                call()
        ids.append(page.name)
        for name, taken in m.time_rounds(calls, rounds).items():
            for clock in CLOCKS:
                seconds[clock][name].append([times[clock] for times in taken])
    return {"ids": ids, "seconds": seconds, **summary(seconds)}


def summary(seconds: Mapping[str, Mapping[str, list[list[float]]]]) -> dict[str, Any]:
    """Medians and ratios of :func:`take_turns`, with intervals."""
    medians, ratios = {}, {}
    for clock, runs in seconds.items():
        first, *others = runs
        medians[clock] = {name: metrics.median(own) for name, own in runs.items()}
        ratios[clock] = {
            name: metrics.ratio(runs[first], runs[name]) for name in others if first == "alignvlm"
        }
    return {"medians": medians, "ratios": ratios}


def time_of_a_page(
    readers: Mapping[str, Contestant], data: Path, count: int | None, rounds: int
) -> list[dict[str, Any]]:
    """Table 4: from the page image to what the language model is given."""
    runs = {name: reader.encode for name, reader in readers.items() if reader.encode is not None}
    dense = (pages.a4(150, number) for number in range(count or A4))
    return [
        {"pages": "receipts", **take_turns(pages.receipts(data, count or RECEIPTS), runs, rounds)},
        {"pages": "dense A4, 150 dpi", **take_turns(dense, runs, rounds)},
    ]


def first_token(
    readers: Mapping[str, Contestant], data: Path, count: int | None, rounds: int
) -> list[dict[str, Any]]:
    """Table 6: from the page image and a question to the first token of the answer."""
    asked = {name: r.first_token for name, r in readers.items() if r.first_token is not None}
    groups = []
    for name, question, found in (
        ("receipts", QUESTIONS[0], pages.receipts(data, count or ANSWERED[0])),
        ("dense A4, 150 dpi", QUESTIONS[1],
         (pages.a4(150, number) for number in range(count or ANSWERED[1]))),
    ):  # fmt: skip
        runs = {
            reader: (lambda image, ask=ask, question=question: ask(image, question))
            for reader, ask in asked.items()
        }
        groups.append({"pages": name, "question": question, **take_turns(found, runs, rounds)})
    return groups


# --- memory --------------------------------------------------------------------------------------


def memory(
    names: Iterable[str], model: str | None, language_model: str, threads: int, rounds: int
) -> list[dict[str, Any]]:
    """Table 5: peak memory over the loaded reader, and seconds, of one large page."""
    groups = []
    for page in LARGE:
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for turn in range(rounds):
            order = list(taken)
            shift = turn % len(order)
            for name in order[shift:] + order[:shift]:
                request = {"reader": name, "page": page, "model": model, "threads": threads,
                           "language_model": language_model}  # fmt: skip
                taken[name].append(m.run_worker(MODULE, request, TIMEOUT_S))
        groups.append({"pages": page, "runs": taken})
    return groups


def work(request: dict[str, Any]) -> dict[str, Any]:
    """One measurement of memory in this process.

    The reader is loaded and has read a small page before; the large page image is there as well.
    The peak is the kernel's high-water mark of resident memory over what was resident then, so with
    the allocator as it is.
    """
    made = contestants(
        [request["reader"]], request["model"], request["threads"], request["language_model"]
    )
    encode = made[request["reader"]].encode
    assert encode is not None
    page = LARGE[request["page"]]()
    encode(pages.two_columns(24, pages.SEED).image)
    peak = m.PeakMemory("cpu")
    peak.start()
    times = timed(lambda: encode(page.image))
    return {"peak_mib": peak.peak() / m.MIB, "loaded_mib": peak.base / m.MIB, **times}
