"""Pictures and PDFs as people have them: deep grey, thumbnails, posters, white ink, odd names."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, TiffImagePlugin
from tests.documents.test_pages import pdf, write

from alignvlm.documents.opening import load_pages, open_document
from alignvlm.documents.page_images import Pages
from alignvlm.documents.pictures import open_image
from alignvlm.errors import DataError
from alignvlm.processing.image_processor import to_rgb

TAGS = {"photometric": 262, "subfile": 254}


def ramp(top: int) -> np.ndarray:
    """From black to ``top`` in 64 steps."""
    return np.tile(np.linspace(0, top, 64).round(), (8, 1))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_grey_of_any_depth_reaches_white(bits: int):
    image = Image.fromarray(ramp(2**bits - 1).astype(np.uint16))
    shown = np.asarray(to_rgb(image))[0, :, 0].astype(int)
    assert abs(shown - np.linspace(0, 255, 64)).max() <= 1


def test_a_noisy_scan_of_twelve_bits_is_not_black():
    rng = np.random.default_rng(0)
    page = np.clip(3500 + rng.normal(0, 90, (40, 60)), 0, 4095)  # paper, its peak under 4095
    page[10:14] = 900
    shown = np.asarray(to_rgb(Image.fromarray(page.astype(np.uint16))))
    assert np.median(shown) > 200
    assert shown[10:14].mean() < 70


def scan(pixels: np.ndarray, order: str) -> bytes:
    """A TIFF as scanners write it: grey of fewer bits in 16 each, in one strip behind the tags."""
    height, width = pixels.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (TAGS["photometric"], 1), (273, 0),
            (277, 1), (278, height), (279, 2 * width * height)]  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4
    data = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    data += struct.pack(f"{order}H", len(tags))
    for tag, value in tags:  # all are of 32 bits
        data += struct.pack(f"{order}HHII", tag, 4, 1, after if tag == 273 else value)
    return data + bytes(4) + pixels.astype(f"{order}u2").tobytes()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [10, 12])
def test_a_file_of_a_scanner_with_fewer_bits_than_it_has_room_for(tmp_path: Path, bits, order):
    """Through the decoder, where a picture's mode depends on the order of its bytes."""
    rng, most = np.random.default_rng(0), 2**bits - 1
    paper = np.clip(0.85 * most + rng.normal(0, 0.02 * most, (40, 60)), 0, most)
    paper[10:14] = 0.2 * most
    (page,) = load_pages(write(tmp_path / "a.tif", scan(paper.round(), order)))
    shown = np.asarray(page)
    assert page.mode == "RGB" and shown.shape == (40, 60, 3)
    assert abs(np.median(shown[20:]) - 0.85 * 255) < 4
    assert abs(shown[10:14].mean() - 0.2 * 255) < 4


def test_sixteen_bits_where_zero_is_white(tmp_path: Path):
    ink = np.zeros((20, 30), np.uint16)
    ink[5:8] = 65535
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[TAGS["photometric"]] = 0
    Image.fromarray(ink).save(tmp_path / "a.tif", tiffinfo=tags)
    with Image.open(tmp_path / "a.tif") as written:
        assert written.tag_v2[TAGS["photometric"]] == 0  # the file is what it is meant to be
    (page,) = load_pages(tmp_path / "a.tif")
    assert np.asarray(page)[0, 0].tolist() == [255] * 3
    assert np.asarray(page)[6, 6].tolist() == [0] * 3


def test_a_thumbnail_is_no_page(tmp_path: Path):
    frames = [Image.new("L", (60, 80), 255), Image.new("L", (6, 8), 255)]
    small = TiffImagePlugin.ImageFileDirectory_v2()
    small[TAGS["subfile"]] = 1
    frames[1].encoderinfo = {"tiffinfo": small}
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=[frames[1], frames[0]])
    assert [page.size for page in load_pages(tmp_path / "a.tif")] == [(60, 80), (60, 80)]


def test_a_poster_is_rendered_at_the_resolution_that_fits(tmp_path: Path):
    path = write(tmp_path / "a.pdf", pdf(1))
    (page,) = load_pages(path, dpi=720, max_pixels=10_000)
    assert 9_000 <= page.width * page.height <= 10_000
    (image,) = Pages([path], dpi=720, max_pixels=10_000)
    assert image.image.size == page.size
    assert image.scale is not None
    # boxes in points are found from the scale: 100 pt wide
    assert abs(image.image.width / image.scale - 100) < 1.1
    with open_document(path) as document:
        assert document.scale(0, 144, 10**8) == 2.0  # nothing changes where it fits


def test_a_limit_for_pdfs_does_not_refuse_pictures(tmp_path: Path):
    pages = Pages([write(tmp_path / "a.pdf", pdf(1)), tmp_path / "b.png"], dpi=144)
    Image.new("RGB", (200, 200), "white").save(tmp_path / "b.png")
    assert [page.image.size for page in pages] == [(200, 200), (200, 200)]
    pages.pdf_pixels = 10_000
    poster, picture = pages
    assert 9_000 <= poster.image.width * poster.image.height <= 10_000
    assert poster.scale is not None
    assert abs(poster.image.width / poster.scale - 100) < 1.1
    assert picture.image.size == (200, 200)


@pytest.mark.parametrize(("ink", "background"), [("white", 0), ("black", 255)])
def test_ink_on_nothing_can_be_seen(ink: str, background: int):
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((5, 5, 20, 10), fill=ink)
    shown = np.asarray(to_rgb(image))
    assert shown[0, 0].tolist() == [background] * 3
    assert shown[7, 7].tolist() == [255 - background] * 3


def test_white_with_anything_else_stays_on_white():
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 30, 10), fill="white")
    ImageDraw.Draw(image).rectangle((5, 5, 12, 8), fill="black")
    assert np.asarray(to_rgb(image))[19, 39].tolist() == [255] * 3


def test_a_folder_has_what_opens_and_nothing_hidden(tmp_path: Path):
    white = Image.new("RGB", (20, 20), "white")
    for name, kind in (("a.jfif", "JPEG"), ("b.jpe", "JPEG"), ("c.pgm", "PPM"), ("d.pnm", "PPM")):
        white.save(tmp_path / name, format=kind)
    white.convert("1").save(tmp_path / "e.pbm", format="PPM")
    (tmp_path / ".cache").mkdir()
    white.save(tmp_path / ".cache" / "e.png")
    (tmp_path / "._a.png").write_bytes(b"Mac OS X")
    assert [Path(page.file).name for page in Pages([tmp_path])] == [
        "a.jfif", "b.jpe", "c.pgm", "d.pnm", "e.pbm",
    ]  # fmt: skip


def test_one_damaged_file_does_not_end_a_folder(tmp_path: Path):
    white = Image.new("RGB", (200, 200), "white")
    white.save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])  # opens, does not decode
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.4 nothing")
    white.save(tmp_path / "d.png")
    pages = Pages([tmp_path])
    assert [Path(page.file).name for page in pages] == ["a.png", "d.png"]
    assert [Path(file).name for file in pages.unreadable] == ["c.pdf", "b.png"]
    assert all(reason.startswith(file) for file, reason in pages.unreadable.items())
    with pytest.raises(DataError, match=r"b\.png: the image is truncated"):
        list(Pages([tmp_path / "b.png"]))  # named outright
    for name in ("a.png", "b.png", "d.png"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"no file can be read; the first: .*c\.pdf: not a PDF"):
        list(Pages([tmp_path]))


def test_nothing_but_our_line_is_said_of_a_damaged_tiff(tmp_path, capfd):
    file = tmp_path / "a.tif"
    Image.new("1", (200, 100), 1).save(file, compression="group4")
    data = bytearray(file.read_bytes())
    data[8:16] = b"\x12\x34\xff\xee\x01\x80\x7f\x33"
    file.write_bytes(bytes(data[:-20]))
    capfd.readouterr()
    with contextlib.suppress(DataError):
        open_image(file)
    assert capfd.readouterr() == ("", "")
