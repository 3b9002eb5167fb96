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
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from openai.types.chat import ChatCompletionTokenLogprob
from PIL import Image
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import DirectStreamer, GenerationState

from ..documents.page_images import PageImage
from ..inference.confidence import Calibration
from ..inference.extract import Extractor, Spent
from ..inference.prompt import ContextError, Prompt, build_prompts, encode_pages, together
from ..inference.span_decoding import end_ids
from ..inference.stopping import stoppable
from ..inference.token_bytes import TokenBytes
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import Encoded
from ..processing.processor import AlignVLMProcessor
from .attachments import Attachment, decode, opened
from .limits import Limits, RequestError
from .messages import TextPart
from .page_fields import Found, WantedFields
from .schema import ChatRequest
from .token_scores import TokenScores

T = TypeVar("T")
FIELDS_AT_ONCE, FIELD_BYTES = 6, 2**30
"""Fields asked in one batch, and what their copies of the page's keys and values take together at
most: of a page that fills ``smol``'s context each takes 360 MiB."""
LONGEST_FIELD = 64
"""Tokens of a field, as ``alignvlm extract`` has it."""
SEEN = Image.new("RGB", (1, 1))
"""Stands in a chat for a page that has been encoded."""


class NewTokens(StoppingCriteria):
    """Keeps the ids of the answer, and ends it at a stop string.

    transformers' own stop strings would index the whole vocabulary for every new string.

    Args:
        prompt_tokens: how many ids come before the answer.
        stops: strings that end it.
    """

    def __init__(self, tokenizer: Any, prompt_tokens: int, stops: list[str]) -> None:
        self.tokenizer, self.prompt_tokens, self.stops = tokenizer, prompt_tokens, stops
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
        spent: tokens of the prompt as the language model gets it, after blank dropping.
        unread: nothing was read on any page; the answer is empty.
        abandoned: set when nobody waits for the answer any more.
    """

    inputs: dict[str, Any]
    config: GenerationConfig
    spent: Spent
    unread: bool
    abandoned: threading.Event


@dataclass(frozen=True)
class Writing:
    """One answer while it is written.

    Attributes:
        new: fills with the answer's ids.
        queue: pieces of text come out of it, then None.
        streamer: ends the answer when it is cancelled; None where nothing was read.
        scores: of its tokens, if they were asked for.
    """

    new: NewTokens
    queue: asyncio.Queue
    streamer: DirectStreamer | None = None
    scores: TokenScores | None = None

    def scored(self, size: int) -> list[ChatCompletionTokenLogprob] | None:
        """Tokens of the answer's first ``size`` bytes, those not told before."""
        return None if self.scores is None else self.scores.until(size)


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
        calibration: Calibration | None = None,
    ) -> None:
        state = GenerationState()
        # no model manager: there is one model, and it is loaded
        super().__init__(model_manager=None, generation_state=state)  # type: ignore[arg-type]
        self.model, self.processor = model, processor
        self.limits, self.calibration = limits, calibration
        self.manager: Any = state.get_manager("alignvlm")
        self.ends = set(end_ids(model))

    def in_thread(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """What :meth:`prepare` or :meth:`extract` gives on the inference thread, which finds its
        future as it left it, also where nobody waits any more."""
        future = self.manager.async_submit(work, *args)
        future.add_done_callback(_seen)
        return asyncio.shield(future)

    def _opened(self, documents: list[Attachment]) -> Any:
        return opened(documents, self.limits, self.processor.image_processor.useful_pixels())

    def prepare(
        self, request: ChatRequest, documents: list[Attachment], abandoned: threading.Event
    ) -> ChatPrompt:
        """Decode, tokenize and encode.

        Raises:
            RequestError: damaged pages, or a prompt that is too long.
            DataError: the prompt's placeholders do not fit its images.
        """
        with stoppable(self.model, abandoned.is_set), self._opened(documents) as files:
            if files:  # before pages are read in vain
                self._prompt(request, [0] * len(files), None)
            pages = decode(files, self.limits)
            encoded = list(map(self._encode, pages))  # a page is gone before the next one is there
            prompt = self._prompt(
                request, [file.count for _, file in files], together(encoded) if encoded else None
            )
        return ChatPrompt(
            inputs=prompt.inputs,
            config=self.generation_config(request, prompt.room[0]),
            spent=Spent(
                prompt.lengths[0], 0, prompt.visual_tokens[0], prompt.kept_visual_tokens[0]
            ),
            unread=prompt.unread[0],
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
            raise _too_long(error) from None

    def generation_config(self, request: ChatRequest, room: int) -> GenerationConfig:
        """The model's own settings with the request's on top; greedy unless it asks to sample."""
        wanted = request.max_completion_tokens or request.max_tokens or self.limits.max_new_tokens
        body = {
            "max_completion_tokens": min(wanted, room),
            "temperature": (request.temperature or None) if request.sampled else None,
            "top_p": request.top_p if request.sampled else None,
            "seed": request.seed,
            "frequency_penalty": request.frequency_penalty or None,
        }
        config = self._build_generation_config(body, self.model.generation_config)
        config.do_sample = request.sampled
        return config

    def start(self, prompt: ChatPrompt, request: ChatRequest) -> Writing:
        """Begin an answer. Where nothing was read it is empty, and nothing is generated."""
        new = NewTokens(self.processor.tokenizer, prompt.spent.prompt_tokens, request.stop)
        scores = TokenScores(self.spells, request.top_logprobs) if request.logprobs else None
        if prompt.unread:
            nothing: asyncio.Queue = asyncio.Queue()
            nothing.put_nowait(None)
            return Writing(new, nothing, None, scores)
        extra = {"stopping_criteria": StoppingCriteriaList([new])}
        if scores is not None:
            extra["stopping_criteria"].append(scores.criteria)
            extra["logits_processor"] = LogitsProcessorList([scores.processor])
        queue, streamer = self.manager.generate_streaming(
            _Stoppable(self.model, prompt.abandoned),
            self.processor.tokenizer,
            {**prompt.inputs, **extra},
            prompt.config,
            "",  # transformers' name of a request: a server of one has no use for it
        )
        return Writing(new, queue, streamer, scores)

    @cached_property
    def spells(self) -> TokenBytes:
        """What the vocabulary's tokens spell; it takes a while to make."""
        return TokenBytes(self.processor.tokenizer, self.model.lm_head.out_features)

    def extract(
        self,
        request: ChatRequest,
        wanted: WantedFields,
        documents: list[Attachment],
        abandoned: threading.Event,
    ) -> Found:
        """Find fields.

        Raises:
            RequestError: damaged pages, or a page that is too long.
            ConfigError: the model's encoder does not read.
        """
        longest = request.max_completion_tokens or request.max_tokens or LONGEST_FIELD
        extractor = Extractor(
            self.model,
            self.processor,
            wanted.questions,
            calibration=self.calibration,
            max_new_tokens=min(longest, LONGEST_FIELD),
            tokens=self.spells,
            at_once=FIELDS_AT_ONCE,
            most_bytes=FIELD_BYTES,
        )
        with stoppable(self.model, abandoned.is_set), self._opened(documents) as files:
            images = enumerate(decode(files, self.limits), start=1)
            try:
                found = extractor(PageImage(image, f"page {n}", n) for n, image in images)
            except ContextError as error:
                raise _too_long(error) from None
        return Found(found, extractor.spent)

    async def idle(self, seconds: float) -> None:
        """Let a cancelled answer reach its end, for so long. Its thread tells the event loop how it
        went, so that one may not close before, and a thread inside torch may not outlive Python."""
        last = asyncio.wrap_future(self.manager.submit(lambda: None))
        await asyncio.wait([last], timeout=seconds)

    def finish_reason(self, prompt: ChatPrompt, writing: Writing) -> str:
        """``stop`` after an end token or stop string, or where nothing was read; else
        ``length``."""
        ids = writing.new.ids
        ended = prompt.unread or writing.new.stopped or (bool(ids) and ids[-1] in self.ends)
        return "stop" if ended else "length"


def _seen(future: asyncio.Future) -> None:
    """That work ended because nobody waits for it is no news: asyncio would log its traceback."""
    if not future.cancelled():
        future.exception()


def _too_long(error: ContextError) -> RequestError:
    return RequestError(
        f"the prompt has {error.tokens} tokens, the model's context {error.limit}: "
        "send fewer pages or less text",
        code="context_length_exceeded",
        param="messages",
    )


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
