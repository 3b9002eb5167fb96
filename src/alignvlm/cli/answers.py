"""The command line's ``ask`` and ``embed``: pages in, an answer or prompt embeddings out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..errors import AlignVLMError, ConfigError, DataError
from ..files import write_text
from .options import (
    DPI,
    MAX_NEW_TOKENS,
    MAX_PAGES,
    Dpi,
    Json,
    MaxNewTokens,
    MaxPages,
    Model,
    PageRange,
    Password,
    emit,
    note,
    note_left_out,
)
from .status_line import Doing, load, reading

if TYPE_CHECKING:
    from ..documents.page_images import PageImage, Pages
    from ..inference.ask import Answer
    from ..inference.cite import Citation
    from ..inference.token_bytes import TokenBytes
    from ..model.outputs import Encoded

CHAT = "vllm-chat"
"""The form of prompt embeddings that goes into a message."""


def ask(
    model: Model,
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... QUESTION", help="documents and folders, and last what is asked"
        ),
    ],
    pages: PageRange = None,
    max_pages: MaxPages = MAX_PAGES,
    password: Password = None,
    each: Annotated[bool, typer.Option("--each", help="ask every page by itself")] = False,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="print where on the page each answer word stands")
    ] = False,
    no_cite: Annotated[
        bool, typer.Option("--no-cite", help="do not look the answer up on the pages; faster")
    ] = False,
    extractive: Annotated[
        bool, typer.Option("--extractive", help="answer with words of the page only")
    ] = False,
    dpi: Dpi = DPI,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    json_: Json = False,
) -> None:
    """Ask a question about pictures, PDFs, multi-page TIFFs and folders; - is standard input.

    The answer comes with the page its words stand on, as P_vocab reads the pages.
    """
    if len(arguments) < 2:
        raise AlignVLMError('ask needs at least one FILE and a "question" after the model')
    *files, question = arguments
    if not question.strip():
        raise AlignVLMError("the question is empty")
    if boxes and no_cite:
        raise ConfigError("--boxes needs the citations that --no-cite leaves out")
    found = _pages(files, pages, max_pages, password, dpi, keep_going=each)
    asker = _Asker(
        model, question, max_new_tokens, cites=not no_cite, boxes=boxes, extractive=extractive
    )
    found.pdf_pixels = asker.processor.image_processor.useful_pixels()
    common = {"question": question, "files": files, "left_out": found.left_out}
    if each:
        return _each(asker, found, common, json_)
    given = asker.ask(list(found))
    data = {**common, "unreadable": found.unreadable, **asker.data(*given)}
    emit(json_, data, "\n".join(asker.lines(*given)))


def _each(asker: _Asker, found: Pages, common: dict[str, Any], json_: bool) -> None:
    """Ask every page by itself, and print the answers there are, whatever ends it.

    Raises:
        AlignVLMError: afterwards, of files that were named outright and cannot be read, and of a
            page that cannot be asked about, with which it ends.
    """
    answers, failure = [], None
    try:
        answers += map(asker.ask, ([page] for page in found))
    except AlignVLMError as error:
        if not answers:
            raise
        failure = error
    answers.sort(key=_rank)
    data = {
        **common,
        "unreadable": found.unreadable,
        "answers": [asker.data(*given) for given in answers],
    }
    lines = [
        line
        for number, given in enumerate(answers)
        for line in asker.lines_each(*given, best=number == 0)
    ]
    emit(json_, data, "\n".join(lines))
    wrong = [*found.named_unreadable(), *([str(failure)] if failure else [])]
    if wrong:
        raise DataError("; ".join(wrong))


def _pages(
    files: list[str],
    pages: str | None,
    max_pages: int,
    password: str | None,
    dpi: float,
    *,
    keep_going: bool = False,
) -> Pages:
    """Pages to use; what is left out of them is named on stderr, when it is found."""
    from ..documents.page_images import Pages

    found = Pages(
        files, dpi=dpi, pages=pages, password=password, max_pages=max_pages, passed_over=note,
        keep_going=keep_going,
    )  # fmt: skip
    note_left_out(found)
    return found


class _Place(NamedTuple):
    """Where a page came from, which is all that is kept of one that has been asked about."""

    file: str
    page: int


class _Asker:
    """A loaded model, what is asked, and how its answers are shown."""

    def __init__(
        self,
        model: str,
        question: str,
        max_new_tokens: int,
        *,
        cites: bool,
        boxes: bool,
        extractive: bool,
    ) -> None:
        self.question, self.max_new_tokens, self.boxes = question, max_new_tokens, boxes
        self.model, self.processor = load(model)
        from ..connectors import AlignConnector

        self.reads = isinstance(self.model.model.connector, AlignConnector)
        if boxes and not self.reads:
            raise ConfigError(f"--boxes needs the 'align' connector; {self._no_vocabulary()}")
        self.cites = cites and self.reads
        self.silent = not cites
        self.extractive = extractive

    def _no_vocabulary(self) -> str:
        return f"this model's is {self.model.config.connector.type!r}, which has no P_vocab"

    def ask(self, pages: list[PageImage]) -> tuple[Answer, list[_Place], list[Citation]]:
        from ..inference.ask import encode_pages
        from ..inference.cite import cite, read_pages

        images = [page.image for page in pages]
        places = [_Place(page.file, page.page) for page in pages]
        with reading(self.model):
            encoded = encode_pages(self.model, self.processor, images)
        for place, read in zip(places, encoded.pages or []):
            if not len(read):
                note(f"nothing was read on {place.file} page {place.page}")
        if self.extractive:
            return self._ask_for_words(pages, places, encoded)
        answer = self._answer(images, encoded)
        if not (self.cites and answer.text):
            return answer, places, []
        read = read_pages(self.model, self.processor, pages, encoded=encoded)
        return answer, places, cite(answer.text, read)

    def _answer(self, images: list[Any], encoded: Encoded, processors: Any = ()) -> Answer:
        from ..inference.ask import ask

        with Doing("answering"):
            return ask(
                self.model,
                self.processor,
                images,
                self.question,
                max_new_tokens=self.max_new_tokens,
                encoded=encoded,
                processors=processors,
            )

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        from ..inference.token_bytes import TokenBytes

        return TokenBytes(self.processor.tokenizer, self.model.lm_head.out_features)

    def _ask_for_words(
        self, pages: list[PageImage], places: list[_Place], encoded: Encoded
    ) -> tuple[Answer, list[_Place], list[Citation]]:
        """An answer that can only be words of the pages, with their places."""
        from ..inference.cite import cite_span
        from ..inference.page_spans import page_spans
        from ..inference.span_decoding import ExtractiveDecoding, end_ids

        images = [page.image for page in pages]
        spans = page_spans(self.model, [image.size for image in images], encoded)
        decoding = ExtractiveDecoding([spans], self._token_bytes, end_ids(self.model))
        answer = self._answer(images, encoded, [decoding])
        span = spans.find(answer.text)
        answer = replace(answer, text="" if span is None else span.text)
        return answer, places, cite_span(span, pages) if span and self.cites else []

    def data(
        self, answer: Answer, pages: list[_Place], citations: list[Citation]
    ) -> dict[str, Any]:
        from ..inference.cite import cited_pages

        data: dict[str, Any] = {
            "answer": answer.text,
            "log_probability": round(answer.log_probability, 4),
            "pages": [page._asdict() for page in pages],
            "visual_tokens": answer.visual_tokens,
            "kept_visual_tokens": answer.kept_visual_tokens,
            "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens,
            "prefill_ms": round(answer.prefill_ms, 1),
            "total_ms": round(answer.total_ms, 1),
        }
        if self.cites:
            sources = cited_pages(citations)
            data["source"] = [{"file": file, "page": page} for file, page in sources]
        if self.boxes:
            data["boxes"] = [asdict(citation) for citation in citations]
        return data

    def lines(self, answer: Answer, pages: list[_Place], citations: list[Citation]) -> list[str]:
        """The answer, where it stands, and the boxes if they are wanted."""
        return [answer.text, *self._sources(answer, citations)]

    def lines_each(
        self, answer: Answer, pages: list[_Place], citations: list[Citation], *, best: bool
    ) -> list[str]:
        (page,) = pages
        mark, sure = "*" if best else " ", f"{answer.log_probability:.2f}"
        text = " / ".join(answer.text.splitlines())
        first = f"{mark} {page.file} page {page.page} (mean log-probability {sure}): {text}"
        return [first, *(f"    {line}" for line in self._sources(answer, citations))]

    def _sources(self, answer: Answer, citations: list[Citation]) -> list[str]:
        from ..inference.cite import cited_pages, uncited
        from ..inference.page_spans import ABSENT

        if self.silent:
            return []
        if not self.cites:
            return [f"source: unknown, {self._no_vocabulary()}"]
        if self.extractive and not answer.text:
            return [f"source: {ABSENT}"]
        if not citations:
            return ["source: none of the answer's words was found on the pages as they are read"]
        lines = []
        for file, page in cited_pages(citations):
            here = [c for c in citations if (c.file, c.page) == (file, page)]
            words = " ".join(citation.word for citation in here)
            lines.append(f"source: {file} page {page} ({words})")
            lines += [_box_line(citation) for citation in here] if self.boxes else []
        if missing := uncited(answer.text, citations):
            lines.append(f"not on the pages as they are read: {' '.join(missing)}")
        return lines


def _rank(given: tuple[Answer, Any, Any]) -> tuple[bool, float]:
    """The surest first; an empty answer is no answer, however sure."""
    answer = given[0]
    return not answer.text, -answer.log_probability


def _box_line(citation: Citation) -> str:
    def numbers(box: tuple[float, ...]) -> str:
        return " ".join(f"{value:.1f}" for value in box)

    points = f", {numbers(citation.points)} pt" if citation.points else ""
    return (
        f"  {citation.word}: page {citation.page}, {numbers(citation.box)} px{points}; "
        f"score {citation.score:.2f}"
    )


def embed(
    model: Model,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="documents and folders")],
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write: .safetensors, .pt or .json")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="write the whole chat prompt; default: the pages alone")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="safetensors, pt (vLLM's completions) or vllm-chat (a message's content part, in "
            "JSON; without --out printed); default: by the file's name"
        ),
    ] = None,
    base64: Annotated[
        bool, typer.Option("--base64", help="print what vLLM's server takes as prompt_embeds")
    ] = False,
    pages: PageRange = None,
    max_pages: MaxPages = MAX_PAGES,
    password: Password = None,
    dpi: Dpi = DPI,
    json_: Json = False,
) -> None:
    """Write pages as prompt embeddings, which the bare language model can be served with."""
    from ..inference.embed import FORMATS

    if out is None and not base64 and format != CHAT:
        raise ConfigError("embed needs --out FILE, or --base64 or --format vllm-chat to print")
    if question is not None and not question.strip():
        raise AlignVLMError("the question is empty")
    by_name = "safetensors" if out is None else out.suffix.removeprefix(".")
    format = format or (CHAT if by_name == "json" else by_name)
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: choose --format {' or '.join(FORMATS)}")
    if base64 and format == CHAT:
        raise ConfigError("--base64 prints a tensor, --format vllm-chat JSON: leave one out")
    found = _pages(files, pages, max_pages, password, dpi)
    loaded, processor = load(model)
    found.pdf_pixels = processor.image_processor.useful_pixels()
    from ..inference.embed import embed_pages, embed_prompt, to_base64, to_chat, write_embeds

    taken = list(found)
    images = [page.image for page in taken]
    with reading(loaded):
        made = (
            embed_pages(loaded, processor, images)
            if question is None or format == CHAT  # the server puts the chat around them
            else embed_prompt(loaded, processor, images, question)
        )
    where = [f"{page.file} page {page.page}" for page in taken]
    tokens, width = made.embeds.shape
    data: dict[str, Any] = {
        "model": model,
        "pages": [{"file": page.file, "page": page.page} for page in taken],
        "left_out": found.left_out,
        "unreadable": found.unreadable,
        "question": question,
        "tokens": tokens,
        "width": width,
        "dtype": "float32",
        "visual_tokens": made.visual_tokens,
        "kept_visual_tokens": made.kept_visual_tokens,
    }
    if format == CHAT:
        chat = to_chat(made.embeds, question)
        if out is None:
            return emit(json_, {**data, "chat": chat}, json.dumps(chat))
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(chat) + "\n")
        data["out"] = str(out)
    elif out is not None:
        written = {key: data[key] for key in ("model", "dtype", "question") if data[key]}
        write_embeds(made.embeds, out, format, {**written, "pages": "; ".join(where)})
        data["out"] = str(out)
    if base64:
        data["prompt_embeds"] = to_base64(made.embeds)
    text = data["prompt_embeds"] if base64 else (
        f"{', '.join(where)}: {tokens} tokens of {width}, {made.kept_visual_tokens} of "
        f"{made.visual_tokens} visual tokens kept\nwrote {out}"
    )  # fmt: skip
    emit(json_, data, text)
