"""Answers as OpenAI's clients read them: whole, or as server-sent events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionTokenLogprob
from openai.types.completion_usage import CompletionUsage


@dataclass(frozen=True)
class Piece:
    """A part of one of the answers to a request.

    Attributes:
        index: which of them.
        text: what it adds.
        tokens: log-probabilities of tokens, if they were asked for.
        reason: why the answer ends here; ``None``: it goes on.
        refusal: why there is no answer.
        fields: where the values of an answer stand on the pages.
    """

    index: int = 0
    text: str = ""
    tokens: Sequence[ChatCompletionTokenLogprob] | None = None
    reason: str | None = None
    refusal: str | None = None
    fields: dict[str, Any] | None = None


@dataclass(frozen=True)
class ChatReply:
    """What all responses to one request have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, pieces: Iterable[Piece], usage: CompletionUsage) -> dict[str, Any]:
        """All answers in one ``chat.completion``."""
        answers: dict[int, list[Piece]] = {}
        for piece in pieces:
            answers.setdefault(piece.index, []).append(piece)
        choices = [_choice(index, own) for index, own in answers.items()]
        done = ChatCompletion.model_validate(
            {**self._common, "object": "chat.completion", "choices": choices, "usage": usage}
        )
        data = done.model_dump(exclude_none=True)
        for choice in data["choices"]:  # clients look for both, also where there is none
            choice["message"] = {"content": None, "refusal": None, **choice["message"]}
        return data

    def begin(self, index: int) -> str:
        """The event with which an answer begins."""
        return self._event([{"index": index, "delta": {"role": "assistant", "content": ""}}])

    def event(self, piece: Piece) -> str:
        """The event of one piece."""
        delta = {"content": piece.text or None, "refusal": piece.refusal, "fields": piece.fields}
        choice = {"index": piece.index, "delta": delta, "finish_reason": piece.reason}
        return self._event([{**choice, **_logprobs(piece.tokens or ())}])

    def last(self, usage: CompletionUsage) -> str:
        """The event after all answers, which counts tokens."""
        return self._event([], usage)

    @property
    def _common(self) -> dict[str, Any]:
        return {"id": self.id, "model": self.model, "created": self.created}

    def _event(self, choices: list[dict[str, Any]], usage: CompletionUsage | None = None) -> str:
        kind = "chat.completion.chunk"
        chunk = ChatCompletionChunk.model_validate(
            {**self._common, "object": kind, "choices": choices, "usage": usage}
        )
        return f"data: {chunk.model_dump_json(exclude_none=True)}\n\n"


def _choice(index: int, pieces: list[Piece]) -> dict[str, Any]:
    last = pieces[-1]
    text = None if last.refusal else "".join(piece.text for piece in pieces)
    message = {"role": "assistant", "content": text, "refusal": last.refusal}
    if last.fields is not None:
        message["fields"] = last.fields
    found = [piece.tokens for piece in pieces if piece.tokens is not None]
    tokens = [token for some in found for token in some]
    choice = {"index": index, "message": message, "finish_reason": last.reason}
    return {**choice, **_logprobs(tokens, always=bool(found))}


def _logprobs(tokens: Sequence[Any], *, always: bool = False) -> dict[str, Any]:
    if not tokens and not always:
        return {}
    return {"logprobs": {"content": [token.model_dump() for token in tokens], "refusal": None}}
