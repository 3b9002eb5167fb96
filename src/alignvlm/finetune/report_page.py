"""The report as one HTML file: no script, no font and no picture comes from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..data.records import Record, load_images
from ..data.sources import Source

SHOWN = 12
"""Examples of each kind in the page; all are in report.json."""
THUMBNAIL = (360, 480)
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 56, 32
Curve = Sequence[tuple[int, float]]

STYLE = """
:root { color-scheme: light dark; --line: #8886; --train: #888; --good: #0a7d55; --bad: #b3372b; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid
  var(--line); overflow-wrap: anywhere; }
th { overflow-wrap: normal; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td pre { white-space: pre-wrap; margin: 0; font: inherit; }
img { max-width: 12rem; max-height: 12rem; border: 1px solid var(--line); }
.better { color: var(--good); } .worse { color: var(--bad); }
.note { border-left: 4px solid var(--bad); padding: .2rem .8rem; margin: .5rem 0; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: currentColor; }
code { overflow-wrap: anywhere; }
"""


def html_page(
    data: Mapping[str, Any], losses: Curve, validation: Curve, records: Mapping[str, Source]
) -> str:
    """The page of a run.

    Args:
        data: ``Outcome.to_dict()``.
        losses, validation: step and loss.
        records: held-out records by kind, for the pictures beside the examples.
    """
    settings = data["settings"]
    notes = "".join(f'<p class="note">{escape(text)}</p>' for text in data["warnings"])
    parts = [
        "<h1>Fine-tuning report</h1>",
        f"<p>Model <code>{escape(settings['model'])}</code>, {data['steps']} of "
        f"{data['planned_steps']} steps; {data['trained_parameters'] / 1e6:.2f} M parameters "
        "trained.</p>",
        "" if data["kept"] == "start" else f"<p><b>{escape(data['verdict'])}</b></p>",
        notes,
        "<h2>Held-out scores</h2>",
        _scores(data["scores"]),
        "<h2>Loss</h2>",
        curves(losses, validation, data["best_step"]),
        "<h2>Checkpoints</h2>",
        _checkpoints(data["checkpoints"], data["best_step"]),
        _examples("Held-out questions", data["examples"]["questions"], records.get("questions")),
        _examples("Held-out pages, read aloud", data["examples"]["pages"], records.get("pages")),
        "<h2>Data</h2>",
        _data(data),
        "<h2>Settings</h2>",
        _table(("setting", "value"), [(key, str(value)) for key, value in settings.items()]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Fine-tuning report</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: bool = False) -> str:
    """A table; cells are text unless ``raw``, which takes them as ready ``<td>`` elements."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(cell if raw else f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    if not scores:
        return "<p>Nothing to score but the loss below: no questions, and no ALIGN connector.</p>"
    rows = []
    for entry in scores.values():
        low, high = entry["interval"] or (0.0, 0.0)  # unknown: neither better nor worse
        kind = "better" if low > 0 else "worse" if high < 0 else ""
        rows.append(
            [
                f"<td>{escape(entry['title'])}</td>",
                f'<td class="number">{_bounded(entry["before"], entry["before_interval"])}</td>',
                f'<td class="number">{_bounded(entry["after"], entry["after_interval"])}</td>',
                f'<td class="number {kind}">'
                f"{_bounded(entry['difference'], entry['interval'], '+.3f')}</td>",
                f'<td class="number">{entry["count"]} from {entry["documents"]} documents</td>',
            ]
        )
    return (
        _table(("score", "before", "after", "difference", "held out"), rows, raw=True)
        + "<p>In brackets: 95 % bootstrap intervals from drawing the documents again.</p>"
    )


def _checkpoints(entries: Sequence[Mapping[str, Any]], best: int | None) -> str:
    """Score, its parts and loss of each validation; the one that was kept in bold."""
    parts = list(dict.fromkeys(name for entry in entries for name in entry["parts"]))
    rows = []
    for entry in entries:
        values = [entry["score"], *(entry["parts"].get(name) for name in parts), entry["loss"]]
        shown = [str(entry["step"]), *("" if v is None else f"{v:.4f}" for v in values)]
        mark = "b" if entry["step"] == best else "span"
        rows.append([f'<td class="number"><{mark}>{text}</{mark}></td>' for text in shown])
    return _table(("step", "score", *parts, "validation loss"), rows, raw=True) + (
        "<p>The score is the geometric mean of its parts, all measured on what was held out; it "
        "chooses the checkpoint (bold), and is 0 where a part fell. Step 0 is the model before "
        "training. answers: ANLS, and the probability of the right ones. reading: of all tokens "
        "that are on the pages or are read where nothing is, the share that is read right. aloud: "
        "the probability of the pages' text.</p>"
    )


def _bounded(value: float, interval: Sequence[float] | None, form: str = ".3f") -> str:
    if interval is None:
        return format(value, form)
    low, high = (format(bound, form) for bound in interval)
    return f"{value:{form}} ({low} to {high})"


def curves(losses: Curve, validation: Curve, best: int | None) -> str:
    """Training (grey) and validation (green) loss over the steps, as an SVG picture."""
    points = [*losses, *validation]
    if not points:
        return "<p>No loss was logged.</p>"
    last = max(max(step for step, _ in points), 1)
    low, high = min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0

    def place(step: int, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 12) * step / last
        return x, 12 + (HEIGHT - BOTTOM - 12) * (high - loss) / span

    def line(curve: Curve, colour: str) -> str:
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in curve)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'

    base = HEIGHT - BOTTOM
    marks = [
        f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - 12}" y2="{base}" stroke="currentColor"/>',
        f'<line x1="{LEFT}" y1="12" x2="{LEFT}" y2="{base}" stroke="currentColor"/>',
        f'<text x="{LEFT - 6}" y="18" text-anchor="end">{high:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 12}">0</text>',
        f'<text x="{WIDTH - 12}" y="{HEIGHT - 12}" text-anchor="end">step {last}</text>',
    ]
    for step, loss in validation:
        x, y = place(step, loss)
        size = 6 if step == best else 3
        marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="var(--good)">'
            f"<title>step {step}: validation loss {loss:.4f}</title></circle>"
        )
    drawn = "".join([line(losses, "var(--train)"), line(validation, "var(--good)"), *marks])
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Losses over the steps">'
        f"{drawn}</svg><p>Grey: training loss. Green: validation loss; the large dot is the "
        "checkpoint that was kept. Step 0 is the model before training. Where pages and questions "
        "are mixed, the two lines differ: validation averages over records, training over what "
        "a step holds.</p>"
    )


def _examples(title: str, examples: Sequence[Mapping[str, str]], source: Source | None) -> str:
    if not examples or source is None:
        return ""
    # what changed is looked at first
    order = sorted(
        range(len(examples)), key=lambda i: examples[i]["before"] == examples[i]["after"]
    )
    rows = []
    for index in order[:SHOWN]:
        entry = examples[index]
        texts = [f"<td><pre>{escape(entry[key])}</pre></td>" for key in ("expected", "before")]
        right = entry["after"].split() == entry["expected"].split()
        colour = ' class="better"' if right else ""
        rows.append(
            [
                f"<td>{_picture(source[index])}<br>{escape(_name(entry['id']))}</td>",
                f"<td><pre>{escape(entry['question'])}</pre></td>",
                *texts,
                f"<td{colour}><pre>{escape(entry['after'])}</pre></td>",
            ]
        )
    head = ("page", "question", "right answer", "before", "after")
    return f"<h2>{escape(title)}</h2>" + _table(head, rows, raw=True)


def _name(record_id: str) -> str:
    """An id without the folder that a JSONL lies in."""
    return Path(record_id).name


def _picture(record: Record) -> str:
    """The record's first image, small, inside the page."""
    if not record.images:
        return ""
    image = load_images(record)[0]
    image.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def _data(data: Mapping[str, Any]) -> str:
    rows = []
    for kind in ("pages", "questions"):
        if (split := data[kind]) is not None:
            counts = [str(split[key]) for key in ("train", "held_out", "documents")]
            rows.append((kind, *counts, f"whole {split['split_by']}s"))
    table = _table(("kind", "to train on", "held out", "documents", "held out by"), rows)
    harvest = data["harvest"]
    skipped = [(entry["file"], entry["reason"]) for entry in harvest.get("skipped_files", [])]
    skipped += [
        (f"{entry['file']}, page {entry['page']}", entry["reason"])
        for entry in harvest.get("skipped_pages", [])
    ]
    if not skipped:
        return table
    return table + "<h3>What could not be used</h3>" + _table(("where", "why"), skipped)
