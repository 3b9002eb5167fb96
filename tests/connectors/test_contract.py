"""What every entry of CONNECTORS promises."""

from __future__ import annotations

import pytest
import torch

from alignvlm.connectors import CONNECTORS, Connector, build_connector
from alignvlm.connectors.configs import CONNECTOR_TYPES, connector_config
from alignvlm.errors import ConfigError

D_VISION, D_TEXT, VOCAB = 8, 12, 30
SMALL = {
    "align": {},
    "mlp": {},
    "perceiver": {"num_latents": 5, "depth": 2, "num_heads": 2, "head_dim": 4},
    "ovis": {"visual_vocab_size": 17, "layer_norm": True},
    "h_reducer": {"kernel": 4},
    "c_abstractor": {"out_rows": 2, "out_cols": 3, "hidden_size": 16, "depth": 1},
}
GRIDS = [(4, 4), (3, 5), (6, 2), (1, 1)]
every_connector = pytest.mark.parametrize("name", CONNECTORS)


def build(name: str, grid: tuple[int, int] = (3, 5), **overrides) -> Connector:
    torch.manual_seed(0)
    config = connector_config({"type": name, **SMALL[name], **overrides})
    return build_connector(config, D_VISION, D_TEXT, VOCAB, grid)


def inputs(grid: tuple[int, int] = (3, 5), tiles: int = 2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(tiles, *grid, D_VISION, generator=generator).to(dtype)
    return features, torch.randn(VOCAB, D_TEXT, generator=generator).to(dtype)


def test_registry_matches_the_config():
    assert tuple(CONNECTORS) == CONNECTOR_TYPES == tuple(SMALL)


@every_connector
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_shape_and_dtype(name, grid, dtype):
    connector = build(name, grid).to(dtype)
    output = connector(*inputs(grid, tiles=3, dtype=dtype))
    assert output.shape == (3, connector.config.num_tokens(*grid), D_TEXT)
    assert output.dtype == dtype
    assert output.isfinite().all()


@every_connector
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_token_grid_fits_num_tokens(name, grid):
    config = build(name, grid).config
    layout = config.token_grid(*grid)
    if name == "perceiver":
        assert layout is None
    else:
        assert layout[0] * layout[1] == config.num_tokens(*grid)


@every_connector
def test_tiles_do_not_see_each_other(name):
    connector = build(name).double()
    features, table = inputs(tiles=4, dtype=torch.float64)
    alone = [connector(tile[None], table) for tile in features]
    torch.testing.assert_close(connector(features, table), torch.cat(alone))


@every_connector
def test_reading_gives_the_tokens_and_what_p_vocab_says(name):
    """The one call of the model. Who has no P_vocab refuses to be asked about it."""
    connector = build(name).double()
    features, table = inputs(dtype=torch.float64)
    count = connector.config.num_tokens(3, 5)
    read = connector.read(features, table)
    assert torch.equal(read.tokens, connector(features, table))
    assert read.target_log_p is None and read.blank_log_p is None
    targets = torch.randint(-1, VOCAB, (2, count), generator=torch.Generator().manual_seed(0))
    if name != "align":
        for asked in ((table, targets, None), (table, None, 3), (None, None, None)):
            with pytest.raises(ConfigError, match=f"needs the 'align' connector.*'{name}'"):
                connector.read(features, *asked)
        with pytest.raises(ConfigError, match=f"pruning needs the 'align' connector.*'{name}'"):
            connector.prune(torch.arange(3))
        return
    log_p = connector.vocab_distribution(features).log().flatten(1, 2)
    read = connector.read(features, table, targets, 3)
    torch.testing.assert_close(read.tokens, connector(features, table))
    torch.testing.assert_close(read.blank_log_p, log_p[..., 3])
    wanted = log_p.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    torch.testing.assert_close(read.target_log_p[targets >= 0], wanted[targets >= 0])
    alone = connector.read(features, None, targets)
    assert alone.tokens is None and alone.blank_log_p is None


@every_connector
def test_no_tiles(name):
    connector = build(name)
    features, table = inputs(tiles=0)
    assert connector(features, table).shape == (0, connector.config.num_tokens(3, 5), D_TEXT)


@every_connector
def test_features_need_not_be_contiguous(name):
    connector = build(name)
    features, table = inputs()
    strided = features.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(connector(strided, table), connector(features, table))


@every_connector
def test_gradients_reach_every_parameter(name):
    connector = build(name)
    features, table = inputs()
    features.requires_grad_()
    output = connector(features, table)
    (output * torch.randn_like(output)).sum().backward()
    for parameter_name, parameter in connector.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), parameter_name
    assert features.grad.flatten(0, 2).any(-1).all()


@pytest.mark.wrong_shapes
@every_connector
@pytest.mark.parametrize("shape", [(15, D_VISION), (2, 15, D_VISION), (1, 2, 3, 5, D_VISION)])
def test_only_a_grid_of_features_is_accepted(name, shape):
    with pytest.raises(ValueError, match="tiles, rows, cols, d_vision"):
        build(name)(torch.zeros(shape), inputs()[1])


@every_connector
def test_state_dict_round_trip(name):
    first, second = build(name), build(name)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn_like(parameter))
    features, table = inputs()
    assert not torch.equal(first(features, table), second(features, table))
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(features, table), second(features, table))


@every_connector
def test_meta_construction_then_load(name):
    real = build(name)
    with torch.device("meta"):
        connector = build(name)
        output = connector(torch.empty(2, 3, 5, D_VISION), torch.empty(VOCAB, D_TEXT))
    assert all(tensor.is_meta for tensor in connector.state_dict().values())
    assert connector.state_dict().keys() == real.state_dict().keys()
    assert output.shape == (2, connector.config.num_tokens(3, 5), D_TEXT)
    connector.load_state_dict(real.state_dict(), assign=True)
    torch.testing.assert_close(connector(*inputs()), real(*inputs()), rtol=0, atol=0)


@every_connector
def test_reset_parameters_fills_what_no_standard_layer_owns(name):
    with torch.device("meta"):
        connector = build(name)
    connector.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in connector.state_dict().values():
            tensor.fill_(torch.nan)
    for module in connector.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in connector.state_dict().values())


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("perceiver", "latents"), ("ovis", "table"), ("c_abstractor", "position")],
)
def test_raw_parameters_start_small(name, parameter):
    big = {"perceiver": {"num_latents": 500}, "ovis": {"visual_vocab_size": 500}}
    value = getattr(build(name, (20, 30), **big.get(name, {})), parameter)
    assert value.requires_grad
    assert 0.018 < value.std().item() < 0.022
    assert abs(value.mean().item()) < 0.002


@every_connector
def test_text_embedding_is_not_owned(name):
    connector = build(name)
    features, table = inputs()
    connector(features, table)
    tensors = [*connector.parameters(), *connector.buffers()]
    pointers = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert table.untyped_storage().data_ptr() not in pointers
    copies = [n for n, t in connector.state_dict().items() if t.shape == (VOCAB, D_TEXT)]
    assert copies == (["w2.weight"] if name == "align" else [])


@every_connector
def test_only_align_reads_the_text_embedding(name):
    connector = build(name)
    features, table = inputs()
    same = torch.equal(connector(features, table), connector(features, table + 1))
    assert same == (name != "align")


@every_connector
def test_config_survives_its_dict_form(name):
    config = build(name).config
    assert connector_config(config.model_dump()) == config
    assert connector_config(config) is config
    with pytest.raises(ValueError, match="frozen"):
        config.type = "mlp"


@every_connector
def test_unknown_key_names_the_nearest(name):
    key = next(key for key in type(build(name).config).model_fields if key != "type")
    with pytest.raises(ConfigError, match=f"{key}s.*did you mean '{key}'"):
        connector_config({"type": name, f"{key}s": 1})


@pytest.mark.parametrize(
    ("typo", "right"),
    [("aling", "align"), ("percever", "perceiver"), ("hreducer", "h_reducer")],
)
def test_unknown_connector_names_the_nearest(typo, right):
    with pytest.raises(ConfigError, match=f"{typo}.*{right}"):
        connector_config(typo)


@pytest.mark.parametrize("value", [{}, {"type": None}, {"type": "align", "gamma": -1}])
def test_bad_values_raise_config_error(value):
    with pytest.raises(ConfigError):
        connector_config(value)


def test_c_abstractor_names_both_grids():
    with pytest.raises(ValueError, match=r"4x4 grid.*3x5"):
        build("c_abstractor", (3, 5))(*inputs((4, 4)))


def test_c_abstractor_without_positions_takes_any_grid():
    connector = build("c_abstractor", (3, 5), position_embedding=False)
    assert connector(*inputs((4, 4))).shape == (2, 6, D_TEXT)


def test_h_reducer_pads_with_zeros_at_the_right():
    connector = build("h_reducer")
    features, table = inputs((2, 5))
    padded = torch.cat((features, torch.zeros(2, 2, 3, D_VISION)), dim=2)
    torch.testing.assert_close(connector(features, table), connector(padded, table))
