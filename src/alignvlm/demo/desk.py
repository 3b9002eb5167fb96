"""The model behind the web page: what it reads, answers and finds, and how it is ended early."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import TextStreamer

from ..connectors import AlignConnector
from ..documents.page_images import PageImage
from ..inference.ask import ask
from ..inference.cite import Citation, ReadPage, cite, uncited
from ..inference.confidence import Calibration
from ..inference.extract import Extractor, FieldValue
from ..inference.noise import Noise
from ..inference.page_text import PageText, page_text
from ..inference.prompt import together
from ..inference.span import union
from ..inference.stopping import stoppable
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from ..vocabulary.usage import pruned_to
from .overlay import NOISE_SEED, NOISE_STEPS, compare, halvings, payload
from .shelf import OpenDocument
from .turns import Watch

MAX_NEW_TOKENS = 128
"""More than the command line's 64: an answer is seen while it is written, and can be stopped."""


class _Telling(TextStreamer):
    """Tells the visitor the answer so far, each time it has grown."""

    def __init__(self, tokenizer: Any, watch: Watch) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.watch, self.said = watch, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.watch.check()
        self.said += text
        self.watch.tell({"event": "answering", "text": self.said})


class Desk:
    """The model, for one job at a time: noise and pruning change it while they last.

    Args:
        model, processor: as :func:`alignvlm.inference.ask.load_model` returns them.
        calibration: what makes probabilities of a field's score, if the model has one.
    """

    def __init__(
        self,
        model: AlignVLMForConditionalGeneration,
        processor: AlignVLMProcessor,
        calibration: Calibration | None = None,
    ) -> None:
        self.model, self.processor, self.calibration = model, processor, calibration
        connector = model.model.connector
        self.ids = connector.w2.out_features if isinstance(connector, AlignConnector) else 0
        """Ids of P_vocab; 0 for another connector than ALIGN, which reads no words."""
        self.reads = bool(getattr(model.model.vision_model, "reads_pages", False))
        """Whether the encoder reads lines, so that fields can be found."""

    @property
    def halvings(self) -> int:
        """How often the vocabulary can be halved."""
        return halvings(self.ids) if self.ids else 0

    def kept(self, halved: int) -> int:
        """Ids left after so many halvings."""
        return max(1, self.ids >> halved)

    def text(self, document: OpenDocument, number: int, watch: Watch) -> PageText:
        """The lines of a page; none for a model that reads no words."""
        view = document.page(number)
        with self._watched(watch, number):
            if not self.ids:
                view.encoded(self.model, self.processor)
                return PageText(number, *view.image.size, [])
            reading = view.clean(self.model, self.processor).page
        return page_text(reading, number, view.image.size, self.processor.tokenizer)

    def ask(
        self,
        document: OpenDocument,
        numbers: list[int],
        question: str,
        watch: Watch,
        sigma: float = 0.0,
        halved: int = 0,
    ) -> dict[str, Any]:
        """The answer to a question about some pages, and where its words stand.

        The noise and the vocabulary are those of the first page's sliders; pages are encoded again
        only where these change them.

        Raises:
            AlignVLMError: a page cannot be used.
        """
        begun = time.perf_counter()
        model, processor, keep = self.model, self.processor, self.kept(halved)
        views = [document.page(number) for number in numbers]
        for number, view in zip(numbers, views):
            with self._watched(watch, number):
                view.encoded(model, processor)
        watch.tell({"event": "answering", "text": ""})
        with ExitStack() as stack:
            encoded = None
            if keep != self.ids and self.ids:
                stack.enter_context(pruned_to(model, views[0].most_used(model, processor, keep)))
            elif not sigma:
                encoded = together([view.encoded(model, processor) for view in views])
            stack.enter_context(self._watched(watch, None))
            answer = ask(
                model,
                processor,
                [view.image for view in views],
                question,
                max_new_tokens=MAX_NEW_TOKENS,
                encoded=encoded,
                noise=Noise(sigma, [NOISE_SEED]) if sigma else None,
                streamer=_Telling(processor.tokenizer, watch),
            )
        places, missing = self._places(answer.text, document, numbers)
        return {
            "text": answer.text,
            "places": places,
            "missing": missing,
            "seconds": time.perf_counter() - begun,
        }

    def fields(
        self, document: OpenDocument, numbers: list[int], names: list[str], watch: Watch
    ) -> dict[str, FieldValue]:
        """What a document says of some fields.

        Raises:
            AlignVLMError: names that cannot be asked for, or an encoder that does not read.
        """
        views = {number: document.page(number) for number in numbers}

        def encode(page: PageImage) -> Any:
            with self._watched(watch, page.page):
                encoded = views[page.page].encoded(self.model, self.processor)
            watch.tell({"event": "finding", "page": page.page})
            return encoded

        extractor = Extractor(
            self.model, self.processor, names, calibration=self.calibration, encode=encode
        )
        pages = [PageImage(view.image, document.name, n) for n, view in views.items()]
        with self._watched(watch, None):
            return extractor(pages).values

    def window(
        self, document: OpenDocument, number: int, sigma: float, halved: int, watch: Watch
    ) -> dict[str, Any]:
        """What ``inside.js`` draws: each cell's tokens, before and after noise and pruning.

        Raises:
            ConfigError: the model's connector is not ALIGN.
        """
        view = document.page(number)
        with self._watched(watch, number):
            keep = self.kept(halved)
            read = compare(self.model, self.processor, view, sigma=sigma, keep=keep)
            loudest = view.loudest(self.model, self.processor)
        drawn = payload(read, self.processor.tokenizer)
        return {**drawn, "noise": {"max": loudest, "step": loudest / NOISE_STEPS}}

    def _places(
        self, text: str, document: OpenDocument, numbers: list[int]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Boxes of the answer's words, one for words that stand side by side; and the figures that
        stand nowhere."""
        if not self.ids or not text:
            return [], []
        sizes = {number: document.page(number).image.size for number in numbers}
        read = []
        for number, size in sizes.items():
            reading = document.page(number).clean(self.model, self.processor).page
            read.append(ReadPage(document.name, number, *size, reading))
        found = cite(text, read)
        places = joined_places(found)
        return [{**one, "size": sizes[one["page"]]} for one in places], uncited(text, found)

    @contextmanager
    def _watched(self, watch: Watch, number: int | None) -> Iterator[None]:
        """Lines read are told, and both networks end soon after the visitor has."""
        watch.check()
        encoder, most = self.model.model.vision_model, 0

        def progress(done: int, of: int) -> None:
            nonlocal most
            again = of < most
            most = max(most, of)
            told = {"page": number, "done": done, "of": of, "again": again}
            watch.tell({"event": "reading", **told})

        if number is not None:
            watch.tell({"event": "reading", "page": number, "done": 0, "of": 0, "again": False})
        before = getattr(encoder, "progress", None)
        try:
            if self.reads:
                encoder.progress = progress  # type: ignore[assignment]
            with stoppable(self.model, watch.stop.is_set):
                yield
        finally:
            if self.reads:
                encoder.progress = before  # type: ignore[assignment]


def joined_places(found: list[Citation]) -> list[dict[str, Any]]:
    """Citations as boxes on pages; words that follow one another in a line share one."""
    places: list[dict[str, Any]] = []
    last: Citation | None = None
    for one in found:
        if last is not None and _side_by_side(last, one):
            places[-1]["box"] = list(union([places[-1]["box"], one.box]))
        else:
            places.append({"page": one.page, "box": list(one.box)})
        last = one
    return places


def _side_by_side(before: Citation, one: Citation) -> bool:
    (x0, y0, x1, y1), (left, top, _, bottom) = before.box, one.box
    high = y1 - y0
    level = min(y1, bottom) - max(y0, top) > 0.5 * min(high, bottom - top)
    return (
        before.page == one.page
        and before.index + 1 == one.index
        and level
        and x0 <= left <= x1 + 2 * high
    )
