"""What the reader alone reads on drawn pages: words, places, doubt and tokens; as hOCR and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from tests import drawn

from alignvlm.compose.assemble import compose
from alignvlm.errors import ConfigError, WeightsError
from alignvlm.inference.hocr import as_hocr
from alignvlm.inference.page_files import PAGE_FORMATS, ReadDocument
from alignvlm.inference.page_reader import PageReader
from alignvlm.inference.page_text import WordPage

XHTML = "{http://www.w3.org/1999/xhtml}"
TEXT = "\n".join(piece.text for piece in drawn.LETTER)


@pytest.fixture(scope="module")
def reader() -> PageReader:
    return PageReader.load("reader")


@pytest.fixture(scope="module")
def letter(reader: PageReader) -> WordPage:
    return reader.read(drawn.page())


def test_text_and_words_are_what_is_drawn(letter):
    assert letter.text == TEXT
    assert (letter.page, letter.width, letter.height, letter.scale) == (1, 560, 300, None)
    for line in letter.lines:
        assert [word.text for word in line.words] == line.text.split()
        assert all(0.9 < word.confidence <= 1 for word in line.words)
        assert line.turned == 0 and line.tokens == []


def test_boxes_lie_in_the_page_and_over_the_ink(letter):
    image = drawn.page()
    for piece, line in zip(drawn.LETTER, letter.lines, strict=True):
        for (text, box), word in zip(drawn.ink(piece), line.words, strict=True):
            x0, y0, x1, y1 = word.box
            assert 0 <= x0 < x1 <= letter.width and 0 <= y0 < y1 <= letter.height
            assert drawn.covered(image, box, word.box) > 0.85, (text, box, word.box)
            # and not much more than the ink
            assert x1 - x0 < box[2] - box[0] + 0.6 * piece.px
            assert y1 - y0 < 1.6 * piece.px
            assert line.box[0] <= x0 and line.box[1] <= y0 and x1 <= line.box[2]


def test_boxes_of_a_page_that_was_shrunk_are_px_of_the_page(reader, monkeypatch):
    """A page of more tiles than are allowed is read smaller."""
    pieces = [drawn.Piece("Total 812.50", 1000, 1750, 60)]
    large = drawn.page(pieces, (1700, 1900))
    monkeypatch.setattr(reader.image_processor, "max_tiles", reader.image_processor.max_tiles // 4)
    assert reader._pixels(large)[1] < 1
    (line,) = reader.read(large).lines
    assert line.text == "Total 812.50"
    for (_, box), word in zip(drawn.ink(pieces[0]), line.words, strict=True):
        assert drawn.covered(large, box, word.box) > 0.85


def test_a_turned_page_says_so(reader):
    page = reader.read(drawn.page().transpose(Image.Transpose.ROTATE_270))
    assert page.text == TEXT
    assert {line.turned for line in page.lines} == {1}
    assert "textangle 270" in as_hocr("a.png", [page])


def test_an_empty_page_has_no_lines(reader):
    page = reader.read(Image.new("RGB", (200, 100), "white"))
    assert page.lines == [] and page.text == ""
    assert ElementTree.fromstring(as_hocr("a.png", [page])) is not None


def test_a_doubtful_word_has_second_choices(reader):
    """Blurred until letters could be others."""
    piece = drawn.Piece("Il1 O0o 5S8B cl rn", 30, 30, 13)
    small = drawn.page([piece], (240, 80)).resize((120, 40), Image.Resampling.BILINEAR)
    words = [word for line in reader.read(small).lines for word in line.words]
    choices = [(word, choice) for word in words for choice in word.choices]
    assert choices
    for word, choice in choices:
        assert choice.text != word.text and len(choice.text) == len(word.text)
        assert 0.01 <= choice.confidence <= 1 - word.confidence + 1e-3


def test_tokens_spell_the_line_with_the_language_models_own_ids(tiny_lm_dir, tokenizer, tmp_path):
    model, processor = compose("reader", tiny_lm_dir)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    reader = PageReader.load(tmp_path / "whole", tokens=True)
    assert sum(p.numel() for p in reader.model.parameters()) < 15e6
    page = reader.read(drawn.page())
    assert page.text == TEXT
    for line in page.lines:
        assert tokenizer.decode([token.id for token in line.tokens]).strip() == line.text
        assert all(line.box[0] <= token.box[0] <= token.box[2] <= line.box[2]
                   for token in line.tokens)  # fmt: skip
    # the model itself reads the same tokens
    batch = processor.image_processor([drawn.page()], return_tensors="pt")
    with torch.no_grad():
        (own,) = model.model.encode(batch["pixel_values"], batch["image_grids"]).pages
    assert own.ids[:, 0].tolist() == [token.id for line in page.lines for token in line.tokens]


def test_what_cannot_read_is_refused(tiny_model_dir, tmp_path):
    with pytest.raises(ConfigError, match="does not read lines; name reader, smol"):
        PageReader.load(tiny_model_dir)
    with pytest.raises(ConfigError, match="reader: no language model is in it"):
        PageReader.load("reader", tokens=True)
    with pytest.raises(WeightsError):
        PageReader.load(tmp_path / "none")


def title(element: ElementTree.Element) -> dict[str, str]:
    parts = (part.strip().partition(" ") for part in element.get("title", "").split(";"))
    return {name: value for name, _, value in parts}


def test_hocr_has_pages_lines_and_words_with_boxes(letter):
    root = ElementTree.fromstring(as_hocr('of "M & S".png', [letter]))
    kinds = [(e.get("class"), e) for e in root.iter() if e.get("class")]
    ids = [element.get("id") for _, element in kinds]
    assert len(set(ids)) == len(ids)
    ((_, page),) = [one for one in kinds if one[0] == "ocr_page"]
    assert title(page)["bbox"] == "0 0 560 300"
    assert title(page)["image"] == '"of \\"M & S\\".png"'
    pars = [e for kind, e in kinds if kind == "ocr_par"]
    assert [len(par) for par in pars] == [1, 2, 1]
    lines = [e for kind, e in kinds if kind == "ocr_line"]
    assert ["".join(line.itertext()) for line in lines] == TEXT.split("\n")
    words = [e for kind, e in kinds if kind == "ocrx_word"]
    for element, word in zip(words, [w for line in letter.lines for w in line.words], strict=True):
        assert element.text == word.text
        x0, y0, x1, y1 = map(int, title(element)["bbox"].split())
        assert x0 <= word.box[0] and y0 <= word.box[1] and x1 >= word.box[2] and y1 >= word.box[3]
        assert 90 <= int(title(element)["x_wconf"]) <= 100
    declared = root.find(f"{XHTML}head/{XHTML}meta[@name='ocr-capabilities']")
    assert set(declared.get("content").split()) == {kind for kind, _ in kinds}


def test_json_has_the_documented_shape(letter):
    text = PAGE_FORMATS["json"].whole(ReadDocument("a.png", [letter]))
    assert text.count("\n") == 1
    told = json.loads(text)
    assert told == {"file": "a.png", "pages": [json.loads(json.dumps(asdict(letter)))]}
    page = (Path(__file__).parents[2] / "docs" / "read.md").read_text("utf-8")
    line = told["pages"][0]["lines"][0]
    for key in (*told, *told["pages"][0], *line, *line["words"][0], "id"):
        assert f'"{key}"' in page, key


def test_markdown_has_the_heading_and_the_paragraphs(letter):
    assert PAGE_FORMATS["markdown"].whole(ReadDocument("a.png", [letter])) == (
        "# Annual Report\n\nHarbour dues rose by 4.5 %\\\nand the ferries ran on time.\n\n"
        "Signed: M. Lopez & Sons\n"
    )
    several = ReadDocument("a_b.png", [letter], 2, alone=False)
    told = PAGE_FORMATS["markdown"].document(several)
    assert told.startswith("# a\\_b.png\n\n## Annual Report\n")
