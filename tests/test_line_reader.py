"""The page encoder around a line recogniser: cells, lines, spelling, pages of several tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from alignvlm.cells import arrange, read_row
from alignvlm.characters import Emissions, Line, Placed, emissions, find_lines, rereadings
from alignvlm.errors import ConfigError
from alignvlm.line_reader import ALPHABET, LineReaderConfig, LineReaderModel
from alignvlm.speller import AFTER, BEFORE, Speller, chain, start_probabilities

TINY = {"image_size": [40, 80], "hidden_size": 16, "speller_depth": 1}
SPACE = ALPHABET.index(" ")


def eager(model: LineReaderModel) -> LineReaderModel:
    """A new model that reads something everywhere, and takes every character for a start."""
    with torch.no_grad():
        model.characters.weight.mul_(20)
        model.characters.bias[0] = -5
        model.speller.length.bias[1] += 3
    return model


@pytest.mark.parametrize(
    ("keys", "grid"),
    [
        ({}, (2, 8)),
        ({"patch_size": 20, "cell_features": [2, 4]}, (2, 4)),
        ({"patch_size": [40, 10], "cell_features": [3, 2], "pool_width": 1}, (1, 8)),
    ],
)
def test_one_feature_a_cell(keys: dict[str, Any], grid: tuple[int, int]) -> None:
    model = LineReaderModel(LineReaderConfig(**{**TINY, **keys}))
    features = model(torch.randn(2, 3, 40, 80)).last_hidden_state
    assert features.shape == (2, 16, *grid)


def test_tiles_that_are_no_whole_cells_are_refused() -> None:
    with pytest.raises(ConfigError, match="whole number of cells"):
        LineReaderConfig(image_size=[50, 80])
    with pytest.raises(ConfigError, match="scales"):
        LineReaderConfig(scales=[1.0, 0.0])
    model = LineReaderModel(LineReaderConfig(**TINY))
    with pytest.raises(ConfigError, match="no whole number"):
        model(torch.randn(1, 3, 50, 80))


def test_gradients_reach_the_pixels_and_all_but_the_localiser() -> None:
    model = eager(LineReaderModel(LineReaderConfig(**TINY))).train()
    tiles = torch.randn(1, 3, 40, 80, requires_grad=True)
    model(tiles).last_hidden_state.square().sum().backward()
    assert tiles.grad is not None and tiles.grad.any()
    missing = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is None}
    assert missing == {"localiser"}  # where a character stands is discrete


def test_a_page_of_tiles_is_read_as_one() -> None:
    model = eager(LineReaderModel(LineReaderConfig(**TINY))).eval()
    page = torch.randn(3, 80, 160)
    tiles = page.view(3, 2, 40, 2, 80).permute(1, 3, 0, 2, 4).reshape(4, 3, 40, 80)
    with torch.no_grad():
        together = model(tiles, image_grids=torch.tensor([[2, 2, 0]])).last_hidden_state
        whole = model(page[None]).last_hidden_state[0]
        alone = model(tiles).last_hidden_state
    cells = together.view(2, 2, 16, 2, 8).permute(2, 0, 3, 1, 4).reshape(16, 4, 16)
    torch.testing.assert_close(cells, whole)
    assert not torch.allclose(together, alone)
    with torch.no_grad():
        both = model(torch.cat([tiles, tiles[:1]]), image_grids=torch.tensor([[2, 2, 1]]))
    torch.testing.assert_close(both.last_hidden_state[4], alone[0])


def test_a_page_seen_before_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = eager(LineReaderModel(LineReaderConfig(**TINY))).eval()
    read: list[int] = []
    own = model._find
    monkeypatch.setattr(model, "_find", lambda *page: (read.append(1), own(*page))[1])
    tiles = torch.randn(1, 3, 40, 80)
    with torch.no_grad():
        first, again = (model(tiles).last_hidden_state for _ in range(2))
        assert len(read) == 1 and torch.equal(first, again)
        model(tiles + 1)
        assert len(read) == 2
        model.speller.norm.bias.add_(1)  # other weights, another reading
        assert not torch.equal(model(tiles).last_hidden_state, first)
    assert len(read) == 3
    model(tiles)  # with gradients nothing is remembered
    assert len(read) == 4
    model.requires_grad_(False)
    with torch.inference_mode():
        model(tiles + 2)
    head = torch.nn.Linear(16, 1)  # a frozen encoder's memory serves training, too
    head(model(tiles + 2).last_hidden_state.permute(0, 2, 3, 1)).sum().backward()
    assert len(read) == 5 and head.weight.grad is not None


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    model = eager(LineReaderModel(LineReaderConfig(**TINY))).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    tiles = torch.randn(1, 3, 40, 80)
    assert isinstance(again, LineReaderModel)
    assert torch.equal(model(tiles).last_hidden_state, again(tiles).last_hidden_state)


def test_agreeing_columns_are_one_character() -> None:
    probabilities = torch.zeros(2, 6, 4)
    for row, column, kind, p in [
        (0, 0, 1, 0.6), (0, 1, 1, 0.9), (0, 2, 0, 0.9), (0, 3, 1, 0.7), (0, 4, 2, 0.8),
        (0, 5, 0, 0.9), (1, 0, 2, 0.8), *((1, c, 0, 0.9) for c in range(1, 6)),
    ]:  # fmt: skip
        probabilities[row, column, kind] = p
    found = emissions(probabilities)
    assert found.row.tolist() == [0, 0, 0, 1]
    assert found.column.tolist() == [1, 3, 4, 0]  # the surest column of each
    assert found.kind.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(found.probability, torch.tensor([0.9, 0.7, 0.8, 0.8]))


def reading(text: str, row: int, y: float, sure: float, x: float = 0.0) -> list[tuple]:
    return [
        (row, i, ALPHABET.index(c), sure, x + 10 * i, y, 20.0, x + 10 * i + 9)
        for i, c in enumerate(text)
    ]


def found_in(*readings: list[tuple], seen: dict[int, float]) -> tuple[Emissions, Placed]:
    """``seen``: row to the size its text was seen at, px; 45 where nothing is said."""
    rows = sorted(entry for part in readings for entry in part)
    row, column, kind, sure, x, y, em, right = (np.array(v) for v in zip(*rows))
    found = Emissions(*(torch.tensor(v) for v in (row, column, kind)), torch.tensor(sure))
    sizes = np.array([seen.get(int(number), 45.0) for number in row])
    return found, Placed(x=x, y=y, em=em, right=right, seen=sizes)


def lines_of(
    *readings: list[tuple], seen: dict[int, float] | None = None
) -> list[tuple[float, str]]:
    found, placed = found_in(*readings, seen=seen or {})
    kind, lines = found.kind, find_lines(found, placed, SPACE)
    return sorted((line.y, "".join(ALPHABET[kind[m]] for m in line.members)) for line in lines)


def test_each_line_is_kept_once_in_its_surest_reading() -> None:
    found = lines_of(
        reading("Total due", 1, 20.5, 0.8),
        reading("Total duc", 2, 19.5, 0.6),  # the same line from a window further away
        reading("paid", 4, 44.0, 0.9),
        reading("xx", 7, 70.0, 0.2),  # nothing is sure: no text
    )
    assert found == [(20.5, "Total due"), (44.0, "paid")]


def test_what_a_better_reading_does_not_cover_is_kept() -> None:
    found = lines_of(reading("ab", 1, 20, 0.9), reading("abcd", 2, 20, 0.65))
    assert [text for _, text in found] == ["ab", "cd"]


def test_a_reading_at_a_better_size_wins_over_a_surer_one() -> None:
    small, large = reading("13.08", 1, 20.5, 0.95), reading("18.08", 9, 20.0, 0.85)
    assert lines_of(small, large) == [(20.5, "13.08")]
    assert lines_of(small, large, seen={1: 20.0}) == [(20.0, "18.08")]


def test_text_of_another_size_is_read_again_around_it() -> None:
    parts = [
        reading("small", 2, 30.0, 0.8),
        reading("print", 4, 60.0, 0.4),  # hardly read, but its size shows
        reading("right", 9, 200.0, 0.9),
        reading("LARGE", 20, 400.0, 0.9),
        reading("noise", 30, 600.0, 0.1),
    ]
    found, placed = found_in(*parts, seen={2: 24.0, 4: 26.0, 20: 85.0, 30: 24.0})
    half, twice = rereadings(found, placed, [1.0, 0.5, 2.0])
    assert half == [(350.0, 450.0)]  # 2.5 times the size, which is 20 px, above and below
    assert twice == [(-20.0, 110.0)]  # two lines whose surroundings touch


def test_a_page_is_read_at_the_sizes_its_text_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = eager(LineReaderModel(LineReaderConfig(**TINY, scales=[1.0, 2.0]))).eval()
    seen: list[tuple[float, Any]] = []
    own = model.see

    def see(page: torch.Tensor, scale: float = 1.0, span: Any = None) -> Any:
        seen.append((scale, span))
        return own(page, scale, span)

    monkeypatch.setattr(model, "see", see)
    page = torch.randn(1, 3, 80, 160)
    with torch.no_grad():
        for log_size, scales in ((np.log(45 / 32), [1.0]), (np.log(20 / 32), [1.0, 2.0])):
            model.localiser.out.weight.zero_()
            model.localiser.out.bias[2] = log_size  # cells are enlarged to 32 px
            seen.clear()
            model(page)
            assert [scale for scale, _ in seen] == scales
            assert seen[0][1] == (0, 80)


def test_blank_rows_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = eager(LineReaderModel(LineReaderConfig(**TINY))).eval()
    seen: list[Any] = []
    own = model.see
    monkeypatch.setattr(model, "see", lambda *args: (seen.append(args[2]), own(*args))[1])
    page = torch.ones(1, 3, 400, 80)
    with torch.no_grad():
        assert torch.equal(
            model(page).last_hidden_state[0], model.blank[:, None, None].expand(-1, 20, 8)
        )
        page[..., 30:40, 20:30] = -1
        page[..., 300, 7] = 0.8
        model(page)
    assert seen == [(0, 72), (268, 333)]
    model(torch.ones(1, 3, 400, 80))  # learning: other processes would wait
    assert seen[2:] == [(0, 400)]


def test_a_part_of_a_page_is_read_as_in_the_whole() -> None:
    model = eager(LineReaderModel(LineReaderConfig(**TINY))).eval()
    page = torch.randn(3, 400, 160)
    with torch.no_grad():
        whole, part = model.see(page), model.see(page, span=(150, 330))
    high = 400 / (model.enlarge(page).shape[2] // 16)
    first = int(150 / high) // 3 * 3
    inner = part[0].row.max() // 2  # away from the edges, which see nothing beyond them
    theirs = part[0].row == inner
    ours = whole[0].row == first + inner
    assert ours.any()
    assert whole[0].kind[ours].tolist() == part[0].kind[theirs].tolist()
    for a, b in zip(whole[1], part[1], strict=True):
        np.testing.assert_allclose(a[ours], b[theirs], rtol=1e-3)


def test_a_span_beyond_the_page_is_its_edge() -> None:
    model = eager(LineReaderModel(LineReaderConfig(**TINY))).eval()
    page = torch.randn(3, 100, 80)
    with torch.no_grad():
        for span in ((-90.0, -10.0), (140.0, 200.0)):
            assert len(model.see(page, 1.0, span)[0].row)


def test_a_gap_is_a_space_seen_or_not() -> None:
    text = reading("SDNBHD", 1, 20.0, 0.9)
    wide = [(*entry[:4], entry[4] + 5 * (i > 2), *entry[5:7], entry[7] + 5 * (i > 2))
            for i, entry in enumerate(text)]  # fmt: skip
    for entries, expected in ((text, "SDNBHD"), (wide, "SDN BHD")):
        found, placed = found_in(entries, seen={})
        line = Line(np.arange(len(entries)), 20.0)
        order, x = read_row([line], placed, found.kind.numpy(), SPACE)
        assert "".join(" " if m < 0 else ALPHABET[found.kind[m]] for m in order) == expected
        assert x == sorted(x)


def test_starts_take_cells_as_targets_do() -> None:
    places = [(0, 1.2), (0, 1.7), (0, 1.9), (0, 3.0), (1, 5.9)]
    starts, likely = np.array([1, 1, 0, 1, 1], bool), np.array([1, 1, 1, 0, 0], bool)
    chosen, cells = arrange(places, starts, starts, (2, 6))
    assert dict(zip(chosen, cells)) == {0: 1, 1: 2, 3: 3, 4: 11}
    chosen, _ = arrange(places, starts, likely, (2, 6))
    assert 2 not in chosen  # its own cell is taken
    chosen, cells = arrange(places, starts & ~likely, likely, (2, 6))
    assert dict(zip(chosen, cells)) == {0: 1, 3: 3, 4: 11}  # 1 and 2 stand where 0 does


def test_tokens_stand_end_to_end() -> None:
    assert chain([3, 1, 2, 0, 2, 1]) == [0, 4]
    assert chain([0, 0, 1]) == [2]
    assert chain([9, 1]) == [0]  # a token may reach beyond the line
    assert chain([]) == []


def test_start_probabilities_are_those_of_all_chains() -> None:
    """Against all ways to cut a line, written out."""
    torch.manual_seed(0)
    lengths = 2 * torch.randn(5, 1 + AFTER, dtype=torch.float64)
    p = lengths.softmax(-1)
    expected = torch.zeros(5, dtype=torch.float64)

    def walk(at: int, mass: torch.Tensor) -> None:
        if at >= 5:
            return
        expected[at] += mass * (1 - p[at, 0])
        for k in range(1 + AFTER):
            walk(at + max(k, 1), mass * p[at, k])

    walk(0, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(start_probabilities(lengths), expected)
    sure = torch.full((4, 1 + AFTER), -1e4)
    sure[range(4), [2, 1, 0, 3]] = 1e4
    assert start_probabilities(sure).tolist() == [1, 0, 0, 1]


def test_where_a_token_starts_is_learnt_through_the_gate() -> None:
    model = eager(LineReaderModel(LineReaderConfig(**TINY))).train()
    model(torch.randn(1, 3, 40, 80)).last_hidden_state.sum().backward()
    gradient = model.speller.length.weight.grad
    assert gradient is not None and gradient.any()


def test_the_speller_sees_the_rest_of_a_word_and_nothing_else() -> None:
    def seen(text: str, at: int) -> str:
        speller = Speller(3, 8, depth=1, space=0).eval()
        kinds = torch.tensor([" ab".index(c) for c in text])
        chars = torch.nn.functional.one_hot(kinds, 3).float().requires_grad_()
        speller.features(speller.windows(chars), speller.beginnings(chars))[at, 0].backward()
        assert chars.grad is not None
        return "".join(c if g else "." for c, g in zip(text, chars.grad.abs().sum(1)))

    assert seen("ab abba ba", 4) == "...abba .."  # the one before, the word, the one after
    assert seen("ab abba ba", 2) == ".b a......"  # a space: what follows it
    assert seen("b" * 40, 20) == "." * (20 - BEFORE) + "b" * (BEFORE + AFTER) + "." * (20 - AFTER)


def test_a_word_has_the_same_features_wherever_it_stands() -> None:
    speller = Speller(3, 8, depth=1, space=0).eval()

    def features(text: str) -> torch.Tensor:
        chars = torch.eye(3)[[" ab".index(c) for c in text]]
        return speller.features(speller.windows(chars), speller.beginnings(chars))

    one, other = features(" a abb b"), features(" bbabaa abb aaa")
    torch.testing.assert_close(one[3:6], other[8:11])
