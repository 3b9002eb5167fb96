"""Markdown tables of the stored results, nothing by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from alignvlm.errors import DataError

from . import metrics

Result = dict[str, Any]

HEAD = """Readers take turns on every page, in one run, with as many threads. *rapidocr* is RapidOCR
with all settings as it ships (PP-OCRv6 small detector and recogniser, text direction classifier
on), its pieces of text in its own order; *rapidocr, rows* are the same pieces joined to rows across
the page.
"""

ABOUT = {
    "receipts": "Share of the transcribed lines of SROIE's validation receipts that the reading, "
    "its lines joined in order, contains: with all white space removed and in lower case; and with "
    "single spaces, in lower case. {pages} pages.",
    "contracts": "F1 of the multiset of words (both sides NFKC, split at white space, case kept) "
    "against the text layer of the first page of DeepForm's validation contracts, {dpi} dpi: twice "
    "the words in common over all words of both, summed over {pages} pages. Words of the text "
    "layer are what white space or a jump of more than two letter heights separates, within the "
    "page.",
    "rendered": "SmolLM2 tokens of the page's text. *In order*: true tokens less the edit distance "
    "to the reading, over the true tokens, so reading order counts; *in any order*: true tokens "
    "that were read somewhere. {pages} pages of {width} x {height} px of each kind and size.",
    "time": "Seconds of a page, {threads}: alignvlm up to what the language model is given "
    "(encoder and ALIGN), RapidOCR all of it. Medians over pages of each page's median of {rounds} "
    "rounds; ratios are alignvlm's time over the reader's in the same round.",
    "memory": "Peak resident memory over the loaded reader, and seconds, of one page in a fresh "
    "process, {threads}: median and range of {rounds} runs.",
    "first-token": "Seconds from the page and a question to the first token of the answer, "
    "{threads}; with RapidOCR the language model is given its text. Medians and ratios as above.",
}
"""What stands above each table; the keys are the names of the tables, in their order."""
TITLES = {
    "receipts": "Receipts (SROIE, validation)",
    "contracts": "Contracts (DeepForm, validation)",
    "rendered": "Drawn pages",
    "time": "Time of a page",
    "memory": "Memory of a large page",
    "first-token": "Page to the first token of an answer",
}


def write(folder: Path) -> str:
    """All stored tables as one Markdown text.

    Raises:
        DataError: nothing is stored there.
    """
    found = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    stored = [result for result in found if result["table"] in ABOUT]
    if not stored:
        raise DataError(f"{folder}: no results; run python -m benchmarks.reading first")
    order = list(ABOUT)
    stored.sort(key=lambda result: (order.index(result["table"]), result["environment"]["threads"]))
    answers = [part for result in found if result["table"] == "frozen" for part in frozen(result)]
    return "\n".join([HEAD, *(part for result in stored for part in section(result)), *answers])


def frozen(result: Result) -> list[str]:
    """Answers of the language model composed with the reader, nothing trained (:mod:`.frozen`)."""
    counts = {name: [(right, of) for right, of in own] for name, own in result["counts"].items()}
    lines = ["| given | answers right | the page less this |", "| --- | ---: | ---: |"]
    for name, own in counts.items():
        share, apart = metrics.share(own), metrics.difference(counts["page"], own)
        less = "" if name == "page" else f"{apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
        lines.append(f"| {name} | {share.value:.3f} [{share.low:.3f}, {share.high:.3f}] | {less} |")
    asked = sum(n for _, n in counts["page"])
    return [
        "## Answers of the frozen language model\n",
        f"SmolLM2-135M-Instruct composed with the reader, nothing trained: {asked} questions about "
        f"{len(counts['page'])} drawn forms, in one prompt, given the page, its true text, or "
        "RapidOCR's text. An answer counts where the right one stands in it.\n",
        "\n".join(lines) + "\n",
        f"`python -m benchmarks.reading.frozen --pages {len(counts['page'])}`. Intervals: 95 % "
        "bootstrap over pages.\n",
    ]


def section(result: Result) -> list[str]:
    """Title, what was measured, the table, and where the numbers come from."""
    kind, groups = result["table"], result["groups"]
    threads = result["environment"]["threads"]
    facts = {**result["settings"], "threads": f"{threads} thread{'s' * (threads > 1)}"}
    if "ids" in groups[0]:
        facts["pages"] = len(groups[0]["ids"])
    body = {"rendered": drawn, "memory": memory, "time": times, "first-token": times}
    return [
        f"## {TITLES[kind]}\n",
        ABOUT[kind].format(**facts) + "\n",
        body.get(kind, scores)(groups),
        source(result),
    ]


def source(result: Result) -> str:
    """Machine, versions, command and seeds in one paragraph."""
    env, versions = result["environment"], result["versions"]
    named = [f"alignvlm {env['alignvlm']} ({env['commit']})", f"torch {env['torch']}"]
    named += [f"{name} {version}" for name, version in versions.items()]
    cores = f"{env['cores']} core{'s' * (env['cores'] > 1)}"
    seeds = ", ".join(f"{name} {seed}" for name, seed in result["seeds"].items())
    drawn = "" if result["table"] == "memory" else " Intervals: 95 % bootstrap over pages."
    return (
        f"`{result['command']}`, {env['date']}, {env['hardware']}, {cores}; "
        f"Python {env['python']}, {', '.join(named)}; seeds: {seeds}.{drawn}\n"
    )


# --- tables --------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, its first ``left`` columns set to the left."""
    marks = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [head, marks, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(estimate: Sequence[float], places: int = 3, sign: str = "") -> str:
    """A value and its interval: ``0.962 [0.923, 0.992]``."""
    value, low, high = (f"{part:{sign}.{places}f}" for part in estimate)
    return f"{value} [{low}, {high}]"


def scores(groups: Sequence[Result]) -> str:
    """One row for each measure and reader, and alignvlm less the reader."""
    rows = []
    for group in groups:
        for reader, score in group["scores"].items():
            less = group["differences"].get(reader)
            rows.append(
                [group["measure"], reader, number(score), number(less, sign="+") if less else "–"]
            )
    return table(["measure", "reader", "share", "alignvlm less it"], rows, 2)


def drawn(groups: Sequence[Result]) -> str:
    """One table a measure: kinds and readers down, sizes across."""
    sizes = sorted({group["px"] for group in groups})
    parts = []
    for measure in dict.fromkeys(group["measure"] for group in groups):
        own = [group for group in groups if group["measure"] == measure]
        rows = []
        for kind in dict.fromkeys(group["kind"] for group in own):
            found = {group["px"]: group for group in own if group["kind"] == kind}
            first = found[sizes[0]]
            for reader in first["scores"]:
                cells = [number(found[px]["scores"][reader]) for px in sizes]
                rows.append([kind, reader, *cells])
            for rival in first["differences"]:
                cells = [number(found[px]["differences"][rival], sign="+") for px in sizes]
                rows.append([kind, f"alignvlm less {rival}", *cells])
        head = [f"{measure}", "reader", *(f"{px} px" for px in sizes)]
        parts.append(table(head, rows, 2))
    return "\n".join(parts)


def times(groups: Sequence[Result]) -> str:
    """One row for each kind of page and reader: CPU and wall seconds, and ratios."""
    rows = []
    for group in groups:
        for reader in group["medians"]["cpu"]:
            cells = [f"{group['pages']} ({len(group['ids'])})", reader]
            for clock in ("cpu", "wall"):
                rival = group["ratios"][clock].get(reader)
                cells.append(number(group["medians"][clock][reader], 2))
                cells.append(number(rival, 2) if rival else "–")
            rows.append(cells)
    head = ["pages", "reader", "CPU s", "alignvlm over it", "wall s", "alignvlm over it"]
    return table(head, rows, 2)


def memory(groups: Sequence[Result]) -> str:
    """One row for each page and reader; why it failed, where it did."""
    rows = []
    for group in groups:
        for reader, runs in group["runs"].items():
            good = [run for run in runs if "skipped" not in run]
            if len(good) < len(runs):
                why = next(run["skipped"] for run in runs if "skipped" in run)
                rows.append([group["pages"], reader, why, "–", "–", "–"])
                continue
            columns = (("peak_mib", 0), ("loaded_mib", 0), ("cpu", 1), ("wall", 1))
            cells = [spread([run[key] for run in good], places) for key, places in columns]
            rows.append([group["pages"], reader, *cells])
    return table(["page", "reader", "peak MiB", "loaded MiB", "CPU s", "wall s"], rows, 2)


def spread(values: Sequence[float], places: int) -> str:
    """Median and range of a few runs: ``812 (790 to 820)``."""
    low, middle, high = (
        f"{v:.{places}f}" for v in (min(values), median(values), max(values))
    )  # fmt: skip
    return f"{middle} ({low} to {high})"
