"""The recogniser of PP-OCRv6 small as a start for a page encoder: its weights, read off ONNX.

PaddleOCR's text-line recogniser (Apache-2.0) comes as an ONNX file in the wheel ``rapidocr``.
:mod:`alignvlm.line_reader` is the network; here its backbone and neck get their weights. ONNX is
needed once, when the weights are converted, and no ONNX package is: the file's few message types
are read here.

:mod:`alignvlm.hub` calls it: ``AutoModel.from_pretrained(resolve("pp-ocr"), **config_keys)`` is an
encoder with these weights whose other layers are new.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import WeightsError
from .line_reader import PRETRAINED, LineReaderConfig, LineReaderModel
from .recogniser import NECK


def convert_pp_ocr(onnx: Path) -> tuple[LineReaderModel, dict[str, Tensor]]:
    """Read PP-OCRv6 small's recogniser from its ONNX file.

    Returns:
        an encoder whose backbone and neck have these weights, and those weights alone.

    Raises:
        WeightsError: the file is damaged or holds another network.
    """
    graph = read_onnx(onnx)
    model = LineReaderModel(LineReaderConfig())
    neck = model.neck
    convolutions = [*model.backbone.convolutions(), neck.skip, neck.reduce, neck.local]
    norms = [norm for block in neck.blocks for norm in (block.norm1, block.norm2)] + [neck.norm]
    linears = [m for b in neck.blocks for m in (b.qkv, b.out, b.up, b.down)]
    try:
        pairs = [
            *zip(convolutions, graph.convolutions(), strict=True),
            *zip(norms, graph.layer_norms(NECK), strict=True),
            *zip(linears, graph.linears()[:-1], strict=True),
            (model.characters, _of_alphabet(graph, model.config.alphabet)),
        ]
        for module, (weight, bias) in pairs:
            for name, value in (("weight", weight), ("bias", bias)):
                parameter = getattr(module, name)
                if parameter.shape != value.shape:
                    raise ValueError(f"{value.shape} where {tuple(parameter.shape)} belongs")
                parameter.data.copy_(torch.from_numpy(np.array(value)))
    except (ValueError, KeyError, IndexError) as error:
        raise WeightsError(f"{onnx}: not PP-OCRv6 small's recogniser: {error}") from None
    first = model.backbone.stem.conv1.weight
    first.data = first.data.flip(1)  # the recogniser reads BGR
    state = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(PRETRAINED)}
    return model, state


def _of_alphabet(graph: Graph, alphabet: str) -> Pair:
    """The last linear layer's rows for CTC's blank and for the characters of an alphabet."""
    weight, bias = graph.linears()[-1]
    # class 0 is the blank, the last one the space
    known = ["", *graph.metadata["character"].split("\n"), " "]
    if len(known) != len(weight):
        raise ValueError(f"{len(known)} characters, {len(weight)} classes")
    place = {char: number for number, char in enumerate(known)}
    rows = [0, *(place[char] for char in alphabet)]
    return weight[rows], bias[rows]


class Node(NamedTuple):
    """One operation of an ONNX graph."""

    kind: str
    inputs: list[str]
    outputs: list[str]


Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


class Graph(NamedTuple):
    """Operations in order, float32 constants by name, and the file's own properties."""

    nodes: list[Node]
    tensors: dict[str, NDArray[np.float32]]
    metadata: dict[str, str]

    def convolutions(self) -> list[Pair]:
        """Weight and bias of each convolution in order, batch norms (eps 1e-5) folded in."""
        return [self._convolution(node) for node in self.nodes if node.kind == "Conv"]

    def _convolution(self, node: Node) -> Pair:
        weight = self.tensors[node.inputs[1]]
        if len(node.inputs) > 2:
            return weight, self.tensors[node.inputs[2]]
        after = next(n for n in self.nodes if node.outputs[0] in n.inputs)
        values = [self.tensors[name] for name in after.inputs if name in self.tensors]
        if after.kind == "BatchNormalization":
            scale, shift, mean, variance = values
            ratio = scale / np.sqrt(variance + np.float32(1e-5))
            return weight * ratio[:, None, None, None], shift - mean * ratio
        return weight, values[0].reshape(-1)

    def linears(self) -> list[Pair]:
        """Weight ``[out, in]`` and bias of each matrix product with a constant, in order."""
        return [self._linear(n) for n in self.nodes if n.kind == "MatMul" and self._constants(n)]

    def _linear(self, node: Node) -> Pair:
        after = next(n for n in self.nodes if node.outputs[0] in n.inputs)
        return self._constants(node)[0].T, self._constants(after)[0]

    def layer_norms(self, width: int) -> list[Pair]:
        """Weight and bias of each LayerNorm (exported as Div, Mul, Add) over ``width`` channels."""
        pairs = []
        for before, scale, shift in zip(self.nodes, self.nodes[1:], self.nodes[2:]):
            if (before.kind, scale.kind, shift.kind) == ("Div", "Mul", "Add"):
                values = self._constants(scale) + self._constants(shift)
                if [v.shape for v in values] == [(width,)] * 2:
                    pairs.append((values[0], values[1]))
        return pairs

    def _constants(self, node: Node) -> list[NDArray[np.float32]]:
        return [self.tensors[name] for name in node.inputs if name in self.tensors]


def read_onnx(path: Path) -> Graph:
    """Operations, float32 constants and properties of an ONNX file.

    Field numbers: ``onnx.proto`` (ModelProto.graph 7, metadata_props 14; GraphProto.node 1,
    initializer 5; NodeProto input 1, output 2, op_type 4; TensorProto dims 1, data_type 2, name 8,
    raw_data 9; StringStringEntryProto key 1, value 2).

    Raises:
        WeightsError: the file is not readable as ONNX.
    """
    nodes: list[Node] = []
    tensors: dict[str, NDArray[np.float32]] = {}
    metadata: dict[str, str] = {}
    try:
        model = memoryview(path.read_bytes())
        fields = list(_fields(model))
        graph = next(value for field, value in fields if field == 7)
        for field, value in fields:
            if field == 14:
                entry = {k: bytes(v).decode() for k, v in _fields(value)}
                metadata[entry[1]] = entry[2]
        for field, value in _fields(graph):
            if field == 1:
                parts = list(_fields(value))
                names = [[bytes(v).decode() for f, v in parts if f == k] for k in (1, 2, 4)]
                nodes.append(Node(names[2][0], names[0], names[1]))
            elif field == 5:
                parts = list(_fields(value))
                info = dict(parts)
                if info[2] == 1 and 9 in info:
                    shape = [v for f, v in parts if f == 1]
                    array = np.frombuffer(info[9], "<f4").reshape(shape)
                    tensors[bytes(info[8]).decode()] = array
    except (OSError, ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
        raise WeightsError(f"{path}: not a readable ONNX file: {error!r}") from None
    return Graph(nodes, tensors, metadata)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Field number and value of each entry of a protocol-buffers message (the wire format)."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                size, position = _varint(message, position)
            if size is None or position + size > len(message):
                raise ValueError(f"broken entry at byte {position}")
            value, position = message[position : position + size], position + size
        yield key >> 3, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
