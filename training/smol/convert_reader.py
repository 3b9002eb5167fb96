"""Make ``models/reader``: PP-OCRv6 small's detector and recogniser as a page encoder.

    python -m training.smol.convert_reader --out models/reader

The weights are those of the wheel ``rapidocr`` (PaddleOCR's, Apache-2.0), read off its ONNX files
once and stored in half precision. Outputs are compared with onnxruntime's on random pages and
lines before anything is written. Where a hub is reachable, the same weights are
``PaddlePaddle/PP-OCRv6_small_det_safetensors`` and ``PaddlePaddle/PP-OCRv6_small_rec_safetensors``.
Needs ``pip install onnx onnxruntime``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import onnxruntime
import torch
from torch import nn
from transformers.models.pp_ocrv6_small_det import PPOCRV6SmallDetConfig
from transformers.models.pp_ocrv6_small_rec import PPOCRV6SmallRecConfig

from alignvlm.reader import ReaderConfig, ReaderModel

from .onnx_weights import Graph, Layer, convolutions, execution_order, fill, layer_norms, linears

WHEEL = "rapidocr==3.10.0"
DETECTOR, RECOGNISER = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
LICENCE = "rapidocr-3.10.0.dist-info/licenses/MODEL_LICENSES.md"
STAGES = [
    [[3, 48, 48, 1, True], [3, 48, 48, 1, False]],
    [[3, 48, 96, 2, False], [3, 96, 96, 1, True], [3, 96, 96, 1, False]],
    [[3, 96, 192, 2, False], *([3, 192, 192, 1, se] for se in (True, False, True, False))],
    [[3, 192, 384, 2, False], [3, 384, 384, 1, True], [3, 384, 384, 1, False]],
]
"""The detector's backbone: kernel, channels in and out, stride, squeeze and excitation."""
TOLERANCE, TOLERANCE_HALF = 2e-3, 5e-2
"""Largest difference of a probability from onnxruntime's, and with weights in half precision."""


def detector_config() -> PPOCRV6SmallDetConfig:
    """PP-OCRv6 small's detector; transformers' default is another size."""
    backbone = {
        "model_type": "pp_lcnet_v4",
        "block_configs": STAGES,
        "stem_channels": [3, 24, 48],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    return PPOCRV6SmallDetConfig(
        backbone_config=backbone, layer_list_out_channels=[48, 96, 192, 384]
    )


def build(folder: Path) -> ReaderModel:
    """The encoder with the weights of two ONNX files."""
    detector, recogniser = Graph(folder / DETECTOR), Graph(folder / RECOGNISER)
    # the space is the last class and not in the file's list
    alphabet = recogniser.metadata["character"].replace("\n", "") + " "
    rec_config = PPOCRV6SmallRecConfig(head_out_channels=len(alphabet) + 1)
    model = ReaderModel(ReaderConfig(detector_config(), rec_config, alphabet)).eval()
    fill_detector(model.detector, detector)
    fill(
        model.recogniser,
        torch.zeros(1, 3, 48, 160),
        recogniser,
        {
            nn.Conv2d: convolutions(recogniser),
            nn.Linear: linears(recogniser),
            nn.LayerNorm: layer_norms(recogniser, rec_config.hidden_size),
        },
    )
    return model


def fill_detector(model: nn.Module, graph: Graph) -> None:
    """The detector's neck runs its scales in the other order than the file lists them."""
    example = torch.zeros(1, 3, 64, 64)
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    layers = convolutions(graph)
    head, scales = 3, 4
    lateral = len(layers) - head - scales * (3 + 4)
    layers = _reversed(layers, lateral, 3, scales)
    layers = _reversed(layers, lateral + 3 * scales, 4, scales)
    order = execution_order(model, example, kinds)
    fill(
        model,
        example,
        graph,
        {kind: [v for v, m in zip(layers, order) if isinstance(m, kind)] for kind in kinds},
    )


def _reversed(layers: list[Layer], first: int, size: int, count: int) -> list[Layer]:
    groups = [layers[first + i * size : first + (i + 1) * size] for i in range(count)]
    inner = [layer for group in reversed(groups) for layer in group]
    return layers[:first] + inner + layers[first + size * count :]


@torch.no_grad()
def check(model: ReaderModel, folder: Path, tolerance: float) -> None:
    """Compare both networks with onnxruntime.

    Raises:
        SystemExit: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    page = nn.functional.interpolate(torch.rand(1, 3, 20, 24, generator=generator), scale_factor=16)
    lines = nn.functional.interpolate(torch.rand(4, 3, 12, 80, generator=generator), scale_factor=4)
    for name, network, pixels in (
        (DETECTOR, model.detector, page * 2 - 1),
        (RECOGNISER, model.recogniser, lines * 2 - 1),
    ):
        session = onnxruntime.InferenceSession(str(folder / name))
        theirs = torch.from_numpy(session.run(None, {"x": pixels.numpy()})[0])
        difference = (network(pixels).last_hidden_state - theirs).abs()
        print(f"{name}: largest difference {difference.max():.1e}, mean {difference.mean():.1e}")
        if difference.max() > tolerance:
            sys.exit(f"{name}: the converted network differs from onnxruntime's")


def take_rgb(model: ReaderModel) -> None:
    """The networks were trained on BGR pixels; pages are RGB."""
    for network in (model.detector, model.recogniser):
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        first.weight.data = first.weight.data.flip(1)


def main() -> None:
    """Download, convert, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name]
        subprocess.run([*command, WHEEL], check=True)
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
            for file in (DETECTOR, RECOGNISER):
                wheel.extract(f"rapidocr/models/{file}", work)
            licence = wheel.read(LICENCE)
        onnx = work / "rapidocr" / "models"
        model = build(onnx)
        check(model, onnx, TOLERANCE)
        # what is shipped is in half precision: that must agree, too
        check(model.half().float(), onnx, TOLERANCE_HALF)
    take_rgb(model)
    shutil.rmtree(out, ignore_errors=True)
    model.half().save_pretrained(out)
    (out / "LICENSE.md").write_bytes(licence)
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
