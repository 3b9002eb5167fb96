"""Fields from documents: each page is encoded and prefilled once, and all fields are asked of it
in one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor
from transformers import LogitsProcessorList

from ..documents.page_images import PageImage
from ..errors import ConfigError, DataError
from ..model.branches import common_length
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.outputs import CACHE, Encoded
from ..processing.processor import AlignVLMProcessor
from ..reader.page import Box
from .confidence import Calibration, probability, score
from .field_schema import FieldQuestion, Schema, field_questions
from .page_spans import PageSpans, page_spans
from .prompt import Prompt, build_prompts, chat, encode_pages
from .span import Span
from .span_decoding import ExtractiveDecoding, end_ids
from .token_bytes import TokenBytes
from .values import Spelling, date_likeness, parse

DETAILS = ("text", "page", "boxes", "confidence", "note")
"""What a table says of each field beside its value, in columns ``NAME_text`` and so on."""
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class FieldValue:
    """What a document says of a field.

    Attributes:
        value: ``str``, ``Decimal``, ``int`` or ``datetime.date``; ``None``: there is none.
        text: the words on the page, as they are said (see :class:`~.span.Span`); empty if the field
            is not there.
        page: the page they stand on, as :class:`PageImage` counts it; ``None`` without words.
        boxes: x0, y0, x1, y1 of each line of them, px of the page image.
        confidence: probability that it is right; 0 without a page that could be read.
        note: why there is no value although there are words.
    """

    value: Any = None
    text: str = ""
    page: int | None = None
    boxes: list[Box] = field(default_factory=list)
    confidence: float = 0.0
    note: str | None = None


@dataclass(frozen=True)
class Extraction:
    """What a document says.

    Attributes:
        values: of each field, in the schema's order.
        unread: pages on which nothing was read.
    """

    values: dict[str, FieldValue]
    unread: list[int]

    def to(self, model: type[M]) -> M:
        """The values as a pydantic model; fields without a value keep their default.

        Raises:
            pydantic.ValidationError: a field that must be there has no value.
        """
        found = {name: own.value for name, own in self.values.items() if own.value is not None}
        return model.model_validate(found)


def asked_path(table: Path) -> Path:
    """The file beside a table that says what was asked."""
    return table.with_name(f"{table.name}.asked.json")


@dataclass
class Spent:
    """Tokens so far, pages counted once however many fields were asked of them.

    Attributes:
        prompt_tokens: of pages, questions and the chat format around them.
        new_tokens: of the answers, their ends included.
        visual_tokens, kept_visual_tokens: cells of the pages, and those that were not blank.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    visual_tokens: int = 0
    kept_visual_tokens: int = 0


@dataclass(frozen=True)
class FieldAnswer:
    """One answer of a batch: its words, the log-probability of its tokens, the end included, and
    how many these are."""

    text: str
    score: float
    new_tokens: int = 0


@torch.inference_mode()
def answer_together(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    page: PageImage,
    questions: Sequence[str],
    encoded: Encoded,
    *,
    spans: Sequence[PageSpans] | None = None,
    tokens: TokenBytes | None = None,
    max_new_tokens: int = 64,
    at_once: int | None = None,
    most_bytes: int | None = None,
    spent: Spent | None = None,
) -> list[FieldAnswer]:
    """Some questions about one page, each by itself, from one prefill; greedy.

    What the prompts have in common is run through the language model once; its cache is repeated
    for what differs.

    Args:
        encoded: the page as :func:`alignvlm.inference.prompt.encode_pages` gave it.
        spans, tokens: leave each question's answer only these spans of the page.
        at_once: questions in one batch, each of which has a copy of the page's cache; default: all.
        most_bytes: of the copies of one batch: fewer questions go together where more would take
            more, but one at least; default: no limit.
        spent: what it took is added there.

    Raises:
        DataError: prompt and answer do not fit the language model's context.
    """
    first: Prompt | None = None
    rows: list[Tensor] = []
    for question in questions:
        one = build_prompts(
            model,
            processor,
            [chat(question, [page.image])],
            max_new_tokens=[max_new_tokens],
            encoded=encoded,
        )
        first = first or one  # of the others only the ids: embeddings of a full page take 20 MB
        rows.append(one.inputs["input_ids"][0])
    assert first is not None
    shared = _shared(rows, processor.image_token_id)
    start = model(inputs_embeds=first.inputs["inputs_embeds"][:, :shared], use_cache=True,
                  logits_to_keep=1)  # fmt: skip
    answers: list[FieldAnswer] = []
    at_once = _together(start[CACHE], at_once or len(rows), most_bytes)
    for begin in range(0, len(rows), at_once):
        last = begin + at_once >= len(rows)
        cache = start[CACHE] if last else copy.deepcopy(start[CACHE])
        some = slice(begin, begin + at_once)
        limits = LogitsProcessorList()
        if spans is not None and tokens is not None:
            limits.append(ExtractiveDecoding(spans[some], tokens, end_ids(model)))
        answers += _continued(model, processor, rows[some], shared, cache, limits, max_new_tokens)
    if spent is not None:
        spent.prompt_tokens += sum(map(len, rows)) - shared * (len(rows) - 1)
        spent.new_tokens += sum(answer.new_tokens for answer in answers)
        spent.visual_tokens += first.visual_tokens[0]
        spent.kept_visual_tokens += first.kept_visual_tokens[0]
    return answers


def _together(cache: Any, at_once: int, most_bytes: int | None) -> int:
    """Questions of one batch, so that the copies of their page's keys and values stay small."""
    if most_bytes is None:
        return at_once
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    each = sum(one.nbytes for one in held if isinstance(one, Tensor))
    return max(1, min(at_once, most_bytes // max(each, 1)))


def _continued(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    rows: Sequence[Tensor],
    shared: int,
    cache: Any,
    limits: LogitsProcessorList,
    max_new_tokens: int,
) -> list[FieldAnswer]:
    """Answers of one batch, after the ``shared`` ids whose keys and values are in ``cache``."""
    cache.batch_repeat_interleave(len(rows))
    ids, mask = _padded(rows, shared, processor.tokenizer.pad_token_id)
    ends = end_ids(model)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        **{CACHE: cache},
        max_new_tokens=max_new_tokens,
        do_sample=False,
        logits_processor=limits,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = output.sequences[:, ids.shape[1] :]
    logs = torch.stack(output.logits, 1).float().log_softmax(-1)
    logs = logs.gather(2, new[:, :, None])[:, :, 0].tolist()
    answers = []
    for own, chosen in zip(new.tolist(), logs, strict=True):
        size = next((i for i, token in enumerate(own, start=1) if token in ends), len(own))
        text = processor.tokenizer.decode(own[:size], skip_special_tokens=True).strip()
        answers.append(FieldAnswer(text, score(chosen[:size]), size))
    return answers


def _shared(rows: Sequence[Tensor], image: int) -> int:
    """How many ids all rows begin with; at least one is left to each."""
    shared = min(common_length(rows), min(map(len, rows)) - 1)
    if any(bool((row[shared:] == image).any()) for row in rows):
        raise ConfigError("the chat template puts the page behind the question: ask one by one")
    return shared


def _padded(rows: Sequence[Tensor], shared: int, pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[rows, L]``: padding stands behind the shared part, before the question."""
    length = max(map(len, rows))
    ids = rows[0].new_full((len(rows), length), pad)
    mask = torch.zeros_like(ids)
    for row, own, seen in zip(rows, ids, mask):
        own[:shared], seen[:shared] = row[:shared], 1
        own[length - len(row) + shared :], seen[length - len(row) + shared :] = row[shared:], 1
    return ids, mask


class Extractor:
    """A model with a schema, ready for many documents.

    Args:
        model, processor: as :func:`alignvlm.inference.ask.load_model` returns them.
        schema: what to look for, see :func:`field_questions`.
        spelling: settles dates and numbers that can be read in two ways.
        calibration: makes probabilities of scores; default: the model's own.
        min_confidence: values that are less sure are left empty; their words stay.
        max_new_tokens: longest answer.
        encode: gives a page as :func:`alignvlm.inference.prompt.encode_pages` does, for those who
            have encoded it before.
        tokens: what the vocabulary spells, for those who have it; it takes a while to make.
        at_once, most_bytes: fields in one batch, see :func:`answer_together`.

    Attributes:
        spent: tokens of all pages so far.

    Raises:
        ConfigError: a schema that cannot be extracted.
    """

    def __init__(
        self,
        model: AlignVLMForConditionalGeneration,
        processor: AlignVLMProcessor,
        schema: Schema,
        *,
        spelling: Spelling | None = None,
        calibration: Calibration | None = None,
        min_confidence: float = 0.0,
        max_new_tokens: int = 64,
        encode: Callable[[PageImage], Encoded] | None = None,
        tokens: TokenBytes | None = None,
        at_once: int | None = None,
        most_bytes: int | None = None,
    ) -> None:
        if not 0 <= min_confidence <= 1:
            raise ConfigError(f"min_confidence must lie between 0 and 1, not {min_confidence}")
        self.model, self.processor, self.fields = model, processor, field_questions(schema)
        self.spelling, self.calibration = spelling, calibration
        self.min_confidence, self.max_new_tokens = min_confidence, max_new_tokens
        self.encode, self.at_once, self.most_bytes = encode, at_once, most_bytes
        self.spent = Spent()
        self._tokens = tokens or TokenBytes(processor.tokenizer, model.lm_head.out_features)

    def page(self, page: PageImage) -> list[FieldValue] | None:
        """What one page says of each field; ``None``: nothing was read on it.

        Raises:
            ConfigError: the model's encoder does not read.
            DataError: the page cannot be used.
        """
        if self.encode is None:
            encoded = encode_pages(self.model, self.processor, [page.image])
        else:
            encoded = self.encode(page)
        spans = page_spans(self.model, [page.image.size], encoded)
        if not any(map(len, encoded.pages or [])):
            return None
        questions = [one.question for one in self.fields]
        some_date = any(one.kind == "date" for one in self.fields)
        dates = spans.only(date_likeness) if some_date else spans
        among = [dates if one.kind == "date" else spans for one in self.fields]
        answers = answer_together(
            self.model, self.processor, page, questions, encoded,
            spans=among, tokens=self._tokens, max_new_tokens=self.max_new_tokens,
            at_once=self.at_once, most_bytes=self.most_bytes, spent=self.spent,
        )  # fmt: skip
        return [
            self._value(one, answer, own.find(answer.text), page.page)
            for one, own, answer in zip(self.fields, among, answers, strict=True)
        ]

    def _value(
        self, one: FieldQuestion, answer: FieldAnswer, span: Span | None, page: int
    ) -> FieldValue:
        if span is None or not span.text:
            sure = 0.0 if span is None else probability(answer.score, self.calibration)
            return FieldValue(confidence=sure)
        total = min(answer.score + span.log_probability, 0.0)
        value, note = parse(span.text, one.kind, self.spelling)
        boxes = [box for _, box in span.boxes]
        sure = probability(total, self.calibration)
        return FieldValue(value, span.text, page, boxes, sure, note)

    def __call__(self, pages: Sequence[PageImage] | Any) -> Extraction:
        """What a document says: of each field the surest page's words, page after page.

        Args:
            pages: :class:`PageImage` one after the other; a generator's are let go one by one.

        Raises:
            DataError: no pages, or one that cannot be used.
        """
        best: list[FieldValue] | None = None
        unread = []
        for page in pages:
            found = self.page(page)
            if found is None:
                unread.append(page.page)
                found = [FieldValue()] * len(self.fields)
            best = found if best is None else [_surer(a, b) for a, b in zip(best, found)]
        if best is None:
            raise DataError("a document without pages")
        kept = [self._kept(value) for value in best]
        return Extraction({one.name: v for one, v in zip(self.fields, kept, strict=True)}, unread)

    def _kept(self, value: FieldValue) -> FieldValue:
        if not value.text or value.confidence >= self.min_confidence:
            return value
        why = f"confidence {value.confidence:.2f} is below {self.min_confidence:g}"
        return replace(value, value=None, note=why)


def _surer(first: FieldValue, second: FieldValue) -> FieldValue:
    """Words before none; of both, the surer ones, and the first at a tie."""
    return max(first, second, key=lambda value: (bool(value.text), value.confidence))


def extract(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    pages: Sequence[PageImage] | Any,
    schema: Schema,
    **options: Any,
) -> Extraction:
    """The fields of one document; ``options`` as :class:`Extractor` takes them.

    Raises:
        ConfigError: a schema that cannot be extracted, or a model whose encoder does not read.
        DataError: no pages, or one that cannot be used.

    Example:
        >>> extract(model, processor, Pages(["invoice.pdf"]), Invoice).to(Invoice)
        Invoice(company='Novak Deli', total=Decimal('136.94'))
    """
    return Extractor(model, processor, schema, **options)(pages)
