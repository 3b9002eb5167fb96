"""Spelling from plain text: labels, noise, losses, and reading end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignvlm.config import AlignConfig
from alignvlm.connectors import AlignConnector
from alignvlm.line_reader import ALPHABET
from alignvlm.speller import Speller
from alignvlm.train.spelling import LineMaker, Lines, nearest_rows, spell, spelling_loss

TEXT = ["The total is 42", "Town: Nairobi", "Please pay the total of 120.50"]


class Fixed:
    """A generator that always draws the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self, size: int | None = None):
        return self.value if size is None else np.full(size, self.value)

    def integers(self, *_: int) -> int:
        return 0


@pytest.fixture
def maker(tokenizer) -> LineMaker:
    kept = torch.arange(len(tokenizer))
    return LineMaker(TEXT, tokenizer, kept, ALPHABET, blank_id=0)


def labels_of(maker: LineMaker, text: str) -> np.ndarray:
    encoded = maker.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return maker._labels(text, encoded["input_ids"], encoded["offset_mapping"])


def test_labels_say_which_token_starts_where_and_how_long_it_is(maker, tokenizer) -> None:
    text = " The total is 42"
    chars, lengths, targets, starts = labels_of(maker, text)
    assert "".join(ALPHABET[i] for i in chars) == text
    assert lengths[0] == targets[0] == -1  # the space before the line is not asked about
    at = np.flatnonzero(starts)
    assert sum(lengths[at]) == len(text.replace(" ", "")) + 1  # "42" has its space as a token
    pieces = tokenizer.convert_ids_to_tokens(targets[at].tolist())
    assert "".join(pieces) == "ĠTheĠtotalĠisĠ42"
    assert lengths[4] == 0  # "Ġtotal" has taken this one
    assert lengths[13] == 1 and tokenizer.convert_ids_to_tokens(int(targets[13])) == "Ġ"


def test_inside_a_word_the_rest_is_asked_about_as_if_it_began_there(maker, tokenizer) -> None:
    text = " Town: Nairobi"
    labels = labels_of(maker, text)
    known = labels[1] >= 0
    maker._ask_inside(text, labels, np.random.default_rng(0), 1.0)
    assert (labels[1, 1:] >= 0).all()
    for at in np.flatnonzero(~known)[1:]:
        rest = text[at:].split()[0]
        ids = tokenizer(rest, add_special_tokens=False, return_offsets_mapping=True)
        assert labels[2, at] == ids["input_ids"][0]
        assert labels[1, at] == ids["offset_mapping"][0][1]


def test_the_rest_of_a_word_is_spelled_the_same_wherever_it_was_cut(maker, tokenizer) -> None:
    """What the labels rest on: byte-pair merges do not cross a boundary that they made."""
    seen = 0
    for text in TEXT:
        labels = labels_of(maker, " " + text)
        again = labels.copy()
        inner = np.flatnonzero((labels[3] == 1) & (np.array(list(" " + text)) != " "))
        inner = [i for i in inner if (" " + text)[i - 1] != " "]
        again[1, inner] = -1
        maker._ask_inside(" " + text, again, Fixed(0.0), 1.0)
        assert (again[1:3, inner] == labels[1:3, inner]).all()
        seen += len(inner)
    assert seen  # some word is more than one token


def test_a_lost_character_shortens_its_token(maker) -> None:
    text = " The total"
    labels = labels_of(maker, text)
    lost = next(at for at in range(2, len(text)) if not labels[3, at] and text[at] != " ")
    at = max(i for i in range(lost) if labels[3, i])

    class Loses(Fixed):
        def random(self, size=None):
            return 0.0 if size is None else np.where(np.arange(size) == lost, 0.0, 0.5)

    _, spoilt = maker._spoil(Loses(0.0), labels.copy())
    assert spoilt.shape[1] == len(text) - 1
    assert spoilt[1, at] == labels[1, at] - 1


def test_batches_are_reproducible(maker) -> None:
    one, two = maker.batch(8, (1, 2)), maker.batch(8, (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))
    assert one.texts == two.texts and all(text.startswith(" ") for text in one.texts)
    assert not torch.equal(one.chars.sum(-1), maker.batch(8, (1, 3)).chars.sum(-1)[:8])


def test_a_small_speller_learns_three_lines_and_reads_them_whole(maker, tokenizer) -> None:
    torch.manual_seed(0)
    speller = Speller(len(ALPHABET), 64, depth=1)
    align = AlignConnector(AlignConfig(type="align", gamma=4.0), 64, 32, len(tokenizer))
    memory, speller.memory.sparse = speller.memory.weight, True
    parameters = [p for p in (*speller.parameters(), *align.parameters()) if p is not memory]
    optimizers = (torch.optim.AdamW(parameters, 3e-3), torch.optim.SparseAdam([memory], 1e-2))
    maker.text = lambda rng: TEXT[rng.integers(3)]
    for step in range(120):
        result = spelling_loss(speller, align, maker.batch(6, (step,)), None)
        for optimizer in optimizers:
            optimizer.zero_grad()
        result.loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert result.right_lengths / result.lengths > 0.95
    lines: Lines = maker.batch(12, (999,), inside=0.0)
    tokens = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    read = spell(speller, align, lines, tokens)
    assert read.words == sum(len(text.split()) for text in lines.texts)
    assert read.right / read.tokens > 0.9
    assert read.whole / read.words > 0.9


def test_fewer_candidates_leave_the_targets_in(maker, tokenizer) -> None:
    torch.manual_seed(0)
    speller = Speller(len(ALPHABET), 16, depth=1)
    align = AlignConnector(AlignConfig(type="align"), 16, 8, len(tokenizer))
    lines = maker.batch(4, (0,))
    alike = nearest_rows(align.w2.weight, 2)
    few = spelling_loss(speller, align, lines, 5, alike, torch.Generator().manual_seed(0))
    every = spelling_loss(speller, align, lines, None)
    assert few.tokens == every.tokens and few.loss < every.loss


def test_nearest_rows_are_others() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, 0.2]])
    assert nearest_rows(weight, 1)[:, 0].tolist() == [1, 0, 3, 2]
