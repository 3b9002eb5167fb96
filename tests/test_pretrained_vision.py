"""The line reader: its weights from ONNX, its grid, and that it stays one trainable network."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

from alignvlm import hub, line_reader, recogniser
from alignvlm.errors import WeightsError
from alignvlm.line_reader import ALPHABET, LineReaderConfig, LineReaderModel
from alignvlm.pretrained_vision import convert_pp_ocr, read_onnx

TINY = {"image_size": [40, 80], "hidden_size": 16, "speller_depth": 1}
KNOWN = ALPHABET.replace(" ", "") + "\u4e00"


# --- Writing ONNX files -----------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def entry(field: int, value: int | bytes | str) -> bytes:
    """One entry of a protocol-buffers message."""
    if isinstance(value, int):
        return varint(field << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(entry(1, size) for size in array.shape)
    return dims + entry(2, 1) + entry(8, name) + entry(9, array.astype("<f4").tobytes())


class Writer:
    """An ONNX graph as the recogniser's exporter writes it."""

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.tensors: list[bytes] = []
        self.count = 0

    def constant(self, value: Tensor) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(tensor(name, value.detach().numpy()))
        return name

    def node(self, kind: str, *inputs: str) -> str:
        self.count += 1
        output = f"t{self.count}"
        names = b"".join(entry(1, name) for name in inputs)
        self.nodes.append(names + entry(2, output) + entry(4, kind))
        return output

    def conv(self, module: nn.Conv2d, normed: bool = False) -> None:
        out = self.node("Conv", "x", self.constant(module.weight))
        if not normed:
            self.node("Add", out, self.constant(module.bias.reshape(1, -1, 1, 1)))
            return
        # batch norm with scale 2, mean 0.5: its bias undoes the mean
        ones = torch.ones_like(module.bias)
        values = (2 * ones, module.bias, 0.5 * ones, 4 * ones)
        self.node("BatchNormalization", out, *map(self.constant, values))

    def linear(self, module: nn.Linear) -> None:
        out = self.node("MatMul", "x", self.constant(module.weight.T))
        self.node("Add", out, self.constant(module.bias))

    def layer_norm(self, module: nn.LayerNorm) -> None:
        out = self.node("Mul", self.node("Div", "x", "y"), self.constant(module.weight))
        self.node("Add", out, self.constant(module.bias))

    def save(self, path: Path) -> Path:
        parts = [entry(1, n) for n in self.nodes] + [entry(5, t) for t in self.tensors]
        characters = entry(14, entry(1, "character") + entry(2, "\n".join(KNOWN)))
        path.write_bytes(entry(1, 8) + entry(7, b"".join(parts)) + characters)
        return path


def write_recogniser(model: LineReaderModel, path: Path) -> Path:
    """The model's pretrained part as the recogniser's file has it, with one character more."""
    writer = Writer()
    for conv in model.backbone.convolutions():
        writer.conv(conv)
    for conv in (model.neck.skip, model.neck.reduce, model.neck.local):
        writer.conv(conv, normed=True)
    for block in model.neck.blocks:
        writer.layer_norm(block.norm1)
        writer.linear(block.qkv)
        writer.node("MatMul", "x", "y")  # attention itself has no constants
        writer.linear(block.out)
        writer.layer_norm(block.norm2)
        writer.linear(block.up)
        writer.linear(block.down)
    writer.layer_norm(model.neck.norm)
    known = ["", *KNOWN, " "]
    classes = nn.Linear(recogniser.NECK, len(known))
    rows = [0, *(known.index(char) for char in ALPHABET)]
    with torch.no_grad():
        classes.weight[rows] = model.characters.weight
        classes.bias[rows] = model.characters.bias
    writer.linear(classes)
    return writer.save(path)


# --- Weights ----------------------------------------------------------------------------------


def test_every_weight_arrives_where_it_belongs(tmp_path: Path) -> None:
    source = LineReaderModel(LineReaderConfig(**TINY))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_(torch.randn_like(parameter))
    _, state = convert_pp_ocr(write_recogniser(source, tmp_path / "rec.onnx"))
    weights = source.state_dict()
    expected = {k: v for k, v in weights.items() if k.startswith(line_reader.PRETRAINED)}
    expected["backbone.stem.conv1.weight"] = expected["backbone.stem.conv1.weight"].flip(1)
    ratio = 2 / np.sqrt(4 + 1e-5)
    for name in ("skip", "reduce", "local"):
        expected[f"neck.{name}.weight"] = expected[f"neck.{name}.weight"] * ratio
        expected[f"neck.{name}.bias"] = expected[f"neck.{name}.bias"] - 0.5 * ratio
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, msg=key)


def test_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    writer = Writer()
    writer.conv(nn.Conv2d(3, 5, 3))
    with pytest.raises(WeightsError, match="not PP-OCRv6 small's recogniser") as caught:
        convert_pp_ocr(writer.save(tmp_path / "other.onnx"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x3a\xff\x01abc", b"\x0b", b"not a network"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rec.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable ONNX file"):
        read_onnx(tmp_path / "rec.onnx")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    writer = Writer()
    writer.conv(nn.Conv2d(3, 5, 3))
    path = writer.save(tmp_path / "rec.onnx")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="not a readable ONNX file"):
        read_onnx(path)


def test_other_types_of_constants_are_skipped(tmp_path: Path) -> None:
    whole = entry(1, 1) + entry(2, 7) + entry(8, "int64") + entry(9, struct.pack("<q", 3))
    real = tensor("real", np.array([1.5]))
    path = tmp_path / "x.onnx"
    path.write_bytes(entry(7, entry(5, whole) + entry(5, real)))
    assert {k: v.tolist() for k, v in read_onnx(path).tensors.items()} == {"real": [1.5]}


def test_a_wheel_becomes_a_folder_with_the_pretrained_part_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = hub.PYPI[("rapidocr", "3.10.0")]
    source = LineReaderModel(LineReaderConfig(**TINY))
    onnx = write_recogniser(source, tmp_path / "rec.onnx")
    wheel = tmp_path / "rapidocr.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(onnx, spec.file)
        archive.writestr(spec.licence_file, "Apache")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(hub.PYPI, ("rapidocr", "3.10.0"), replace(spec, sha256=sha256))
    monkeypatch.setattr(hub, "_download", lambda _, folder: Path(shutil.copy(wheel, folder)))
    saved = load_file(hub.pull("pp-ocr", progress=False) / "model.safetensors")
    assert torch.equal(saved["neck.norm.weight"], source.neck.norm.weight)
    assert {key.split(".")[0] for key in saved} == {"backbone", "neck", "characters"}
    assert hub.resolve("pypi:rapidocr==3.10.0", offline=True) == hub.resolve("pp-ocr", offline=True)


def saved_start(folder: Path) -> dict[str, Tensor]:
    """A folder as ``hub.resolve`` makes it: the pretrained part alone."""
    model = LineReaderModel(LineReaderConfig(**TINY))
    state = model.state_dict()
    start = {k: v for k, v in state.items() if k.startswith(line_reader.PRETRAINED)}
    model.save_pretrained(folder, state_dict=dict(start))  # which it empties
    return start


def test_a_start_fits_any_cell_geometry(tmp_path: Path) -> None:
    start = saved_start(tmp_path)
    keys = {"patch_size": [24, 12], "cell_features": [2, 3], "image_size": [48, 96]}
    model = AutoModel.from_pretrained(tmp_path, **keys)
    assert (model.config.patch_size, model.config.cell_px) == ([24, 12], (32, 24))
    for key, value in start.items():
        assert torch.equal(model.state_dict()[key], value), key
    # what is not pretrained is initialised, not left as memory was
    speller = model.speller
    assert 0 < speller.window.weight.std() < 1
    assert torch.equal(speller.norm.weight, torch.ones(16)) and 0 < model.blank.std() < 3


# --- The network ------------------------------------------------------------------------------


def test_excitation_in_a_window_is_local_and_else_plain() -> None:
    x = torch.randn(1, 8, 4, 6)
    whole = recogniser.WindowedExcitation(8, (99, 99))
    gate = F.hardsigmoid(whole.conv2(F.relu(whole.conv1(x.mean((2, 3), keepdim=True)))))
    torch.testing.assert_close(whole(x), x * gate)
    local = recogniser.WindowedExcitation(8, (2, 4))
    local.load_state_dict(whole.state_dict())
    # the windows do not divide the columns: the last one averages what is left
    torch.testing.assert_close(local(x)[..., :2, 4:], whole(x[..., :2, 4:]))
    torch.testing.assert_close(local(x)[..., 2:, :4], whole(x[..., 2:, :4]))


# --- The real weights -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pulled_backbone_is_the_one_transformers_defines() -> None:
    """Downloads 27 MB through pip; compares with ``PPLCNetV4Backbone`` on noise."""
    modeling = pytest.importorskip("transformers.models.pp_lcnet_v4.modeling_pp_lcnet_v4")
    model = AutoModel.from_pretrained(hub.pull("pp-ocr", progress=False)).eval()
    assert isinstance(model, LineReaderModel)
    theirs = modeling.PPLCNetV4Backbone(modeling.PPLCNetV4Config(out_features=["stage4"])).eval()
    stem, blocks = theirs.encoder.convolution, theirs.encoder.blocks
    layers = [stem.stem1, stem.stem2a, stem.stem2b, stem.stem3, stem.stem4]
    for block in (block for stage in blocks for block in stage.blocks):
        gate = getattr(block.token_squeeze_excitation, "convolutions", [])
        layers += [block.token_conv, *list(gate)[::2], block.channel_conv1, block.channel_conv2]
    with torch.no_grad():
        for mine, layer in zip(model.backbone.convolutions(), layers, strict=True):
            if isinstance(layer, nn.Conv2d):
                layer.load_state_dict(mine.state_dict())
                continue
            norm = layer.normalization
            layer.convolution.weight.copy_(mine.weight)
            norm.running_var.fill_(1 - norm.eps)
            norm.bias.copy_(mine.bias)
        line = torch.randn(1, 3, 48, 160)
        expected = theirs(line).feature_maps[-1]
        torch.testing.assert_close(model.backbone(line), expected, atol=1e-4, rtol=1e-4)
