"""Words that a PDF draws outside its text layer: form fields, notes and stamps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.documents.test_documents import text_at

from alignvlm.data.harvest.from_pdf import from_pdf
from alignvlm.data.sources import JsonlSource
from alignvlm.documents.opening import load_pages, pdf_words
from alignvlm.documents.pdf_fields import words_with_fields
from alignvlm.documents.words import Word

PAGE = text_at((20, 150, "Total:"), (20, 90, "Date:"), (20, 30, "below"))
SIZE = "/MediaBox [0 0 300 200]"
STYLE = "/DA (/F1 18 Tf 0 g)"


def annotated_pdf(
    path: Path,
    annotations: list[tuple[str, str | None]],
    *,
    page: str = SIZE,
    pages: str = "",
    content: str = PAGE,
) -> Path:
    """A page with annotations: the keys of each, and what it looks like if the file says so."""
    first, extra, kids = 6, [], []
    for keys, look in annotations:
        number = first + len(extra)
        kids.append(f"{number} 0 R")
        appearance = "" if look is None else f"/AP << /N {number + 1} 0 R >>"
        extra.append(f"<< /Type /Annot {keys} {appearance} >>")
        if look is not None:
            extra.append(
                "<< /Type /XObject /Subtype /Form /BBox [0 0 100 30] /Resources << /Font << /F1 "
                f"3 0 R >> >> /Length {len(look)} >>\nstream\n{look}\nendstream"
            )
    fields = " ".join(kid for kid, (keys, _) in zip(kids, annotations) if "/Widget" in keys)
    form = f"/AcroForm << /Fields [{fields}] {STYLE} /DR << /Font << /F1 3 0 R >> >> >>"
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {form if fields else ''} >>",
        f"<< /Type /Pages /Kids [4 0 R] /Count 1 {pages} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Type /Page /Parent 2 0 R {page} /Resources << /Font << /F1 3 0 R >> >> "
        f"/Contents 5 0 R /Annots [{' '.join(kids)}] >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        *extra,
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    start = len(data)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    data += b"".join(f"{offset:010d} 00000 n \n".encode() for offset in offsets)
    data += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n".encode()
    path.write_bytes(data + b"%%EOF\n")
    return path


def field(name: str, value: str, bottom: int) -> str:
    """A filled text field's keys."""
    rect = f"/Rect [120 {bottom} 220 {bottom + 30}]"
    return f"/Subtype /Widget /FT /Tx /T ({name}) /V ({value}) {rect} /F 4 {STYLE}"


def drawn(text: str) -> str:
    return f"BT /F1 18 Tf 2 6 Td ({text}) Tj ET"


def note(text: str) -> str:
    return f"/Subtype /FreeText /Contents ({text}) /Rect [120 145 220 175] /F 4 {STYLE}"


STAMP = "/Subtype /Stamp /Rect [120 145 220 175]"


def harvested(path: Path, out: Path) -> str | None:
    return JsonlSource(from_pdf(path, out).records)[0].answer


def test_filled_fields_stand_beside_their_labels(tmp_path: Path) -> None:
    """A field of the second line comes first in the file; each is read where it stands."""
    fields = [(field("b", "5.5.2020", 85), drawn("5.5.2020"))]
    fields.append((field("a", "31.48", 145), drawn("31.48")))
    path = annotated_pdf(tmp_path / "form.pdf", fields)
    assert harvested(path, tmp_path / "out") == "Total: 31.48\nDate: 5.5.2020\nbelow"


@pytest.mark.parametrize(
    "annotation", [(field("a", "31.48", 145), None), (note("31.48"), None)], ids=["field", "note"]
)
def test_values_whose_look_is_left_to_the_viewer(tmp_path: Path, annotation: tuple) -> None:
    path = annotated_pdf(tmp_path / "a.pdf", [annotation])
    assert harvested(path, tmp_path / "out") == "Total: 31.48\nDate:\nbelow"


def test_a_page_of_fields_alone_is_a_page_with_text(tmp_path: Path) -> None:
    path = annotated_pdf(tmp_path / "a.pdf", [(field("a", "x", 145), drawn("only"))], content="")
    assert harvested(path, tmp_path / "out") == "only"


def test_a_line_of_its_own_goes_between_its_neighbours(tmp_path: Path) -> None:
    stamp = "/Subtype /Stamp /Rect [20 112 120 142]"
    path = annotated_pdf(tmp_path / "a.pdf", [(stamp, drawn("PAID now"))])
    assert harvested(path, tmp_path / "out") == "Total:\nPAID now\nDate:\nbelow"


@pytest.mark.parametrize("keys", ["/F 2", "/Rect [900 900 950 930]"], ids=["hidden", "outside"])
def test_what_is_not_shown_is_not_taken(tmp_path: Path, keys: str) -> None:
    path = annotated_pdf(tmp_path / "a.pdf", [(f"{STAMP} {keys}", drawn("PAID"))])
    assert [word.text for word in pdf_words(path, 0)] == ["Total:", "Date:", "below"]


@pytest.mark.parametrize(
    ("page", "pages", "origin"),
    [
        (SIZE, "", (0, 0)),
        ("", SIZE, (0, 0)),
        ("", f"{SIZE} /CropBox [10 20 280 190]", (10, 10)),
        (f"{SIZE} /CropBox [10 20 280 190]", "", (10, 10)),
    ],
)
def test_words_lie_where_the_page_shows_them(
    tmp_path: Path, page: str, pages: str, origin: tuple[int, int]
) -> None:
    """PDFium gives a flattened page another size if it inherits its own."""
    path = annotated_pdf(tmp_path / "a.pdf", [(STAMP, drawn("PAID"))], page=page, pages=pages)
    (image,) = load_pages(path, dpi=72)
    words = {word.text: word.box for word in pdf_words(path, 0, dpi=72)}
    for text, (x, y) in {"Total:": (20, 50), "PAID": (122, 49), "below": (20, 170)}.items():
        box = words[text]
        assert abs(box[0] + origin[0] - x) < 4, text
        assert abs(box[3] + origin[1] - y) < 4, text
        crop = np.asarray(image.convert("L").crop(tuple(map(round, box))))
        assert crop.min() < 100 < 200 < crop.max(), text


def test_pages_without_annotations_keep_their_words(tmp_path: Path) -> None:
    link = "/Subtype /Link /Rect [20 85 120 115] /Border [0 0 1]"
    plain = pdf_words(annotated_pdf(tmp_path / "a.pdf", []), 0)
    assert pdf_words(annotated_pdf(tmp_path / "b.pdf", [(link, None)]), 0) == plain


def word(text: str, x: float, y: float, line: int, height: float = 10) -> Word:
    return Word(text, (x, y, x + 20, y + height), line, (x,) * len(text))


def lines(words: list[Word]) -> list[str]:
    result: dict[int, list[str]] = {}
    for found in words:
        result.setdefault(found.line, []).append(found.text)
    return [" ".join(line) for line in result.values()]


def test_reading_order_of_added_words() -> None:
    before = [word("Name:", 0, 0, 0), word("Town:", 0, 20, 1), word("end", 0, 40, 2)]
    added = [word("Lima", 50, 21, 3), word("Ana", 50, 1, 3), word("Paz", 80, 1, 3)]
    assert lines(words_with_fields([*before, *added], before)) == [
        "Name: Ana Paz", "Town: Lima", "end",
    ]  # fmt: skip
    over = word("DRAFT", 5, 1, 3)  # over a word of the line: a line of its own
    assert lines(words_with_fields([*before, over], before)) == ["Name:", "DRAFT", "Town:", "end"]
    tall = word("URGENT", 50, 5, 3, height=40)
    assert "URGENT" in lines(words_with_fields([*before, tall], before))
    assert lines(words_with_fields(before, before)) == ["Name:", "Town:", "end"]
    assert lines(words_with_fields(added[:1], [])) == ["Lima"]
