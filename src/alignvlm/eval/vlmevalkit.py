"""Start VLMEvalKit with an alignvlm model among its models.

VLMEvalKit has no plug-in hook: its ``run.py`` looks a name up in ``vlmeval.config.supported_VLM``,
and a class of a config file in ``vlmeval.vlm``. The launcher puts both there and then runs
``run.py`` as it is::

    python -m alignvlm.eval.vlmevalkit MODEL --kit VLMEvalKit -- --data DocVQA_VAL --work-dir out

Contracts of VLMEvalKit (commit e8e78f0): ``run.py``, ``vlmeval/inference.py``, ``BaseModel`` in
``vlmeval/vlm/base.py``. On several GPUs: ``torchrun --nproc-per-node N -m
alignvlm.eval.vlmevalkit ...``. All answering is
:class:`~alignvlm.inference.answerers.ModelAnswerer`'s.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import AlignVLMError, ConfigError, DataError
from ..inference.answerers import ModelAnswerer, Query
from ..inference.loading import default_device, load_model

DEFAULT_NEW_TOKENS = 128
"""For benchmarks that do not say how long an answer may be; none of VLMEvalKit's does."""
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_answerer(
    pretrained: str | os.PathLike[str],
    device: str | None = None,
    dtype: str = "auto",
    repetition_guard: bool = False,
) -> ModelAnswerer:
    """A saved model, ready to answer.

    Args:
        pretrained: anything :func:`alignvlm.weights.resolve.resolve` takes.
        device: default: the process's own GPU if there is one.
        dtype: a key of ``DTYPES``; ``auto``: bfloat16 on a GPU that has it, else float32.
        repetition_guard: end an answer that goes round in circles.

    Raises:
        ConfigError: no such dtype.
        WeightsError: no such model.
    """
    if device is None:
        device = default_device().type
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    model, processor = load_model(pretrained, dtype=DTYPES[dtype], device=device)
    return ModelAnswerer(model, processor, repetition_guard=repetition_guard)


def read_message(message: list[dict[str, Any]], where: str) -> tuple[list[Image.Image], str]:
    """Pages and prompt of a VLMEvalKit message, dicts with ``type`` and ``value``.

    The model reads its pages first and then one text; texts are joined by a newline.

    Raises:
        DataError: an image file that cannot be opened.
    """
    pages, texts = [], []
    for part in message:
        if part["type"] == "text":
            texts.append(part["value"])
            continue
        try:
            with Image.open(part["value"]) as image:
                pages.append(image.convert("RGB"))
        except OSError as error:
            raise DataError(f"{where}: {part['value']}: no usable image: {error}") from None
    return pages, "\n".join(texts)


def model_class() -> type:
    """The class that goes into ``vlmeval.vlm``: a ``BaseModel`` around a ``ModelAnswerer``.

    Made here and not at import, since its base is VLMEvalKit's.
    """
    from vlmeval.vlm.base import BaseModel  # pyright: ignore[reportMissingImports]

    class AlignVLM(BaseModel):
        """``AlignVLM(model_path)``, as ``supported_VLM`` and config files make it."""

        INTERLEAVE = True
        allowed_types = ["text", "image"]

        def __init__(
            self,
            model_path: str,
            max_new_tokens: int = DEFAULT_NEW_TOKENS,
            device: str | None = None,
            dtype: str = "auto",
            repetition_guard: bool = False,
        ) -> None:
            super().__init__()
            self.max_new_tokens = max_new_tokens
            self.answerer = load_answerer(model_path, device, dtype, repetition_guard)

        def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
            """The answer to a message that ``BaseModel.generate`` has checked."""
            where = dataset or "message"
            pages, prompt = read_message(message, where)
            query = Query(where, pages=pages, prompt=prompt, max_new_tokens=self.max_new_tokens)
            return self.answerer.answer([query])[0].text

    return AlignVLM


def register(model: str, name: str = "alignvlm", **settings: Any) -> None:
    """Put the model into VLMEvalKit's tables: class ``AlignVLM`` and the name ``name``.

    ``settings``: further arguments of the class.
    """
    config = importlib.import_module("vlmeval.config")
    models = importlib.import_module("vlmeval.vlm")
    models.AlignVLM = model_class()
    # VLMEvalKit's run.py expects a partial: it reads .keywords and .func
    config.supported_VLM[name] = functools.partial(models.AlignVLM, model_path=model, **settings)


def find_run_script(kit: Path | None) -> Path:
    """VLMEvalKit's ``run.py``: in the folder ``kit``, or beside the installed package.

    Raises:
        ConfigError: there is none.
    """
    if kit is None:
        spec = importlib.util.find_spec("vlmeval")
        if spec is None or spec.origin is None:
            raise ConfigError(
                "VLMEvalKit is not installed; clone it and say --kit FOLDER (docs/harnesses.md)"
            )
        kit = Path(spec.origin).parents[1]
    script = kit / "run.py"
    if not script.is_file() or not (kit / "vlmeval").is_dir():
        raise ConfigError(f"{kit}: no VLMEvalKit clone (run.py and vlmeval/); say --kit FOLDER")
    return script


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own arguments, and those of ``run.py`` behind ``--``.

    The model is asked for by name unless ``run.py`` is told otherwise.
    """
    parser = argparse.ArgumentParser(
        prog="python -m alignvlm.eval.vlmevalkit",
        usage="%(prog)s MODEL [options] -- RUN.PY-ARGUMENTS",
        description="Run VLMEvalKit's run.py with an alignvlm model.",
    )
    parser.add_argument("model", help="folder or hub id of the model")
    parser.add_argument("--kit", type=Path, help="clone of VLMEvalKit; default: the installed one")
    parser.add_argument("--name", default="alignvlm", help="its name in VLMEvalKit's results")
    parser.add_argument("--max-new-tokens", type=int, default=DEFAULT_NEW_TOKENS)
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--repetition-guard", action="store_true", help="end answers that loop")
    own, rest = list(arguments), []
    if "--" in own:
        place = own.index("--")
        own, rest = own[:place], own[place + 1 :]
    options = parser.parse_args(own)
    chosen = any(word.split("=")[0] in ("--model", "--config") for word in rest)
    return options, rest if chosen else ["--model", options.name, *rest]


def launch(arguments: Sequence[str]) -> None:
    """Register the model and run VLMEvalKit's ``run.py`` in this process.

    Raises:
        ConfigError: there is no VLMEvalKit, or it cannot be imported.
    """
    options, rest = parse(arguments)
    names = ("max_new_tokens", "dtype", "repetition_guard")
    settings = {name: getattr(options, name) for name in names}
    script = find_run_script(options.kit)
    if options.kit is not None:
        sys.path.insert(0, str(options.kit))
    try:
        register(options.model, options.name, **settings)
    except ModuleNotFoundError as error:
        raise ConfigError(f"VLMEvalKit needs {error.name}: install its requirements") from error
    sys.argv = [str(script), *rest]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    try:
        launch(sys.argv[1:])
    except AlignVLMError as error:
        sys.exit(f"error: {error}")
