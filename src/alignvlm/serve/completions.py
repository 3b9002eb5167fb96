"""From a checked request to tokens, with the pieces of transformers' own server.

``transformers serve`` gives the inference thread, the streamer that turns tokens into text and can
be cancelled, the reading of sampling options and the OpenAI responses. Its
``ChatCompletionHandler.handle_request`` itself is not called, for it decodes pictures on the event
loop (nobody else is answered meanwhile), cannot stop an answer that is not streamed when its client
leaves, counts the prompt before blank dropping, and writes errors that OpenAI's clients cannot
read. Its app is not mounted, for it loads any model a request names.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import DirectStreamer, GenerationState

from ..inference.prompt import ContextError, Prompt, build_prompts, encode_pages, together
from ..inference.stopping import stoppable
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..processing.processor import AlignVLMProcessor
from .attachments import Attachment, decode, opened
from .limits import Limits, RequestError
from .schema import ChatRequest, TextPart

SEEN = Image.new("RGB", (1, 1))
"""Stands in a chat for a page that has been encoded."""


class NewTokens(StoppingCriteria):
    """Keeps the ids of the answer, and ends it at a stop string.

    transformers' own stop strings would index the whole vocabulary for every new string.

    Args:
        tokenizer: the language model's.
        prompt_tokens: how many ids come before the answer.
        stops: strings that end the answer.
    """

    def __init__(self, tokenizer: Any, prompt_tokens: int, stops: list[str]) -> None:
        self.tokenizer = tokenizer
        self.prompt_tokens = prompt_tokens
        self.stops = stops
        self.ids: list[int] = []
        # a character is at most four tokens of a byte-level vocabulary
        self.reach = 4 * max(map(len, stops), default=0)
        self.stopped = False

    def __call__(self, input_ids: Tensor, scores: Any = None, **kwargs: Any) -> Tensor:  # type: ignore[override]
        self.ids = input_ids[0, self.prompt_tokens :].tolist()
        if self.stops:
            tail = self.text(self.ids[-self.reach :])
            self.stopped = any(stop in tail for stop in self.stops)
        return torch.full(input_ids.shape[:1], self.stopped, device=input_ids.device)

    def text(self, ids: list[int] | None = None) -> str:
        """Ids (default: the whole answer) without special tokens."""
        return self.tokenizer.decode(self.ids if ids is None else ids, skip_special_tokens=True)

    def answer(self) -> str:
        """The whole answer, up to a stop string."""
        text = self.text()
        return text[: first_stop(text, self.stops)]


def first_stop(text: str, stops: list[str]) -> int | None:
    """Where the first stop string begins; None: there is none."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


@dataclass(frozen=True)
class ChatPrompt:
    """What goes to ``generate``, and what it counts.

    Attributes:
        inputs: keyword arguments of ``generate``.
        config: sampling options and length.
        tokens: prompt ids as the language model gets them, after blank dropping.
        visual_tokens, kept_visual_tokens: cells of the pages, and those that were not blank.
        unread: nothing was read on any page; the answer is empty.
        new: fills with the answer's ids.
        abandoned: set when nobody waits for the answer any more.
    """

    inputs: dict[str, Any]
    config: GenerationConfig
    tokens: int
    visual_tokens: int
    kept_visual_tokens: int
    unread: bool
    new: NewTokens
    abandoned: threading.Event


class _Stoppable:
    """A model whose ``generate`` ends, also within the prompt, when nobody waits for it."""

    def __init__(self, model: Any, abandoned: threading.Event) -> None:
        self.model, self.abandoned = model, abandoned

    def generate(self, **keys: Any) -> Any:
        with stoppable(self.model, self.abandoned.is_set):
            return self.model.generate(**keys)


class Generator(ChatCompletionHandler):
    """One model, asked by one request at a time on a thread of its own."""

    def __init__(
        self,
        model: AlignVLMForConditionalGeneration,
        processor: AlignVLMProcessor,
        limits: Limits,
    ) -> None:
        state = GenerationState()
        # no model manager: there is one model, and it is loaded
        super().__init__(model_manager=None, generation_state=state)  # type: ignore[arg-type]
        self.model = model
        self.processor = processor
        self.limits = limits
        self.manager: Any = state.get_manager("alignvlm")
        eos = model.generation_config.eos_token_id
        self.ends: set[int] = {eos} if isinstance(eos, int) else set(eos or ())

    def prepare(
        self, request: ChatRequest, documents: list[Attachment], abandoned: threading.Event
    ) -> asyncio.Future[ChatPrompt]:
        """Decode, tokenize and encode on the inference thread.

        Raises (in the future):
            RequestError: damaged pages, or a prompt that is too long.
            DataError: the prompt's placeholders do not fit its images.
        """
        return self.manager.async_submit(self._prepare, request, documents, abandoned)

    def _prepare(
        self, request: ChatRequest, documents: list[Attachment], abandoned: threading.Event
    ) -> ChatPrompt:
        with stoppable(self.model, abandoned.is_set), opened(documents, self.limits) as files:
            if files:  # before pages are read in vain
                self._prompt(request, [0] * len(files), None)
            pages = decode(files, self.limits)
            encoded = list(map(self._encode, pages))  # a page is gone before the next one is there
            prompt = self._prompt(
                request, [file.count for _, file in files], together(encoded) if encoded else None
            )
        new = NewTokens(self.processor.tokenizer, prompt.lengths[0], request.stop)
        return ChatPrompt(
            inputs={**prompt.inputs, "stopping_criteria": StoppingCriteriaList([new])},
            config=self.generation_config(request, prompt.room[0]),
            tokens=prompt.lengths[0],
            visual_tokens=prompt.visual_tokens[0],
            kept_visual_tokens=prompt.kept_visual_tokens[0],
            unread=prompt.unread[0],
            new=new,
            abandoned=abandoned,
        )

    def _encode(self, page: Image.Image) -> Encoded:
        return encode_pages(self.model, self.processor, [page]).lean()

    def _prompt(self, request: ChatRequest, counts: list[int], encoded: Encoded | None) -> Prompt:
        """The prompt with so many pages for each document, encoded before."""
        chat = chat_messages(request, [[SEEN] * count for count in counts])
        try:
            return build_prompts(
                self.model, self.processor, [chat], max_new_tokens=[1], encoded=encoded
            )
        except ContextError as error:
            raise RequestError(
                f"the prompt has {error.tokens} tokens, the model's context {error.limit}: "
                "send fewer pages or less text",
                code="context_length_exceeded",
                param="messages",
            ) from None

    def generation_config(self, request: ChatRequest, room: int) -> GenerationConfig:
        """The model's own settings with the request's on top; greedy unless it asks to sample."""
        wanted = request.max_completion_tokens or request.max_tokens or self.limits.max_new_tokens
        narrowed = request.top_p is not None and request.top_p < 1
        sample = bool(request.temperature) or (request.temperature is None and narrowed)
        body = {
            "max_completion_tokens": min(wanted, room),
            "temperature": request.temperature or None,
            "top_p": request.top_p,
            "seed": request.seed,
            "frequency_penalty": request.frequency_penalty or None,
        }
        if not sample:
            body |= {"temperature": None, "top_p": None}
        config = self._build_generation_config(body, self.model.generation_config)
        config.do_sample = sample
        return config

    def start(
        self, prompt: ChatPrompt, request_id: str
    ) -> tuple[asyncio.Queue, DirectStreamer | None]:
        """Begin generating: pieces of text come out of the queue, then None. Where nothing was
        read there are no pieces, and no streamer."""
        if prompt.unread:
            nothing: asyncio.Queue = asyncio.Queue()
            nothing.put_nowait(None)
            return nothing, None
        model = _Stoppable(self.model, prompt.abandoned)
        return self.manager.generate_streaming(
            model, self.processor.tokenizer, prompt.inputs, prompt.config, request_id
        )

    def wait_until_idle(self, seconds: float) -> None:
        """Let a cancelled answer reach its end: a thread inside torch must not outlive Python."""
        with contextlib.suppress(futures.TimeoutError):
            self.manager.submit(lambda: None).result(seconds)

    def finish_reason(self, prompt: ChatPrompt) -> str:
        """``stop`` after an end token or stop string, or where nothing was read; else
        ``length``."""
        ids = prompt.new.ids
        ended = prompt.unread or prompt.new.stopped or (bool(ids) and ids[-1] in self.ends)
        return "stop" if ended else "length"


def chat_messages(request: ChatRequest, pages: list[list[Image.Image]]) -> list[dict[str, Any]]:
    """Messages as processors take them; ``pages`` fill the places of pictures and PDFs in order."""
    left = iter(pages)
    messages = []
    for message in request.messages:
        content: list[dict[str, Any]] = []
        for part in message.parts:
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
            else:
                content += [{"type": "image", "image": page} for page in next(left)]
        # the chat formats have no developer; OpenAI's new name of the system
        role = "system" if message.role == "developer" else message.role
        messages.append({"role": role, "content": content})
    return messages
