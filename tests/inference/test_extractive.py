"""Answers that can only be spans of the page, with their places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from alignvlm.errors import ConfigError
from alignvlm.inference.extractive import (
    ABSENT,
    ExtractiveDecoding,
    PageSpans,
    TokenBytes,
    page_spans,
    word_bounds,
)
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


TEXT = st.lists(
    st.text(st.sampled_from("ab1€é.,:$-("), min_size=1, max_size=5), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(words=TEXT, seed=st.integers(0, 2**31))
def test_whatever_is_chosen_among_the_allowed_is_a_span(tokenizer, words, seed):
    """A random walk over allowed tokens ends, and spells words of the page without a gap."""
    tokens = TokenBytes(tokenizer, len(tokenizer))
    pages = spans(" ".join(words))
    chooser = np.random.default_rng(seed)
    live, text = pages.begin(), b""
    for _ in range(200):
        allowed = sorted(pages.allowed(live, tokens))
        if pages.ended(live) and (not allowed or chooser.random() < 0.2):
            break
        assert allowed, "a walk cannot get stuck within a word"
        token = int(chooser.choice(allowed))
        live, text = pages.follow(live, tokens.of[token]), text + tokens.of[token]
        assert live
    chosen = text.decode()
    assert chosen in " ".join(words) or chosen == ABSENT
    found = pages.find(chosen)
    assert found is not None and found.text == ("" if chosen == ABSENT else chosen)


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
