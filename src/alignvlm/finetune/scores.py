"""What a model makes of the user's held-out records: scored before training and after it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..connectors import AlignConnector
from ..data import encode
from ..data.collate import Collator
from ..data.questions_together import Together, together
from ..data.records import Record
from ..data.sources import Source, limit
from ..documents.page_images import PageImage
from ..errors import ConfigError, DataError
from ..eval.intervals import Paired, bootstrap_interval
from ..eval.metrics import METRICS, Verdict, scored
from ..eval.metrics.metric import Answers, mean_score, ratio, total
from ..eval.reading_accuracy import reading_accuracy
from ..files import write_text
from ..inference.extract import answer_together
from ..inference.generate import generate
from ..inference.prompt import build_prompts, encode_pages
from ..model.generation import AlignVLMForConditionalGeneration
from ..model.losses import IGNORE
from ..processing.processor import AlignVLMProcessor
from .own_data import Data, document_of_page, document_of_question
from .quality import reading_part

ENOUGH = 20
"""Generated answers that count as much as the probability of the right ones."""
READ_ALOUD = 3
"""Held-out pages whose text the model writes down, for the report."""
CACHE_BYTES = 2**30
"""Of keys and values of questions that are answered at once."""
READ_TOKENS = 128
"""Tokens it may write for each."""


def exact_match(prediction: str, answers: Answers) -> float:
    """1.0 where an accepted answer was given, but for case and runs of whitespace."""
    found = " ".join(prediction.lower().split())
    return float(any(found == " ".join(answer.lower().split()) for answer in answers))


class Score(NamedTuple):
    """How one score is named, and made of verdicts."""

    title: str
    aggregate: Callable[[Sequence[Verdict]], float]


SCORES = {
    "anls": Score("ANLS of answers", mean_score),
    "exact_match": Score("exact match of answers", mean_score),
    "probability": Score("probability of right answers, a token", mean_score),
    "reading": Score("token-reading accuracy of pages", ratio("right", "all")),
    "blank": Score("blank cells of pages left blank", ratio("right", "all")),
    "aloud": Score("probability of the pages' text, a token", mean_score),
}
"""Every score of a run by name; all are 0..1 and higher is better."""


class Example(NamedTuple):
    """A held-out record and what was answered."""

    id: str
    question: str
    expected: str
    answer: str


class Scored(NamedTuple):
    """A model's scores.

    Attributes:
        verdicts: of each score: one a question, or one a page.
        groups: the document of each verdict.
        questions: answers to held-out questions.
        pages: the first words of what it reads aloud from held-out pages.
    """

    verdicts: dict[str, list[Verdict]]
    groups: dict[str, list[str]]
    questions: list[Example]
    pages: list[Example]

    def parts(self) -> dict[str, float]:
        """What :func:`alignvlm.finetune.quality.combined` makes one number of: ``answers``,
        ``reading`` and ``aloud``, as far as there are such records.

        Answers count as they are generated and by the probability of the right ones: the former is
        what the user gets, but few of them move in leaps, so fewer than :data:`ENOUGH` weigh less.
        """
        found = {name: SCORES[name].aggregate(rows) for name, rows in self.verdicts.items() if rows}
        parts: dict[str, float] = {}
        if "anls" in found:
            share = min(1.0, len(self.verdicts["anls"]) / ENOUGH) / 2
            likely = found.get("probability", found["anls"])
            parts["answers"] = share * found["anls"] + (1 - share) * likely
        if "reading" in found:
            text, blank = (
                (total(self.verdicts[name], "right"), total(self.verdicts[name], "all"))
                for name in ("reading", "blank")
            )
            parts["reading"] = reading_part(text, blank)
        if "aloud" in found:
            parts["aloud"] = found["aloud"]
        return parts

    def save(self, file: Path) -> None:
        """As JSON, whole or not at all."""
        data = {**self._asdict(), "questions": [*self.questions], "pages": [*self.pages]}
        write_text(file, json.dumps(data, ensure_ascii=False))

    @classmethod
    def load(cls, file: Path) -> Scored:
        """What :meth:`save` wrote."""
        data = json.loads(file.read_text(encoding="utf-8"))
        examples = {key: [Example(*row) for row in data[key]] for key in ("questions", "pages")}
        return cls(data["verdicts"], data["groups"], **examples)


def score(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    data: Data,
    *,
    most: int,
    max_new_tokens: int,
    max_length: int,
    transcribe: bool = True,
    examples: bool = True,
) -> Scored:
    """Answer held-out questions and read held-out pages, greedily.

    Args:
        most: questions, and pages, at most.
        max_new_tokens: length of an answer.
        max_length: tokens of a record; longer ones have no probability.
        transcribe: the text of pages has a probability, too.
        examples: with ``transcribe``, also write down the text of a few pages.
    """
    model.eval()
    result = Scored({}, {}, [], [])
    if data.questions is not None:
        asked = data.questions.held_together(most)
        _score_questions(model, processor, asked, max_new_tokens, result)
        _score_probability(
            "probability", model, processor, asked, max_length, document_of_question, result
        )
    if data.pages is not None:
        if isinstance(model.model.connector, AlignConnector):
            _score_pages(model, processor, data.pages.held_out, most, result)
        if transcribe:
            shown = data.pages.held_together(most)
            _score_probability(
                "aloud", model, processor, shown, max_length, document_of_page, result
            )
        if transcribe and examples:
            pages = limit(data.pages.held_out, min(READ_ALOUD, most))
            for record in (pages[index] for index in range(len(pages))):
                result.pages.append(_example(model, processor, record, READ_TOKENS))
    return result


def _score_questions(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    source: Together,
    max_new_tokens: int,
    result: Scored,
) -> None:
    verdicts = {"anls": METRICS["anls"].verdict, "exact_match": scored(exact_match)}
    for index in range(len(source)):
        records = source.records(index)
        for record, example in zip(
            records, _examples(model, processor, records, max_new_tokens), strict=True
        ):
            result.questions.append(example)
            for name, verdict in verdicts.items():
                found = verdict(example.answer, (example.expected,))
                result.verdicts.setdefault(name, []).append(found)
                result.groups.setdefault(name, []).append(document_of_question(record))


def _score_pages(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    source: Source,
    most: int,
    result: Scored,
) -> None:
    try:
        reading = reading_accuracy(model, processor, source, most)
    except ConfigError:  # no page has a cell in which a token starts
        return
    for name, cells in (
        ("reading", [page.text for page in reading.pages]),
        ("blank", [page.blank for page in reading.pages]),
    ):
        result.verdicts[name] = [{"right": float(a), "all": float(b)} for a, b in cells]
        result.groups[name] = [page.document for page in reading.pages]


def _score_probability(
    name: str,
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    source: Together,
    max_length: int,
    document: Callable[[Record], str],
    result: Scored,
) -> None:
    for index in range(len(source)):
        records = source.records(index)
        try:
            found = answer_probabilities(model, processor, together(records), max_length)
        except encode.TooLong:
            continue
        result.verdicts.setdefault(name, []).extend({"score": one} for one in found)
        result.groups.setdefault(name, []).extend(map(document, records))


@torch.no_grad()
def answer_probabilities(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    record: Record,
    max_length: int,
) -> list[float]:
    """Probability the model gives to a token of the record's answers: the geometric mean over them;
    of a record with ``independent_turns`` one for each turn.

    Raises:
        TooLong: the record has more than ``max_length`` tokens.
    """
    sample = encode.encode_fitting(record, processor, model.config, max_length)
    batch = {key: value.to(model.device) for key, value in Collator(0)([sample]).items()}
    labels = batch.pop("labels")[0, 1:]
    turns = batch.get("turn_ids", torch.zeros_like(batch["input_ids"]))[0, 1:]
    hidden = model.model(**batch, use_cache=False).last_hidden_state[0, :-1]
    there = labels != IGNORE
    logits = model.logits(hidden[there]).float()
    losses = nn.functional.cross_entropy(logits, labels[there].to(logits.device), reduction="none")
    each = [losses[turns[there] == turn].mean() for turn in turns[there].unique()]
    return [math.exp(-float(loss)) if math.isfinite(loss) else 0.0 for loss in each]


def _examples(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    records: Sequence[Record],
    max_new_tokens: int,
) -> list[Example]:
    """What is answered to each record's first question, beside what should be; the page of several
    questions is read once."""
    alone = partial(_example, model, processor, max_new_tokens=max_new_tokens)
    if len(records) == 1 or len(records[0].images) > 1:
        return list(map(alone, records))
    (image,) = encode.load_images(records[0])
    encoded = encode_pages(model, processor, [image])
    page, questions = PageImage(image, records[0].id, 1), [str(one.question) for one in records]
    if encoded.pages is not None and not any(map(len, encoded.pages)):
        said = [""] * len(records)  # nothing was read, and nothing is made up
    else:
        try:
            answers = answer_together(
                model, processor, page, questions, encoded,
                max_new_tokens=max_new_tokens, most_bytes=CACHE_BYTES,
            )  # fmt: skip
        except (ConfigError, DataError):  # no room for the longest answer, or the page comes last
            return list(map(alone, records))
        said = [answer.text for answer in answers]
    return [
        Example(record.id, record.question, str(record.answer), text)
        for record, text in zip(records, said, strict=True)
    ]


def _example(
    model: AlignVLMForConditionalGeneration,
    processor: AlignVLMProcessor,
    record: Record,
    max_new_tokens: int,
) -> Example:
    """What is answered to a record's first question, beside what should be."""
    messages = encode.chat_messages(record)
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    prompt = build_prompts(model, processor, [messages[:first]])
    said = generate(model, processor.tokenizer, prompt, [max_new_tokens])[0].text
    expected = "".join(part.get("text", "") for part in messages[first]["content"])
    return Example(record.id, record.question, expected, said)


def compare(before: Scored, after: Scored, seed: int) -> dict[str, dict[str, Any]]:
    """Each score before and after, with 95 % intervals from drawing the documents again.

    Returns:
        By name: ``title``, ``before``, ``after``, ``difference``, ``interval`` (of the difference),
        ``before_interval``, ``after_interval``, ``count`` and ``documents``. The intervals are
        ``None`` where one document alone was held out: it says nothing about others.
    """
    result: dict[str, dict[str, Any]] = {}
    for name, first in before.verdicts.items():
        second, groups = after.verdicts[name], before.groups[name]
        title, aggregate = SCORES[name]
        paired = Paired(groups, first, second, aggregate)
        entry: dict[str, Any] = {
            "title": title,
            "before": float(aggregate(first)),
            "after": float(aggregate(second)),
            "difference": paired.difference,
            "interval": None,
            "before_interval": None,
            "after_interval": None,
            "count": len(first),
            "documents": paired.groups,
        }
        if paired.groups > 1:
            entry["interval"] = list(paired.interval(seed=seed))
            for key, verdicts in (("before", first), ("after", second)):
                found = bootstrap_interval(groups, verdicts, aggregate, seed=seed)
                entry[f"{key}_interval"] = list(found)
        result[name] = entry
    return result
