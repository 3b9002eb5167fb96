"""Answers under way: pieces of text as the model writes them, or fields as they were found."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from typing import Protocol

from openai.types.completion_usage import CompletionUsage, PromptTokensDetails
from transformers.cli.serving.utils import _StreamError

from ..inference.extract import Spent
from .call import Call
from .completions import ChatPrompt, Generator, Writing, first_stop
from .limits import RequestError
from .page_fields import Found, WantedFields
from .replies import Piece
from .schema import ChatRequest
from .telemetry import Metrics

log = logging.getLogger("alignvlm.serve")


class Answering(Protocol):
    """The answers to one request."""

    def pieces(self) -> AsyncIterator[Piece]:
        """All answers, one after the other; the last piece of each has a reason.

        Raises:
            RequestError: time is up, or the model failed.
            ClientGoneError: the client left.
        """
        ...

    @property
    def usage(self) -> CompletionUsage:
        """Tokens of all answers, once they are there."""
        ...

    def close(self) -> None:
        """Nobody waits for more of it."""
        ...


def internal_error() -> RequestError:
    """500: the cause is in the server's log."""
    return RequestError(
        "the model failed on this request; the server's log says why",
        status=500,
        code="internal_error",
    )


def token_usage(spent: Spent) -> CompletionUsage:
    """Counts as OpenAI names them, and the cells of pages as ``visual_tokens``."""
    kept, cells = spent.kept_visual_tokens, spent.visual_tokens
    details = PromptTokensDetails.model_validate({"image_tokens": kept, "visual_tokens": cells})
    return CompletionUsage(
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.new_tokens,
        total_tokens=spent.prompt_tokens + spent.new_tokens,
        prompt_tokens_details=details,
    )


class GeneratedAnswer:
    """What the language model writes, ``n`` times from one prompt."""

    def __init__(
        self,
        generator: Generator,
        metrics: Metrics,
        call: Call,
        request: ChatRequest,
        prompt: ChatPrompt,
    ) -> None:
        self.generator, self.metrics, self.call = generator, metrics, call
        self.request, self.prompt = request, prompt
        self.spent = Spent(
            prompt.tokens, 0, visual_tokens=prompt.visual_tokens,
            kept_visual_tokens=prompt.kept_visual_tokens,
        )  # fmt: skip
        self._writing: Writing | None = None

    @property
    def usage(self) -> CompletionUsage:
        return token_usage(self.spent)

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
        self.metrics.prompt_tokens.inc(self.spent.prompt_tokens)
        self.metrics.completion_tokens.inc(self.spent.new_tokens)

    async def _texts(self, writing: Writing, *, first: bool) -> AsyncIterator[str]:
        """One answer's text as it comes; what might begin a stop string is held back."""
        stops = writing.new.stops
        hold = max(map(len, stops), default=1) - 1
        text, sent = "", 0
        while (item := await self.call.within(writing.queue.get())) is not None:
            if first:
                self.metrics.first_token.observe(time.monotonic() - self.call.started)
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


class FieldsAnswer:
    """An object of fields, each a place on the pages."""

    def __init__(self, found: Found, wanted: WantedFields, call: Call, metrics: Metrics) -> None:
        self.found, self.wanted = found, wanted
        self.call, self.metrics = call, metrics

    @property
    def usage(self) -> CompletionUsage:
        return token_usage(self.found.spent)

    def close(self) -> None:
        """It is complete."""

    async def pieces(self) -> AsyncIterator[Piece]:
        self.metrics.first_token.observe(time.monotonic() - self.call.started)
        details = self.found.details
        if refusal := self.wanted.refusal(self.found.extraction):
            yield Piece(refusal=refusal, reason="stop", fields=details)
        else:
            yield Piece(text=self.wanted.content(self.found.extraction))
            yield Piece(reason="stop", fields=details)
        self.metrics.prompt_tokens.inc(self.found.spent.prompt_tokens)
        self.metrics.completion_tokens.inc(self.found.spent.new_tokens)
