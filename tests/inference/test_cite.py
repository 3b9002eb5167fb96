"""Answer words found again in what visual tokens say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.inference.test_span_decoding import a_page as read_as

from alignvlm.documents.page_images import PageImage
from alignvlm.errors import ConfigError
from alignvlm.inference.cite import ReadPage, cite, cite_span, cited_pages, read_pages, uncited
from alignvlm.inference.inspect import CellReading, PageReading, read_page
from alignvlm.inference.page_spans import PageSpans

BLANK = 0
CELL = 10.0


def a_page(*rows: str | dict[int, str | Sequence[tuple[str, float]]], page: int = 1, **over):
    """Rows of tokens: ``"Town|:| Nai|robi"`` side by side, or ``{column: token or options}``."""
    cols, cells = 12, []
    for number, row in enumerate(rows):
        given = row if isinstance(row, dict) else dict(enumerate(row.split("|")))
        for col in range(cols):
            options = given.get(col, " ")
            options = [(options, 0.9)] if isinstance(options, str) else options
            tokens = [(text, BLANK if text == " " else 1 + hash(text) % 99, p)
                      for text, p in options]  # fmt: skip
            box = (col * CELL, number * CELL, (col + 1) * CELL, (number + 1) * CELL)
            cells.append(CellReading(number, col, box, 0.5, tokens))
    reading = PageReading(len(rows), cols, cells, BLANK, 0.5, 1.5)
    keys = {"file": "a.pdf", "page": page, "width": 115, "height": 200, "scale": 2.0, **over}
    return ReadPage(reading=reading, **keys)


def words(answer: str, *pages: ReadPage) -> list[tuple[str, int, tuple]]:
    return [(c.word, c.page, c.box) for c in cite(answer, list(pages))]


FORM = ("Regist|ration", "Town|:| Nai|robi", "Company|:| Carter| Ltd|.", "No|.| 1|2|.|5|0")


def test_words_are_found_with_their_cells():
    (found,) = cite("Nairobi.", [a_page(*FORM)])
    assert found.box == (20.0, 10.0, 40.0, 20.0)
    assert found.points == (10.0, 5.0, 20.0, 10.0)
    assert (found.word, found.index, found.reads) == ("Nairobi.", 0, "Nairobi")
    assert (found.file, found.page, found.score) == ("a.pdf", 1, 1.0)
    assert [c.reads for c in cite("CARTER Ltd.", [a_page(*FORM)])] == ["Carter", "Ltd"]
    assert words("12.50", a_page(*FORM)) == [("12.50", 1, (20.0, 30.0, 70.0, 40.0))]


def test_pictures_have_no_points_and_boxes_end_with_the_page():
    (found,) = cite("edge", [a_page({11: " edge"}, scale=None)])
    assert found.points is None
    assert found.box == (110.0, 0.0, 115.0, 10.0)


def test_a_few_wrong_letters_are_forgiven_and_no_more():
    page = a_page("Total|:| Nai|rob|l")
    (found,) = cite("Nairobi", [page])
    assert 0.75 <= found.score < 1
    assert cite("Kampala", [page]) == []
    assert cite("", [page]) == cite("...", [page]) == cite("Nairobi", []) == []


def test_less_probable_tokens_may_spell_a_word():
    close = a_page({0: "Invoice", 3: [(" Nax", 0.45), (" Nai", 0.4)], 5: "robi"})
    assert cite("Nairobi", [close])[0].score == pytest.approx((0.4 / 0.45 + 1) / 2)
    one = a_page({0: [("Paris", 0.5), ("Rome", 0.45)]})
    assert cite("Rome", [one])[0].score == pytest.approx(0.9)
    assert cite("Rome", [a_page({0: [("Paris", 0.5), ("Rome", 0.1)]})]) == []


@pytest.mark.parametrize(
    ("word", "row"),
    [
        ("$31.48", "€|3|1|.|4|8"),
        ("$31.48", " 3|1|.|4|8"),
        ("31.48", "$|3|1|.|4|8"),
        ("31.49", " 3|1|.|4|8"),
        ("31.48", "1|3|1|.|4|8"),
        ("131.48", "3|1|.|4|8"),
        ("31.48", " -|3|1|.|4|8"),
        ("-31.48", " 3|1|.|4|8"),
        ("31.48", "3|1|.|4|8|-"),
        ("31.48", "3|1|.|4|8|0"),
        ("131.48", "1|,|1|3|1|.|4|8"),
        ("50", "5|0|%"),
        ("2018", "12|-|2|0|1|8"),
        ("1234567", "123|4|5|6|8"),
    ],
)
def test_what_has_a_digit_or_a_sign_is_cited_by_itself_alone(word, row):
    page = a_page(row)
    assert cite(word, [page]) == []
    assert uncited(word, []) == [word]


@pytest.mark.parametrize(
    ("word", "row"),
    [
        ("$31.48", "Total|:| $|3|1|.|4|8"),
        ("31.48", "Total|:|3|1|.|4|8| RM"),
        ("31.48.", "(|3|1|.|4|8|)"),
        ("-31.48", "\u2212|3|1|.|4|8|,"),
        ("12-feb-2009", "12|-|Feb|-|2009"),
        ("INV123", "inv|123"),
    ],
)
def test_case_and_punctuation_around_a_number_may_differ(word, row):
    (found,) = cite(word, [a_page(row)])
    assert found.score == 1.0
    assert uncited(word, [found]) == []


def test_less_probable_tokens_do_not_spell_a_number():
    assert cite("14", [a_page({0: "1", 1: [("7", 0.5), ("4", 0.45)]})]) == []
    assert uncited("Total 14 or so", []) == ["14"]


def test_blank_is_never_text():
    assert cite("Rome", [a_page({0: [(" ", 0.6), ("Rome", 0.4)]})]) == []


def test_the_page_is_named():
    pages = [a_page("Total|:| Lagos"), a_page(*FORM, page=2), a_page("Town|:| Accra", page=7)]
    assert [c.page for c in cite("Nairobi", pages)] == [2]
    assert cited_pages(cite("Accra", pages)) == [("a.pdf", 7)]
    both = cite("Carter Ltd Accra", pages)
    assert cited_pages(both) == [("a.pdf", 2), ("a.pdf", 7)]
    assert cited_pages([]) == []


def test_neighbouring_words_are_taken_together():
    """``Ltd`` stands on each line; the one behind ``Carter`` is meant."""
    page = a_page("Acme| Ltd", "Carter| Ltd", "Zeta| Ltd")
    assert [c.box[1] for c in cite("Carter Ltd", [page])] == [10.0, 10.0]
    other = a_page("Carter| Ltd", page=2)
    pages = [a_page("Acme| Ltd| Carter"), other]
    assert [c.page for c in cite("Carter Ltd", pages)] == [2, 2]


def test_short_words_must_be_whole_words():
    page = a_page("mer|ch|an|t", "Total| 1|4|5", "page| 4")
    assert cite("an", [page]) == []
    assert words("4", page) == [("4", 1, (10.0, 20.0, 20.0, 30.0))]
    assert words("145", page) == [("145", 1, (10.0, 10.0, 40.0, 20.0))]


def test_table_columns_are_words_without_a_space():
    page = a_page({0: "Figs", 7: "1", 8: "4", 11: "7"})
    assert words("14", page) == [("14", 1, (70.0, 0.0, 90.0, 10.0))]
    apart = a_page({0: "1", 5: "4"})
    assert cite("14", [apart]) == []
    assert len(cite("4", [apart])) == 1


def test_little_words_are_cited_only_next_to_others():
    page = a_page("The| end", "sum| of| money")
    assert [c.word for c in cite("The money", [page])] == ["money"]
    assert [c.word for c in cite("sum of money", [page])] == ["sum", "of", "money"]
    assert [c.word for c in cite("the", [page])] == ["the"]  # nothing else was said


def test_each_word_of_a_long_answer_is_found_on_a_full_page():
    rows = ["|".join(f" w{r}x{c}" for c in range(12)) for r in range(120)]
    found = cite(" ".join(f"w{i}x{i % 12}" for i in range(40)), [a_page(*rows)])
    assert [c.reads for c in found] == [f"w{i}x{i % 12}" for i in range(40)]


def test_what_a_real_model_reads_is_found_where_it_was_read(make_model, make_processor, make_image):
    """From pixels: every word of a page's own reading is cited at the cells that said it."""
    model = make_model("align")
    processor = make_processor(model.config)
    image = make_image(112, 56, 4)
    (page,) = read_pages(model, processor, [PageImage(image, "x.png", 1)])
    assert page.reading == read_page(model, processor, image, 3)
    assert (page.width, page.height, page.scale) == (112, 56, None)
    said = [cell for cell in page.reading.cells if len(cell.tokens[0][0].strip()) >= 4]
    assert said, "the tiny model should say some words"
    for cell in said:
        word = cell.tokens[0][0].strip()
        found = cite(word, [page])
        assert [c.word for c in found] == [word]
        assert found[0].score == 1.0
        assert found[0].reads.casefold() == word.casefold()


def test_other_connectors_cannot_cite(make_model, make_processor, make_image):
    model = make_model("mlp")
    with pytest.raises(ConfigError, match="align"):
        read_pages(model, make_processor(model.config), [PageImage(make_image(), "x.png", 1)])


def test_a_span_is_cited_where_it_was_read(make_image):
    pages = [PageImage(make_image(), "a.pdf", 3, 2.0), PageImage(make_image(), "b.png", 1)]
    spans = PageSpans([(read_as("x"), 1.0), (read_as("Total 31.48"), 1.0)])
    span = spans.find("31.48")
    assert span is not None
    (found,) = cite_span(span, pages)
    assert (found.file, found.page, found.word, found.points) == ("b.png", 1, "31.48", None)
    assert found.box == (60.0, 0.0, 110.0, 10.0)
    assert found.score == pytest.approx(0.99**5, abs=1e-5)
    span = spans.find("x")
    assert span is not None
    (found,) = cite_span(span, pages)
    assert (found.file, found.page, found.points) == ("a.pdf", 3, (0.0, 0.0, 5.0, 5.0))
    span = spans.find("TOTAL")
    assert span is not None
    (found,) = cite_span(span, pages)
    assert (found.word, found.reads) == ("TOTAL", "Total")
