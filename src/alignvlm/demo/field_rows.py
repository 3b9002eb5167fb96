"""The fields found in a document, as a file to take away."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from ..inference.extract import FieldValue

COLUMNS = ("field", "value", "text", "page", "boxes", "confidence", "note")


def as_csv(fields: Mapping[str, FieldValue]) -> str:
    """A row a field; boxes as ``x0 y0 x1 y1`` for each line of the words."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    for name, found in fields.items():
        value = "" if found.value is None else str(found.value)
        boxes = "; ".join(" ".join(f"{edge:.1f}" for edge in box) for box in found.boxes)
        page = found.page or ""
        sure = f"{found.confidence:.4f}"
        rows.writerow([name, value, found.text, page, boxes, sure, found.note or ""])
    return out.getvalue()
