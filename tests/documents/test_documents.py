"""Files to pages: every kind of good file, and a clear refusal for every kind of bad one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignvlm.documents.opening import (
    load_pages,
    parse_pages,
    pdf_page_count,
    pdf_words,
    read_json,
    read_text,
)
from alignvlm.documents.pictures import open_image
from alignvlm.errors import DataError
from alignvlm.processing.image_processor import to_rgb


def make_pdf(path: Path, pages: list[str], *, page_extra: str = "", trailer: str = "") -> Path:
    """A PDF with one content stream a page, in 24 pt Helvetica on a 300 x 200 pt page."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, content in enumerate(pages):
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Resources << /Font << /F1 3 0 R "
            f">> >> /Contents {5 + 2 * i} 0 R {page_extra} >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    start = len(data)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    data += b"".join(f"{offset:010d} 00000 n \n".encode() for offset in offsets)
    data += (
        f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\n"
        f"startxref\n{start}\n%%EOF\n"
    ).encode("latin-1")
    path.write_bytes(data)
    return path


def text_at(*lines: tuple[int, int, str]) -> str:
    return " ".join(f"BT /F1 24 Tf {x} {y} Td ({text}) Tj ET" for x, y, text in lines)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


# pictures


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif", "bmp"])
def test_pictures_become_one_rgb_page(tmp_path: Path, suffix: str) -> None:
    path = save(Image.new("RGB", (31, 17), (200, 10, 10)), tmp_path / f"page.{suffix}")
    (page,) = load_pages(path)
    assert page.mode == "RGB"
    assert page.size == (31, 17)
    assert abs(page.getpixel((5, 5))[0] - 200) < 12


def test_every_frame_of_a_tiff_but_only_the_first_of_a_gif(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8 + i), (60 * i, 0, 0)) for i in range(4)]
    tiff = save(frames[0], tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    assert [page.height for page in load_pages(tiff)] == [8, 9, 10, 11]
    assert [page.height for page in load_pages(tiff, pages="4,2")] == [11, 9]
    assert len(load_pages(tiff, max_pages=2)) == 2
    gif = save(frames[1], tmp_path / "a.gif", save_all=True, append_images=frames[2:])
    assert len(load_pages(gif)) == 1


def test_transparency_is_white_and_16_bit_scans_are_scaled() -> None:
    assert to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    gray = to_rgb(Image.fromarray(np.full((2, 2), 65535, dtype=np.uint16)))
    assert gray.getpixel((0, 0)) == (255, 255, 255)
    half = to_rgb(Image.fromarray(np.full((2, 2), 32768, dtype=np.uint16)))
    assert abs(half.getpixel((0, 0))[0] - 128) <= 1
    for mode in ("1", "L", "P", "CMYK", "LA", "YCbCr"):
        assert to_rgb(Image.new(mode, (3, 3))).mode == "RGB"


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(Image.new("RGB", (20, 10)), tmp_path / "phone.jpg", exif=exif)
    assert open_image(path).size == (10, 20)


def test_bad_files_are_refused_by_name(tmp_path: Path) -> None:
    png = save(Image.effect_noise((64, 64), 50), tmp_path / "noise.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(png.read_bytes()[:1500])
    jpg = save(Image.effect_noise((64, 64), 50), tmp_path / "noise.jpg")
    cut_jpg = tmp_path / "cut.jpg"
    cut_jpg.write_bytes(jpg.read_bytes()[:900])
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing here")
    for name, reason in {
        "nowhere.png": "no such file",
        "cut.png": "truncated or damaged",
        "cut.jpg": "truncated or damaged",
        "note.txt": "not an image",
        "empty.png": "empty",
        "bad.pdf": "damaged",
        ".": "not a file",
    }.items():
        with pytest.raises(DataError, match=reason) as caught:
            load_pages(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.new("1", (100, 100)), tmp_path / "big.png")
    assert len(load_pages(path, max_pixels=10_000)) == 1
    with pytest.raises(DataError, match="100 x 100 pixels is more than the limit of 9999"):
        load_pages(path, max_pixels=9_999)
    pdf = make_pdf(tmp_path / "big.pdf", [""])
    (page,) = load_pages(pdf, dpi=72, max_pixels=9_999)  # rendered at a lower resolution
    assert page.width * page.height <= 9_999
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)  # Pillow's own error, at twice that
    with pytest.raises(DataError, match="too many pixels"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6_000)  # Pillow only warns: our limit decides
    assert open_image(path).size == (100, 100)


# page ranges


def test_page_ranges() -> None:
    assert parse_pages(None, 3) == [0, 1, 2]
    assert parse_pages("1-3,5", 5) == [0, 1, 2, 4]
    assert parse_pages(" 4- , 2", 5) == [3, 4, 1]


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ("0", "outside 1-4"),
        ("3-5", "outside 1-4"),
        ("5-", "outside 1-4"),
        ("3-2", "backwards"),
        ("", "cannot read"),
        ("a", "cannot read"),
        ("1,,2", "cannot read"),
        ("-2", "cannot read"),
        ("9" * 5000, "cannot read"),
    ],
)
def test_bad_page_ranges(pages: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_pages(pages, 4, where="x.pdf")


# PDFs


def test_pdf_pages_are_rendered_at_the_resolution(tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "a.pdf", [text_at((20, 100, f"page {i}")) for i in range(3)])
    assert pdf_page_count(path) == 3
    assert [page.size for page in load_pages(path)] == [(600, 400)] * 3
    assert [page.size for page in load_pages(path, dpi=36, pages="2-")] == [(150, 100)] * 2
    assert len(load_pages(path, max_pages=1)) == 1
    assert np.asarray(load_pages(path, max_pages=1)[0]).min() < 50  # ink
    with pytest.raises(DataError, match="outside 1-3"):
        load_pages(path, pages="2,4")
    for dpi in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="dpi must be"):
            load_pages(path, dpi=dpi)
    with pytest.raises(DataError, match="max_pages"):
        load_pages(path, max_pages=0)


def test_encrypted_and_empty_pdfs(tmp_path: Path) -> None:
    secret = "00" * 32
    encrypt = (
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{secret}> /U <{secret}> /P -4 >> "
        "/ID [<00> <00>]"
    )
    with pytest.raises(DataError, match=r"locked\.pdf: the PDF is encrypted"):
        load_pages(make_pdf(tmp_path / "locked.pdf", [""], trailer=encrypt))
    with pytest.raises(DataError, match=r"none\.pdf: the PDF has no pages"):
        load_pages(make_pdf(tmp_path / "none.pdf", []))


def ink_box(image: Image.Image) -> tuple[int, ...]:
    return image.convert("L").point(lambda v: 255 if v < 128 else 0).getbbox()


@pytest.mark.parametrize("extra", ["", "/Rotate 90", "/CropBox [10 20 280 190]", "/Rotate 180"])
@pytest.mark.parametrize("dpi", [72, 150])
def test_pdf_words_lie_on_their_ink(tmp_path: Path, extra: str, dpi: int) -> None:
    path = make_pdf(tmp_path / "a.pdf", [text_at((40, 120, "Hxgl"))], page_extra=extra)
    (word,) = pdf_words(path, 0, dpi=dpi)
    assert word.text == "Hxgl"
    ink = ink_box(load_pages(path, dpi=dpi)[0])
    assert np.abs(np.subtract(word.box, ink)).max() < 2.5
    assert len(word.char_x) == 4
    assert list(word.char_x) == sorted(word.char_x)
    assert word.char_x[0] == word.box[0]
    assert word.char_x[-1] < word.box[2]


def test_pdf_words_are_split_and_numbered_by_line(tmp_path: Path) -> None:
    content = text_at((20, 150, "Total: $5.00"), (200, 150, "paid"), (20, 90, "second line"))
    path = make_pdf(tmp_path / "a.pdf", ["", content])
    words = pdf_words(path, 1, dpi=72)
    assert [w.text for w in words] == ["Total:", "$5.00", "paid", "second", "line"]
    assert words[0].line == words[1].line < words[3].line == words[4].line
    assert words[0].box[1] < words[3].box[1]  # y runs down
    assert pdf_words(path, 0) == []
    with pytest.raises(DataError, match="outside 1-2"):
        pdf_words(path, 2)


def test_pdf_words_off_the_page_are_dropped(tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "a.pdf", [text_at((20, 150, "seen"), (20, 900, "unseen"))])
    assert [w.text for w in pdf_words(path, 0)] == ["seen"]


# text and JSON


def test_text_errors_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="no such file"):
        read_text(path)
    path.write_bytes(b"one\ntwo\xff")
    with pytest.raises(DataError, match=r"a\.json:2: not UTF-8"):
        read_text(path)
    path.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(DataError, match=r"a\.json:2: not valid JSON"):
        read_json(path)
    path.write_text('{"a": 1, "a": 2}')
    with pytest.raises(DataError, match="'a' is there twice"):
        read_json(path)
