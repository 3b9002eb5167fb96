"""Answers under way: pieces of text as the model writes them, or fields as they were found."""

from __future__ import annotations

import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from openai.types.completion_usage import CompletionUsage, PromptTokensDetails
from transformers.cli.serving.utils import _StreamError

from ..inference.extract import Spent
from .call import Call
from .generator import ChatPrompt, Generator, Writing, first_stop
from .limits import RequestError
from .page_fields import Found, WantedFields
from .replies import Piece
from .schema import ChatRequest
from .telemetry import Metrics

log = logging.getLogger("alignvlm.serve")


class Answering(ABC):
    """The answers to one request.

    Args:
        spent: its tokens so far.
    """

    def __init__(self, call: Call, metrics: Metrics, spent: Spent) -> None:
        self.call, self.metrics, self.spent = call, metrics, spent

    @abstractmethod
    def pieces(self) -> AsyncIterator[Piece]:
        """All answers, one after the other; the last piece of each has a reason.

        Raises:
            RequestError: time is up, or the model failed.
            ClientGoneError: the client left.
        """

    @property
    def usage(self) -> CompletionUsage:
        """Tokens of all answers, once they are there, as OpenAI names them, and the cells of pages
        as ``visual_tokens``."""
        spent = self.spent
        kept, cells = spent.kept_visual_tokens, spent.visual_tokens
        details = {"image_tokens": kept, "visual_tokens": cells}
        return CompletionUsage(
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.new_tokens,
            total_tokens=spent.prompt_tokens + spent.new_tokens,
            prompt_tokens_details=PromptTokensDetails.model_validate(details),
        )

    def count(self) -> None:
        """Add the tokens of all answers to what the server counts."""
        self.metrics.prompt_tokens.inc(self.spent.prompt_tokens)
        self.metrics.completion_tokens.inc(self.spent.new_tokens)

    def began(self) -> None:
        """Note when the first text was there."""
        self.metrics.first_token.observe(time.monotonic() - self.call.started)

    def close(self) -> None:  # noqa: B027
        """Nobody waits for more of it."""


def internal_error() -> RequestError:
    """500: the cause is in the server's log."""
    return RequestError(
        "the model failed on this request; the server's log says why",
        status=500,
        code="internal_error",
    )


class GeneratedAnswer(Answering):
    """What the language model writes, ``n`` times from one prompt."""

    def __init__(
        self,
        generator: Generator,
        call: Call,
        metrics: Metrics,
        request: ChatRequest,
        prompt: ChatPrompt,
    ) -> None:
        super().__init__(call, metrics, prompt.spent)
        self.generator, self.request, self.prompt = generator, request, prompt
        self._writing: Writing | None = None

    def close(self) -> None:
        if self._writing is not None and self._writing.streamer is not None:
            self._writing.streamer.cancel()  # no matter to one that has ended

    async def pieces(self) -> AsyncIterator[Piece]:
        for index in range(self.request.n):
            self._writing = writing = self.generator.start(self.prompt, self.request)
            size = 0
            async for text in self._texts(writing, first=index == 0):
                size += len(text.encode())
                yield Piece(index, text, writing.scored(size))
            reason = self.generator.finish_reason(self.prompt, writing)
            left = writing.scored(size if writing.new.stopped else sys.maxsize)
            yield Piece(index, "", left, reason)
            self.spent.new_tokens += len(writing.new.ids)
        self.count()

    async def _texts(self, writing: Writing, *, first: bool) -> AsyncIterator[str]:
        """One answer's text as it comes; what might begin a stop string is held back."""
        stops = writing.new.stops
        hold = max(map(len, stops), default=1) - 1
        text, sent = "", 0
        while (item := await self.call.within(writing.queue.get())) is not None:
            if first:
                self.began()
                first = False
            if isinstance(item, _StreamError):
                log.error("generation failed: %s", item.msg)
                raise internal_error()
            text += item
            end = first_stop(text, stops)
            end = len(text) - hold if end is None else end
            if end > sent:
                yield text[sent:end]
                sent = end
        # the streamer keeps bytes that are no whole character, the answer shows them
        if rest := writing.new.answer()[sent:]:
            yield rest


class JsonAnswer(GeneratedAnswer):
    """The same in an object with one key, ``answer``."""

    async def pieces(self) -> AsyncIterator[Piece]:
        text = ""
        async for piece in super().pieces():
            text += piece.text
            if piece.reason is not None:
                whole = json.dumps({"answer": text.strip()}, ensure_ascii=False)
                yield Piece(piece.index, whole)
                yield piece
                text = ""


class FieldsAnswer(Answering):
    """An object of fields, each a place on the pages."""

    def __init__(self, found: Found, wanted: WantedFields, call: Call, metrics: Metrics) -> None:
        super().__init__(call, metrics, found.spent)
        self.found, self.wanted = found, wanted

    async def pieces(self) -> AsyncIterator[Piece]:
        self.began()
        details = self.found.details
        if refusal := self.wanted.refusal(self.found.extraction):
            yield Piece(refusal=refusal, reason="stop", fields=details)
        else:
            yield Piece(text=self.wanted.content(self.found.extraction))
            yield Piece(reason="stop", fields=details)
        self.count()
