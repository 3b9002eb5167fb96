"""Rendered pages: the words, boxes and facts must be what the pixels show."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from alignvlm.data.synthetic.corpus import Table, builtin_tables
from alignvlm.data.synthetic.degrade import degrade
from alignvlm.data.synthetic.fonts import default_fonts, load_font
from alignvlm.data.synthetic.render import (
    Canvas,
    Layout,
    RenderedPage,
    RenderSpec,
    render_page,
    render_table,
)
from alignvlm.errors import ConfigError, DataError

LAYOUTS = get_args(Layout)
SHAPES: list[dict[str, Any]] = [
    {},
    {"width": 500, "height": 640, "font_px": (14, 20), "random_text": 0.5},
    {"width": 160, "height": 90, "font_px": (20, 24), "margin": 2, "random_text": 0.2},
]


def spec(layout: str, **kwargs: Any) -> RenderSpec:
    return RenderSpec.model_validate({"layout": layout, **kwargs})


def ink(page: RenderedPage) -> np.ndarray:
    """Boolean [height, width]: pixels clearly darker than the paper."""
    grey = np.asarray(page.image.convert("L")).astype(int)
    return grey < grey.max() - 60


def joined(page: RenderedPage) -> str:
    return " ".join(word.text for word in page.words)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_are_consistent(layout: str, shape: dict[str, Any]) -> None:
    for seed in range(15):
        page = render_page(spec(layout, **shape), seed)
        width, height = page.image.size
        dark = ink(page)
        assert page.image.mode == "RGB"
        assert page.layout == layout
        assert page.words
        assert page.facts
        assert [word.line for word in page.words] == sorted(word.line for word in page.words)
        assert {word.line for word in page.words} == set(range(page.words[-1].line + 1))
        for word in page.words:
            x0, y0, x1, y1 = word.box
            assert word.text
            assert not any(char.isspace() for char in word.text)
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            assert dark[int(y0) : int(y1), int(x0) : int(x1) + 1].any(), word
            assert len(word.char_x) == len(word.text)
            assert word.char_x[0] == x0
            assert word.char_x[-1] < x1
            assert list(word.char_x) == sorted(word.char_x)
        for fact in page.facts:
            assert fact.answer
            assert f" {fact.answer} " in f" {joined(page)} ", fact


@pytest.mark.parametrize("layout", LAYOUTS)
def test_words_do_not_overlap(layout: str) -> None:
    for seed in range(20):
        words = render_page(spec(layout), seed).words
        for before, after in itertools.pairwise(words):
            if before.line == after.line:
                assert before.box[2] <= after.box[0]
            else:
                assert before.box[3] <= after.box[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_seed_same_page(layout: str) -> None:
    wanted = spec(layout, degrade=0.5, invert_probability=0.3, random_text=0.3)
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    pages = [render_page(wanted, seed) for seed in (3, 4, 3)]
    assert np.array_equal(pages[0].image, pages[2].image)
    assert pages[0].words == pages[2].words
    assert pages[0].facts == pages[2].facts
    assert pages[0].words != pages[1].words
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


@pytest.mark.parametrize("font", default_fonts())
def test_all_ink_lies_in_boxes(font: str) -> None:
    page = render_page(spec("text", fonts=(font,), background=(255, 255), ink=(0, 0)), 1)
    dark = ink(page)
    for word in page.words:
        x0, y0, x1, y1 = word.box
        # slanted letters lean over their advance by a few pixels
        dark[int(y0) : int(y1), max(0, int(x0) - 6) : int(x1) + 7] = False
    assert not dark.any()


def test_char_x_is_where_characters_are() -> None:
    font = next(f for f in default_fonts() if f.endswith(("DejaVuSans.ttf", "pillow:default")))
    canvas = Canvas(200, 60, font=font, px=24, margin=8, line_spacing=1.25)
    canvas.put(10, 10, "lll")
    columns = ink(canvas.page("x", [])).any(axis=0)
    starts = np.flatnonzero(columns[1:] & ~columns[:-1]) + 1
    assert np.abs(starts - np.array(canvas.words[0].char_x)).max() <= 3


def test_inverted_page_is_light_on_dark() -> None:
    page = render_page(spec("text", invert_probability=1.0), 0)
    assert np.median(np.asarray(page.image)) < 100


def test_receipt_total_is_the_sum() -> None:
    checked = 0
    for seed in range(20):
        page = render_page(spec("receipt", height=500, random_text=0.2), seed)
        facts = {fact.question: fact.answer for fact in page.facts}
        prices = [answer for q, answer in facts.items() if q.startswith("What is the price of")]
        total = next(answer for question, answer in facts.items() if "total" in question)
        values = [
            float(price.strip("$\u20ac\u00a3").replace(",", "")) for price in (*prices, total)
        ]
        assert sum(values[:-1]) == pytest.approx(values[-1])
        checked += len(prices)
    assert checked > 40


def test_pages_from_files(tmp_path: Path) -> None:
    text, tables = tmp_path / "t.txt", tmp_path / "tables" / "deep"
    text.write_text("Zebras graze on the wide plains of the north every summer. " * 3)
    tables.mkdir(parents=True)
    (tables / "a.csv").write_text("Key#Value\nzebra#\u00e9t\u00e9\nlion#\u4e2d 5\n", "utf-8")
    assert "graze" in joined(render_page(spec("text", text_file=str(text)), 0))
    wanted = spec("table", tables_dir=str(tmp_path), table_delimiter="#", fonts=("pillow:default",))
    page = render_page(wanted, 0)
    assert "zebra" in joined(page)
    assert "\u4e2d" not in joined(page)  # no glyph in the font: not drawn, so not claimed
    with pytest.raises(DataError, match="nowhere"):
        render_page(spec("table", tables_dir=str(tmp_path / "nowhere")), 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (20, 200), (392, 20), (30, 30)])
def test_too_small_a_page_is_refused(layout: str, size: tuple[int, int]) -> None:
    tiny = spec(layout, width=size[0], height=size[1])
    with pytest.raises(ConfigError, match=rf"{size[0]} x {size[1]} px page .* no room"):
        render_page(tiny, 0)


@pytest.mark.parametrize(
    "wrong", [{"font_px": (30, 20)}, {"ink": (0, 300)}, {"degrade": 2}, {"colour": 1}, {"width": 0}]
)
def test_wrong_spec_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec("text", **wrong)


def test_fonts_by_folder_and_unusable_ones(tmp_path: Path) -> None:
    bundled = Path(default_fonts()[0])
    if bundled.is_file():
        (tmp_path / "copy.ttf").write_bytes(bundled.read_bytes())
        assert render_page(spec("text", fonts=(str(tmp_path),)), 0).words
    (tmp_path / "broken.bin").write_bytes(b"no font")
    with pytest.raises(ConfigError, match="broken"):
        render_page(spec("text", fonts=(str(tmp_path / "broken.bin"),)), 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty"):
        render_page(spec("text", fonts=(str(tmp_path / "empty"),)), 0)


def test_degrade_keeps_size_and_changes_pixels() -> None:
    page = render_page(spec("text"), 0)
    for seed in range(20):
        image = degrade(page.image, np.random.default_rng(seed))
        again = degrade(page.image, np.random.default_rng(seed))
        assert image.size == page.image.size
        assert image.mode == "RGB"
        assert np.array_equal(image, again)
        assert not np.array_equal(image, page.image)


def test_missing_augraphy_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "augraphy", None)
    with pytest.raises(ConfigError, match="pip install augraphy"):
        render_page(spec("text", degrade=1.0, degrader="augraphy"), 0)


def test_render_table_draws_everything() -> None:
    table = Table(("Name", "Long one"), (("A", "many words " * 8), ("B", ""), ("C", "x" * 90)))
    page = render_table(table)
    cells = [cell for row in (table.header, *table.rows) for cell in row]
    assert sorted("".join(cells).replace(" ", "")) == sorted("".join(w.text for w in page.words))
    assert all(w.box[0] >= 0 and w.box[2] <= page.image.width for w in page.words)
    assert all(w.box[3] <= page.image.height for w in page.words)
    assert render_table(table, max_rows=1).image.height < page.image.height


def test_render_table_in_a_given_size() -> None:
    table = next(t for t in builtin_tables() if t.title == "HTTP status codes")
    page = render_table(table, width=300, height=400, font_px=16)
    assert page.image.size == (300, 400)
    assert all(word.box[2] <= 300 and word.box[3] <= 400 for word in page.words)
    assert page.words[0].text == "Code"
    words = {word.text for word in page.words}
    assert {"Description", "Continue"} <= words  # narrowed, but no word is broken
    with pytest.raises(ConfigError, match="does not fit"):
        render_table(table, width=40)


def test_render_table_leaves_out_what_no_font_size_can_hold() -> None:
    table = Table(tuple("abcdefgh"), (tuple("w" * 60 for _ in range(8)),))
    page = render_table(table, width=250)
    assert page.words[0].text == "a"
    assert "h" not in {word.text for word in page.words}


def test_fonts_are_opened_once() -> None:
    assert load_font("pillow:default", 20) is load_font("pillow:default", 20)
