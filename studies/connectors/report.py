"""docs/study.md from the stored cells: tables, figures and verdicts, nothing by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import figures
from . import stored as s
from .claim_list import DESIGN, PAPER
from .claims import Claim, judged
from .settings import ABLATIONS, CONNECTORS, SEEDS, SIGMAS, VARIANTS
from .stored import Study, Value

ASSETS = Path("assets") / "study"
HEAD = """# The connector study

<!-- Written by `python -m studies.connectors report` from benchmarks/results/study -->

The six connectors, and ALIGN with and without its parts: the same pages in the same order, the same
steps, the same seeds, one shared vision encoder and one shared language model to start from. What
was chosen and why: [ADR 8](adr/0008-connector-study.md). The setting is `recipes/study.yaml`.

    make study                                  # resumable; a stored cell is never run again
    python -m studies.connectors report           # this page

Numbers are means over seeds ± half of the 95 % t-interval. This is a study of small models in
minutes: it tests the paper's claims *in kind*, and says so where it cannot. A claim with fewer than
three seeds is "not run yet".
"""


def write(results: Path, page: Path) -> Path:
    """Write the page and its figures; the same results give the same text and pictures."""
    study = Study.load(results)
    page.parent.mkdir(parents=True, exist_ok=True)
    folder = page.parent / ASSETS
    drawn = {
        name: draw(study, folder / f"{name}.svg")
        for name, draw in (
            ("curves", figures.curves),
            ("noise", figures.noise),
            ("vocabulary", figures.vocabulary),
        )
    }
    parts = [HEAD, setting(study), *claims(study)]
    if study.count:
        parts += [scores(study), curve(study), noise(study), vocabulary(study), words(study)]
    text = "\n".join(parts)
    for name, there in drawn.items():
        picture = f"![{name}]({ASSETS / name}.svg)\n" if there else ""
        text = text.replace(f"FIGURE {name}\n", picture)
    page.write_text(text, encoding="utf-8")
    return page


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left."""
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def row(study: Study, variant: str, *columns: tuple[Value, int, float]) -> list[str]:
    """A variant and its estimates, each with so many places and times a factor."""
    cells = [variant]
    for value, places, factor in columns:
        found = study.estimate(variant, value)
        cells.append("–" if found is None else found.text(places, factor))
    return cells


def rows(
    study: Study, variants: Iterable[str], *columns: tuple[Value, int, float]
) -> list[list[str]]:
    """A row for each variant that has cells."""
    return [row(study, v, *columns) for v in variants if v in study.cells]


def setting(study: Study) -> str:
    """What was run, and how much of it."""
    total = len(VARIANTS) * len(SEEDS)
    cell = study.any()
    if cell is None:
        return f"## What was run\n\nNothing yet: 0 of {total} cells are stored.\n"
    own, text, vision = cell["settings"], cell["language_model"], cell["vision"]
    sizes = cell["parameters"]
    complete = "" if study.count >= total else " The table is not complete: verdicts may change."
    return f"""## What was run

{study.count} of {total} cells ({len(VARIANTS)} variants, {len(SEEDS)} seeds).{complete}

- Scale {own["scale"]:g}: {own["samples"]:,} pages a cell, {own["batch"]} a step; to five forms, \
asked about or read aloud, five short strings to be read and one page with covered words.
- Language model: {sizes["text"] / 1e6:.2f} M parameters, {cell["vocabulary"]:,} tokens; \
{text["exact_from_text"]:.2f} of held-out answers right when it is given the page as text, \
{text["exact_from_cells"]:.2f} when it is given one token for each cell.
- Vision encoder: {sizes["vision"] / 1e6:.2f} M parameters; {vision["characters_read"]:.2f} of \
characters named by a linear head.
- Everything trains. {own["test"]} held-out forms for scores, {own["few"]} for curves and sweeps.
- {_seconds(study)}
- torch {cell["versions"]["torch"]}, transformers {cell["versions"]["transformers"]}.
"""


def _seconds(study: Study) -> str:
    cells = [c for seeds in study.cells.values() for c in seeds.values()]
    spent = sum(c["cpu_s"] for c in cells)
    return f"{spent / len(cells):.0f} CPU seconds a cell, {spent / 3600:.1f} CPU hours so far."


def claims(study: Study) -> list[str]:
    """One paragraph a claim."""
    parts = ["## The paper's claims\n", *(_claim(study, claim) for claim in PAPER)]
    parts += ["## Parts of ALIGN, with and without\n", *(_claim(study, c) for c in DESIGN)]
    return parts


def _claim(study: Study, claim: Claim) -> str:
    verdict = judged(study, claim)
    return (
        f"**{claim.title}: {verdict.outcome}.** {verdict.evidence} *Claim:* {claim.says} "
        f"*Rule:* {claim.rule}\n"
    )


def scores(study: Study) -> str:
    """The main table."""
    columns: tuple[tuple[Value, int, float], ...] = (
        (s.anls, 3, 1),
        (s.exact, 3, 1),
        (s.blind, 3, 1),
        (lambda c: c["curve"][-1]["loss"], 3, 1),
        (lambda c: c["visual_tokens"], 0, 1),
        (lambda c: c["parameters"]["connector"] / 1e6, 2, 1),
        (lambda c: c["train_cpu_s"], 0, 1),
    )
    head = ("", "ANLS", "exact", "blind ANLS", "loss, nats", "visual tokens", "M parameters",
            "training, CPU s")  # fmt: skip
    order = list(dict.fromkeys((*CONNECTORS, *ABLATIONS)))
    note = "Blind: the same model and questions before a white page. Parameters: the connector's."
    return f"## Scores on unseen forms\n\n{table(head, rows(study, order, *columns))}\n{note}\n"


def curve(study: Study) -> str:
    """Learning curves."""
    cell = study.any()
    assert cell is not None
    seen = [point["samples"] for point in cell["curve"]]
    columns = [(s.at_fraction(n / cell["settings"]["samples"]), 3, 1.0) for n in seen]
    head = ("", *(f"{n:,}" for n in seen))
    return (
        "## Learning curves\n\nANLS against samples seen, one run at a constant rate: a point is "
        f"what a run of that length gives.\n\nFIGURE curves\n\n"
        f"{table(head, rows(study, VARIANTS, *columns))}"
    )


def noise(study: Study) -> str:
    """Scores and cosine distances under noise."""
    parts = ["## Noise\n\nFIGURE noise\n"]
    for place, unit in (
        ("features", "σ in standard deviations of the clean features"),
        ("pixels", "σ in the units of pixels from -1 to 1"),
    ):
        parts.append(f"ANLS with noise on {place} ({unit}):\n")
        parts.append(_sweep(study, place, "anls", 3))
        parts.append(f"Cosine distance at the connector's output, noise on {place}:\n")
        parts.append(_sweep(study, place, "cosine_distance", 4))
    return "\n".join(parts)


def _sweep(study: Study, place: str, key: str, places: int) -> str:
    columns = [(s.noise_at(place, sigma, key), places, 1.0) for sigma in SIGMAS]
    head = ("", *(f"σ = {sigma:g}" for sigma in SIGMAS))
    return table(head, rows(study, VARIANTS, *columns))


def vocabulary(study: Study) -> str:
    """The averaged P_vocab and pruning."""
    names: tuple[tuple[str, Value, int], ...] = (
        ("largest probability", s.of_vocabulary("largest"), 4),
        ("effective size", s.of_vocabulary("effective"), 0),
        ("white space", s.of_vocabulary("whitespace"), 3),
        ("ids above the threshold", s.of_vocabulary("above"), 0),
        ("ids with 99 %", s.of_vocabulary("for_99"), 0),
        ("top 10", _share("10"), 3),
        ("top 100", _share("100"), 3),
        ("effective size of one token", lambda c: c.get("telemetry", {}).get("effective_vocab"), 1),
        ("ANLS change, 99 % kept", s.pruning_change, 3),
        ("narrowest of ten axes", lambda c: min(c["pca"]["spread"]) if "pca" in c else None, 2),
    )
    columns = [(value, places, 1.0) for _, value, places in names]
    body = table(("", *(name for name, _, _ in names)), rows(study, ABLATIONS, *columns))
    head = "## Vocabulary\n\nP_vocab averaged over pages; pruning; PCA.\n\nFIGURE vocabulary\n"
    return f"{head}\n{body}"


def _share(top: str) -> Callable[[s.Cell], float | None]:
    return lambda c: c.get("vocabulary_use", {}).get("shares", {}).get(top)


def words(study: Study) -> str:
    """Covered words and look-alikes."""
    columns = [
        (lambda c, split=split, key=key: c["covered"][split][key], 3, 1.0)
        for split in ("easy", "hard")
        for key in ("exact", "jaccard")
    ]
    keys = ("common_right", "rare_right", "rare_as_common")
    columns += [(lambda c, key=key: c["look_alikes"][key], 3, 1.0) for key in keys]
    head = ("", "easy, exact", "easy, Jaccard", "hard, exact", "hard, Jaccard",
            "common words right", "rare words right", "rare read as common")  # fmt: skip
    return (
        "## Covered words and look-alike words\n\nA rare word is a common one with one vowel "
        f"changed.\n\n{table(head, rows(study, VARIANTS, *columns))}"
    )
