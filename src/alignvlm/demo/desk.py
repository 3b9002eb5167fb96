"""The model behind the web page: one visitor at a time reads a page or is given an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from ..connectors import AlignConnector
from ..inference.ask import Answer, ask
from ..inference.noise import Noise
from ..inference.prompt import together
from ..inference.stopping import Stopped, stoppable
from ..model.generation import AlignVLMForConditionalGeneration
from ..processing.processor import AlignVLMProcessor
from ..vocabulary.usage import pruned_to
from .overlay import NOISE_SEED, PageView, compare, payload

MAX_NEW_TOKENS = 128
HEARTBEAT = 0.5
"""Seconds between two looks at whether a visitor still waits."""


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
        self.closed = threading.Event()

    def kept(self, halved: int) -> int:
        """Ids left after so many halvings."""
        return max(1, self.ids >> int(halved))

    def close(self, seconds: float = 5.0) -> None:
        """End what is under way: a thread inside torch must not outlive Python."""
        self.closed.set()
        if self.turn.acquire(timeout=seconds):
            self.turn.release()

    @contextmanager
    def _own_turn(self, stop: threading.Event) -> Iterator[None]:
        """The model for one visitor, until ``stop`` is set.

        Raises:
            Stopped: it was, before the model was free or while it worked.
        """

        def stopped() -> bool:
            return stop.is_set() or self.closed.is_set()

        while not self.turn.acquire(timeout=HEARTBEAT):
            if stopped():
                raise Stopped("stopped before its turn")
        try:
            with stoppable(self.model, stopped):
                yield
        finally:
            self.turn.release()

    def overlay(
        self, view: PageView, sigma: float, halved: int, stop: threading.Event | None = None
    ) -> dict[str, Any]:
        """What ``overlay.js`` draws.

        Raises:
            Stopped: ``stop`` was set.
        """
        with self._own_turn(stop or threading.Event()):
            keep = self.kept(halved)
            read = compare(self.model, self.processor, view, sigma=sigma, keep=keep)
        return payload(read, self.processor.tokenizer)

    def stream(
        self, document: OpenDocument, question: str, everything: bool, sigma: float, halved: int
    ) -> Iterator[str | Answer]:
        """The answer so far, each time it has grown and at least every :data:`HEARTBEAT` seconds,
        so that a visitor who leaves is noticed while pages are read; at last the whole
        :class:`Answer`, unless it was stopped before it had begun.

        Raises:
            AlignVLMError: a page cannot be used.
        """
        views = document.pages if everything else [document.page]
        streamer = TextIteratorStreamer(
            self.processor.tokenizer,
            skip_prompt=True,
            skip_special_tokens=True,
            timeout=HEARTBEAT,
        )
        outcome: list[Answer | BaseException] = []

        def work() -> None:
            try:
                stop = _StopWhen(document.stop)
                with self._own_turn(document.stop):
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
            while True:
                with suppress(Empty):
                    said += next(streamer)
                yield said
        except StopIteration:
            pass
        except GeneratorExit:  # the visitor has gone
            document.stop.set()
            raise
        finally:
            thread.join()
        if isinstance(outcome[0], Stopped):
            return
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
