"""PDFs to records: what is taken, what is left out and why, and runs that are cut short."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.documents.test_documents import make_pdf, text_at

from alignvlm.data.harvest import from_pdf as module
from alignvlm.data.harvest.from_pdf import (
    clean_words,
    explained_ink,
    from_pdf,
    is_sideways,
    shrink,
    spell_out,
)
from alignvlm.data.harvest.harvesting import find_files
from alignvlm.data.records import load_images
from alignvlm.data.sources import TRANSCRIBE_QUESTION, JsonlSource
from alignvlm.documents.opening import load_pages, pdf_words
from alignvlm.documents.words import Word
from alignvlm.errors import DataError

PAGE = text_at((20, 150, "Total: $5.00"), (20, 90, "second line"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    make_pdf(folder / "b.pdf", [PAGE, "", text_at((20, 90, "third page"))])
    make_pdf(folder / "deep" / "a.PDF", [text_at((30, 60, "deep down"))])
    return folder


def words(*texts: str, y: float = 10, height: float = 12) -> list[Word]:
    """Words of 40 px, 50 px apart, on one line."""
    return [
        Word(t, (50 * i, y, 50 * i + 40, y + height), 0, tuple(50 * i + 40 * k / len(t)
             for k in range(len(t))))
        for i, t in enumerate(texts)
    ]  # fmt: skip


def striped(width: int = 400, height: int = 60) -> np.ndarray:
    """A page with ink everywhere."""
    grey = np.full((height, width), 255, dtype=np.uint8)
    grey[:, ::4] = 0
    return grey


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_page_with_text_is_a_record_that_trains(folder, tmp_path):
    found = from_pdf(folder, tmp_path / "out", dpi=72)
    source = JsonlSource(found.records)
    assert len(source) == found.pages == 3
    first = source[0]
    assert [source[i].id for i in range(3)] == ["b.pdf#1", "b.pdf#3", "deep/a.PDF#1"]
    assert first.question == TRANSCRIBE_QUESTION
    assert first.answer == "Total: $5.00\nsecond line"
    assert load_images(first)[0].size == (300, 200)
    assert found.words == 4 + 2 + 2
    expected = pdf_words(folder / "b.pdf", 0, dpi=72)
    got = first.words[0]
    assert [w["text"] for w in got] == [w.text for w in expected]
    assert np.allclose([w["box"] for w in got], [w.box for w in expected], atol=0.01)
    assert np.allclose(got[0]["char_x"], expected[0].char_x, atol=0.01)
    assert found.skipped_pages == [("b.pdf", 2, "no text layer")]
    assert "skipped b.pdf, page 2: no text layer" in found.to_text()


def test_the_image_is_the_rendered_page(folder, tmp_path):
    found = from_pdf(folder, tmp_path / "out", dpi=100)
    (image,) = load_images(JsonlSource(found.records)[0])
    assert np.array_equal(image, load_pages(folder / "b.pdf", dpi=100, max_pages=1)[0])


def test_bad_files_are_named_and_the_run_goes_on(folder, tmp_path):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "empty.pdf").touch()
    make_pdf(folder / "none.pdf", [])
    make_pdf(folder / "scan.pdf", ["", ""])
    (folder / "twin.pdf").write_bytes((folder / "b.pdf").read_bytes())
    secret = "00" * 32
    locked = f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{secret}> /U <{secret}> /P -4 >> "
    make_pdf(folder / "locked.pdf", [PAGE], trailer=locked + "/ID [<00> <00>]")
    found = from_pdf(folder, tmp_path / "out")
    reasons = dict(found.skipped_files)
    assert set(reasons) == {
        "broken.pdf", "empty.pdf", "none.pdf", "scan.pdf", "twin.pdf", "locked.pdf",
    }  # fmt: skip
    assert reasons["scan.pdf"] == "no text layer"
    assert reasons["twin.pdf"] == "the same file as b.pdf"
    assert reasons["empty.pdf"] == "the file is empty"
    assert "encrypted" in reasons["locked.pdf"]
    assert (found.files, found.pages) == (8, 3)
    assert "from 2 of 8 files" in found.to_text().splitlines()[-1]
    assert json.loads(json.dumps(found.to_dict()))["pages"] == 3


def test_an_interrupted_run_goes_on_and_ends_the_same(folder, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    from_pdf(folder, whole)
    real, asked = module.text_page, []

    def text_page(path, document, index, *rest):
        asked.append((path.name, index))
        if path.name == "a.PDF" and len(asked) == 4:
            raise KeyboardInterrupt
        return real(path, document, index, *rest)

    monkeypatch.setattr(module, "text_page", text_page)
    with pytest.raises(KeyboardInterrupt):
        from_pdf(folder, cut)
    assert not (cut / "records.jsonl").exists()
    assert len(asked) == 4
    from_pdf(folder, cut)
    assert asked[4:] == [("a.PDF", 0)]  # the finished file is not read again
    assert files_of(cut) == files_of(whole)
    assert not any(name.endswith(".partial") for name in files_of(cut))


def test_new_and_changed_files_are_taken_in(folder, tmp_path):
    out = tmp_path / "out"
    from_pdf(folder, out)
    make_pdf(folder / "c.pdf", [text_at((20, 90, "new"))])
    make_pdf(folder / "deep" / "a.PDF", [text_at((30, 60, "changed words"))])
    found = from_pdf(folder, out)
    source = JsonlSource(found.records)
    assert [source[i].answer for i in (2, 3)] == ["new", "changed words"]


def test_other_settings_need_another_folder(folder, tmp_path):
    out = tmp_path / "out"
    from_pdf(folder, out)
    with pytest.raises(DataError, match=r"was made with dpi = 144, now 72"):
        from_pdf(folder, out, dpi=72)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(DataError, match="not the output of an earlier run"):
        from_pdf(folder, tmp_path / "mine")


def test_chosen_pages(folder, tmp_path):
    found = from_pdf(folder, tmp_path / "a", pages="3-")
    assert [r.id for r in map(JsonlSource(found.records).__getitem__, range(found.pages))] == [
        "b.pdf#3"
    ]
    assert found.skipped_files == [("deep/a.PDF", "no page was chosen")]
    assert from_pdf(folder, tmp_path / "b", max_pages=1).pages == 2
    found = from_pdf(folder, tmp_path / "c", min_words=3)
    assert found.pages == 1
    assert ("b.pdf", 3, "fewer than 3 words") in found.skipped_pages


def test_nothing_to_take(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"no file that ends in \.pdf"):
        from_pdf(tmp_path / "in", tmp_path / "out")
    make_pdf(tmp_path / "in" / "scan.pdf", [""])
    with pytest.raises(DataError, match=r"none of 1 files .*scan\.pdf: no text layer"):
        from_pdf(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "records.jsonl").exists()
    with pytest.raises(DataError, match="no such folder"):
        from_pdf(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(DataError, match="dpi must be"):
        from_pdf(tmp_path / "in", tmp_path / "out", dpi=float("nan"))
    with pytest.raises(DataError, match="cannot read the page range"):
        from_pdf(tmp_path / "in", tmp_path / "out", pages="x")


def test_huge_pages_get_a_lower_resolution(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAGE_PIXELS", 150 * 100)
    source = JsonlSource(from_pdf(folder, tmp_path / "out", dpi=72).records)
    (image,) = load_images(source[0])
    assert image.size == (150, 100)
    expected = pdf_words(folder / "b.pdf", 0, dpi=36)
    assert np.allclose(source[0].words[0][0]["box"], expected[0].box, atol=0.01)
    assert shrink(Image.new("L", (600, 400))).size == (150, 100)
    assert shrink(Image.new("L", (30, 20))).size == (30, 20)


@pytest.mark.parametrize("extra", ["/Rotate 90", "/CropBox [10 20 280 190]", "/Rotate 270"])
def test_what_turns_out_sideways_or_cropped(tmp_path, extra):
    """Text drawn upright is sideways on a turned page; a crop box only shifts it."""
    path = make_pdf(tmp_path / "a.pdf", [PAGE], page_extra=extra)
    if "Rotate" in extra:
        with pytest.raises(DataError, match="none of its words can be used: sideways"):
            from_pdf(path, tmp_path / "out")
    else:
        assert from_pdf(path, tmp_path / "out").words == 4


def test_text_turned_against_the_page_is_upright(tmp_path):
    turned = "BT /F1 24 Tf 0 1 -1 0 100 20 Tm (upright again) Tj ET"
    path = make_pdf(tmp_path / "a.pdf", [turned], page_extra="/Rotate 90")
    found = from_pdf(path, tmp_path / "out")
    assert JsonlSource(found.records)[0].answer == "upright again"


def test_invisible_text_is_believed_only_over_ink(tmp_path):
    """Render mode 3 is how scans carry their text; white on white is not to be read."""
    hidden = "BT 3 Tr /F1 24 Tf 20 150 Td (hidden) Tj ET"
    path = make_pdf(tmp_path / "a.pdf", [f"{text_at((20, 60, 'seen'))} {hidden}"])
    found = from_pdf(path, tmp_path / "out")
    assert JsonlSource(found.records)[0].answer == "seen"
    assert found.dropped == {"not visible": 1}
    over = f"{text_at((20, 150, 'drawn'))} BT 3 Tr /F1 24 Tf 20 60 Td (x) Tj ET"
    ink = "20 55 60 3 re f 20 70 60 3 re f"  # a scan's own strokes
    path = make_pdf(tmp_path / "b.pdf", [f"{over} {ink}"])
    assert from_pdf(path, tmp_path / "out-b").words == 2


def test_text_printed_twice_counts_once(tmp_path):
    twice = text_at((20, 150, "Bold")) + " " + text_at((21, 150, "Bold"), (20, 60, "Bold"))
    path = make_pdf(tmp_path / "a.pdf", [twice])
    assert JsonlSource(from_pdf(path, tmp_path / "out").records)[0].answer.split() == ["Bold"] * 2


def test_words_cut_off_by_the_edge(tmp_path):
    path = make_pdf(tmp_path / "a.pdf", [text_at((20, 150, "whole"), (270, 90, "sliced"))])
    found = from_pdf(path, tmp_path / "out")
    assert JsonlSource(found.records)[0].answer == "whole"
    assert found.dropped == {"cut off by the edge": 1}


def picture(x: int, y: int, wide: int, high: int) -> str:
    """An inline 2 x 2 picture of light grey."""
    data = "BI /W 2 /H 2 /CS /G /BPC 8 /F /AHx ID C0C0C0C0> EI"
    return f"q {wide} 0 0 {high} {x} {y} cm {data} Q"


def test_a_scan_with_only_a_stamp_is_skipped(tmp_path):
    """Whatever else is written on it would be taught as blank."""
    strokes = " ".join(f"20 {y} 250 6 re f" for y in range(20, 150, 12))
    stamp = text_at((20, 170, "Page 1"))
    path = make_pdf(tmp_path / "a.pdf", [f"{picture(0, 0, 300, 200)} {strokes} {stamp}", PAGE])
    found = from_pdf(path, tmp_path / "out")
    assert found.skipped_pages == [("a.pdf", 1, "a scan with hardly any text layer")]
    # a small picture makes no scan, and a scan whose text is known is a photo
    path = make_pdf(tmp_path / "b.pdf", [f"{picture(200, 0, 60, 60)} {strokes} {stamp}"])
    assert from_pdf(path, tmp_path / "out-b").pages == 1
    path = make_pdf(tmp_path / "c.pdf", [f"{picture(0, 0, 300, 200)} {PAGE}"])
    record = JsonlSource(from_pdf(path, tmp_path / "out-c").records)[0]
    assert str(record.images[0]).endswith("pages/c.pdf/0001.jpg")


def test_fonts_without_meaning_are_skipped(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_unreadable_share", lambda page: 0.2)
    with pytest.raises(DataError, match="the fonts do not say"):
        from_pdf(folder, tmp_path / "out")


def test_ligatures_accents_and_letters_of_one_glyph():
    word = Word("o\ufb03ce", (10, 0, 60, 12), 0, (10, 20, 40, 50))
    assert spell_out(word) == Word(
        "office", (10, 0, 60, 12), 0, pytest.approx((10, 20, 20 + 20 / 3, 20 + 40 / 3, 40, 50))
    )
    accent = Word("e\u0301a", (0, 0, 20, 12), 0, (0, 1, 10))
    assert spell_out(accent) == Word("\u00e9a", (0, 0, 20, 12), 0, (0, 10))
    tied = Word("afi", (0, 0, 30, 12), 0, (0, 10, 10))  # PDFium spells some ligatures out itself
    assert spell_out(tied).char_x == (0, 10, 20)


def test_sideways():
    upright = words("lll", "Washington", "a")
    assert not any(map(is_sideways, upright))
    assert not is_sideways(Word("lll", (0, 0, 6.6, 7.5), 0, (0, 2, 4)))
    tall = Word("Draft", (0, 0, 12, 40), 0, (0,) * 5)
    diagonal = Word("CONFIDENTIAL", (0, 0, 100, 100), 0, (0,) * 12)
    assert is_sideways(tall) and is_sideways(diagonal)
    short = Word("of", (20, 30, 32, 40), 0, (20, 26))
    kept, dropped = clean_words([tall, short], striped())
    assert (kept, dropped) == ([], {"sideways": 2})


def test_lines_are_numbered_from_zero_and_specks_left_out():
    late = [Word("a", (0, 0, 10, 10), 7, (0,)), Word("b", (20, 0, 30, 10), 9, (20,))]
    speck = Word("c", (40, 0, 40.1, 10), 9, (40,))
    hyphen = Word("-", (60, 5, 64, 5.5), 9, (60,))
    kept, dropped = clean_words([*late, speck, hyphen], striped())
    assert [(w.text, w.line) for w in kept] == [("a", 0), ("b", 1), ("-", 1)]
    assert dropped == {"without size": 1}


def test_ink_under_words():
    grey = np.full((60, 400), 255, dtype=np.uint8)
    grey[10:20, 0:40] = 0
    grey[40:50, 0:120] = 0
    assert explained_ink(words("abcd", y=8, height=14), grey) == pytest.approx(0.25)
    assert explained_ink(words("abcd"), np.full((60, 400), 255, dtype=np.uint8)) == 0


def test_files_of_a_run_inside_the_folder_do_not_count(folder):
    found = from_pdf(folder, folder / "out")
    (folder / "out" / "copy.pdf").write_bytes((folder / "b.pdf").read_bytes())
    names = [name for name, _ in find_files(folder, (".pdf",), without=folder / "out")]
    assert names == ["b.pdf", "deep/a.PDF"]
    assert found.files == 2


def test_damaged_notes_of_earlier_runs(folder, tmp_path):
    out = tmp_path / "out"
    from_pdf(folder, out)
    part = out / "parts" / "b.pdf.jsonl"
    part.write_text("half a line")
    assert from_pdf(folder, out).pages == 3
    (out / "harvest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON; remove"):
        from_pdf(folder, out)
