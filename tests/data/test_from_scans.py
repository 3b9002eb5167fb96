"""Pictures and scanned PDFs to records, with an OCR engine made of known words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.documents.test_documents import make_pdf, text_at

from alignvlm.data.harvest.from_pdf import from_pdf
from alignvlm.data.harvest.from_scans import from_scans, scan, tighten
from alignvlm.data.harvest.ocr_words import Box, text_lines
from alignvlm.data.records import load_images
from alignvlm.data.sources import JsonlSource
from alignvlm.data.synthetic.render import RenderSpec, render_page
from alignvlm.errors import ConfigError, DataError

BOXES = [
    Box("9.00", 60, 12, 90, 22, 0.99),
    Box("Total due:", 8, 10, 52, 24, 0.95),
    Box("thank you", 10, 40, 80, 52, 0.9),
]


def page(width: int = 100, height: int = 60) -> Image.Image:
    """Ink where BOXES says: bars of 10 px within the boxes."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for box in BOXES:
        draw.rectangle((box.x0 + 2, box.y0 + 2, box.x1 - 3, box.y1 - 3), fill="black")
    return image


def reader(boxes: list[Box] = BOXES):
    def read(image: Image.Image) -> list[Box]:
        read.asked.append(image.size)
        return boxes

    read.asked = []
    return read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    page().save(folder / "a.png")
    page(120).save(folder / "b.tiff", save_all=True, append_images=[page(130)])
    (folder / "notes.txt").write_text("not looked at")
    (folder / "bad.jpg").write_bytes(b"no picture")
    make_pdf(folder / "c.pdf", [text_at((20, 150, "has text")), "20 90 200 30 re f"])
    return folder


def test_pictures_and_scanned_pdf_pages_become_records(folder, tmp_path):
    ocr = reader()
    found = from_scans(folder, tmp_path / "out", dpi=72, reader=ocr)
    source = JsonlSource(found.records)
    assert [source[i].id for i in range(4)] == ["a.png#1", "b.tiff#1", "b.tiff#2", "c.pdf#2"]
    assert source[0].answer == "Total due: 9.00\nthank you"
    assert source[0].source == "scan"
    assert [load_images(source[i])[0].width for i in range(4)] == [100, 120, 130, 300]
    assert found.skipped_pages == [("c.pdf", 1, "has a text layer: use data from-pdf")]
    assert [name for name, _ in found.skipped_files] == ["bad.jpg"]
    assert from_scans(folder, tmp_path / "out", dpi=72, reader=ocr).pages == 4
    assert len(ocr.asked) == 4  # the rerun reads nothing again
    assert from_pdf(folder, tmp_path / "text", dpi=72).pages == 1  # the other page


def test_words_share_their_line_by_characters(folder, tmp_path):
    found = scan(page(), reader(), 0.8)
    total, due, amount, *_ = found.words
    assert total.box == pytest.approx((10, 12, 30, 22))  # of 10 letters, 40 px of ink
    assert due.box == pytest.approx((34, 12, 50, 22))
    assert due.char_x == pytest.approx((34, 38, 42, 46))
    assert total.line == due.line == amount.line == 0
    assert [w.line for w in found.words[3:]] == [1, 1]


def test_what_ocr_is_not_sure_of(folder):
    unsure = [*BOXES, Box("x y", 10, 55, 30, 58, 0.5)]
    found = scan(page(), reader(unsure), 0.8)
    assert [w.text for w in found.words] == ["Total", "due:", "9.00", "thank", "you"]
    assert found.dropped == {"OCR is not sure of": 2}
    assert len(scan(page(), reader(unsure), 0.4).words) == 7
    assert scan(page(), reader(unsure), 0.93) == "OCR is not sure of the text"
    assert scan(page(), reader([]), 0.8) == "OCR finds no text"
    assert scan(page(), reader(), 0.8, min_words=9) == "fewer than 9 words"
    sideways = [*BOXES, Box("margin", 92, 0, 98, 60, 0.99)]
    assert scan(page(), reader(sideways), 0.8).dropped == {"sideways": 1}
    assert scan(page(), reader(sideways[-1:]), 0.8) == "no upright text"


def test_boxes_shrink_to_their_ink():
    grey = np.full((40, 100), 230, dtype=np.uint8)
    grey[10:20, 30:60] = 20
    assert tighten((25, 5, 70, 28), grey) == (30, 10, 60, 20)
    assert tighten((-5, -5, 200, 200), grey) == (30, 10, 60, 20)
    white_on_black = 255 - grey
    assert tighten((25, 5, 70, 28), white_on_black) == (30, 10, 60, 20)
    flat = (0.0, 22.0, 50.0, 30.0)
    assert tighten(flat, grey) == flat
    assert tighten((200, 0, 210, 10), grey) == (200, 0, 210, 10)


def test_lines_of_boxes():
    assert [[b.text for b in line] for line in text_lines(BOXES)] == [
        ["Total due:", "9.00"], ["thank you"],
    ]  # fmt: skip


def test_settings_and_engine_are_checked(folder, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="confidence must be"):
        from_scans(folder, tmp_path / "out", confidence=2, reader=reader())
    with pytest.raises(DataError, match="dpi must be"):
        from_scans(folder, tmp_path / "out", dpi=0, reader=reader())
    from_scans(folder, tmp_path / "out", reader=reader())
    with pytest.raises(DataError, match=r"confidence = 0\.8, now 0\.5"):
        from_scans(folder, tmp_path / "out", confidence=0.5, reader=reader())

    def missing() -> None:
        raise ConfigError("OCR needs rapidocr")

    monkeypatch.setattr("alignvlm.data.harvest.from_scans.RapidOcrReader", missing)
    with pytest.raises(ConfigError, match="OCR needs rapidocr"):
        from_scans(folder, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of libraries below it
def test_rapidocr_puts_words_where_they_are(tmp_path):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    drawn = render_page(RenderSpec(layout="form", font_px=(28, 28), fonts=("DejaVuSans",)), 7)
    (tmp_path / "in").mkdir()
    drawn.image.save(tmp_path / "in" / "a.png")
    record = JsonlSource(from_scans(tmp_path / "in", tmp_path / "out").records)[0]
    places = {w.text: w.box for w in drawn.words}
    off = [abs(w["box"][0] - places[w["text"]][0]) for w in record.words[0] if w["text"] in places]
    assert len(off) > 0.8 * len(drawn.words)
    assert np.median(off) < 7  # half a cell of 14 px
