"""Cells with one feature cost one row of ALIGN; losses, tokens and gradients are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignvlm.connectors import AlignConnector
from alignvlm.connectors.configs import AlignConfig
from alignvlm.connectors.distinct import distinct, distinct_pairs
from alignvlm.model.losses import vocab_loss

BLANK = 3


def test_distinct_rows_come_in_order_of_appearance() -> None:
    rows = torch.tensor([[2.0, 1.0], [0.0, 5.0], [2.0, 1.0], [-0.0, 5.0]])
    first, index = distinct(rows)
    assert torch.equal(rows[first][index], rows)
    assert index[0] == 0 and index[2] == 0 and index[1] == 1
    assert distinct(rows[:0])[0].shape == (0,)


def test_rows_that_share_a_mark_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignvlm.connectors.distinct._marks", lambda rows: rows[:, 0])
    rows = torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]])
    first, index = distinct(rows)
    assert len(first) == 2
    assert torch.equal(rows[first][index], rows)


def test_pairs_of_feature_and_target() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    features = torch.stack([a, a, b, a, b])
    targets = torch.tensor([5, -100, 5, 5, -1])
    first, index = distinct_pairs(features, targets)
    assert len(first) == 4
    assert torch.equal(features[first][index], features)
    assert targets[first][index].clamp_min(-1).tolist() == [5, -1, 5, 5, -1]


@pytest.fixture
def align() -> Any:
    torch.manual_seed(0)
    return AlignConnector(AlignConfig(gamma=4.0), 16, 8, 40).double()


@pytest.mark.parametrize("with_mixture", [True, False])
@pytest.mark.parametrize("learns", [True, False])
def test_sharing_changes_neither_loss_nor_gradients(
    align: Any, with_mixture: bool, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    chosen = torch.randint(3, (2, 2, 8), generator=generator)
    targets = torch.randint(-1, 6, (2, 16), generator=generator)
    table = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    rows: list[int] = []
    align.inner_norm.register_forward_hook(
        lambda module, args, out: rows.append(out[..., 0].numel())
    )
    found = []
    for shared in (True, False):
        if not shared:
            every = lambda x, *rest: (torch.arange(len(x)),) * 2  # noqa: E731
            monkeypatch.setattr("alignvlm.connectors.align.distinct", every)
            monkeypatch.setattr("alignvlm.connectors.align.distinct_pairs", every)
        align.zero_grad()
        leaf = kinds.clone().requires_grad_(learns)
        features = leaf[chosen]
        if with_mixture:
            read = align.read(features, table, targets, BLANK)
            (read.tokens.square().sum() - read.target_log_p[targets >= 0].sum()).backward()
            outputs = [read.tokens, read.target_log_p[targets >= 0], read.blank_log_p]
        else:
            loss = vocab_loss(align, features, targets, BLANK, 1.0)
            loss.loss.backward()
            outputs = list(loss)
        gradients = [p.grad.clone() for p in align.parameters() if p.grad is not None]
        found.append((outputs, gradients, leaf.grad))
    assert rows[0] < rows[1]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_equal_features_that_learn_apart_keep_their_own_gradients(align: Any) -> None:
    """Only the commonest row, the blank one, is taken together."""
    generator = torch.Generator().manual_seed(1)
    word, blank = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    cells = torch.stack([word, blank, word, blank, blank]).requires_grad_()
    table = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    tokens = align.read(cells[None, None], table).tokens
    tokens[0, 2].sum().backward()
    assert cells.grad is not None
    assert cells.grad[2].abs().sum() > 0
    assert not cells.grad[[0, 1, 3, 4]].any()
