"""Weights read off an ONNX file arrive in the right layers, with the same outputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx", reason="needed once, to make the reader's weights")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from training.smol.onnx_weights import (  # noqa: E402
    Graph,
    Layer,
    convolutions,
    execution_order,
    fill,
    layer_norms,
    linears,
)

WIDTH, HIDDEN, OUT = 6, 6, 5


class Block(nn.Module):
    """As transformers' PP-OCR models have it."""

    def __init__(self, before: int, after: int, norm: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, padding=1, bias=not norm)
        self.normalization = nn.BatchNorm2d(after) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.normalization(self.convolution(x)))


class Small(nn.Module):
    """Its layers are declared in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(HIDDEN, OUT)
        self.norm = nn.LayerNorm(HIDDEN)
        self.plain = Block(4, HIDDEN, norm=False)
        self.folded = Block(WIDTH, 4)
        self.first = Block(3, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.folded(self.first(x)))
        return self.head(self.norm(x.mean((2, 3))))


@torch.no_grad()
def trained(seed: int = 0) -> Small:
    """With batch norms that do something."""
    torch.manual_seed(seed)
    model = Small().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.5, 2)
            module.bias.normal_()
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


class Writer:
    """Writes the operations of :class:`Small` as PaddlePaddle's exporter does."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.constants: list = []
        self.last = "x"

    def constant(self, value: Tensor | np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        array = np.ascontiguousarray(np.asarray(value), np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *constants, **attributes) -> None:
        inputs = [self.last, *(self.constant(value) for value in constants)]
        self.last = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [self.last], **attributes))

    def block(self, block: Block, folded: bool = False, added: bool = False) -> None:
        norm, weight = block.normalization, block.convolution.weight
        around = {"pads": [1, 1, 1, 1]}
        if isinstance(norm, nn.Identity):
            if added:  # the bias as an operation of its own
                self.add("Conv", weight, **around)
                self.add("Add", block.convolution.bias.view(1, -1, 1, 1))
            else:
                self.add("Conv", weight, block.convolution.bias, **around)
        elif folded:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            shift = norm.bias - norm.running_mean * scale
            self.add("Conv", weight * scale[:, None, None, None], shift, **around)
        else:
            self.add("Conv", weight, **around)
            values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            self.add("BatchNormalization", *values, epsilon=norm.eps)
        self.add("Relu")

    def write(self, path: Path) -> Graph:
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)],
            self.constants,
        )
        model = helper.make_model(graph)
        helper.set_model_props(model, {"character": "a\nb\nc"})
        onnx.save(model, path)
        return Graph(path)


@torch.no_grad()
def exported(model: Small, path: Path, added: bool = False, shared: bool = False) -> Graph:
    writer = Writer()
    writer.block(model.first)
    writer.block(model.folded, folded=True)
    writer.block(model.plain, added=added)
    # a LayerNorm as Div, Mul, Add
    writer.add("Div", np.ones(()))
    writer.add("Mul", model.norm.weight)
    writer.add("Add", model.norm.bias)
    writer.add("MatMul", model.head.weight.T)
    writer.add("Add", model.head.bias)
    if shared:  # one constant behind other names, and a value passed on
        first = writer.nodes[0]
        writer.nodes.insert(0, helper.make_node("Identity", [first.input[1]], ["again"]))
        writer.nodes.insert(1, helper.make_node("Identity", ["again"], ["once_more"]))
        first.input[1] = "once_more"
        writer.nodes.insert(3, helper.make_node("Identity", [first.output[0]], ["passed"]))
        writer.nodes[4].input[0] = "passed"
    return writer.write(path)


def filled(graph: Graph) -> Small:
    model = trained(seed=1)
    kinds = {
        nn.Conv2d: convolutions(graph),
        nn.Linear: linears(graph),
        nn.LayerNorm: layer_norms(graph, HIDDEN),
    }
    fill(model, torch.zeros(1, 3, 8, 8), graph, kinds)
    return model


@pytest.mark.parametrize("added", [False, True], ids=["bias inside", "bias added"])
@pytest.mark.parametrize("shared", [False, True], ids=["plain", "identities"])
def test_a_filled_model_computes_the_same(tmp_path, added, shared):
    model = trained()
    pixels = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = model(pixels)
        found = filled(exported(model, tmp_path / "small.onnx", added, shared))(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_layers_and_what_stands_in_them(tmp_path):
    model = trained()
    graph = exported(model, tmp_path / "small.onnx")
    first, folded, plain = convolutions(graph)
    assert first.bias is None and len(first.norm) == 4
    np.testing.assert_array_equal(first.norm[2], model.first.normalization.running_mean)
    assert folded.bias.shape == (4,) and folded.norm is None
    np.testing.assert_array_equal(plain.bias, model.plain.convolution.bias.detach())
    (linear,) = linears(graph)
    np.testing.assert_array_equal(linear.weight, model.head.weight.detach())
    (norm,) = layer_norms(graph, HIDDEN)
    np.testing.assert_array_equal(norm.weight, model.norm.weight.detach())
    assert layer_norms(graph, HIDDEN + 1) == []
    assert graph.metadata == {"character": "a\nb\nc"}


def test_layers_run_in_their_own_order():
    model = trained()
    order = execution_order(model, torch.zeros(1, 3, 8, 8), (nn.Conv2d, nn.Linear))
    convolution = [model.first, model.folded, model.plain]
    assert order == [*(block.convolution for block in convolution), model.head]
    # hooks are gone
    assert not any(module._forward_hooks for module in model.modules())


def test_what_does_not_fit_is_refused(tmp_path):
    model = trained()
    graph = exported(model, tmp_path / "small.onnx")
    layers, example = convolutions(graph), torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="Conv2d: 3 in the model, 2 given"):
        fill(model, example, graph, {nn.Conv2d: layers[:2]})
    with pytest.raises(ValueError, match="belongs"):
        fill(model, example, graph, {nn.Conv2d: layers[::-1]})
    norm_for_plain = layers[2]._replace(norm=layers[0].norm)
    with pytest.raises(ValueError, match="a batch norm and no place for it"):
        fill(model, example, graph, {nn.Conv2d: [*layers[:2], norm_for_plain]})


def test_a_bias_without_a_place_is_refused():
    model = nn.Conv2d(3, 2, 1, bias=False)
    layer = Layer(np.zeros((2, 3, 1, 1), np.float32), np.ones(2, np.float32), None)
    graph = SimpleNamespace()
    with pytest.raises(ValueError, match="a bias and no place for it"):
        fill(model, torch.zeros(1, 3, 4, 4), graph, {nn.Conv2d: [layer]})  # type: ignore[arg-type]
