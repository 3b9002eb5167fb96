"""ALIGN in closed form: P_vocab of the features that say tokens is what was asked for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from alignvlm import AlignVLMForConditionalGeneration
from alignvlm.connectors import CONNECTORS, AlignConnector, build_connector
from alignvlm.connectors.closed_form import inverse_covariance, key_norms, mixture_weights
from alignvlm.connectors.configs import AlignConfig, connector_config
from alignvlm.errors import ConfigError
from alignvlm.ops import vocab_stats
from alignvlm.weights import resolve as hub

EXACT = 1e-15
"""An eps that does not blur the norms."""


def head(vocab: int, width: int, spread: float = 0.2, seed: int = 0) -> Tensor:
    """Rows that lean on each other, of different lengths, far from zero on average; fp64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    turn, _ = torch.linalg.qr(normal(width, width))
    # variances 1,600 apart: those of SmolLM2's head are 2,400
    rows = (normal(vocab, width) * torch.linspace(0.05, 2, width)) @ turn
    return rows * torch.exp(spread * normal(vocab, 1)) + normal(width)


def keyed(rows: Tensor, gamma: float = 6.0, **config) -> AlignConnector:
    connector = AlignConnector(
        AlignConfig(init="keys", gamma=gamma, eps=EXACT, **config), rows.shape[1], *rows.shape[::-1]
    ).to(rows.dtype)
    connector.init_from_lm_head(rows)
    connector.init_keys()
    return connector


def said(connector: AlignConnector, ids: Tensor, q: Tensor) -> Tensor:
    """P_vocab ``[n, vocab]`` of the features of candidates."""
    table = torch.zeros(connector.vocab_size, connector.w2.in_features, dtype=q.dtype)
    return connector.vocab_distribution(connector.features_of(ids, q, table))


def ones(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.ones(count, 1, dtype=dtype)


def fp64(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# --- one token -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab", "width", "spread"), [(300, 16, 0), (500, 32, 0.2), (1000, 32, 0.2), (2000, 64, 0.3)]
)
@pytest.mark.parametrize("gamma", [3.0, 8.0])
def test_each_token_is_said(vocab, width, spread, gamma):
    ids = torch.arange(vocab)
    p = said(keyed(head(vocab, width, spread), gamma), ids[:, None], ones(vocab))
    assert torch.equal(p.argmax(-1), ids)
    torch.testing.assert_close(p.sum(-1), ones(vocab)[:, 0])


def test_rows_alone_do_not_say_their_tokens():
    """The test above is worth something: without the closed form these heads fail it."""
    rows = head(2000, 64, 0.3)
    plain = AlignConnector(AlignConfig(gamma=8.0), 64, 64, 2000).double()
    plain.init_from_lm_head(rows)
    with torch.no_grad():
        plain.w1.weight.copy_(torch.eye(64))
    p = plain.vocab_distribution(rows - rows.mean(0))
    assert (p.argmax(-1) == torch.arange(2000)).double().mean() < 0.9


def test_the_inverse_covariance_is_that_of_what_the_inner_norm_leaves():
    rows = head(400, 24)
    stats = vocab_stats(rows)
    inverse = inverse_covariance(stats)
    centred = rows - rows.mean(0)
    centring = torch.eye(24, dtype=torch.float64) - 1 / 24
    covariance = centring @ (centred.T @ centred / len(rows)) @ centring
    torch.testing.assert_close(inverse, torch.linalg.pinv(covariance, hermitian=True))
    assert inverse.sum(0).abs().max() < 1e-10
    norms = key_norms(rows, stats.mean, inverse)
    torch.testing.assert_close(norms.square(), torch.diag(centred @ inverse @ centred.T))
    # so says the module's docstring: sqrt(D) on average
    assert norms.square().mean() == pytest.approx(23, rel=1e-6)


# --- several tokens ------------------------------------------------------------------------------

shares = st.lists(st.floats(0.02, 1), min_size=2, max_size=4).map(
    lambda values: sorted((v / sum(values) for v in values), reverse=True)
)


@pytest.mark.parametrize(("vocab", "width", "spread"), [(300, 64, 0.1), (500, 64, 0), (300, 32, 0)])
def test_ratios_are_exact(vocab, width, spread):
    connector = keyed(head(vocab, width, spread))

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(q=shares, seed=st.integers(0, 10**6))
    def check(q, seed):
        order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
        ids = order[: len(q)][None]
        p = said(connector, ids, fp64(*q)).gather(1, ids)[0].log()
        expected = fp64(*q)[0].log()
        torch.testing.assert_close(p - p[0], expected - expected[0], rtol=1e-6, atol=1e-9)

    check()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(q=shares, seed=st.integers(0, 10**6))
def test_little_is_left_to_other_tokens(q, seed):
    # in 64 dimensions the sum of four keys is now and then nearer to a fifth: half of P_vocab
    connector = keyed(head(600, 128, 0.1, seed % 3), gamma=12)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
    p = said(connector, order[: len(q)][None], fp64(*q))[0]
    torch.testing.assert_close(p[order[: len(q)]], fp64(*q)[0], rtol=0.02, atol=1e-3)
    assert p[order[len(q) :]].sum() < 0.02


def test_the_level_is_the_highest_possible():
    """Of the two roots the one that leaves least to the others: logits are high, not low."""
    connector = keyed(head(300, 64, 0.1), gamma=12)
    ids, q = torch.tensor([[4, 9]]), fp64(0.7, 0.3)
    z = (
        connector.hidden(connector.features_of(ids, q, torch.zeros(300, 64)))
        @ connector.w2.weight.T
    )
    assert (z[0, ids[0]] > z.mean()).all()


def test_the_gradient_is_that_of_the_logarithm():
    connector = keyed(head(300, 64, 0.1), gamma=12)
    table, ids = torch.randn(300, 64, dtype=torch.float64), torch.tensor([[7, 3, 250]])

    def loss(q: Tensor, target: int) -> Tensor:
        features = connector.features_of(ids, q, table)[None, None]
        read = connector.read(features, None, torch.tensor([[target]]))
        return -read.target_log_p.sum()

    for place, target in enumerate(ids[0].tolist()):
        q = fp64(0.6, 0.3, 0.1).requires_grad_()
        assert torch.autograd.gradcheck(lambda q, t=target: loss(q, t), q, eps=1e-7, rtol=1e-5)
        (gradient,) = torch.autograd.grad(loss(q, target), q)
        expected = torch.ones(1, 3, dtype=torch.float64)  # of the softmax: q sums to 1
        expected[0, place] -= 1 / q[0, place].item()
        torch.testing.assert_close(gradient, expected, rtol=0.01, atol=0.01)


def test_only_the_ratios_of_q_count():
    connector, ids = keyed(head(300, 64)), torch.tensor([[7, 3, 250]])
    q = fp64(0.6, 0.3, 0.1)
    torch.testing.assert_close(said(connector, ids, q), said(connector, ids, 0.25 * q))


# --- tokens that cannot be told apart ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("apart", [0, 1e-12, 1e-9, 1e-6, 1e-4])
def test_twins_fall_back_to_the_surest(apart, dtype):
    rows = head(300, 64, 0.1)
    rows[5] = rows[7] + apart * torch.randn(64, dtype=torch.float64)
    connector = keyed(rows.to(dtype))
    ids, table = torch.tensor([[7, 5], [7, 5], [7, 9]]), rows.to(dtype)
    q = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.9, 0.1]], dtype=dtype, requires_grad=True)
    features = connector.features_of(ids, q, table)
    alone = connector.features_of(ids[:1, :1], ones(1, dtype), table)
    torch.testing.assert_close(features[:2], alone.expand(2, -1))
    read = connector.read(features[None, None], table, ids[None, :, 0])
    assert (read.target_log_p.exp()[0] > 0.3).all()
    (gradient,) = torch.autograd.grad(read.target_log_p.sum(), q)
    assert gradient.isfinite().all()
    assert (gradient[:2] == 0).all()
    assert gradient[2].abs().min() > 0.01  # a twin does not stop what stands beside it


def test_more_alike_tokens_need_less_doubt():
    """Ratios near one are still possible where far ones are not."""
    rows = head(300, 64, 0.1)
    rows[5] = rows[7] + 0.05 * rows[9]
    connector, ids = keyed(rows), torch.tensor([[7, 5]])
    p = said(connector, ids, fp64(0.51, 0.49))[0]
    assert (p[7] / p[5]).item() == pytest.approx(51 / 49, rel=1e-6)
    alone = said(connector, torch.tensor([[7]]), ones(1))
    torch.testing.assert_close(said(connector, ids, fp64(1 - 1e-9, 1e-9)), alone)


def test_a_row_at_the_mean_makes_no_nan():
    rows = head(300, 32)
    rows[8] = rows.mean(0)
    rows -= rows.mean(0)
    connector = keyed(rows)
    for q in (fp64(0.6, 0.4), fp64(0.5, 0.5)):
        assert connector.features_of(torch.tensor([[8, 4]]), q, rows).isfinite().all()
        assert connector.features_of(torch.tensor([[4, 8]]), q, rows).isfinite().all()


# --- padding, pruning, types ---------------------------------------------------------------------


def test_padding_and_what_has_no_probability_do_not_count():
    rows = head(300, 32)
    connector = keyed(rows)
    expected = connector.features_of(torch.tensor([[4, 9]]), fp64(0.7, 0.3), rows)
    for ids, q in [
        ([[4, 9, -1, -1]], (0.7, 0.3, 0.0, 0.0)),
        ([[4, 9, 11]], (0.7, 0.3, 0.0)),
        ([[4, -1, 9]], (0.7, 0.0, 0.3)),
    ]:
        found = connector.features_of(torch.tensor(ids), fp64(*q), rows)
        torch.testing.assert_close(found, expected)
    single = connector.features_of(torch.tensor([[4, -1]]), fp64(1.0, 0.0), rows)
    assert torch.equal(single, connector.features_of(torch.tensor([[4]]), ones(1), rows))
    nothing = connector.features_of(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2), rows)
    assert nothing.shape == (0, 32)


def test_places_do_not_disturb_each_other():
    rows = head(300, 32)
    connector = keyed(rows)
    ids = torch.tensor([[4, 9, 2], [5, -1, -1], [7, 1, -1]])
    q = torch.tensor([[0.5, 0.3, 0.2], [1, 0, 0], [0.8, 0.2, 0]], dtype=torch.float64)
    together = connector.features_of(ids, q, rows)
    for place in range(3):
        own = connector.features_of(ids[place : place + 1], q[place : place + 1], rows)
        torch.testing.assert_close(together[place], own[0])


KEPT = torch.tensor([31, 2, 3, 250, 8, 39, 0, 120])


def test_pruning_keeps_what_is_said():
    rows = head(300, 32)
    connector = keyed(rows)
    before = said(connector, KEPT[:, None], ones(8))[:, KEPT]
    connector.prune(KEPT)
    p = said(connector, KEPT[:, None], ones(8))
    assert torch.equal(p.argmax(-1), KEPT)
    torch.testing.assert_close(p[:, KEPT], before / before.sum(-1, keepdim=True))
    ids, q = torch.tensor([[250, 8, -1]]), fp64(0.75, 0.25, 0)
    p = said(connector, ids, q)[0]
    assert (p[250] / p[8]).item() == pytest.approx(3, rel=1e-6)
    with pytest.raises(ValueError, match="token id 7 is not in the pruned vocabulary"):
        said(connector, torch.tensor([[7]]), ones(1))


def test_a_vocabulary_kept_from_the_start_is_the_pruned_one():
    rows = head(300, 32)
    pruned = keyed(rows)
    pruned.prune(KEPT)
    config = AlignConfig(
        init="keys", gamma=6.0, eps=EXACT, kept_tokens=len(KEPT), full_statistics=True
    )
    connector = AlignConnector(config, 32, 32, 300).double()
    connector.init_from_lm_head(rows, KEPT)
    connector.init_keys()
    for name, value in pruned.state_dict().items():
        torch.testing.assert_close(connector.state_dict()[name], value, msg=name)
    p = said(connector, KEPT[:, None], ones(8))
    assert torch.equal(p.argmax(-1), KEPT)


def uneven_head(vocab: int, width: int) -> Tensor:
    """Rows whose directions' variances are 10,000 apart, far from zero on average; fp64."""
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    rows = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    mean = torch.randn(width, generator=generator, dtype=torch.float64)
    return (rows * torch.logspace(-2, 0, width, dtype=torch.float64)) @ turn + mean


@pytest.mark.parametrize("make", [lambda: head(1000, 64, 0.1), lambda: uneven_head(2000, 128)])
def test_half_precision_says_tokens_and_doubt_as_full_precision_does(make):
    rows = make().bfloat16()  # as heads are stored
    connector = keyed(rows.float()).bfloat16()
    assert connector.w2.weight.dtype == torch.bfloat16
    ids = torch.arange(len(rows))
    features = connector.features_of(ids[:, None], ones(len(rows), torch.bfloat16), rows)
    assert torch.equal(connector.top_tokens(features, 1)[1][:, 0], ids)
    pairs = ids.view(2, -1)[:, :400].T
    features = connector.features_of(pairs, torch.tensor([[0.75, 0.25]]).expand(400, -1), rows)
    p = connector.vocab_distribution(features).gather(1, pairs)
    assert (p[:, 0] / p[:, 1] / 3).log().abs().max() < 0.01
    # the visual tokens are of the model's type
    assert connector(features[None, None], rows).dtype == torch.bfloat16


# --- the config, files, other connectors ---------------------------------------------------------


@pytest.mark.parametrize("keys", [{"outer_norm": False}, {"w1_bias": True}])
def test_keys_need_both_norms_and_no_bias(keys):
    with pytest.raises((ConfigError, ValidationError), match="needs outer_norm and no w1_bias"):
        AlignConfig(init="keys", **keys)


def test_keys_are_set_only_where_they_are_asked_for():
    connector = AlignConnector(AlignConfig(), 16, 16, 50)
    with pytest.raises(ConfigError, match="init is 'lm_head', not 'keys'"):
        connector.init_keys()


def test_a_saved_model_still_says_what_it_read(make_model, tmp_path):
    model = make_model(connector_keys={"init": "keys", "gamma": 6.0})
    connector = model.model.connector
    connector.init_from_lm_head(model.lm_head.weight.detach())
    connector.init_keys()
    assert connector.key_mean.abs().max() > 0.01
    model.save_pretrained(tmp_path / "saved")
    loaded = AlignVLMForConditionalGeneration.from_pretrained(tmp_path / "saved").model.connector
    assert torch.equal(loaded.key_mean, connector.key_mean)
    table = model.get_input_embeddings().weight
    ids, q = torch.tensor([[4, 9], [5, -1]]), torch.tensor([[0.7, 0.3], [1, 0]])
    assert torch.equal(loaded.features_of(ids, q, table), connector.features_of(ids, q, table))
    half = AlignVLMForConditionalGeneration.from_pretrained(
        tmp_path / "saved", dtype=torch.bfloat16
    )
    kept = half.model.connector
    assert kept.w2.weight.dtype == torch.bfloat16
    assert torch.equal(kept.w1.weight, connector.w1.weight)
    assert torch.equal(kept.key_mean, connector.key_mean)


@pytest.mark.parametrize("name", sorted(set(CONNECTORS) - {"perceiver"}))
def test_other_connectors_take_the_embeddings_mean(name):
    small = {"ovis": {"visual_vocab_size": 17}, "c_abstractor": {"out_rows": 1, "out_cols": 2}}
    config = connector_config({"type": name, **small.get(name, {})})
    connector = build_connector(config, 12, 12, 30, (4, 4)).double()
    table = torch.randn(30, 12, dtype=torch.float64)
    ids = torch.tensor([[4, 9, -1], [5, -1, -1]])
    q = torch.tensor([[0.7, 0.3, 0], [1, 0, 0]], dtype=torch.float64, requires_grad=True)
    features = connector.features_of(ids, q, table)
    expected = torch.stack([0.7 * table[4] + 0.3 * table[9], table[5]])
    torch.testing.assert_close(features, expected)
    (gradient,) = torch.autograd.grad(features.sum(), q)
    assert gradient[0, 1].item() == pytest.approx(table[9].sum().item())


def test_weights_are_zero_where_there_is_no_token():
    eye = torch.eye(3, dtype=torch.float64)[None]
    real = torch.tensor([[True, False, True]])
    zeros = torch.zeros(1, 3, dtype=torch.float64)
    weights = mixture_weights(eye, fp64(0.5, 0, 0.5), zeros, zeros + 4, real)
    torch.testing.assert_close(weights, fp64(math.sqrt(0.5), 0, math.sqrt(0.5)))


# --- real and large heads ------------------------------------------------------------------------


def check_large(rows: Tensor, count: int) -> None:
    connector = AlignConnector(
        AlignConfig(init="keys", gamma=3.0), rows.shape[1], *rows.shape[::-1]
    )
    connector.init_from_lm_head(rows)
    connector.init_keys()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    ids = order[:count]
    features = connector.features_of(ids[:, None], ones(count, torch.float32), rows)
    top = connector.top_tokens(features, 1)[1][:, 0]
    assert (top == ids).double().mean() >= 0.999
    for q in ((0.9, 0.1), (0.6, 0.4)):
        pairs = order[:512].view(256, 2)
        wanted = torch.tensor([q]).expand(256, -1)
        p = said(connector, pairs, wanted).gather(1, pairs)
        divergence = (wanted * (wanted.log() - p.clamp_min(1e-12).log())).sum(-1)
        assert divergence.mean() <= 0.02


@pytest.mark.slow
def test_a_real_head():
    folder = hub.resolve("smollm2")
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        rows = file.get_tensor("model.embed_tokens.weight").float()
    check_large(rows, 4096)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_wide_heads(spread):
    check_large((0.02 * head(20_000, 2048, spread)).float(), 1024)
