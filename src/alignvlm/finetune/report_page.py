"""The report as one HTML file: no script, no font and no picture comes from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..data.records import Record, load_images
from ..data.sources import Source

SHOWN = 12
"""Examples of each kind in the page; all are in report.json."""
THUMBNAIL = (360, 480)
LEFT, RIGHT, TOP, BOTTOM = 56, 628, 12, 208
"""Where the losses are drawn in a picture of 640 x 240."""
Curve = Sequence[tuple[int, float]]


def html_page(
    data: Mapping[str, Any], losses: Curve, validation: Curve, records: Mapping[str, Source]
) -> str:
    """The page of a run.

    Args:
        data: ``Outcome.to_dict()``.
        losses, validation: step and loss.
        records: held-out records by kind, for the pictures beside the examples.
    """
    parts = list(dict.fromkeys(name for entry in data["checkpoints"] for name in entry["parts"]))

    def numbers(entry: Mapping[str, Any]) -> list[str]:
        values = [entry["score"], *(entry["parts"].get(name) for name in parts), entry["loss"]]
        return ["" if value is None else f"{value:.4f}" for value in values]

    kinds = {"Held-out questions": "questions", "Held-out pages, read aloud": "pages"}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        data=data,
        parts=parts,
        numbers=numbers,
        picture=_picture(losses, validation),
        shown=[(t, _examples(data["examples"][k], records.get(k))) for t, k in kinds.items()],
    )


def _picture(losses: Curve, validation: Curve) -> dict[str, Any] | None:
    """Both curves in the picture's coordinates; ``None`` without a point."""
    points = [*losses, *validation]
    if not points:
        return None
    last = max(max(step for step, _ in points), 1)
    low, high = min(y for _, y in points), max(y for _, y in points)

    def place(step: int, loss: float) -> dict[str, float]:
        x = LEFT + (RIGHT - LEFT) * step / last
        y = TOP + (BOTTOM - TOP) * (high - loss) / ((high - low) or 1.0)
        return {"x": x, "y": y, "step": step, "loss": loss}

    return {
        "last": last,
        "low": low,
        "high": high,
        "losses": [place(*point) for point in losses],
        "validation": [place(*point) for point in validation],
    }


def _examples(
    examples: Sequence[Mapping[str, str]], source: Source | None
) -> list[tuple[Mapping[str, str], str]]:
    """Examples with their pictures; what changed is looked at first."""
    if source is None:
        return []
    order = sorted(enumerate(examples), key=lambda item: item[1]["before"] == item[1]["after"])
    return [(entry, _thumbnail(source[index])) for index, entry in order[:SHOWN]]


def _thumbnail(record: Record) -> str:
    """The record's first image, small, in base64; empty without one."""
    if not record.images:
        return ""
    image = load_images(record)[0]
    image.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
