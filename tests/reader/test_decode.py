"""Logits made by hand to characters, their doubt, their places, and spaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from alignvlm.reader.crops import STEP
from alignvlm.reader.decode import OPTIONS, SPACE_PX, SPACE_RATIO, Decoded, decode

ALPHABET = "abcdef "
SPACE = ALPHABET.index(" ") + 1
SURE = 0.94


def logits(*columns: str | dict[str, float]) -> Tensor:
    """``[columns, alphabet]``: of a column's character (``"_"`` is CTC's blank), or of several with
    their probabilities."""
    rows = []
    for column in columns:
        shares = {column: SURE} if isinstance(column, str) else column
        rest = (1 - sum(shares.values())) / (len(ALPHABET) + 1 - len(shares))
        rows.append([shares.get(char, rest) for char in "_" + ALPHABET])
    return torch.tensor(rows, dtype=torch.float64).log()


def blots(width: int, *spans: tuple[float, float]) -> Tensor:
    """A white cut-out with ink from x to x."""
    crop = torch.ones(3, 48, width)
    for left, right in spans:
        crop[:, 12:36, int(left) : int(right)] = -1
    return crop


def under(columns: int, at: list[int], half: int = 3) -> Tensor:
    """Ink under the middles of some columns."""
    middles = [(place + 0.5) * STEP for place in at]
    return blots(columns * STEP, *((m - half, m + half) for m in middles))


def read(*columns: str | dict[str, float], crop: Tensor | None = None) -> Decoded:
    crop = torch.ones(3, 48, len(columns) * STEP) if crop is None else crop
    width = np.array([len(columns) * STEP])
    return decode(logits(*columns)[None], crop[None], width, SPACE)[0]


def text(decoded: Decoded) -> str:
    return "".join(ALPHABET[kind - 1] for kind in decoded.kind)


# --- characters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "meant"),
    [
        ("abc", "abc"),
        ("_a__b_", "ab"),
        ("aaab", "ab"),
        ("aa_a", "aa"),
        ("a_a_a", "aaa"),
        ("____", ""),
        ("a", "a"),
    ],
)
def test_runs_are_one_character_and_blanks_divide(columns, meant):
    assert text(read(*columns)) == meant


def test_nothing_read():
    for columns in ("____", "    ", "_ _ "):
        decoded = read(*columns)
        assert len(decoded.kind) == len(decoded.left) == len(decoded.right) == 0
        assert decoded.options.shape == decoded.log_ratio.shape == (0, OPTIONS)


def test_the_surest_column_of_a_run_speaks():
    soft = {"a": 0.5, "b": 0.3}
    sure = {"a": 0.8, "c": 0.15}
    decoded = read("_", soft, sure, soft, "_")
    assert text(decoded) == "a"
    assert decoded.probability[0] == pytest.approx(0.8)
    assert ALPHABET[decoded.options[0, 0] - 1] == "c"
    assert decoded.log_ratio[0, 0].item() == pytest.approx(np.log(0.15 / 0.8))


def test_options_are_the_likeliest_others_and_no_blank():
    decoded = read({"_": 0.3, "a": 0.36, "e": 0.05, "c": 0.2, "f": 0.06, "b": 0.02})
    assert "".join(ALPHABET[k - 1] for k in decoded.options[0]) == "cfeb"
    wanted = np.log(np.array([0.2, 0.06, 0.05, 0.02]) / 0.36)
    np.testing.assert_allclose(decoded.log_ratio[0], wanted)
    assert (decoded.log_ratio <= 0).all()


def test_a_likely_blank_is_no_character():
    assert text(read({"_": 0.5, "a": 0.45}, "b")) == "b"


def test_gradients_flow_to_the_logits():
    values = logits("_", {"a": 0.7, "b": 0.2}, "_").requires_grad_()
    crop = torch.ones(1, 3, 48, 24)
    (decoded,) = decode(values[None], crop, np.array([24]), SPACE)
    (gradient,) = torch.autograd.grad(decoded.log_ratio[0, 0], values)
    wanted = torch.zeros_like(values)
    wanted[1, 1], wanted[1, 2] = -1, 1
    torch.testing.assert_close(gradient, wanted)


def test_impossible_characters_do_not_make_infinities():
    values = torch.full((1, 1, len(ALPHABET) + 1), -torch.inf)
    values[0, 0, 1] = 0
    (decoded,) = decode(values.requires_grad_(), torch.ones(1, 3, 48, 8), np.array([8]), SPACE)
    assert decoded.log_ratio.isfinite().all()
    assert torch.autograd.grad(decoded.log_ratio.sum(), values)[0].isfinite().all()


def test_lines_of_a_batch_end_where_they_end():
    both = torch.stack([logits(*"ab_c"), logits(*"d_ef")])
    lines = decode(both, torch.ones(2, 3, 48, 32), np.array([32, 24]), SPACE)
    assert [text(line) for line in lines] == ["abc", "de"]
    assert lines[1].right.max() <= 24
    for line, columns in zip(lines, ("ab_c", "d_e"), strict=True):
        alone = read(*columns)
        np.testing.assert_array_equal(line.left, alone.left)
        np.testing.assert_array_equal(line.options, alone.options)
        torch.testing.assert_close(line.log_ratio, alone.log_ratio)


def test_no_lines():
    assert decode(torch.zeros(0, 5, 8), torch.zeros(0, 3, 48, 40), np.zeros(0, int), SPACE) == []


# --- places --------------------------------------------------------------------------------------


def test_edges_are_those_of_the_ink():
    crop = blots(72, (9, 15), (33, 40), (57, 66))
    decoded = read(*"_a__b__c_", crop=crop)
    assert text(decoded) == "abc"
    np.testing.assert_array_equal(decoded.left, [9, 33, 57])
    np.testing.assert_array_equal(decoded.right, [15, 40, 66])


def test_touching_letters_meet_in_the_middle():
    decoded = read(*"_a_b_c_", crop=blots(56, (4, 52)))
    np.testing.assert_array_equal(decoded.left, [4, 20, 36])
    np.testing.assert_array_equal(decoded.right, [20, 36, 52])


def test_a_wide_letter_after_a_space_keeps_its_first_stroke():
    crop = blots(88, (4, 12), (26, 60), (66, 80))
    decoded = read(*"_a_ __b__c_", crop=crop)  # b is read at 52, the space at 28
    assert text(decoded) == "a bc"
    np.testing.assert_array_equal(decoded.left, [4, 12, 28, 66])
    np.testing.assert_array_equal(decoded.right, [12, 28, 60, 80])
    decoded = read(*"____b__c_", crop=blots(72, (2, 44), (50, 64)))
    np.testing.assert_array_equal(decoded.left, [2, 50])


def test_edges_without_ink_stay_in_the_line():
    decoded = read(*"a_b")
    assert (decoded.left >= 0).all()
    assert (decoded.right <= 24).all()
    assert (decoded.left < decoded.right).all()
    single = read(*"_a_")
    assert 0 <= single.left[0] < single.right[0] <= 24


def test_white_letters_on_black_have_ink_too():
    crop = -blots(72, (9, 15), (33, 40), (57, 66))
    np.testing.assert_array_equal(read(*"_a__b__c_", crop=crop).left, [9, 33, 57])


# --- spaces --------------------------------------------------------------------------------------


def test_spaces_that_are_read_stay():
    decoded = read(*"a b_c")
    assert text(decoded) == "a bc"
    assert decoded.log_ratio.isfinite().all()
    assert decoded.probability[1] == pytest.approx(SURE)


@pytest.mark.parametrize(
    "columns", [" a_b", "a_b ", " _ a_b_ _ "], ids=["before", "after", "both"]
)  # fmt: skip
def test_no_spaces_outside(columns):
    assert text(read(*columns)) == "ab"


def test_no_doubled_spaces():
    assert text(read(*"a _ b")) == "a b"
    assert text(read(*"a _ _ b _ c")) == "a b c"


def test_a_gap_in_the_ink_is_a_space():
    """Six letters, the usual gap 2 px, and one of 26 px that the recogniser did not see."""
    columns = "abc___abc"
    crop = under(9, [0, 1, 2, 6, 7, 8])
    decoded = read(*columns, crop=crop)
    assert text(decoded) == "abc abc"
    assert (decoded.log_ratio[3] == -torch.inf).all()  # nothing else can stand there
    assert decoded.probability[3] == 1
    assert decoded.left[3] == decoded.right[2] == 23
    assert decoded.right[3] == decoded.left[4] == 49
    others = decoded.log_ratio[[0, 1, 2, 4, 5, 6]]
    assert others.isfinite().all()
    np.testing.assert_allclose(decoded.probability[[0, 1, 2, 4, 5, 6]], SURE)


def test_a_gap_where_a_space_was_read_is_that_space():
    decoded = read(*"abc_ _abc", crop=under(9, [0, 1, 2, 6, 7, 8]))
    assert text(decoded) == "abc abc"
    assert decoded.log_ratio.isfinite().all()


def gapped(usual: int, wide: int) -> str:
    """Letters of 6 px: gaps of ``usual``, one of ``wide`` between the third and the fourth."""
    gaps = [usual, usual, wide, usual, usual]
    starts = np.cumsum([4, *(6 + gap for gap in gaps)])
    columns = ["_"] * (int(starts[-1]) // STEP + 3)
    for start, char in zip(starts, "abcdef", strict=True):
        columns[int(start + 3) // STEP] = char
    crop = blots(len(columns) * STEP, *((start, start + 6) for start in starts))
    return text(read(*columns, crop=crop))


@pytest.mark.parametrize("usual", [5, 7, 12])
def test_a_gap_is_wide_beside_the_lines_usual_gap(usual):
    """Letter-spaced words do not fall apart."""
    least = int(max(SPACE_PX, SPACE_RATIO * usual))
    assert gapped(usual, least) == "abcdef"
    assert gapped(usual, least + 1) == "abc def"


def test_a_gap_is_wide_beside_a_letter():
    """Where letters all but touch, some px are no space."""
    assert gapped(3, int(SPACE_PX)) == "abcdef"
    assert gapped(3, int(SPACE_PX) + 1) == "abc def"


@pytest.mark.parametrize(
    ("chars", "meant"),
    [
        ("abcbab", "abcbab"),  # a point between two digits
        ("abdbab", "abd bab"),  # a letter there
        ("abcdab", "abc dab"),  # a letter behind the point
        ("aaccab", "aac cab"),  # two points
    ],
)
def test_a_number_is_not_torn_at_its_point(chars, meant):
    """Say a and b are digits and c is a point."""
    places = [1, 3, 5, 9, 11, 13]
    columns = ["_"] * 15
    for place, char in zip(places, chars, strict=True):
        columns[place] = char
    crop, width = under(15, places, half=5), np.array([15 * STEP])
    values = logits(*columns)[None]
    (decoded,) = decode(values, crop[None], width, SPACE, digits={1, 2}, points={3})
    assert text(decoded) == meant
    (decoded,) = decode(values, crop[None], width, SPACE)
    assert text(decoded) == f"{chars[:3]} {chars[3:]}"


def test_faint_specks_are_no_ink():
    crop = under(9, [0, 1, 2, 6, 7, 8])
    crop[:, 20:22, 28:44] = 0.6
    assert text(read(*"abc___abc", crop=crop)) == "abc abc"
