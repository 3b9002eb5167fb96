"""Answers that can only be spans of the page, with their places."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from alignvlm.errors import ConfigError
from alignvlm.inference.page_spans import ABSENT, PageSpans, page_spans
from alignvlm.inference.span_decoding import ExtractiveDecoding
from alignvlm.inference.token_bytes import TokenBytes
from alignvlm.inference.values import Likeness, date_likeness
from alignvlm.inference.word_edges import word_bounds, word_gaps
from alignvlm.reader.characters import Characters
from alignvlm.reader.page import PageTokens, Row


def a_row(text: str, top: float = 0.0, others: dict[int, tuple[str, float]] | None = None) -> Row:
    """Characters 10 px wide, all sure but for ``others``: what else stands there, how likely."""
    others = others or {}
    options = tuple(others[i][0] if i in others else "" for i in range(len(text)))
    ratio = torch.full((len(text), 1), -math.inf)
    for index, (_, share) in others.items():
        ratio[index] = math.log(share)
    left = np.arange(len(text), dtype=np.float32) * 10
    boxes = np.stack([left, left * 0 + top, left + 10, left * 0 + top + 10], 1)
    return Row(Characters(text, options, ratio), boxes, np.full(len(text), 0.99, np.float32))


def a_page(*rows: str | Row) -> PageTokens:
    """A page of rows as read; it counts a token a row, and has none."""
    made = [a_row(r, 20.0 * i) if isinstance(r, str) else r for i, r in enumerate(rows)]
    none, each = torch.zeros(0, 1), np.zeros(len(made), np.int64)
    return PageTokens(made, none.long(), none, np.zeros((0, 4), np.float32), each, each)


def spans(*rows: str | Row, scale: float = 1.0) -> PageSpans:
    return PageSpans([(a_page(*rows), scale)])


def said(pages: PageSpans, text: str) -> str | None:
    found = pages.find(text)
    return None if found is None else found.text


@pytest.mark.parametrize(
    ("word", "starts", "ends"),
    [
        ("Total", ["Total"], ["Total"]),
        ("Total:", ["Total:"], ["Total", "Total:"]),
        ("$31.48", ["$31.48", "31.48"], ["$31.48"]),
        ("RM31.48", ["RM31.48", "31.48"], ["RM31.48"]),
        ("-31.48", ["-31.48"], ["-31.48"]),
        ("-$31.48", ["-$31.48"], ["-$31.48"]),
        ("INV123", ["INV123"], ["INV123"]),
        ("10:30", ["10:30"], ["10:30"]),
        ("31.48-", ["31.48-"], ["31.48-"]),
        ("1,234.50,", ["1,234.50,"], ["1,234.50", "1,234.50,"]),
        ("(SEPANG)", ["(SEPANG)", "SEPANG)"], ["(SEPANG", "(SEPANG)"]),
        ("Date:12/03/2018", ["Date:12/03/2018", "12/03/2018"], ["Date", "Date:12/03/2018"]),
        ("(", ["("], ["("]),
        ("07/04/2018-18:11", ["07/04/2018-18:11"], ["07/04/2018", "07/04/2018-18:11"]),
        ("20180428/1912", ["20180428/1912"], ["20180428", "20180428/1912"]),
        ("20184428/1912", ["20184428/1912"], ["20184428/1912"]),
        (
            "A-9(6/12/18)",
            ["A-9(6/12/18)", "(6/12/18)", "6/12/18)"],
            ["A-9", "A-9(6/12/18", "A-9(6/12/18)"],
        ),
        ("", [], []),
    ],
)
def test_where_a_span_may_begin_and_end_in_a_word(word, starts, ends):
    begins, stops = word_bounds(word)
    assert [word[at:] for at in begins] == starts
    assert [word[:at] for at in stops] == ends


def test_a_span_runs_across_line_ends_and_knows_its_place():
    pages = spans("Novak Deli", "29 Lake St", scale=2.0)
    found = pages.find("Deli 29 Lake")
    assert found is not None
    assert [word.text for word in found.words] == ["Deli", "29", "Lake"]
    assert found.words[0].box == (30.0, 0.0, 50.0, 5.0)  # characters 6 to 9, half as large
    assert found.boxes == [(0, (30.0, 0.0, 50.0, 5.0)), (0, (0.0, 10.0, 35.0, 15.0))]
    assert found.log_probability == pytest.approx(10 * math.log(0.99), abs=1e-5)


def test_what_is_no_span_is_not_found_and_a_cut_word_is_lost():
    pages = spans("Total $31.48", "Thanks")
    assert said(pages, "$31.49") is None
    assert said(pages, "1.48") is None
    assert said(pages, "Total $31") == "Total"
    assert said(pages, "31.48 Thanks") == "31.48 Thanks"
    assert said(pages, "Thanks Total") == "Thanks"
    assert said(pages, ABSENT) == ""
    assert spans().find("x") is None


def test_a_span_does_not_leave_its_page():
    pages = PageSpans([(a_page("one"), 1.0), (a_page("two"), 1.0)])
    assert said(pages, "one two") == "one"
    found = pages.find("two")
    assert found is not None and found.words[0].page == 1


def test_second_choices_are_allowed_where_the_reading_is_unsure():
    unsure = a_row("3I.48", others={1: ("1", 0.5)})
    found = spans(unsure).find("31.48")
    assert found is not None and found.text == "31.48"
    assert found.log_probability == pytest.approx(5 * math.log(0.99) + math.log(0.5), abs=1e-5)
    assert said(spans(unsure), "3I.48") == "3I.48"
    assert said(spans(a_row("3I.48", others={1: ("1", 0.01)})), "31.48") is None


def test_of_equal_spans_the_surest_and_then_the_first_is_meant():
    found = spans("x 5", "5").find("5")
    assert found is not None and found.words[0].box[1] == 0.0
    found = spans(a_row("S", others={0: ("5", 0.5)}), a_row("5", 20.0)).find("5")
    assert found is not None and found.words[0].box[1] == 20.0


def test_small_letters_may_be_said_as_capitals_but_no_code_changes():
    pages = spans("Novak Deli 3rd Floor", "aB3x 1c McKay")
    found = pages.find("NOVAK DELI 3RD FLOOR")
    assert found is not None
    assert [word.text for word in found.words] == ["NOVAK", "DELI", "3RD", "FLOOR"]
    assert [word.reads for word in found.words] == ["Novak", "Deli", "3rd", "Floor"]
    assert found.log_probability == pytest.approx(17 * math.log(0.99), abs=1e-4)
    assert said(pages, "Novak DELI") == "Novak DELI"
    assert said(pages, "Novak DELi") == "Novak"
    assert said(pages, "AB3X") is None
    assert said(pages, "1C") is None
    assert said(pages, "MCKAY") == "MCKAY"
    assert said(spans("NOVAK"), "Novak") is None


def test_the_second_choice_of_a_character_may_be_a_capital_too():
    found = spans(a_row("Deii", others={2: ("l", 0.5)})).find("DELI")
    assert found is not None and found.words[0].reads == "Deli"


def test_what_is_printed_as_it_is_said_goes_first():
    found = spans("Total", "TOTAL").find("TOTAL")
    assert found is not None and found.words[0].box[1] == 20.0
    found = spans("SDN.BHD", "SDN. BHD").find("SDN. BHD")
    assert found is not None and found.words[0].box[1] == 20.0


def test_a_space_may_be_said_where_words_are_printed_without_one():
    pages = spans("13,JLN HealthAnd", "SS21/39,47400 SDN.BHD")
    found = pages.find("13, JLN Health And SS21/39, 47400 SDN. BHD")
    assert found is not None and found.text == "13, JLN Health And SS21/39, 47400 SDN. BHD"
    assert [word.reads for word in found.words][:4] == ["13,", "JLN", "Health", "And"]
    assert found.words[0].box == (0.0, 0.0, 30.0, 10.0)
    assert found.words[1].box == (30.0, 0.0, 60.0, 10.0)


@pytest.mark.parametrize(
    "word", ["1,234.50", "0,12345", "10:30", "12/03/2018", "-31.48", "5.00", "1.234", "3-4", "50%"]
)
def test_no_space_is_put_into_a_number(word):
    assert word_gaps(word) == []


def test_a_narrow_space_may_be_left_out_unless_it_parts_digits():
    assert said(spans("Total RM39 . 00"), "RM39.00") == "RM39.00"
    assert said(spans("Petal ing Jaya"), "Petaling Jaya") == "Petaling Jaya"
    assert said(spans("1 70. 00"), "170.00") == "1"
    assert said(spans("1 70. 00"), "70.00") == "70.00"
    assert said(spans("Total - 5.00"), "-5.00") == "-"
    assert said(spans("Total", "Sum"), "TotalSum") == "Total"
    found = spans("RM39 . 00").find("39.00")
    assert found is not None
    assert (found.words[0].reads, found.words[0].box) == ("39 . 00", (20.0, 0.0, 90.0, 10.0))


def test_a_wide_space_is_not_left_out():
    row = a_row("2 .50")
    row.boxes[2:, [0, 2]] += 20
    assert said(spans(row), "2.50") == "2"


TEXT = st.lists(
    st.text(st.sampled_from("ab1€é.,:$-("), min_size=1, max_size=5), min_size=1, max_size=6
)


def walked(pages: PageSpans, tokens: TokenBytes, seed: int) -> str:
    """What a random walk over allowed tokens spells, until it ends where a span may end."""
    chooser = np.random.default_rng(seed)
    live, text = pages.begin(), b""
    for _ in range(200):
        allowed = sorted(pages.allowed(live, tokens))
        if pages.ended(live) and (not allowed or chooser.random() < 0.3):
            return text.decode()
        assert allowed, "a walk cannot get stuck within a span"
        token = int(chooser.choice(allowed))
        live, text = pages.follow(live, tokens.of[token]), text + tokens.of[token]
        assert live
    raise AssertionError(f"no end in sight: {text!r}")


@settings(deadline=None, max_examples=60)
@given(words=TEXT, seed=st.integers(0, 2**31))
def test_whatever_is_chosen_among_the_allowed_is_a_span(tokenizer, words, seed):
    """A random walk over allowed tokens ends, and spells words of the page without a gap."""
    pages = spans(" ".join(words))
    chosen = walked(pages, TokenBytes(tokenizer, len(tokenizer)), seed)
    assert as_printed(chosen) in as_printed(" ".join(words)) or chosen == ABSENT
    found = pages.find(chosen)
    assert found is not None and found.text == ("" if chosen == ABSENT else chosen)
    assert as_printed(found.text) == as_printed(" ".join(word.reads for word in found.words))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.sampled_from(
            ["Tel 03-6057 1377", "28/03/2018 14:49", "Date:12-Mar-18", "27 MARCH, 2018", "RM 8.50",
             "NO 5, JALAN 7/1", "2017-1-05", "15. März 2018", "Wed 28 Mar 2018", "JUN 6.50",
             "5th of March 2018", "28/03/2018 at 10:30", "Tel 01 12 05 18 20"]
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_only_dates_are_chosen_where_there_are_some(tokenizer, rows, seed):
    """A random walk over allowed tokens ends at a date, or says that there is none."""
    every = spans(*rows)
    pages = every.only(date_likeness)
    if not any(part in row for row in rows for part in ("/2018", "h 2018", "H, 2018", "ar 2018",
                                                        "Mar-18", "2017")):  # fmt: skip
        assert pages is every
        return
    chosen = walked(pages, TokenBytes(tokenizer, len(tokenizer)), seed)
    assert chosen == ABSENT or date_likeness(chosen) >= Likeness.MAY_BE
    assert said(pages, chosen) == ("" if chosen == ABSENT else chosen)


def test_a_date_with_an_unsure_letter_is_one():
    row = a_row("10 0CT 2017", others={3: ("O", 0.4)})
    pages = spans(row, "Tel 03-6057 1377").only(date_likeness)
    assert said(pages, "10 OCT 2017") == "10 OCT 2017"
    assert said(pages, "03-6057") is None


@pytest.mark.parametrize(
    "row", ["Tel 01 12 05 18 20", "JUN 6.50", "2 COUNTER 2003", "v 1.2.19", "20181231", "6 1 36"]
)
def test_what_may_be_no_date_leaves_nothing_out(row):
    every = spans(row, "Thu 28.Mrz 18")
    assert every.only(date_likeness) is every


@pytest.mark.parametrize(
    "words",
    ["DATE28/03/2018", "28/03/2018hrs", "05.03.2018r.", "05:03:2018", "2018年3月5日", "28032018",
     "1er avril 2018", "5 de marzo de 2018", "15. März 2018", "27 March"],
)  # fmt: skip
def test_a_date_in_another_form_stays_beside_a_sure_one(words):
    pages = spans(words, "Impreso 07/03/2018 10:45").only(date_likeness)
    assert said(pages, words) == words
    assert said(pages, "07/03/2018") == "07/03/2018"
    assert said(pages, "Impreso 07/03/2018") is None  # it holds a whole one


def test_a_second_limit_keeps_the_first():
    def short(text: str) -> Likeness:
        return Likeness.IS if len(text) == 10 else Likeness.NO

    pages = spans("28/03/2018 14:49").only(date_likeness).only(short)
    assert said(pages, "28/03/2018 14:49") == "28/03/2018"


def as_printed(text: str) -> str:
    """What may not differ between a page and a span of it; spaces between digits may not either."""
    return re.sub(r"(?<!\d) | (?!\d)", "", text.lower())


def test_tokens_are_known_by_their_bytes(tokenizer):
    tokens = TokenBytes(tokenizer, len(tokenizer))
    for text in ("Total", " €", "é"):
        for token in tokenizer.encode(text, add_special_tokens=False):
            assert tokens.of[token].decode(errors="ignore") in text
        spelled = [tokens.of[t] for t in tokenizer.encode(text, add_special_tokens=False)]
        assert b"".join(spelled) == text.encode()
    assert tokenizer.eos_token_id not in tokens.of
    assert max(TokenBytes(tokenizer, 100).of) < 100


@pytest.mark.parametrize("keys", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_a_batch_of_answers_is_made_of_its_own_pages(make_model, tokenizer, keys):
    model: Any = make_model("align")
    pages = [spans("the total is 12.50"), spans("Nairobi")]
    tokens = TokenBytes(tokenizer, model.lm_head.out_features)
    prompt = tokenizer(["What is it?", "Where?"], return_tensors="pt", padding=True)
    decoding = ExtractiveDecoding(pages, tokens, [tokenizer.eos_token_id])
    output = model.generate(
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
        max_new_tokens=40,
        logits_processor=LogitsProcessorList([decoding]),
        **{"do_sample": False, **keys},
    )
    new = output[:, prompt["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(new, skip_special_tokens=True)
    for own, answer in zip(pages, answers, strict=True):
        assert answer
        assert said(own, answer) == ("" if answer == ABSENT else answer)


def test_an_encoder_that_does_not_read_is_refused(make_model, make_processor, make_image):
    from alignvlm.inference.ask import encode_pages

    model = make_model("align")
    image = make_image()
    encoded = encode_pages(model, make_processor(model.config), [image])
    with pytest.raises(ConfigError, match="reads the page"):
        page_spans(model, [image.size], encoded)
