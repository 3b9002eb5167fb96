"""Pages of files, folders and standard input, and what is refused."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignvlm.documents import opening as documents
from alignvlm.documents.opening import load_pages, open_document, pdf_page_count
from alignvlm.documents.page_images import PageImage, Pages, list_files
from alignvlm.errors import DataError

PADDING = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")
"""Fills up passwords; PDF 32000-1, 7.6.3.3."""
BOX = "0.2 0.4 0.6 rg 20 20 60 60 re f"


def pdf(pages: int = 1, content: str = BOX, *, password: str | None = None) -> bytes:
    """A PDF of 100 x 100 pt pages; with a password encrypted by 40-bit RC4 (revision 2)."""
    key, trailer = b"", ""
    if password is not None:
        user = (password.encode() + PADDING)[:32]
        owner = rc4(hashlib.md5(user).digest()[:5], user)
        identity, permissions = b"0123456789abcdef", (-4 & 0xFFFFFFFF).to_bytes(4, "little")
        key = hashlib.md5(user + owner + permissions + identity).digest()[:5]
        trailer = (
            f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{owner.hex()}> "
            f"/U <{rc4(key, PADDING).hex()}> >> /ID [<{identity.hex()}> <{identity.hex()}>]"
        )
    kids = " ".join(f"{4 + i} 0 R" for i in range(pages))
    # all pages share one content stream: object 3
    stream = content.encode()
    if key:
        stream = rc4(hashlib.md5(key + (3).to_bytes(3, "little") + b"\0\0").digest()[:10], stream)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>".encode(),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] /Contents 3 0 R >>"
    data, offsets = b"%PDF-1.4\n", []
    parts = [data]
    position = len(data)
    for number, body in enumerate([*objects, *[page] * pages], start=1):
        offsets.append(position)
        parts.append(b"%d 0 obj\n%s\nendobj\n" % (number, body))
        position += len(parts[-1])
    parts.append(b"xref\n0 %d\n0000000000 65535 f \n" % (len(offsets) + 1))
    parts += [b"%010d 00000 n \n" % offset for offset in offsets]
    parts.append(
        f"trailer\n<< /Size {len(offsets) + 1} /Root 1 0 R {trailer} >>\n"
        f"startxref\n{position}\n%%EOF\n".encode()
    )
    return b"".join(parts)


def rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def tiff(path: Path | io.BytesIO, heights: list[int]) -> None:
    frames = [Image.new("RGB", (20, height), (height, 0, 0)) for height in heights]
    frames[0].save(path, format="TIFF", save_all=True, append_images=frames[1:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.pdf (3 pages), b.tif (2 frames), deep/c.png, and what is no page."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    write(folder / "a.pdf", pdf(3))
    tiff(folder / "b.tif", [30, 40])
    Image.new("RGB", (10, 12)).save(folder / "deep" / "c.PNG")
    (folder / "notes.txt").write_text("no page")
    return folder


def where(pages: Pages) -> list[tuple[str, int]]:
    return [(Path(page.file).name, page.page) for page in pages]


def test_a_folder_is_gone_through_by_name_as_often_as_wanted(folder: Path):
    pages = Pages([folder], dpi=72)
    expected = [("a.pdf", 1), ("a.pdf", 2), ("a.pdf", 3), ("b.tif", 1), ("b.tif", 2), ("c.PNG", 1)]
    assert where(pages) == where(pages) == expected
    assert len(pages) == 6
    assert pages.left_out is None
    assert [page.image.size for page in pages][2:] == [(100, 100), (20, 30), (20, 40), (10, 12)]
    assert [page.scale for page in pages] == [1.0] * 3 + [None] * 3
    assert list_files(folder / "notes.txt") == [str(folder / "notes.txt")]  # named outright
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no PDF and no picture in this folder"):
        Pages([folder / "empty"])


def test_page_numbers_are_those_of_the_file(folder: Path):
    pages = Pages([folder / "a.pdf", folder / "b.tif"], pages="2", dpi=144)
    assert where(pages) == [("a.pdf", 2), ("b.tif", 2)]
    assert [page.scale for page in pages] == [2.0, None]
    with pytest.raises(DataError, match=r"b\.tif: page range '3' is outside 1-2"):
        len(Pages([folder / "b.tif"], pages="3"))


def test_what_is_left_out_is_said(folder: Path):
    pages = Pages([folder], max_pages=2)
    assert where(pages) == [("a.pdf", 1), ("a.pdf", 2)]
    assert pages.left_out is not None
    assert pages.left_out.startswith("4 of 6 pages left out: ")
    assert "a.pdf page 3; " in pages.left_out
    assert "b.tif pages 1-2; " in pages.left_out
    assert "--pages" in pages.left_out
    many = Pages([folder / "b.tif"] * 5, max_pages=1)
    assert many.left_out is not None
    assert "and 2 more files" in many.left_out
    with pytest.raises(DataError, match="max_pages must be at least 1"):
        Pages([folder], max_pages=0)


@pytest.mark.parametrize("kind", ["pdf", "tiff", "png"])
def test_standard_input_is_known_by_its_content(kind: str):
    buffer = io.BytesIO()
    if kind == "pdf":
        buffer.write(pdf(2))
    elif kind == "tiff":
        tiff(buffer, [100, 50])
    else:
        Image.new("RGB", (100, 100)).save(buffer, format="PNG")
    pages = Pages(["-"], dpi=72, stdin=io.BytesIO(buffer.getvalue()))
    assert pages.files == ["-"]
    assert where(pages) == where(pages) == [("stdin", n) for n in range(1, 2 + (kind != "png"))]
    first = next(iter(pages))
    assert isinstance(first, PageImage)
    assert first.image.size[0] in (20, 100)
    assert first.scale == (1.0 if kind == "pdf" else None)


def test_standard_input_that_cannot_be_used():
    for data, reason in (
        (b"", "stdin: the file is empty"),
        (b"hello", "stdin: not an image"),
        (b"%PDF-1.4 nothing", "stdin: not a PDF, or damaged"),
        (pdf(0), "stdin: the PDF has no pages"),
        (pdf(1, password="x"), "stdin: the PDF is encrypted"),
    ):
        with pytest.raises(DataError, match=reason):
            list(Pages(["-"], stdin=io.BytesIO(data)))
    with pytest.raises(DataError, match="only once"):
        Pages(["-", "a.png", "-"])


@pytest.mark.parametrize("password", ["secret", "Zürich 7"])
def test_encrypted_pdfs_open_with_their_password(tmp_path: Path, password: str):
    path = write(tmp_path / "locked.pdf", pdf(2, password=password))
    plain = write(tmp_path / "open.pdf", pdf(2))
    for image in load_pages(path, password=password):
        assert np.array_equal(image, load_pages(plain)[0])
    assert len(Pages([path], password=password)) == 2
    with pytest.raises(DataError, match=r"locked\.pdf: .*encrypted: save a copy [^-]*$"):
        load_pages(path)
    with pytest.raises(DataError, match=r"locked\.pdf: .*this is not its password"):
        load_pages(path, password="wrong")
    assert len(load_pages(plain, password="not needed")) == 2


def test_a_pdf_whose_password_is_empty_opens_without(tmp_path: Path):
    assert len(load_pages(write(tmp_path / "a.pdf", pdf(1, password="")))) == 1


def test_refusals_do_not_depend_on_the_file_before(tmp_path: Path):
    """PDFium keeps its last error; a damaged file must not be called encrypted for that."""
    bad = write(tmp_path / "bad.pdf", b"%PDF-1.4 nothing")
    locked = write(tmp_path / "locked.pdf", pdf(1, password="x"))
    empty = write(tmp_path / "none.pdf", pdf(0))
    cut = write(tmp_path / "cut.pdf", pdf(3)[:60])
    reasons = {bad: "damaged", locked: "encrypted", empty: "no pages", cut: "damaged"}
    for path in (locked, bad, empty, locked, cut, empty, bad):
        with pytest.raises(DataError, match=reasons[path]):
            pdf_page_count(path)


def test_a_thousand_pages_cost_what_is_asked_of_them(tmp_path: Path, monkeypatch):
    path = write(tmp_path / "long.pdf", pdf(1000))
    rendered = []
    render = documents.render_page_of
    monkeypatch.setattr(
        documents, "render_page_of", lambda *a: (rendered.append(a[2]), render(*a))[1]
    )
    start = time.perf_counter()
    pages = Pages([path], pages="2,999-", dpi=36)
    assert where(pages) == [("long.pdf", 2), ("long.pdf", 999), ("long.pdf", 1000)]
    assert rendered == [1, 998, 999]
    first = Pages([path], dpi=36, max_pages=8)
    assert len(list(first)) == 8
    assert "992 of 1000 pages left out: " in (first.left_out or "")
    assert "pages 9-1000" in (first.left_out or "")
    assert len(rendered) == 11
    next(iter(Pages([path], dpi=36)))
    assert len(rendered) == 12, "pages are rendered one by one"
    assert time.perf_counter() - start < 20


def test_a_thousand_page_pdf_of_pictures(tmp_path: Path):
    """As scanners write them, made by Pillow."""
    sheets = [Image.new("1", (8, 8 + n % 3)) for n in range(1000)]
    sheets[0].save(tmp_path / "scan.pdf", save_all=True, append_images=sheets[1:])
    (page,) = Pages([tmp_path / "scan.pdf"], pages="1000", dpi=72)
    assert (page.page, page.image.size) == (1000, (8, 8))
    (page,) = Pages([tmp_path / "scan.pdf"], pages="500", dpi=72)
    assert page.image.size == (8, 9)


def test_only_wanted_frames_of_a_tiff_are_decoded(tmp_path: Path):
    buffer = io.BytesIO()
    tiff(buffer, [30, 40, 50])
    with open_document("x", data=buffer.getvalue()) as document:
        assert document.count == 3
        assert document.render(2, 72, 10_000).size == (20, 50)
        with pytest.raises(DataError, match="20 x 40 pixels is more than"):
            document.render(1, 72, 600)
        assert document.render(0, 72, 600).size == (20, 30)


def test_a_damaged_frame_harms_only_itself(tmp_path: Path):
    buffer = io.BytesIO()
    noise = Image.effect_noise((64, 64), 50)
    noise.save(buffer, format="TIFF", save_all=True, append_images=[noise], compression="tiff_lzw")
    with Image.open(buffer) as image:
        image.seek(1)
        (offset, *_) = image.tag_v2[273]
    data = bytearray(buffer.getvalue())
    data[offset : offset + 200] = b"\xff" * 200
    path = write(tmp_path / "half.tif", bytes(data))
    assert load_pages(path, pages="1")[0].size == (64, 64)
    with pytest.raises(DataError, match=r"half\.tif: the image is truncated or damaged"):
        load_pages(path)


def test_other_warnings_are_heard_while_pages_are_open(tmp_path: Path, folder: Path):
    import warnings

    for _ in Pages([folder / "b.tif"]):
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", UserWarning, stacklevel=1)
