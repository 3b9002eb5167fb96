"""Folding ALIGN's LayerNorm into W2 for inference; statistics that survive half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from alignvlm.config import AlignConfig
from alignvlm.connectors import AlignConnector
from alignvlm.errors import ConfigError

D_VISION, D_TEXT, VOCAB, GRID = 8, 12, 40, (3, 5)
KEPT = torch.tensor([31, 2, 3, 17, 8, 39, 0])
CASES = ("full", "kept", "pruned", "pruned-kept")


def build(case: str = "full", **config) -> AlignConnector:
    """A frozen connector in fp64 whose norms are away from one and zero."""
    torch.manual_seed(0)
    if "kept" in case:
        config["kept_tokens"] = 30
    connector = AlignConnector(AlignConfig(gamma=3.0, **config), D_VISION, D_TEXT, VOCAB).double()
    connector.requires_grad_(False)
    for parameter in connector.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    if "pruned" in case:
        connector.prune(KEPT[KEPT < 30])
    return connector


def folded(connector: AlignConnector) -> AlignConnector:
    connector = copy.deepcopy(connector)
    connector.fold()
    return connector


def inputs(rows: int = VOCAB) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(2, *GRID, D_VISION, generator=generator, dtype=torch.float64)
    return features, torch.randn(rows, D_TEXT, generator=generator, dtype=torch.float64)


# --- folding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_a_folded_connector_gives_the_same(case, impl):
    whole = build(case, impl=impl)
    fast = folded(whole)
    features, table = inputs(VOCAB + 3)
    assert not torch.allclose(fast.w2.weight, whole.w2.weight)
    torch.testing.assert_close(fast(features, table), whole(features, table))
    targets = whole.top_tokens(features, 3)[1]
    one, two = (c.mixture(c.hidden(features), table, targets) for c in (whole, fast))
    for expected, found in zip(one, two, strict=True):
        torch.testing.assert_close(found, expected)
    assert fast.mixture(fast.hidden(features), None, targets).output is None


@pytest.mark.parametrize("case", CASES)
def test_inspecting_a_folded_connector(case):
    whole = build(case)
    fast = folded(whole)
    features, _ = inputs()
    torch.testing.assert_close(
        fast.vocab_distribution(features), whole.vocab_distribution(features)
    )
    torch.testing.assert_close(fast.entropy(features), whole.entropy(features))
    torch.testing.assert_close(
        torch.tensor(fast.telemetry(features)), torch.tensor(whole.telemetry(features))
    )
    one, two = (c.top_tokens(features, 4) for c in (whole, fast))
    torch.testing.assert_close(two[0], one[0])
    assert torch.equal(two[1], one[1])


@pytest.mark.parametrize("case", CASES)
def test_pruning_after_folding_is_folding_after_pruning(case):
    one, two = build(case), folded(build(case))
    few = torch.tensor([3, 17, 8])
    one.prune(few)
    two.prune(few)
    features, table = inputs()
    torch.testing.assert_close(two(features, table), one(features, table))
    assert two.config == one.config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folded_connector_can_be_cast(dtype):
    whole = build("pruned")
    features, table = inputs()
    expected = whole(features, table)
    fast = folded(whole).to(dtype)
    found = fast(features.to(dtype), table.to(dtype))
    assert found.dtype == dtype and fast.stats_covariance.dtype == torch.float32
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=30 * rounding)


def test_folding_does_not_overflow_in_half_precision():
    whole = build().float()
    features, table = (tensor.float() for tensor in inputs())
    fast = folded(whole)
    large = 1e4 * whole.hidden(features).flatten(1, 2)  # x² does not fit fp16
    found = fast.half().mixture(large.half(), table.half()).output
    expected = whole.mixture(large, table).output
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)


def test_under_autocast_the_variance_stays_in_full_precision():
    whole = build().float()
    fast = folded(whole)
    features, table = (tensor.float() for tensor in inputs())
    hidden = whole.hidden(features)
    expected = whole.mixture(hidden, table).output
    with torch.autocast("cpu", torch.bfloat16):
        found = fast.mixture(hidden, table).output
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_folded():
    training = build()
    training.w1.weight.requires_grad_()
    with pytest.raises(ConfigError, match=r"trains \(w1.weight\); freeze it"):
        training.fold()
    assert not training.folded and training.outer_norm_weight is not None
    with pytest.raises(ConfigError, match="no LayerNorm"):
        build(outer_norm=False).fold()
    fast = folded(build())
    with pytest.raises(ConfigError, match="cannot be folded; load the model again"):
        fast.fold()


def test_a_folded_connector_is_neither_saved_nor_loaded_into():
    whole = build()
    fast = folded(whole)
    state = whole.state_dict()
    with pytest.raises(ConfigError, match="cannot be saved; load the model again"):
        torch.nn.Sequential(fast).state_dict()
    with pytest.raises(ConfigError, match="cannot be loaded into"):
        fast.load_state_dict(state)
    with pytest.raises(ConfigError, match="cannot be initialised"):
        fast.init_from_lm_head(inputs()[1])


# --- statistics of the whole vocabulary ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_stay_in_full_precision(dtype):
    pruned = build("pruned").float()
    before = pruned.stats_covariance.clone()
    torch.nn.Sequential(pruned).to(dtype)
    assert pruned.w2.weight.dtype == dtype
    for name in ("mean", "covariance", "bias_mean", "bias_covariance", "bias_variance"):
        assert getattr(pruned, f"stats_{name}").dtype == torch.float32
    assert torch.equal(pruned.stats_covariance, before)
    pruned.float()
    assert torch.equal(pruned.stats_covariance, before)


def test_statistics_follow_to_double_and_to_another_device():
    pruned = build("pruned").float()
    assert pruned.double().stats_covariance.dtype == torch.float64
    assert pruned.half().stats_covariance.dtype == torch.float32
    assert pruned.to("meta", torch.bfloat16).stats_covariance.device.type == "meta"
    empty = pruned.to_empty(device="cpu")
    assert empty.stats_covariance.device.type == "cpu"
    assert empty.stats_covariance.dtype == torch.float32


def test_statistics_in_bf16_would_be_worse():
    """Why the buffers stay in fp32: along C's small eigenvectors a rounded C is wrong."""
    pruned = build("pruned").bfloat16()
    vectors = torch.linalg.eigh(pruned.stats_covariance)[1]
    x = 4 * vectors[:, :2].T.contiguous()
    expected = copy.deepcopy(pruned).double()._logits(x.double())
    full = pruned._logits(x)
    pruned.stats_covariance = pruned.stats_covariance.bfloat16()
    rounded = pruned._logits(x)
    error = [(found - expected).abs().max().item() for found in (full, rounded)]
    assert error[0] < 1e-5 and error[1] > 1e-3


def test_full_statistics_need_a_pruned_vocabulary_with_a_layer_norm():
    with pytest.raises(ValueError, match="full_statistics needs kept_tokens and outer_norm"):
        AlignConfig(full_statistics=True)
    with pytest.raises(ValueError, match="full_statistics needs"):
        AlignConfig(full_statistics=True, kept_tokens=3, outer_norm=False)


def test_without_full_statistics_there_are_no_buffers():
    names = build("kept").state_dict().keys()
    assert "token_ids" in names and not [name for name in names if name.startswith("stats_")]
    pruned = build("pruned", outer_norm=False)
    assert not pruned.config.full_statistics
    assert not [name for name in pruned.state_dict() if name.startswith("stats_")]


def test_full_statistics_from_the_head():
    """A new connector with ``full_statistics`` is one initialised whole, then pruned."""
    head = inputs()[1]
    torch.manual_seed(0)
    whole = AlignConnector(AlignConfig(), D_VISION, D_TEXT, VOCAB).double()
    whole.init_from_lm_head(head)
    whole.prune(KEPT)
    new = AlignConnector(whole.config, D_VISION, D_TEXT, VOCAB).double()
    new.reset_parameters()
    assert torch.equal(new.stats_covariance, torch.eye(D_TEXT, dtype=torch.float64))
    new.w1.load_state_dict(whole.w1.state_dict())
    new.init_from_lm_head(head, KEPT)
    features, _ = inputs()
    torch.testing.assert_close(new.vocab_distribution(features), whole.vocab_distribution(features))
