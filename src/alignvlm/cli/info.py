"""The command line's ``inspect`` and ``info``: what a model says and is made of."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..errors import DataError, WeightsError
from ..files import replacing, write_text
from .options import DPI, Dpi, Json, Model, PageRange, emit
from .status_line import load, reading

if TYPE_CHECKING:
    from torch import nn

    from ..documents.page_images import PageImage


def inspect(
    model: Model,
    file: Annotated[Path, typer.Argument(help="page image or PDF")],
    out: Annotated[Path, typer.Option("--out", help="folder for heat-map and JSON")] = Path(
        "inspect"
    ),
    pages: PageRange = "1",
    k: Annotated[int, typer.Option(min=1, help="tokens listed for each visual token")] = 5,
    dpi: Dpi = DPI,
    json_: Json = False,
) -> None:
    """Write what each visual token says: a heat map (PNG) and its top tokens (JSON)."""
    from ..documents.page_images import Pages

    if file.is_dir():
        raise DataError(f"{file}: inspect takes one picture or PDF, not a folder")
    found = Pages([file], dpi=dpi, pages=pages)
    several = len(found) > 1  # opens the file, before a model is loaded
    loaded, processor = load(model)
    found.pdf_pixels = processor.image_processor.useful_pixels()
    out.mkdir(parents=True, exist_ok=True)
    rows, lines = [], []
    for page in found:
        name = Path(page.file).stem + (f"-{page.page}" if several else "")
        row, said = _inspected(loaded, processor, page, k, out / name)
        rows.append(row)
        lines += [f"page {page.page}", *said] if several else said
    emit(json_, {"file": str(file), "pages": rows}, "\n".join(lines))


def _inspected(
    model: Any, processor: Any, page: PageImage, k: int, stem: Path
) -> tuple[dict[str, Any], list[str]]:
    """Write a page's heat map and tokens; returns what to print, as data and for people."""
    from ..inference.inspect import heat_map, read_page

    with reading(model):
        read = read_page(model, processor, page.image, k)
    picture, table = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.json")
    with replacing(picture) as partial:
        heat_map(page.image, read).save(partial, format="PNG")
    write_text(table, json.dumps(read.to_dict()))
    text = read.text(processor.tokenizer)
    data = {
        "page": page.page,
        "heat_map": str(picture),
        "json": str(table),
        "text": text,
        "entropy": read.entropy,
        "effective_vocab": read.effective_vocab,
    }
    lines = [
        f"reads: {line}" if not number else f"       {line}"
        for number, line in enumerate(text.splitlines() or ["(nothing)"])
    ]
    lines.append(
        f"entropy {read.entropy:.2f} nats, effective vocabulary {read.effective_vocab:.1f}"
    )
    return data, [*lines, f"wrote {picture} and {table}"]


def info(
    model: Annotated[
        str | None, typer.Argument(help="folder or hub id; none: this machine")
    ] = None,
    json_: Json = False,
) -> None:
    """Say what a model is made of, or what this machine has."""
    data = machine_info() if model is None else model_info(model)
    emit(json_, data, "\n".join(f"{key}: {value}" for key, value in data.items()))


def machine_info() -> dict[str, Any]:
    """Versions, device and cache folder, as a bug report needs them."""
    import torch
    import transformers

    from ..weights.resolve import home

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "alignvlm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "gpu": gpu,
        "cache": str(home()),
    }


def model_info(reference: str) -> dict[str, Any]:
    """Parts, parameters and visual tokens of a saved model; reads its config only.

    Raises:
        WeightsError: not an alignvlm model.
    """
    import torch
    from transformers import AutoConfig

    from ..model.config import AlignVLMConfig
    from ..model.generation import AlignVLMForConditionalGeneration
    from ..weights.folder import loaded
    from ..weights.resolve import resolve

    folder = resolve(reference)
    config = loaded(AutoConfig, folder)
    if not isinstance(config, AlignVLMConfig):
        raise WeightsError(f"{folder}: a {config.model_type!r} model, not an alignvlm model")
    with torch.device("meta"):
        model = AlignVLMForConditionalGeneration(config)
    core = model.model

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    rows, cols = config.feature_grid
    return {
        "path": str(folder),
        "vision": config.vision_config.model_type,
        "connector": config.connector.type,
        "text": config.text_config.model_type,
        "parameters": count(model),
        "vision_parameters": count(core.vision_model),
        "connector_parameters": count(core.connector),
        "text_parameters": count(core.language_model),
        "vocabulary": config.connector_vocab_size,
        "kept_tokens": getattr(config.connector, "kept_tokens", None),
        "tile": f"{config.tile_height}x{config.tile_width} px, {rows}x{cols} features",
        "visual_tokens_per_tile": config.tokens_per_tile,
        "token_order": config.token_order,
    }
