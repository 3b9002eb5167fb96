"""Cells with one feature cost one row of ALIGN; losses, tokens and gradients are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alignvlm.compose import compose
from alignvlm.connectors.distinct import distinct_pairs
from alignvlm.losses import vocab_loss

VISION = {
    "model_type": "line_reader", "image_size": [40, 80], "hidden_size": 16, "speller_depth": 1,
}  # fmt: skip


def test_pairs_of_feature_and_target() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    features = torch.stack([a, a, b, a, b])
    targets = torch.tensor([5, -100, 5, 5, -1])
    rows, asked, index = distinct_pairs(features, targets)
    assert len(rows) == 4
    assert torch.equal(rows[index], features)
    assert asked[index].tolist() == [5, -1, 5, 5, -1]


@pytest.fixture
def model(tiny_lm_dir: Path) -> Any:
    keys = {"type": "align", "gamma": 4.0}
    made, _ = compose(VISION, tiny_lm_dir, keys, tiling={"max_tiles": 1}, blank_threshold=0.5)
    made.model.vision_model.requires_grad_(False)
    return made.double().model


@pytest.mark.parametrize("with_mixture", [True, False])
def test_sharing_changes_neither_loss_nor_gradients(model: Any, with_mixture: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    features = kinds[torch.randint(3, (2, 2, 8), generator=generator)]
    targets = torch.randint(-1, 6, (2, 16), generator=generator)
    rows: list[int] = []
    align, blank = model.connector, model.config.blank_token_id
    align.inner_norm.register_forward_hook(
        lambda module, args, out: rows.append(out[..., 0].numel())
    )
    found = []
    for shared in (True, False):
        model.vision_model.reads_pages = shared
        align.zero_grad()
        if with_mixture:
            tokens, loss, dropped = model._tokens(features, targets)
            (loss.loss + tokens.square().sum()).backward()
        else:
            tokens, dropped = torch.zeros(()), None
            loss = vocab_loss(align, features, targets, blank, 1.0, shared=shared)
            loss.loss.backward()
        gradients = [p.grad.clone() for p in align.parameters() if p.grad is not None]
        found.append((*loss, tokens, dropped, gradients))
    assert rows[0] < rows[1]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_features_that_learn_are_not_shared(model: Any) -> None:
    features = torch.ones(1, 2, 8, 16, dtype=torch.float64, requires_grad=True)
    _, loss, _ = model._tokens(features, torch.full((1, 16), 3))
    loss.loss.backward()
    assert features.grad is not None and features.grad.abs().sum() > 0
