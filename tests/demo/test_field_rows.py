"""The fields of a document, as a file to take away."""

from __future__ import annotations

import csv
import io
from datetime import date
from decimal import Decimal

from alignvlm.demo.field_rows import as_csv
from alignvlm.inference.extract import FieldValue


def test_csv_is_a_row_a_field():
    fields = {
        "issued": FieldValue(date(2009, 2, 12), "12-Feb-2009", 1, [(1, 2, 3, 4)], 0.61),
        "total": FieldValue(Decimal("3.50"), "$3.50", 2, [(1, 2, 3, 4), (5, 6, 7, 8)], 0.99),
        "due": FieldValue(None, "03/04/2018", 1, [(1, 2, 3, 4)], 0.5, "two readings"),
        "tax, in all": FieldValue(),
    }
    rows = list(csv.DictReader(io.StringIO(as_csv(fields))))
    assert [row["field"] for row in rows] == list(fields)
    assert [row["value"] for row in rows] == ["2009-02-12", "3.50", "", ""]
    assert rows[1]["boxes"] == "1.0 2.0 3.0 4.0; 5.0 6.0 7.0 8.0"
    assert rows[2]["note"] == "two readings" and rows[3]["page"] == ""
