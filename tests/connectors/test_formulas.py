"""Each connector against its equation, written out a second time with plain tensor algebra.

The formulas take only the numbers of the module's state_dict and compute in fp64.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alignvlm.connectors import CONNECTORS, build_connector
from alignvlm.connectors.configs import connector_config

D_VISION, D_TEXT, VOCAB, GRID = 6, 10, 23, (5, 7)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)


def softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def align(s: dict[str, Tensor], f: Tensor, table: Tensor, config) -> Tensor:
    h = f @ s["w1.weight"].T
    if config.w1_bias:
        h = h + s["w1.bias"]
    z = layer_norm(h, s["inner_norm.weight"], s["inner_norm.bias"]) @ s["w2.weight"].T
    if config.outer_norm:
        z = layer_norm(z, s["outer_norm_weight"], s["outer_norm_bias"])
    p = softmax(z)
    return sum(p[..., v, None] * table[v] for v in range(VOCAB)).flatten(1, 2)


def mlp(s: dict[str, Tensor], f: Tensor, table: Tensor, config) -> Tensor:
    h = gelu(f @ s["w1.weight"].T + s["w1.bias"])
    return (h @ s["w2.weight"].T + s["w2.bias"]).flatten(1, 2)


def ovis(s: dict[str, Tensor], f: Tensor, table: Tensor, config) -> Tensor:
    z = torch.einsum("trcd,vd->trcv", f, s["w.weight"])
    if config.layer_norm:
        z = layer_norm(z, s["norm.weight"], s["norm.bias"])
    return torch.einsum("trcv,ve->trce", softmax(z), s["table"]).flatten(1, 2)


def perceiver(s: dict[str, Tensor], f: Tensor, table: Tensor, config) -> Tensor:
    heads, width = config.num_heads, config.head_dim
    tiles = []
    for media in f.flatten(1, 2):
        latents = s["latents"]
        for i in range(config.depth):
            a, ff = f"layers.{i}.attention.", f"layers.{i}.feed_forward."
            x = layer_norm(media, s[a + "norm_media.weight"], s[a + "norm_media.bias"])
            y = layer_norm(latents, s[a + "norm_latents.weight"], s[a + "norm_latents.bias"])
            source = torch.cat((x, y))
            mixed = []
            for h in range(heads):
                rows = slice(h * width, (h + 1) * width)
                q = y @ s[a + "q.weight"][rows].T * width**-0.5
                k, v = (source @ s[a + name + ".weight"][rows].T for name in "kv")
                mixed.append(softmax(q @ k.T) @ v)
            latents = latents + torch.cat(mixed, 1) @ s[a + "out.weight"].T
            y = layer_norm(latents, s[ff + "0.weight"], s[ff + "0.bias"])
            latents = latents + gelu(y @ s[ff + "1.weight"].T) @ s[ff + "3.weight"].T
        y = layer_norm(latents, s["norm.weight"], s["norm.bias"])
        tiles.append(y @ s["w.weight"].T + s["w.bias"])
    return torch.stack(tiles)


def h_reducer(s: dict[str, Tensor], f: Tensor, table: Tensor, config) -> Tensor:
    tiles, rows, cols, width = f.shape
    kernel, tokens = s["conv.weight"], []
    for i in range(rows):
        for j in range(0, cols, config.kernel):
            merged = s["conv.bias"].expand(tiles, width)
            for k in range(config.kernel):
                if j + k < cols:
                    merged = merged + f[:, i, j + k] @ kernel[:, :, 0, k].T
            tokens.append(merged @ s["w.weight"].T + s["w.bias"])
    return torch.stack(tokens, 1)


def bottleneck(s: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """Channels last throughout: x is [tiles, rows, cols, channels]."""

    def conv1x1(name: str, x: Tensor) -> Tensor:
        y = x @ s[f"{prefix}{name}.weight"][:, :, 0, 0].T
        return y + s[f"{prefix}{name}.bias"] if f"{prefix}{name}.bias" in s else y

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, s[f"{prefix}{name}.weight"], s[f"{prefix}{name}.bias"], 1e-6)

    y = silu(norm("norm1", conv1x1("conv1", x)))
    _, rows, cols, _ = y.shape
    kernel, depthwise = s[prefix + "conv2.weight"], torch.zeros_like(y)
    for i in range(rows):
        for j in range(cols):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < rows and 0 <= j + dj < cols:
                        tap = kernel[:, 0, di + 1, dj + 1]
                        depthwise[:, i, j] += y[:, i + di, j + dj] * tap
    y = silu(norm("norm2", depthwise))
    squeezed = y.sum((1, 2), keepdim=True) / (rows * cols)
    y = y * sigmoid(conv1x1("se.expand", silu(conv1x1("se.reduce", squeezed))))
    y = norm("norm3", conv1x1("conv3", y))
    if prefix + "shortcut.0.weight" in s:
        x = norm("shortcut.1", conv1x1("shortcut.0", x))
    return silu(x + y)


def c_abstractor(s: dict[str, Tensor], f: Tensor, table: Tensor, config) -> Tensor:
    tiles, rows, cols, width = f.shape
    x = f
    if config.position_embedding:
        x = x + s["position"].view(rows, cols, width)
    for i in range(config.depth):
        x = bottleneck(s, f"net.0.{i}.", x)
    pooled = x.new_zeros(tiles, config.out_rows, config.out_cols, x.shape[-1])
    for i in range(config.out_rows):
        r = slice(rows * i // config.out_rows, -(-rows * (i + 1) // config.out_rows))
        for j in range(config.out_cols):
            c = slice(cols * j // config.out_cols, -(-cols * (j + 1) // config.out_cols))
            pooled[:, i, j] = x[:, r, c].flatten(1, 2).mean(1)
    x = pooled
    for i in range(config.depth):
        x = bottleneck(s, f"net.2.{i}.", x)
    x = x.flatten(1, 2) @ s["readout.0.weight"].T + s["readout.0.bias"]
    for i in range(1, config.mlp_depth):
        x = silu(x) @ s[f"readout.{2 * i}.weight"].T + s[f"readout.{2 * i}.bias"]
    return x


FORMULAS = {
    "align": align,
    "mlp": mlp,
    "perceiver": perceiver,
    "ovis": ovis,
    "h_reducer": h_reducer,
    "c_abstractor": c_abstractor,
}
SMALL_PERCEIVER = {"type": "perceiver", "num_latents": 4, "num_heads": 3, "head_dim": 5}
SMALL_C = {"type": "c_abstractor", "out_rows": 2, "out_cols": 3, "hidden_size": 8}
CASES = [
    {"type": "align"},
    {"type": "align", "gamma": 6.0, "w1_bias": True, "impl": "reference"},
    {"type": "align", "outer_norm": False},
    {"type": "mlp"},
    {"type": "mlp", "hidden_size": 17},
    {**SMALL_PERCEIVER, "depth": 1},
    {**SMALL_PERCEIVER, "depth": 2, "ff_mult": 2},
    {"type": "ovis", "visual_vocab_size": 31},
    {"type": "ovis", "visual_vocab_size": 31, "layer_norm": True, "impl": "reference"},
    {"type": "h_reducer"},
    {"type": "h_reducer", "kernel": 3},
    {"type": "h_reducer", "kernel": 1},
    {**SMALL_C, "depth": 1},
    {**SMALL_C, "depth": 2, "mlp_depth": 3, "position_embedding": False},
    {**SMALL_C, "depth": 2, "mlp_depth": 1, "hidden_size": D_VISION},
    {**SMALL_C, "depth": 1, "out_rows": 6, "out_cols": 9},
]


def name_of(case: dict) -> str:
    return "-".join(str(value) for value in case.values())


def test_every_connector_has_a_formula():
    assert set(FORMULAS) == set(CONNECTORS) == {case["type"] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_module_computes_its_formula(case):
    torch.manual_seed(0)
    config = connector_config(case)
    connector = build_connector(config, D_VISION, D_TEXT, VOCAB, GRID)
    with torch.no_grad():  # norms and biases away from one and zero
        for parameter in connector.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    features, table = torch.randn(2, *GRID, D_VISION), torch.randn(VOCAB, D_TEXT)
    with torch.no_grad():
        result = connector(features, table)
    numbers = {name: value.double() for name, value in connector.state_dict().items()}
    expected = FORMULAS[case["type"]](numbers, features.double(), table.double(), config)
    assert result.shape == (2, config.num_tokens(*GRID), D_TEXT)
    assert expected.std() > 0.01
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
