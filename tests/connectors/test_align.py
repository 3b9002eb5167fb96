"""ALIGN's own promises: convexity, initialisation, pruning, inspection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignvlm.connectors import AlignConnector
from alignvlm.connectors.configs import AlignConfig

D_VISION, D_TEXT, VOCAB, GRID = 8, 12, 40, (3, 5)
KEPT = torch.tensor([31, 2, 3, 17, 8, 39, 0])


def build(seed: int = 0, vocab: int = VOCAB, **config) -> AlignConnector:
    """A connector in fp64 whose norms are away from one and zero."""
    torch.manual_seed(seed)
    connector = AlignConnector(AlignConfig(**config), D_VISION, D_TEXT, vocab).double()
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return connector


def inputs(tiles: int = 2, rows: int = VOCAB) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(tiles, *GRID, D_VISION, generator=generator, dtype=torch.float64)
    return features, torch.randn(rows, D_TEXT, generator=generator, dtype=torch.float64)


def dense_logits(connector: AlignConnector, features: Tensor) -> Tensor:
    """LayerNorm(W2 LayerNorm(W1 F)) over all of the connector's rows, with its own formula."""
    z = connector.hidden(features) @ connector.w2.weight.T
    if not connector.config.outer_norm:
        return z
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return z * connector.outer_norm_weight + connector.outer_norm_bias


# --- Eq. 1-2 -------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999), scale=st.floats(0, 50), outer_norm=st.booleans(),
    gamma=st.floats(0.01, 50),
)  # fmt: skip
def test_output_is_a_convex_combination(seed, scale, outer_norm, gamma):
    connector = build(seed, outer_norm=outer_norm, gamma=gamma)
    features, table = inputs()
    with torch.no_grad():
        p = connector.vocab_distribution(scale * features)
        output = connector(scale * features, table)
    assert p.shape == (2, *GRID, VOCAB)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))
    torch.testing.assert_close(output, (p @ table).flatten(1, 2))
    assert (output >= table.amin(0) - 1e-9).all() and (output <= table.amax(0) + 1e-9).all()


@pytest.mark.parametrize("outer_norm", [True, False])
def test_distribution_is_the_softmax_of_the_logits(outer_norm):
    connector = build(outer_norm=outer_norm)
    features, _ = inputs()
    expected = dense_logits(connector, features).softmax(-1)
    torch.testing.assert_close(connector.vocab_distribution(features), expected.detach())


def test_without_the_outer_norm_its_parameters_do_not_exist():
    connector = build(outer_norm=False)
    assert connector.outer_norm_weight is None and connector.outer_norm_bias is None
    assert not [name for name in connector.state_dict() if "outer" in name]
    connector.reset_parameters()


@pytest.mark.parametrize("impl", ["auto", "chunked", "reference"])
def test_implementations_agree(impl):
    features, table = inputs()
    torch.testing.assert_close(build(impl=impl)(features, table), build()(features, table))


def test_a_large_gamma_sharpens_the_distribution():
    def telemetry(gamma: float):
        torch.manual_seed(0)
        connector = AlignConnector(AlignConfig(gamma=gamma), D_VISION, D_TEXT, 400)
        assert (connector.outer_norm_weight == gamma).all()
        return connector.telemetry(inputs()[0].float())

    flat, sharp = telemetry(1.0), telemetry(20.0)
    assert flat.effective_vocab > 200 > 20 > sharp.effective_vocab
    assert flat.top_probability < 0.1 < 0.5 < sharp.top_probability


def test_reset_parameters_restores_gamma():
    connector = build(gamma=3.0)
    connector.reset_parameters()
    assert (connector.outer_norm_weight == 3).all() and (connector.outer_norm_bias == 0).all()


# --- initialisation from the language model's head -----------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("extra", [0, 9])
def test_w2_starts_as_the_lm_head(tied, extra):
    connector = build()
    features, table = inputs(rows=VOCAB + extra)
    head = table if tied else torch.randn_like(table)
    rows = head[:VOCAB].clone()
    connector.init_from_lm_head(head)
    assert torch.equal(connector.w2.weight, rows)
    assert connector.w2.weight.untyped_storage().data_ptr() != head.untyped_storage().data_ptr()
    assert connector.w2.weight.requires_grad
    before = connector(features, table)
    head += 1  # the copy does not follow; through a tied table each convex combination moves by 1
    assert torch.equal(connector.w2.weight, rows)
    torch.testing.assert_close(connector(features, table), before + 1 if tied else before)


def test_rows_added_to_the_embedding_are_never_used():
    connector = build()
    features, table = inputs(rows=VOCAB + 3)
    expected = connector(features, table[:VOCAB].clone())
    table[VOCAB:] = torch.nan
    assert torch.equal(connector(features, table), expected)
    table.requires_grad_()
    connector(features, table).sum().backward()
    assert (table.grad[VOCAB:] == 0).all()
    assert connector.vocab_distribution(features).shape[-1] == VOCAB


def test_kept_tokens_in_the_config():
    connector = build(kept_tokens=len(KEPT))
    features, table = inputs()
    head = torch.randn(VOCAB + 2, D_TEXT, dtype=torch.float64)
    connector.init_from_lm_head(head, token_ids=KEPT)
    ids = KEPT.sort().values
    assert torch.equal(connector.token_ids, ids)
    assert torch.equal(connector.w2.weight, head[ids])
    p = dense_logits(connector, features).softmax(-1)  # the norm runs over the kept rows
    torch.testing.assert_close(connector(features, table), (p @ table[ids]).flatten(1, 2))
    torch.testing.assert_close(connector.vocab_distribution(features)[..., ids], p.detach())


def test_kept_tokens_errors():
    with pytest.raises(ValueError, match="more than the vocabulary"):
        build(kept_tokens=VOCAB + 1)
    connector = build(kept_tokens=3)
    head = inputs()[1]
    for token_ids in (None, torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="token_ids of shape"):
            connector.init_from_lm_head(head, token_ids)
    with pytest.raises(ValueError, match="duplicates"):
        connector.init_from_lm_head(head, torch.tensor([1, 2, 1]))
    with pytest.raises(ValueError, match=r"\[0, 40\)"):
        connector.init_from_lm_head(head, torch.tensor([1, 2, VOCAB]))


# --- pruning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer_norm", [True, False])
def test_pruning_keeps_logits_and_renormalises(outer_norm):
    connector = build(outer_norm=outer_norm)
    features, table = inputs(rows=VOCAB + 3)
    before = dense_logits(connector, features).detach()
    connector.prune(KEPT)
    ids = KEPT.sort().values
    assert connector.config.kept_tokens == len(KEPT)
    assert connector.w2.weight.shape == (len(KEPT), D_TEXT) and connector.w2.out_features == 7
    targets = ids[torch.arange(2 * 3 * 5) % len(ids)].view(2, *GRID)
    hidden = connector.hidden(features)
    result = connector.mixture(hidden, table, targets)
    kept = before[..., ids]
    torch.testing.assert_close(
        result.target_logits, before.gather(-1, targets[..., None])[..., 0], rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(result.logsumexp, kept.logsumexp(-1))
    p = before.softmax(-1)[..., ids]
    p = p / p.sum(-1, keepdim=True)
    torch.testing.assert_close(result.output, p @ table[ids])
    torch.testing.assert_close(connector(features, table), (p @ table[ids]).flatten(1, 2))
    dense = connector.vocab_distribution(features)
    assert dense.shape == (2, *GRID, VOCAB)
    torch.testing.assert_close(dense[..., ids], p)
    gone = torch.ones(VOCAB, dtype=torch.bool)
    gone[ids] = False
    assert (dense[..., gone] == 0).all()


def test_pruning_to_everything_changes_nothing():
    connector = build()
    features, table = inputs()
    before = connector(features, table)
    connector.prune(torch.arange(VOCAB).flip(0))
    torch.testing.assert_close(connector(features, table), before)


@pytest.mark.parametrize("config", [{}, {"outer_norm": False}, {"kept_tokens": 30}])
def test_pruning_twice_is_pruning_once(config):
    features, table = inputs()
    once, twice = build(**config), build(**config)
    few, more = torch.tensor([3, 17, 8]), torch.tensor([8, 2, 3, 17, 29])
    once.prune(few)
    twice.prune(more)
    twice.prune(few)
    assert torch.equal(twice.token_ids, few.sort().values)
    torch.testing.assert_close(twice(features, table), once(features, table))


def test_pruning_errors_leave_the_connector_alone():
    connector = build()
    features, table = inputs()
    before = connector(features, table)
    for ids, message in (
        ([1, 2, 1], "duplicates"),
        ([0, VOCAB], "must be in"),
        ([-1, 3], "must be in"),
        ([], "must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            connector.prune(torch.tensor(ids, dtype=torch.int64))
    assert torch.equal(connector(features, table), before) and connector.token_ids is None
    connector.prune(KEPT)
    with pytest.raises(ValueError, match="pruned before"):
        connector.prune(torch.tensor([2, 4]))


def test_pruned_connector_round_trips_through_its_config():
    pruned = build(gamma=4.0)
    features, table = inputs()
    pruned.prune(KEPT)
    fresh = AlignConnector(pruned.config, D_VISION, D_TEXT, VOCAB).double()
    assert fresh.state_dict().keys() == pruned.state_dict().keys()
    fresh.load_state_dict(pruned.state_dict(), strict=True)
    assert torch.equal(fresh(features, table), pruned(features, table))
    assert torch.equal(fresh.token_ids, pruned.token_ids)


def test_pruned_connector_in_bf16():
    pruned = build(gamma=3.0).float()
    features, table = (tensor.float() for tensor in inputs())
    pruned.prune(KEPT)
    output, p = pruned(features, table), pruned.vocab_distribution(features)
    pruned.bfloat16()
    half = pruned(features.bfloat16(), table.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), output, rtol=0, atol=0.2)
    dense = pruned.vocab_distribution(features.bfloat16())
    torch.testing.assert_close(dense, p, rtol=0, atol=0.1)


def test_pruning_keeps_what_is_frozen_frozen_and_what_trains_training():
    connector = build()
    connector.w2.requires_grad_(False)
    connector.prune(KEPT)
    assert not connector.w2.weight.requires_grad and connector.outer_norm_weight.requires_grad
    connector(*inputs()).sum().backward()
    for name, parameter in connector.named_parameters():
        assert (parameter.grad is not None) == (name != "w2.weight"), name


def test_row_of_and_keeps():
    connector = build()
    ids = torch.tensor([[-100, 0, 8], [39, 17, -1]])
    assert torch.equal(connector.row_of(ids), ids)
    expected = [True, True, False, False]
    assert connector.keeps(torch.tensor([0, 39, 40, -1])).tolist() == expected
    connector.prune(KEPT)  # rows: 0 2 3 8 17 31 39
    assert connector.row_of(ids).tolist() == [[-100, 0, 3], [6, 4, -1]]
    assert connector.keeps(torch.tensor([[-1, 0, 1], [39, 40, 400]])).tolist() == [
        [False, True, False],
        [True, False, False],
    ]
    for missing in (1, 38, 40):
        with pytest.raises(ValueError, match=f"{missing} is not in the pruned vocabulary"):
            connector.row_of(torch.tensor([0, missing]))


# --- inspection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("rows_per_block", [4, 1000])
def test_top_tokens_and_telemetry_equal_the_dense(pruned, rows_per_block, monkeypatch):
    connector = build(gamma=3.0)
    if pruned:
        connector.prune(KEPT)
    size = 4 * connector.w2.out_features * rows_per_block
    monkeypatch.setattr("alignvlm.connectors.inspection.DENSE_BYTES", size)
    features, _ = inputs()
    dense = connector.vocab_distribution(features)
    probabilities, ids = connector.top_tokens(features, k=5)
    assert probabilities.shape == ids.shape == (2, *GRID, 5)
    torch.testing.assert_close(probabilities, dense.topk(5).values)
    assert torch.equal(ids, dense.topk(5).indices)
    entropy = -torch.special.xlogy(dense, dense).sum(-1)
    telemetry = connector.telemetry(features)
    assert telemetry.entropy == pytest.approx(entropy.mean().item())
    assert telemetry.effective_vocab == pytest.approx(entropy.exp().mean().item())
    assert telemetry.top_probability == pytest.approx(dense.amax(-1).mean().item())
    assert 1 <= telemetry.effective_vocab <= connector.w2.out_features


def test_top_tokens_of_few_rows_and_no_rows():
    connector = build()
    connector.prune(KEPT)
    assert connector.top_tokens(inputs()[0], k=50)[1].shape == (2, *GRID, len(KEPT))
    none = inputs(tiles=0)[0]
    assert connector.top_tokens(none, k=3)[1].shape == (0, *GRID, 3)
    assert connector.vocab_distribution(none).shape == (0, *GRID, VOCAB)


def test_mixture_without_a_table_gives_the_loss_alone():
    connector = build()
    features, _ = inputs()
    targets = torch.randint(-1, VOCAB, (2, *GRID))
    result = connector.mixture(connector.hidden(features), None, targets)
    assert result.output is None
    loss = (result.logsumexp - result.target_logits)[targets >= 0]
    expected = torch.nn.functional.cross_entropy(
        dense_logits(connector, features)[targets >= 0], targets[targets >= 0], reduction="none"
    )
    torch.testing.assert_close(loss, expected)
