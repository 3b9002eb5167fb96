"""Ink that no word explains is neither taught nor scored as blank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.documents.test_documents import make_pdf, text_at

from alignvlm.data import encode
from alignvlm.data.harvest.from_pdf import from_pdf
from alignvlm.data.harvest.unread import Box, boxes_of, run_lengths, unread_ink
from alignvlm.data.records import validate_record
from alignvlm.data.sources import JsonlSource
from alignvlm.documents.words import Word
from alignvlm.errors import DataError
from alignvlm.model.losses import IGNORE

OUTLINED = "120 90 m 140 120 l 160 90 l 150 90 l 140 106 l 130 90 l f 170 90 m 200 120 l 190 90 l f"
"""Two shapes like letters, drawn as paths."""


def paper(width: int = 300, height: int = 200, colour: str = "white") -> tuple[Any, Any]:
    image = Image.new("RGB", (width, height), colour)
    return image, ImageDraw.Draw(image)


def covered(boxes: list[Box], x: int, y: int) -> bool:
    return any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)


def word(x0: float, y0: float, x1: float, y1: float) -> Word:
    return Word("word", (x0, y0, x1, y1), 0, (x0,) * 4)


def scrawl(draw: Any, x: int, y: int, fill: Any = "black") -> None:
    for step in range(0, 60, 12):
        draw.line([(x + step, y), (x + step + 6, y + 16), (x + step + 12, y)], fill=fill, width=2)


def test_ink_without_a_word_is_found_and_ink_under_one_is_not() -> None:
    image, draw = paper()
    scrawl(draw, 20, 20)
    scrawl(draw, 20, 120)
    found = unread_ink(image, [word(20, 20, 92, 37)])
    assert all(y0 >= 116 and y1 <= 144 and x0 >= 16 and x1 <= 100 for x0, y0, x1, y1 in found)
    assert covered(found, 25, 125)
    assert unread_ink(image, [word(20, 20, 92, 37), word(20, 120, 92, 137)]) == []


@pytest.mark.parametrize(
    ("ground", "ink"),
    [("black", "white"), ("#204060", "#e0c060"), ("#808080", "#d04040"), ("white", "#b0b0ff")],
)
def test_ink_is_contrast_of_any_colour(ground: str, ink: str) -> None:
    image, draw = paper(colour=ground)
    scrawl(draw, 20, 20, ink)
    assert covered(unread_ink(image, []), 30, 25)


def test_rules_frames_and_filled_areas_are_blank() -> None:
    image, draw = paper()
    draw.line([(10, 10), (290, 10)], fill="black", width=2)
    draw.rectangle([20, 30, 150, 60], outline="black", width=2)  # its sides are short
    draw.rectangle([20, 80, 280, 110], fill="#202060")
    for x in (20, 100, 180, 260):  # a table of two rows
        draw.line([(x, 130), (x, 180)], fill="black")
    for y in (130, 155, 180):
        draw.line([(20, y), (260, y)], fill="black")
    assert unread_ink(image, []) == []
    scrawl(draw, 30, 87, "white")  # within the filled area
    assert covered(unread_ink(image, []), 40, 92)
    assert not covered(unread_ink(image, []), 200, 95)


def test_letters_of_straight_strokes_are_no_rules() -> None:
    image, draw = paper()
    for x in (20, 50, 80):  # HHH, 34 px tall
        draw.line([(x, 20), (x, 54)], fill="black", width=4)
        draw.line([(x + 18, 20), (x + 18, 54)], fill="black", width=4)
        draw.line([(x, 37), (x + 18, 37)], fill="black", width=4)
    found = unread_ink(image, [])
    assert all(covered(found, x, y) for x in (21, 38, 51, 98) for y in (22, 40, 52))


def test_a_photo_is_few_boxes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    noise[:, 300:] = 255
    found = unread_ink(Image.fromarray(noise), [])
    assert 1 <= len(found) <= 1000
    assert covered(found, 150, 200)
    assert not covered(found, 450, 200)


def test_run_lengths_and_boxes() -> None:
    mask = np.array([[1, 1, 0, 1], [0, 1, 1, 1]], dtype=bool)
    assert run_lengths(mask).tolist() == [[2, 2, 0, 1], [0, 3, 3, 3]]
    ends = np.array([[1, 1, 0, 0], [0, 1, 0, 0]], dtype=bool)
    assert run_lengths(mask, ends).tolist() == [[2, 2, 0, 0], [0, 0, 0, 0]]
    squares = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    assert sorted(boxes_of(squares, 1)) == [(0, 0, 2, 2), (2, 2, 3, 3)]
    assert sorted(boxes_of(squares, 2)) == [(0, 0, 2, 2), (2, 2, 4, 4)]


def test_outlined_text_of_a_pdf_is_ignored_and_the_rest_stays_blank(
    tmp_path: Path, make_config: Any, make_processor: Any
) -> None:
    rule = "20 40 260 1 re f"
    path = make_pdf(tmp_path / "a.pdf", [f"{text_at((20, 90, 'Total'))} {OUTLINED} {rule}"])
    record = JsonlSource(from_pdf(path, tmp_path / "out", dpi=72).records)[0]
    assert record.unread is not None
    assert covered(record.unread[0], 145, 95)
    config = make_config()
    processor = make_processor(config)
    grids = encode.encode_images(record, processor)["image_grids"]
    plain = record.model_copy(update={"unread": None})
    with_ink, without = (
        encode.page_vocab_targets(r, grids, config, processor.tokenizer) for r in (record, plain)
    )
    changed = with_ink != without
    assert changed.any()
    assert (with_ink[changed] == IGNORE).all()
    assert (without[changed] == config.blank_token_id).all()
    assert (with_ink == config.blank_token_id).sum() > 3 * changed.sum()
    assert ((with_ink >= 0) & (with_ink != config.blank_token_id)).any()


def test_sideways_words_are_left_out_and_not_blank(tmp_path: Path) -> None:
    turned = "BT /F1 24 Tf 0 1 -1 0 200 20 Tm (sideways) Tj ET"
    path = make_pdf(tmp_path / "a.pdf", [f"{text_at((20, 90, 'Total'))} {turned}"])
    record = JsonlSource(from_pdf(path, tmp_path / "out", dpi=72).records)[0]
    assert record.answer == "Total"
    assert record.unread is not None
    assert covered(record.unread[0], 192, 150)


@pytest.mark.parametrize("unread", [[], [[[1, 2, 3]]], [[[5, 0, 1, 9]]], "x", [["x"]]])
def test_records_check_their_boxes(unread: Any) -> None:
    image = Image.new("RGB", (9, 9))
    row = {"images": [image], "messages": [{"role": "user", "content": "?"}], "unread": unread}
    with pytest.raises(DataError, match="'unread'"):
        validate_record(row, where="a.jsonl:1")
    row["unread"] = [[[1, 2, 3, 4]]]
    found = validate_record(row, where="a.jsonl:1")
    assert found.unread == [[(1, 2, 3, 4)]]
