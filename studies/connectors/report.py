"""docs/study.md from the stored cells: tables, figures and verdicts, nothing by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import figures
from .claim_list import BEYOND, DESIGN, PAPER
from .claims import SETTINGS, Claim
from .settings import RATES, SEEDS, SIGMAS, SIZES, VARIANTS, all_cells
from .stored import LARGE, Study

ASSETS = Path("assets") / "study"
HEAD = """# The connector study

<!-- Written by `python -m studies.connectors report` from benchmarks/results/study -->

ALIGN and the other connectors between a real encoder's features and a real language model with
49,152 tokens, SmolLM2-135M-Instruct: the same pages in the same order, the same steps, the same
seeds. What was chosen and why, and what this cannot show:
[ADR 12](adr/0012-study-with-a-real-language-model.md).

    make study RECEIPTS=SROIE_TRAIN         # pages, cells, this page; goes on where it was ended
    python -m studies.connectors run --device cuda --parallel 3 --side-by-side 8
    python -m studies.connectors report     # this page from the stored cells

Numbers are means over seeds ± half of the 95 % t-interval; a claim with fewer than three seeds is
"not run yet". *Adapted*: the language model learns low-rank changes, as in the paper it learns in
full. *Frozen*: only the connector learns.
"""


def write(results: Path, page: Path) -> Path:
    """Write the page and its figures; the same results give the same text and pictures."""
    study = Study.load(results)
    page.parent.mkdir(parents=True, exist_ok=True)
    folder = page.parent / ASSETS
    parts = [HEAD, setting(study), *claims(study)]
    if study.cells:
        figures.sizes(study, folder / "sizes.svg")
        figures.noise(study, folder / "noise.svg")
        parts += [scores(study), sizes(study), noise(study), vocabulary(study), beyond(study)]
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left."""
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def rows(
    study: Study, variants: Iterable[str], *columns: tuple[str, int], size: int = LARGE
) -> list[list[str]]:
    """A row for each variant that has cells: its numbers, each with so many places."""
    found = []
    for variant in variants:
        if not study.seeds(variant, size):
            continue
        numbers = [(study.estimate(variant, name, size), places) for name, places in columns]
        found.append([variant, *("–" if e is None else e.text(n) for e, n in numbers)])
    return found


def setting(study: Study) -> str:
    """What was run, and how much of it."""
    total = sum(cell.rate is None for cell in all_cells())
    if not study.cells:
        return f"## What was run\n\nNothing yet: 0 of {total} cells are stored.\n"
    complete = "" if len(study.cells) >= total else " Verdicts may change with the others."
    cells_on = Counter(cell["versions"]["device"] for cell in study.cells)
    devices = ", ".join(f"{count} ran on one {name}" for name, count in cells_on.most_common())
    steps = ", ".join(f"{SIZES[size]} steps at {size:,} pages" for size in sorted(SIZES))
    return f"""## What was run

{len(study.cells)} of {total} cells, {len(SEEDS)} seeds a variant.{complete}
{steps}; 16 pages a step. Of the cells {devices}.

{rates(study)}
"""


def rates(study: Study) -> str:
    """Which learning rates the sweep chose, and for whom the grid may have been too short."""
    chosen: dict[float, list[str]] = {}
    for cell in study.cells:
        own = chosen.setdefault(cell["cell"]["rate"], [])
        sweep = VARIANTS[cell["cell"]["variant"]].rates
        if sweep not in own:
            own.append(sweep)
    listed = "; ".join(f"{rate:g}: {', '.join(own)}" for rate, own in sorted(chosen.items()))
    grid = ", ".join(f"{rate:g}" for rate in RATES)
    text = f"Learning rates were chosen from {grid} on a seed that is not reported\n({listed})."
    if max(RATES) in chosen:
        text += "\nThe largest ends the grid: what reads slowly with it may read sooner with more."
    return text


def claims(study: Study) -> list[str]:
    """One paragraph a claim."""
    parts = ["## Verdicts\n", verdicts(study)]
    for title, own in (
        ("The paper's claims", PAPER),
        ("What the paper did not measure", BEYOND),
        ("Parts of ALIGN, with and without", DESIGN),
    ):
        parts += [f"## {title}\n", *(_claim(study, claim) for claim in own)]
    return parts


def verdicts(study: Study) -> str:
    """All claims in one table."""
    body = []
    for claim in (*PAPER, *BEYOND, *DESIGN):
        outcomes = [claim.judge(study, behind).outcome for behind in SETTINGS.values()]
        body.append([claim.title, *outcomes])
    return table(("claim", *SETTINGS), body)


def _claim(study: Study, claim: Claim) -> str:
    parts = [f"**{claim.title}.** {claim.says} *Rule:* {claim.rule}\n"]
    for name, behind in SETTINGS.items():
        verdict = claim.judge(study, behind)
        parts.append(f"- *{name}:* **{verdict.outcome}.** {verdict.evidence}")
    return "\n".join(parts) + "\n"


def scores(study: Study) -> str:
    """The main table."""
    columns = {
        "ANLS": ("test", 3), "exact": ("exact", 3), "white page": ("white", 3),
        "receipts": ("receipts", 3), "tokens read": ("reading tokens_right", 3),
        "reading, nats": ("reading loss", 3), "asked, nats": ("asking loss", 3),
    }  # fmt: skip
    note = (
        "ANLS and exact matches of answers about held-out pages, drawn ones and (*receipts*) crops "
        "of real ones; the same questions before a white page; tokens that come first when the "
        "page is read aloud, given the right ones before; nats a token. `text` is the ceiling: the "
        "page's true text behind a trained prompt."
    )
    body = rows(study, VARIANTS, *columns.values())
    return f"## Scores at {LARGE:,} pages\n\n{note}\n\n{table(('', *columns), body)}"


def sizes(study: Study) -> str:
    """ANLS against training pages."""
    body = []
    for variant in VARIANTS:
        found = [study.estimate(variant, "test", size) for size in sorted(SIZES)]
        if sum(e is not None for e in found) > 1:
            body.append([variant, *("–" if e is None else e.text() for e in found)])
    head = ("", *(f"{size:,}" for size in sorted(SIZES)))
    return (
        "## Training pages\n\nANLS; each size is a run of its own.\n\n"
        f"![sizes]({ASSETS / 'sizes.svg'})\n\n{table(head, body)}"
    )


def noise(study: Study) -> str:
    """Scores and cosine distances under noise."""
    parts = [f"## Noise\n\n![noise]({ASSETS / 'noise.svg'})\n"]
    units = "σ in standard deviations of the features"
    for title, name, places, sigmas in (
        (f"ANLS on the first 96 questions ({units}):\n", "noise", 3, (0.0, *SIGMAS)),
        ("Cosine distance at the connector's output:\n", "distance", 4, SIGMAS),
    ):
        columns = [(f"{name} {sigma:g}", places) for sigma in sigmas]
        head = ("", *(f"σ = {sigma:g}" for sigma in sigmas))
        parts += [title, table(head, rows(study, _without_text(), *columns))]
    return "\n".join(parts)


def _without_text() -> list[str]:
    return [name for name in VARIANTS if not name.startswith("text")]


def vocabulary(study: Study) -> str:
    """The averaged P_vocab and pruning."""
    columns = {
        "largest probability": ("largest", 4), "effective size": ("effective", 0),
        "white space": ("whitespace", 3), "ids above the threshold": ("above", 0),
        "ids with 99 %": ("for_99", 0), "entropy of a cell, nats": ("entropy", 2),
        "cells that name their token": ("named", 3), "ANLS change, 99 % kept": ("pruned", 3),
        "narrowest of ten axes": ("narrowest", 2),
    }  # fmt: skip
    own = [name for name in VARIANTS if name.startswith("align")]
    body = rows(study, own, *columns.values())
    return f"## Vocabulary\n\nP_vocab averaged over cells.\n\n{table(('', *columns), body)}"


def beyond(study: Study) -> str:
    """Layouts, scans, several pages, another language model, look-alike words."""
    columns = {
        "ANLS in four layouts": ("layouts", 3), "same answer": ("consistency", 3),
        "clean": ("clean pages", 3), "bad scan": ("scanned pages", 3),
        "2 pages": ("several 2", 3), "4 pages": ("several 4", 3), "8 pages": ("several 8", 3),
        "untouched model, tokens right": ("without changes", 3),
        "known cities": ("common words", 3), "altered ones": ("rare words", 3),
        "read as known": ("rare as common", 3),
    }  # fmt: skip
    body = rows(study, VARIANTS, *columns.values())
    return f"## Layouts, scans, several pages, names\n\n{table(('', *columns), body)}"
