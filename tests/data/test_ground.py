"""Targets for P_vocab: which token starts in which cell."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignvlm.data.ground import (
    MAX_SHIFT,
    as_words,
    frequent_tokens,
    ground,
    page_targets,
    subsample_blanks,
    tile_targets,
    token_starts,
)
from alignvlm.data.synthetic.render import RenderSpec, render_page
from alignvlm.documents.words import Word
from alignvlm.errors import ConfigError
from alignvlm.model.losses import IGNORE
from alignvlm.tiling import Grid, page_order

BLANK = 5


class Letters:
    """A tokenizer with one token a character; a word's first letter takes the space before it."""

    def __call__(self, text: str, **_: Any) -> dict[str, list]:
        offsets, start = [], 0
        for index, char in enumerate(text):
            if not char.isspace():
                offsets.append((start, index + 1))
                start = index + 1
        return {"input_ids": [ord(text[b - 1]) for _, b in offsets], "offset_mapping": offsets}


def word(text: str, x: float, y: float = 0.0, line: int = 0, step: float = 10.0) -> Word:
    """A word of characters ``step`` px wide in a box 20 px high, its line in the middle."""
    edges = tuple(x + step * i for i in range(len(text)))
    return Word(text, (x, y, x + step * len(text), y + 20), line, edges, y + 10)


def cells(words: list[Word], rows: int = 2, cols: int = 12, **keys: Any) -> Any:
    keys = {"cell_height": 20, "cell_width": 10, "blank_id": BLANK, **keys}
    return ground(words, Letters(), cell_rows=rows, cell_cols=cols, **keys)


def written(row: torch.Tensor) -> str:
    return "".join("." if i == BLANK else chr(i) for i in row.tolist())


# --- where tokens start ------------------------------------------------------------------------


def test_tokens_start_at_their_first_visible_character(tokenizer):
    words = [word("The", 4), word("total", 50), word("42", 120)]
    starts = token_starts(words, tokenizer)
    pieces = tokenizer.convert_ids_to_tokens([token for token, _, _ in starts])
    assert "".join(pieces) == "ĠTheĠtotalĠ42"  # as if a space stood before the line
    # digits are single tokens, so each has its own place, and its space a token of its own
    assert pieces[-3:] == ["Ġ", "4", "2"]
    assert [x for _, x, _ in starts[-3:]] == [100, 120, 130]
    assert all(y == 10 for _, _, y in starts)
    place = {piece: x for piece, (_, x, _) in zip(pieces, starts, strict=True)}
    assert place["ĠThe"] == 4
    assert place["Ġtotal"] == 50  # not at the space before it


def test_each_line_is_tokenized_apart(tokenizer):
    words = [word("The", 0), word("total", 40), word("is", 0, 30, line=1)]
    starts = token_starts(words, tokenizer)
    lines = [tokenizer.encode(text, add_special_tokens=False) for text in (" The total", " is")]
    assert [token for token, _, _ in starts] == lines[0] + lines[1]
    assert starts[-1][1:] == (0, 40)


def test_a_line_of_digits_has_no_space_before_it(tokenizer):
    starts = token_starts([word("42", 30)], tokenizer)
    assert tokenizer.convert_ids_to_tokens([token for token, _, _ in starts]) == ["4", "2"]
    assert [x for _, x, _ in starts] == [30, 40]


def test_words_of_a_line_need_not_be_together(tokenizer):
    """Columns: words of one line may come apart in the list; the line is still read as one."""
    together = token_starts([word("The", 0), word("total", 40), word("is", 0, 30, 1)], tokenizer)
    apart = token_starts([word("The", 0), word("is", 0, 30, 1), word("total", 40)], tokenizer)
    assert apart == together


def test_characters_of_several_tokens_share_a_place(tokenizer):
    starts = token_starts([word("😀", 70)], tokenizer)
    assert len(starts) > 1
    assert {x for _, x, _ in starts} == {70}
    truth = ground(
        [word("😀", 70)], tokenizer, cell_rows=1, cell_cols=20, cell_height=20, cell_width=10,
        blank_id=BLANK,
    )  # fmt: skip
    assert truth.shifted == min(len(starts) - 1, MAX_SHIFT)
    assert truth.lost == max(len(starts) - 1 - MAX_SHIFT, 0)


def test_no_words_is_all_blank():
    truth = cells([])
    assert bool((truth.targets == BLANK).all())
    assert truth[1:] == (0, 0, 0)


# --- cells -------------------------------------------------------------------------------------


def test_a_cell_holds_the_token_that_starts_in_it():
    truth = cells([word("ab", 0), word("c", 40), word("d", 30, 20, line=1)])
    assert written(truth.targets[0]) == "ab..c......."
    assert written(truth.targets[1]) == "...d........"
    assert truth[1:] == (0, 0, 4)


def test_a_taken_cell_moves_the_later_token_right():
    truth = cells([word("1.5", 0, step=5)])  # "1" at 0, "." at 5, "5" at 10
    assert written(truth.targets[0]) == "1.5........."
    # "." moved to cell 1, and "5", which starts in cell 1, to cell 2
    assert (truth.shifted, truth.lost) == (2, 0)


def test_beyond_the_largest_shift_a_token_is_lost():
    text = "abcdef"
    truth = cells([word(text, 0, step=1)])
    kept = MAX_SHIFT + 1
    assert written(truth.targets[0]) == text[:kept].ljust(12, ".")
    assert (truth.shifted, truth.lost, truth.tokens) == (MAX_SHIFT, len(text) - kept, len(text))


def test_a_shift_never_leaves_the_page():
    truth = cells([word("ab", 110, step=2)])
    assert written(truth.targets[0]) == "...........a"
    assert (truth.shifted, truth.lost) == (0, 1)


@pytest.mark.parametrize("place", [(-30, 0), (0, -30), (500, 0), (0, 500)])
def test_words_outside_the_page_are_lost(place):
    truth = cells([word("a", *place)])
    assert (truth.lost, truth.tokens) == (1, 1)
    assert bool((truth.targets == BLANK).all())


@given(st.floats(0.3, 3))
def test_scaling_page_and_cells_together_changes_nothing(scale):
    words = [word("abc", 3), word("de", 60), word("f", 20, 20, line=1)]
    plain = cells(words)
    scaled = cells(words, scale=scale, cell_height=20 * scale, cell_width=10 * scale)
    assert written(plain.targets[0]) == "abc...de...."
    if scale >= 1:  # half a pixel of tolerance weighs more on smaller cells
        assert torch.equal(plain.targets, scaled.targets)
    assert scaled.lost == 0


def test_an_edge_on_the_border_counts_right_of_it():
    assert written(cells([word("a", 9.6)]).targets[0]).index("a") == 1
    assert written(cells([word("a", 9.4)]).targets[0]).index("a") == 0


@given(
    st.lists(
        st.tuples(st.text("abcxyz", min_size=1, max_size=6), st.floats(-5, 130), st.booleans()),
        max_size=12,
    ),
    st.floats(3, 20),
)
def test_every_token_is_placed_or_lost_and_order_holds(entries, step):
    words = [word(t, x, 20.0 * second, int(second), step) for t, x, second in entries]
    words.sort(key=lambda w: (w.line, w.box[0]))
    truth = cells(words)
    placed = int((truth.targets != BLANK).sum())
    assert placed + truth.lost == truth.tokens == sum(len(w.text) for w in words)
    assert truth.shifted <= placed
    if not truth.lost and all(a.box[2] <= b.box[0] for a, b in pairwise(words) if a.line == b.line):
        for line in (0, 1):
            text = "".join(w.text for w in words if w.line == line)
            assert written(truth.targets[line]).replace(".", "") == text


# --- a model's cells ---------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_tiles_of_targets_are_what_page_order_puts_together(rows, cols, token_rows, token_cols):
    grid = Grid(rows, cols)
    page = torch.arange(rows * token_rows * cols * token_cols).view(rows * token_rows, -1)
    tiles = tile_targets(page, grid)
    assert tiles.shape == (grid.tiles, token_rows * token_cols)
    order = page_order(grid, token_rows, token_cols)
    assert torch.equal(tiles.flatten()[order], page.flatten())


def test_targets_lie_where_the_model_puts_visual_tokens(make_model, tokenizer):
    """Through the model's own assembly: the target of a page cell is the visual token there."""
    model = make_model("align")
    config = model.config
    grid, size = Grid(2, 2), (56, 56)
    words = [word("7", 0, 0), word("8", 43, 0), word("9", 15, 43, line=1)]
    truth = page_targets(words, size, grid, config, tokenizer)
    tiles = tile_targets(truth.targets, grid)
    tokens = tiles[..., None].float().expand(-1, -1, 32)
    (page,) = model.model.assemble(tokens, torch.tensor([[2, 2, 0]]))
    assert torch.equal(page[:, 0].view_as(truth.targets).long(), truth.targets)
    ids = {d: tokenizer.convert_tokens_to_ids(d) for d in "789"}
    assert truth.targets[0, 0] == ids["7"]
    assert truth.targets[0, 3] == ids["8"]
    assert truth.targets[3, 1] == ids["9"]
    assert truth.lost == 0


def test_a_scaled_page_keeps_its_words_in_place(make_config, tokenizer):
    config = make_config("align")
    small = page_targets([word("7", 30, 0)], (56, 28), Grid(1, 2), config, tokenizer)
    large = Word("7", (120, 0, 160, 80), 0, (120,))
    large = page_targets([large], (224, 112), Grid(1, 2), config, tokenizer)
    assert torch.equal(small.targets, large.targets)
    assert small.targets[0].tolist()[2] == tokenizer.convert_tokens_to_ids("7")


def test_rendered_pages_lose_almost_nothing(make_config, tokenizer):
    """Cells of 14 px hold a character of 28 px text, so whole tokens all find a place."""
    config = make_config("align")
    lost = tokens = 0
    for seed in range(6):
        spec = RenderSpec(layout="form", width=392, height=196, font_px=(28, 28))
        page = render_page(spec, seed)
        truth = page_targets(page.words, page.image.size, Grid(7, 14), config, tokenizer)
        lost, tokens = lost + truth.lost, tokens + truth.tokens
        assert int((truth.targets != config.blank_token_id).sum()) <= truth.tokens - truth.lost
    assert tokens > 60
    assert lost < 0.06 * tokens


# --- words as a record has them ----------------------------------------------------------------


def boxed(*boxes: tuple[float, ...]) -> list[dict[str, Any]]:
    return [{"text": "ab", "box": box} for box in boxes]


def test_words_that_say_everything_are_kept():
    entry = {"text": "ab", "box": (1, 2, 3, 4), "line": 7, "char_x": [1, 2.5]}
    assert as_words([entry]) == [Word("ab", (1, 2, 3, 4), 7, (1, 2.5))]


def test_characters_are_spread_evenly():
    (only,) = as_words([{"text": "abcd", "box": (10, 0, 50, 9)}])
    assert only.char_x == (10, 20, 30, 40)


def test_lines_come_from_vertical_overlap():
    words = as_words(
        boxed((0, 0, 20, 10), (30, 1, 50, 11), (60, 3, 80, 8), (0, 12, 20, 22), (30, 13, 50, 20))
    )
    assert [w.line for w in words] == [0, 0, 0, 1, 1]


def test_a_word_above_is_no_longer_on_the_line():
    """The second column starts higher up: to the right, but nowhere near."""
    words = as_words(boxed((0, 50, 20, 60), (100, 0, 120, 10)))
    assert [w.line for w in words] == [0, 1]


def test_stepping_back_starts_a_line():
    words = as_words(boxed((40, 0, 60, 10), (0, 2, 20, 12)))
    assert [w.line for w in words] == [0, 1]


def test_some_words_know_their_line():
    known = {"text": "ab", "box": (0, 0, 20, 10), "line": 3}
    words = as_words([known, *boxed((30, 0, 50, 10), (0, 20, 20, 30))])
    assert [w.line for w in words] == [3, 3, 4]


# --- which cells are scored --------------------------------------------------------------------


def test_subsampled_blanks_are_few_and_reproducible():
    targets = torch.full((4, 20), BLANK)
    targets[0, :5] = 1
    drawn = subsample_blanks(targets, BLANK, 7, seed=3)
    assert torch.equal(drawn, subsample_blanks(targets, BLANK, 7, seed=3))
    assert not torch.equal(drawn, subsample_blanks(targets, BLANK, 7, seed=4))
    assert int((drawn == BLANK).sum()) == 7
    assert int((drawn == IGNORE).sum()) == 80 - 5 - 7
    assert torch.equal(drawn[0, :5], targets[0, :5])
    assert int((targets == BLANK).sum()) == 75  # the argument is not changed


def test_enough_room_scores_all_blanks():
    targets = torch.full((2, 3), BLANK)
    assert torch.equal(subsample_blanks(targets, BLANK, 6, seed=0), targets)
    assert bool((subsample_blanks(targets, BLANK, 0, seed=0) == IGNORE).all())


# --- a pruned vocabulary -----------------------------------------------------------------------


def test_frequent_tokens_hold_letters_and_what_pages_say(tokenizer):
    pages = [[word("total", 0)], [word("total", 0), word("report", 90)]]
    vocab = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    single = {i for t, i in vocab.items() if len(t.lstrip("Ġ")) <= 1} - special
    spare = [i for t, i in vocab.items() if t == "<empty_output>"]
    always = [*spare]
    base = single | set(always)
    ids = frequent_tokens(pages, tokenizer, len(base) + 1, always)
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert base < set(ids.tolist())
    counts: dict[int, int] = {}
    for page in pages:
        for token, _, _ in token_starts(page, tokenizer):
            if token not in base:
                counts[token] = counts.get(token, 0) + 1
    (extra,) = set(ids.tolist()) - base
    assert counts[extra] == max(counts.values())


def test_frequent_tokens_fill_up_without_special_ones(tokenizer):
    special = set(tokenizer.all_special_ids)
    most = len(tokenizer) - len(special)
    ids = frequent_tokens([], tokenizer, most)
    assert len(ids) == most
    assert not special & set(ids.tolist())


def test_a_vocabulary_too_small_or_too_large_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="cannot hold"):
        frequent_tokens([], tokenizer, 10)
    with pytest.raises(ConfigError, match="more than"):
        frequent_tokens([], tokenizer, len(tokenizer) + 1)
