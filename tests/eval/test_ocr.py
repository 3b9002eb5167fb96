"""The OCR rival: reading order, what reaches the language model, what is cut off."""

from __future__ import annotations

import builtins

import pytest
from PIL import Image
from tests.eval.little_task import LittleTask

from alignvlm.data.synthetic.render import RenderSpec, render_page
from alignvlm.errors import ConfigError
from alignvlm.eval.ocr import Box, OcrAnswerer, RapidOcrReader, ocr_text
from alignvlm.inference.answerers import LanguageModel, Query, TextOnlyAnswerer


@pytest.fixture
def language(make_model, make_processor):
    model = make_model("align")
    return LanguageModel.of(model, make_processor(model.config))


def page_reader(boxes=None):
    """Reads the page's size; counts what it is asked."""

    def read(page):
        read.asked += 1
        return boxes or [Box(f"{page.width} by {page.height}", 0, 0, 50, 10)]

    read.asked = 0
    return read


def query(pages, prompt="What is it?"):
    return Query("q", pages, prompt, 4)


def test_lines_from_top_to_bottom_and_left_to_right():
    boxes = [
        Box("9.00", 200, 42, 230, 52),
        Box("world", 62, 1, 110, 11),
        Box("Total:", 0, 40, 60, 50),
        Box("Hello", 0, 0, 50, 10),
        Box("bottom", 0, 80, 60, 90),
    ]
    assert ocr_text(boxes) == "Hello world\nTotal:  9.00\nbottom"
    assert ocr_text(list(reversed(boxes))) == ocr_text(boxes)
    assert ocr_text([]) == ""


def test_a_slightly_crooked_line_stays_one_line():
    words = [Box(f"w{i}", 24 * i, 2 * i, 24 * i + 20, 2 * i + 10) for i in range(3)]
    assert ocr_text(words) == "w0 w1 w2"
    tall = [Box("big", 0, 0, 60, 40), Box("small", 70, 16, 100, 24)]
    assert ocr_text(tall) == "big small"


def test_the_text_stands_where_the_page_would(language):
    pages = [Image.new("RGB", (40, 20)), Image.new("RGB", (30, 60))]
    replies = OcrAnswerer(language, page_reader()).answer([query(pages), query(pages[:1])])
    told = [
        Query("a", [], "40 by 20\n\n30 by 60\nWhat is it?", 4),
        Query("b", [], "40 by 20\nWhat is it?", 4),
    ]
    assert [r.text for r in replies] == [r.text for r in TextOnlyAnswerer(language).answer(told)]
    count = len(language.tokenizer("40 by 20\n\n30 by 60")["input_ids"])
    assert replies[0].details == {"ocr_tokens": count, "ocr_tokens_cut": 0}


def test_text_is_cut_by_tokens_and_said_so(language, monkeypatch):
    text = "The total amount on this invoice is 12"
    rival = OcrAnswerer(language, page_reader([Box(text, 0, 0, 9, 9)]), max_text_tokens=5)
    asked, whole = [], language.model.generate

    def watch(**keys):
        asked.append(keys["input_ids"])
        return whole(**keys)

    monkeypatch.setattr(language.model, "generate", watch)
    reply = rival.answer([query([Image.new("RGB", (9, 9))], "Hm?")])[0]
    size = len(language.tokenizer(text)["input_ids"])
    assert reply.details == {"ocr_tokens": size, "ocr_tokens_cut": size - 5}
    seen = language.tokenizer.decode(asked[0][0])
    kept = language.tokenizer.decode(language.tokenizer(text)["input_ids"][:5])
    assert f"user\n{kept}\nHm?" in seen
    assert rival.settings()["max_text_tokens"] == 5
    assert OcrAnswerer(language, page_reader()).max_text_tokens == 1024  # half of its context
    with pytest.raises(ConfigError, match="at least 1"):
        OcrAnswerer(language, page_reader(), max_text_tokens=0)


def test_a_page_is_read_once(language):
    reader = page_reader()
    rival = OcrAnswerer(language, reader)
    task = LittleTask()
    rival.answer([query(task.pages(0)), query(task.pages(0)), query(task.pages(2))])
    rival.answer([query(task.pages(0))])
    assert reader.asked == 2


def test_without_rapidocr(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **keys):
        if name == "rapidocr":
            raise ImportError(name)
        return real(name, *args, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'alignvlm\[ocr\]'"):
        RapidOcrReader()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of libraries below it
def test_rapidocr_reads_a_rendered_page(language):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    page = render_page(RenderSpec(layout="form", font_px=(28, 28), fonts=("DejaVuSans",)), 7)
    read = ocr_text(RapidOcrReader()(page.image))
    words = [word.text for word in page.words]
    found = sum(word in read for word in words)
    assert found / len(words) > 0.8, read
    assert ocr_text(RapidOcrReader()(Image.new("RGB", (200, 100), "white"))) == ""
    said = OcrAnswerer(language).settings()
    assert said["ocr"].startswith("rapidocr ")
