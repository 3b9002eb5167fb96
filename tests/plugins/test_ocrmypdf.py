"""The plug-in of OCRmyPDF: searchable PDFs, whose words stand where they are seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from tests import drawn

from alignvlm.documents.opening import pdf_page_count, pdf_words

pytest.importorskip("ocrmypdf", reason="pip install 'alignvlm[ocrmypdf]'")

DPI = 144
XHTML = "{http://www.w3.org/1999/xhtml}"
TEXT = " ".join(piece.text for piece in drawn.LETTER)


def ocrmypdf(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """The program, with the plug-in and without ``tesseract``."""
    program = [sys.executable, "-m", "ocrmypdf", "--plugin", "alignvlm.plugins.ocrmypdf"]
    return subprocess.run(
        [*program, "--quiet", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def scan(path: Path, *pages: Image.Image) -> Path:
    pages[0].save(path, save_all=True, append_images=pages[1:], resolution=DPI)
    return path


def spots(pieces: list[drawn.Piece]) -> list[tuple[str, tuple[float, ...]]]:
    """Each drawn word and the box of its ink in PDF points."""
    return [
        (word, tuple(edge * 72 / DPI for edge in box))
        for piece in pieces
        for word, box in drawn.ink(piece)
    ]


@pytest.mark.slow
def test_a_searchable_pdf_has_its_words_where_they_are_seen(tmp_path):
    turned = drawn.page().transpose(Image.Transpose.ROTATE_270)
    source = scan(tmp_path / "scan.pdf", drawn.page(), turned)
    out, side = tmp_path / "out.pdf", tmp_path / "side.txt"
    done = ocrmypdf("--rotate-pages", "--sidecar", side, source, out)
    assert done.returncode == 0, done.stderr
    assert side.read_text("utf-8").split() == [*TEXT.split(), *TEXT.split()]
    assert pdf_page_count(out) == 2
    for page in (0, 1):  # the turned one stands upright now
        found = pdf_words(out, page, dpi=72)
        assert " ".join(word.text for word in found) == TEXT
        for word, (_, box) in zip(found, spots(drawn.LETTER), strict=True):
            assert word.box == pytest.approx(box, abs=7)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="apt-get install poppler-utils")
def test_pdftotext_finds_the_words_and_their_boxes(tmp_path):
    out = tmp_path / "out.pdf"
    done = ocrmypdf("--output-type", "pdf", scan(tmp_path / "scan.pdf", drawn.page()), out)
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        ["pdftotext", "-bbox", out, "-"], capture_output=True, text=True, check=True
    ).stdout
    words = list(ElementTree.fromstring(told).iter(f"{XHTML}word"))
    assert " ".join(word.text or "" for word in words) == TEXT
    for word, (_, box) in zip(words, spots(drawn.LETTER), strict=True):
        edges = [float(word.get(name, "")) for name in ("xMin", "yMin", "xMax", "yMax")]
        assert edges == pytest.approx(box, abs=7)


@pytest.mark.slow
def test_what_cannot_be_done_is_one_line(tmp_path):
    source = scan(tmp_path / "scan.pdf", drawn.page())
    for given, said in {
        ("--alignvlm-model", "nonesuch"): "'nonesuch' names no weights",
        ("--pdf-renderer", "sandwich"): "leave it out for alignvlm",
        ("--ocr-engine", "tesseract"): "leave out --plugin",
    }.items():
        done = ocrmypdf(*given, source, tmp_path / "out.pdf")
        assert done.returncode == 1, done
        assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.pdf").exists()


def test_ocrmypdf_reads_our_hocr_as_it_does_the_elements(tmp_path):
    from ocrmypdf.hocrtransform.hocr_parser import HocrParser

    from alignvlm.inference.page_reader import PageReader
    from alignvlm.plugins.ocrmypdf import ReaderEngine, as_element

    image, hocr, text = tmp_path / "page.png", tmp_path / "page.hocr", tmp_path / "page.txt"
    drawn.page().save(image)
    options = SimpleNamespace(alignvlm=SimpleNamespace(model="reader"), jobs=1)
    ReaderEngine.generate_hocr(image, hocr, text, options)
    assert text.read_text("utf-8").split() == TEXT.split()
    parsed = HocrParser(hocr).parse()
    own = as_element(PageReader.load("reader").read(drawn.page()))
    assert [line.baseline.slope for line in parsed.lines] == [0, 0, 0, 0]
    for word, other in zip(parsed.words, own.words, strict=True):
        assert word.text == other.text
        assert word.confidence == pytest.approx(other.confidence, abs=0.01)
        assert word.bbox.left == pytest.approx(other.bbox.left, abs=1)
        assert word.bbox.bottom == pytest.approx(other.bbox.bottom, abs=1)


def test_elements_are_paragraphs_lines_and_words():
    from ocrmypdf.models.ocr_element import OcrClass

    from alignvlm.inference.page_reader import PageReader
    from alignvlm.plugins.ocrmypdf import as_element

    read = PageReader.load("reader")
    page = as_element(read.read(drawn.page(), 3))
    assert (page.ocr_class, page.page_number) == (OcrClass.PAGE, 2)
    assert (page.bbox.width, page.bbox.height) == (560, 300)
    assert [len(part.children) for part in page.paragraphs] == [1, 2, 1]
    assert [word.text for word in page.words] == TEXT.split()
    for piece, line in zip(drawn.LETTER, page.lines, strict=True):
        baseline = line.bbox.bottom + line.baseline.intercept
        assert line.baseline.slope == 0
        assert baseline == pytest.approx(drawn.baseline(piece), abs=0.12 * piece.px)

    slanted = drawn.page().rotate(-2, Image.Resampling.BICUBIC, fillcolor="white")
    assert read.slant(slanted) == pytest.approx(2, abs=0.3)
    lines = as_element(read.read(slanted)).lines
    assert [line.baseline.slope for line in lines] == pytest.approx([0.035] * 4, abs=0.01)
    turned = as_element(read.read(drawn.page().transpose(Image.Transpose.ROTATE_90)))
    assert {line.textangle for line in turned.lines} == {90.0}
    empty = as_element(read.read(drawn.page([])))
    assert empty.children == []
