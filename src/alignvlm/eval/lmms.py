"""Plug-in for lmms-eval (written against 0.7.3): the model, and our own tasks as task files.

The entry point ``lmms_eval.models`` names :func:`manifest`, so ``lmms-eval --model alignvlm`` finds
the model wherever both packages are installed. The task files are found by ``--include_path``::

    lmms-eval --model alignvlm --model_args pretrained=FOLDER --tasks alignvlm_wtq \\
        --include_path "$(python -m alignvlm.eval.lmms tasks)"

Contracts of lmms-eval: ``lmms_eval/models/registry_v2.py`` (manifests), ``lmms_eval/api/model.py``
(the model class), ``ConfigurableMessagesTask`` in ``lmms_eval/api/task.py`` (a chat model's
requests). All answering is :class:`~alignvlm.inference.answerers.ModelAnswerer`'s: same prompt and
same batches, so the same predictions as from our own runner.
"""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import ConfigError, DataError
from ..inference.answerers import Query
from .vlmevalkit import DEFAULT_NEW_TOKENS, load_answerer

try:
    from lmms_eval.api.model import lmms as _Base  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name != "lmms_eval":
        raise
    _Base = object  # the functions of this module work without it


def manifest() -> Any:
    """What the entry point group ``lmms_eval.models`` wants: the name of the class below."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id="alignvlm", chat_class_path=f"{__spec__.name}.AlignVLM")


def lmms_task_folder() -> Path:
    """The folder of our task files, for ``--include_path``."""
    return Path(__file__).with_name("lmms_tasks")


def split_messages(messages: list[dict[str, Any]], where: str) -> tuple[list[Image.Image], str]:
    """Pages and prompt of chat messages as lmms-eval's tasks build them.

    The model reads its pages first and then one text; texts are joined by a newline, a system
    message is the first of them.

    Raises:
        ConfigError: a message that is not the user's or the system's, a video or a sound.
        DataError: an image that cannot be opened.
    """
    pages: list[Image.Image] = []
    texts: list[str] = []
    for message in messages:
        if message["role"] not in ("user", "system"):
            raise ConfigError(
                f"{where}: a message of the {message['role']}; only single questions can be "
                "asked, run the task with --num_fewshot 0"
            )
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image":
                pages.append(_page(part.get("url", part.get("image")), where))
            else:
                raise ConfigError(f"{where}: a {part['type']}; the model takes images and text")
    return pages, "\n".join(texts)


def _page(source: Any, where: str) -> Image.Image:
    """A page from an image, a path, or the undecoded image of a ``datasets`` column."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, dict):
        data = source.get("bytes")
        source = io.BytesIO(data) if data else source.get("path")
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except (OSError, AttributeError, TypeError) as error:
        raise DataError(f"{where}: no usable image: {error}") from None


def new_tokens(settings: dict[str, Any], default: int, where: str) -> int:
    """``max_new_tokens`` of a request's generation settings.

    Raises:
        ConfigError: settings for sampling or beam search, since answers here are greedy.
    """
    asked = []
    if settings.get("do_sample") and settings.get("temperature") != 0:
        asked.append("do_sample")
    if (settings.get("num_beams") or 1) > 1:
        asked.append(f"num_beams={settings['num_beams']}")
    if asked:
        raise ConfigError(
            f"{where}: asks for {', '.join(asked)}, but answers are greedy; "
            "add --gen_kwargs do_sample=False,num_beams=1 to evaluate it so"
        )
    return int(settings.get("max_new_tokens") or default)


def cut(text: str, until: Any) -> str:
    """``text`` before the first of the stop strings ``until`` (a string, a list or None)."""
    for stop in [until] if isinstance(until, str) else until or []:
        if stop:
            text = text.split(stop)[0]
    return text


class AlignVLM(_Base):  # pyright: ignore[reportGeneralTypeIssues]
    """An alignvlm model as lmms-eval's chat models are.

    ``--model_args``: ``pretrained`` (hub id or folder), ``dtype``, ``max_new_tokens`` (for tasks
    that do not say), ``repetition_guard``. ``--batch_size N`` and ``--device`` are passed on.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        repetition_guard: bool = False,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ConfigError(f"--batch_size {batch_size}: must be a whole number from 1")
        self.batch_size = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self.answerer = load_answerer(str(pretrained), device, str(dtype), repetition_guard)
        self.device = self.answerer.model.device
        if self.device.type == "cuda":
            # lmms-eval gathers objects over NCCL, which uses the current device
            torch.cuda.set_device(self.device)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """One answer a request, in their order.

        Batches are ``batch_size`` neighbours of one task, as in our own runner.
        """
        from lmms_eval.api.instance import GenerationResult, TokenCounts  # pyright: ignore[reportMissingImports]
        from tqdm import tqdm

        results = []
        bar = tqdm(total=len(requests), desc="alignvlm", disable=self.rank != 0)
        for _, same_task in itertools.groupby(requests, key=lambda request: request.args[4:6]):
            while batch := list(itertools.islice(same_task, self.batch_size)):
                replies = self.answerer.answer([self.query(request) for request in batch])
                for request, reply in zip(batch, replies, strict=True):
                    text = cut(reply.text, request.args[2].get("until"))
                    counts = TokenCounts(output_tokens=reply.new_tokens)
                    results.append(GenerationResult(text, counts))
                bar.update(len(batch))
        bar.close()
        return results

    def query(self, request: Any) -> Query:
        """A request's six arguments as a query; this is where its images are decoded."""
        _, doc_to_messages, settings, doc_id, task, split = request.args
        where = f"{task}/{split}, sample {doc_id}"
        limit = new_tokens(settings, self.max_new_tokens, where)
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        pages, prompt = split_messages(messages, where)
        return Query(id=where, pages=pages, prompt=prompt, max_new_tokens=limit)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not supported: no task of ours ranks given answers."""
        raise NotImplementedError("alignvlm answers generation tasks, not log-likelihood tasks")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not supported: the model is asked single questions."""
        raise NotImplementedError("alignvlm answers single questions, not conversations")


def main(arguments: list[str]) -> int:
    """``python -m alignvlm.eval.lmms tasks`` prints the folder of the task files."""
    if arguments != ["tasks"]:
        print("usage: python -m alignvlm.eval.lmms tasks", file=sys.stderr)
        return 2
    print(lmms_task_folder())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
