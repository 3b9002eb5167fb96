"""The model behind the web page: one visitor at a time reads a page or is given an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from ..connectors import AlignConnector
from ..inference.ask import Answer, ask
from ..inference.noise import Noise
from ..inference.prompt import together
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from ..vocabulary.usage import pruned_to
from .overlay import NOISE_SEED, PageView, compare, payload

MAX_NEW_TOKENS = 128


@dataclass
class OpenDocument:
    """What one visitor has open.

    Attributes:
        name: shown to the visitor.
        pages: the page images, and what was found out about each.
        current: index of the page shown.
        stop: set to end the answer being written.
    """

    name: str
    pages: list[PageView]
    current: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def page(self) -> PageView:
        """The page shown."""
        return self.pages[self.current]


class _StopWhen(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return input_ids.new_full((len(input_ids),), self.event.is_set()).bool()


class Desk:
    """The model, used by one visitor at a time."""

    def __init__(
        self, model: AlignVLMForConditionalGeneration, processor: AlignVLMProcessor
    ) -> None:
        self.model, self.processor = model, processor
        self.turn = threading.Lock()  # noise and pruning change the model while they last
        connector = model.model.connector
        self.ids = connector.w2.out_features if isinstance(connector, AlignConnector) else 0
        """Ids of P_vocab; 0 for another connector than ALIGN, which reads no words."""

    def kept(self, halved: int) -> int:
        """Ids left after so many halvings."""
        return max(1, self.ids >> int(halved))

    def overlay(self, view: PageView, sigma: float, halved: int) -> dict[str, Any]:
        """What ``overlay.js`` draws."""
        with self.turn:
            keep = self.kept(halved)
            read = compare(self.model, self.processor, view, sigma=sigma, keep=keep)
        return payload(read, self.processor.tokenizer)

    def stream(
        self, document: OpenDocument, question: str, everything: bool, sigma: float, halved: int
    ) -> Iterator[str | Answer]:
        """The answer so far, each time it has grown, and at last the whole :class:`Answer`.

        Raises:
            AlignVLMError: a page cannot be used.
        """
        views = document.pages if everything else [document.page]
        streamer = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        outcome: list[Answer | BaseException] = []

        def work() -> None:
            try:
                stop = _StopWhen(document.stop)
                with self.turn:
                    answer = self._ask(
                        document.page, views, question, sigma, halved, streamer, stop
                    )
                outcome.append(answer)
            except BaseException as error:  # raised again below, in the thread that waits
                outcome.append(error)
            finally:
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        said = ""
        try:
            for piece in streamer:
                said += piece
                yield said
        except GeneratorExit:  # the visitor has gone
            document.stop.set()
            raise
        finally:
            thread.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        yield outcome[0]

    def _ask(
        self,
        shown: PageView,
        views: list[PageView],
        question: str,
        sigma: float,
        halved: int,
        streamer: TextIteratorStreamer,
        stop: StoppingCriteria,
    ) -> Answer:
        """The answer with the noise and the vocabulary that the sliders ask for; pages are encoded
        again only where these change them."""
        model, processor, keep = self.model, self.processor, self.kept(halved)
        with ExitStack() as stack:
            encoded = None
            if keep != self.ids and self.ids:
                stack.enter_context(pruned_to(model, shown.most_used(model, processor, keep)))
            elif not sigma:
                encoded = together([view.encoded(model, processor) for view in views])
            return ask(
                model,
                processor,
                [view.image for view in views],
                question,
                max_new_tokens=MAX_NEW_TOKENS,
                encoded=encoded,
                noise=Noise(sigma, [NOISE_SEED]) if sigma else None,
                streamer=streamer,
                stopping=[stop],
            )
