"""Fields from documents, with a tiny model and pages that are given as read."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel
from tests.inference.test_span_decoding import a_page

from alignvlm.documents.page_images import PageImage
from alignvlm.errors import AlignVLMError, ConfigError, DataError
from alignvlm.inference import extract as module
from alignvlm.inference.ask import ask, encode_pages
from alignvlm.inference.confidence import Calibration
from alignvlm.inference.extract import Extractor, Spent, answer_together, extract
from alignvlm.inference.field_schema import FieldQuestion, field_questions, may_be_null
from alignvlm.inference.page_spans import PageSpans


class Invoice(BaseModel):
    company: str
    issued: date | None = None
    total: Decimal | None = None


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``reading(width, "line", ...)``: what an encoder that reads finds on pages so wide."""
    known: dict[int, Any] = {}
    own = encode_pages

    def encoded(model: Any, processor: Any, pages: list[Any]) -> Any:
        read = [known[page.width] for page in pages]
        return own(model, processor, pages)._replace(pages=read)

    monkeypatch.setattr(module, "encode_pages", encoded)

    def says(width: int, *lines: str) -> None:
        known[width] = a_page(*lines)

    return says


@pytest.fixture
def always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are words of the page, whatever a tiny model would rather say."""
    monkeypatch.setattr(PageSpans, "absent", "")


@pytest.fixture
def parts(make_model, make_processor) -> tuple[Any, Any]:
    model = make_model("align")
    return model, make_processor(model.config)


def pages(make_image: Any, *widths: int) -> list[PageImage]:
    return [PageImage(make_image(w, 28, w), "x.pdf", n) for n, w in enumerate(widths, start=1)]


def test_fields_by_name():
    assert field_questions(["company", "invoice_date", "Total", "tax no", "when:date"]) == [
        FieldQuestion("company", "What is the company?", "text"),
        FieldQuestion("invoice_date", "What is the invoice date?", "date"),
        FieldQuestion("Total", "What is the Total?", "number"),
        FieldQuestion("tax no", "What is the tax no?", "text"),
        FieldQuestion("when", "What is the when?", "date"),
    ]


def test_fields_of_a_schema_and_of_a_pydantic_model():
    schema = {
        "type": "object",
        "properties": {
            "company": {"type": "string", "description": "Who sells?"},
            "count": {"type": "integer"},
            "issued": {"type": ["string", "null"], "format": "date"},
        },
        "required": ["company", "issued"],
    }
    assert field_questions(schema) == [
        FieldQuestion("company", "Who sells?", "text"),
        FieldQuestion("count", "What is the count?", "integer"),
        FieldQuestion("issued", "What is the issued?", "date"),
    ]
    assert [may_be_null(schema, name) for name in schema["properties"]] == [False, True, True]
    assert [(f.name, f.kind) for f in field_questions(Invoice)] == [
        ("company", "text"), ("issued", "date"), ("total", "number"),
    ]  # fmt: skip


def one(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"items": schema}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "no fields"),
        (["a", "a"], "'a' is there twice"),
        (["a:dat"], "did you mean 'date'"),
        ([":date"], "without a name"),
        (one(type="array", items={"type": "string"}), "'items' is an array"),
        (one(type={}), "type {} cannot be extracted"),
        (one(type=["string", "number"]), "cannot be extracted"),
        (one(anyOf=[5]), "'anyOf' must be a list"),
        (one(type="string", description=["a"]), "description must be a string"),
        (one(type="object"), "type 'object' cannot be extracted"),
        (one(type="string", format="email"), "format 'email'"),
        (one(type="string", enum=["a"]), "'enum'"),
        (one(type="string", descripton="x"), "did you mean 'description'"),
        ({"type": "array"}, "type 'object'"),
        ({"type": "object", "$defs": {}, "properties": {}}, "'\\$defs'"),
        ({"type": "object", "properties": {"a": 1}}, "'a' must be an object"),
    ],
)
def test_what_cannot_be_extracted_is_refused(schema, words):
    with pytest.raises(ConfigError, match=words):
        field_questions(schema)


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_answers_from_one_prefill_are_those_of_asking_one_by_one(
    make_model, make_processor, make_image, threshold
):
    model = make_model("align", blank_threshold=threshold)
    processor = make_processor(model.config)
    (page,) = pages(make_image, 56)
    encoded = encode_pages(model, processor, [page.image])
    questions = ["What is the total?", "Where?", "What is the date of the invoice, please?"]
    together = answer_together(model, processor, page, questions, encoded, max_new_tokens=12)
    alone = None
    for question, answer in zip(questions, together, strict=True):
        alone = ask(model, processor, [page.image], question, encoded=encoded, max_new_tokens=12)
        assert answer.text == alone.text
        assert answer.score == pytest.approx(alone.log_probability * alone.new_tokens, abs=1e-3)
        assert answer.new_tokens == alone.new_tokens
    assert alone is not None
    spent = Spent()
    keys: dict[str, Any] = {"max_new_tokens": 12, "at_once": 2, "spent": spent}
    few = answer_together(model, processor, page, questions, encoded, **keys)
    assert [answer.text for answer in few] == [answer.text for answer in together]
    assert spent.new_tokens == sum(answer.new_tokens for answer in together)
    assert (spent.visual_tokens, spent.kept_visual_tokens) == (
        alone.visual_tokens, alone.kept_visual_tokens,
    )  # fmt: skip
    assert alone.prompt_tokens < spent.prompt_tokens < 3 * alone.prompt_tokens


@pytest.mark.parametrize("pages_fit", [0, 2, 9])
def test_copies_of_the_page_take_a_stated_number_of_bytes(
    make_model, make_processor, make_image, monkeypatch, pages_fit
):
    """A batch has fewer questions where the copies would be larger, and the answers are the
    same."""
    model = make_model("align")
    processor = make_processor(model.config)
    (page,) = pages(make_image, 56)
    encoded = encode_pages(model, processor, [page.image])
    questions = ["What is the total?", "Where is it?", "What is the date, please?"]
    keys: dict[str, Any] = {"max_new_tokens": 12}
    together = answer_together(model, processor, page, questions, encoded, **keys)
    batches, sizes, own = list[int](), list[int](), module._continued

    def noted(*given: Any) -> Any:
        batches.append(len(given[2]))
        layers = given[4].layers
        sizes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))
        return own(*given)

    monkeypatch.setattr(module, "_continued", noted)
    answer_together(model, processor, page, questions, encoded, **keys)
    assert batches == [3]
    batches.clear()
    few = answer_together(
        model, processor, page, questions, encoded, most_bytes=pages_fit * sizes[0], **keys
    )
    assert batches == {0: [1, 1, 1], 2: [2, 1], 9: [3]}[pages_fit]
    assert [answer.text for answer in few] == [answer.text for answer in together]


def test_a_page_is_not_kept_once_for_each_question(
    make_model, make_processor, make_image, monkeypatch
):
    """64 fields of a full page would hold more than a gigabyte of its embeddings."""
    model = make_model("align")
    processor = make_processor(model.config)
    (page,) = pages(make_image, 56)
    encoded = encode_pages(model, processor, [page.image])
    made, alive, build = list[Any](), list[int](), module.build_prompts

    def noted(*given: Any, **keys: Any) -> Any:
        prompt = build(*given, **keys)
        made.append(weakref.ref(prompt.inputs["inputs_embeds"]))
        alive.append(sum(one() is not None for one in made))
        return prompt

    monkeypatch.setattr(module, "build_prompts", noted)
    questions = [f"What is number {number}?" for number in range(8)]
    answer_together(model, processor, page, questions, encoded, max_new_tokens=1)
    assert len(made) == 8 and max(alive) <= 3  # the first, the one before, the new one


def test_every_value_stands_on_the_page(parts, make_image, reading, always_there):
    reading(56, "Novak Deli", "12-Feb-2009", "Total 136.94")
    found = extract(*parts, pages(make_image, 56), ["company", "day:date", "sum:number"])
    assert list(found.values) == ["company", "day", "sum"]
    text = "NovakDeli12-Feb-2009Total136.94".upper()
    for value in found.values.values():
        assert value.text and value.text.replace(" ", "").upper() in text
        assert value.page == 1
        assert 0 < value.confidence <= 1
        assert value.boxes and all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in value.boxes)
    assert found.unread == []


@pytest.mark.parametrize("at_once", [None, 1])
def test_a_date_is_a_date_where_there_is_one(parts, make_image, reading, always_there, at_once):
    """Whatever a tiny model would say; other fields may be anything on the page."""
    reading(56, "Novak Deli", "12-Feb-2009", "Tel 03-6057 1377", "Total 136.94")
    fields = ["company", "day:date", "due_date", "sum:number"]
    found = extract(*parts, pages(make_image, 56), fields, at_once=at_once).values
    alone = extract(*parts, pages(make_image, 56), ["company", "sum:number"]).values
    assert [found[name].value for name in ("day", "due_date")] == [date(2009, 2, 12)] * 2
    assert [found[name].text for name in alone] == [own.text for own in alone.values()]


def test_types_come_from_words(parts, make_image, reading, always_there):
    """A page with one word leaves the model no choice but it."""
    reading(56, "136.94")
    for kind, value in (("number", Decimal("136.94")), ("text", "136.94"), ("date", None)):
        own = extract(*parts, pages(make_image, 56), [f"x:{kind}"]).values["x"]
        assert (own.value, own.text, own.page) == (value, "136.94", 1)
        assert own.note == (None if value else "'136.94' is no date")
        assert len(own.boxes) == 1


def test_the_surest_page_is_taken(parts, make_image, reading, always_there):
    for width, line in ((56, "Nairobi"), (57, "Kampala"), (58, "Lagos")):
        reading(width, line)
    reading(59)
    extractor = Extractor(*parts, ["town"])
    alone = [extractor.page(page) for page in pages(make_image, 56, 57, 58)]
    best = max((value for (value,) in alone), key=lambda value: value.confidence)
    said = {value.text.replace(" ", "").title() for (value,) in alone}
    assert said == {"Nairobi", "Kampala", "Lagos"}
    found = extractor(pages(make_image, 59, 56, 57, 58))
    assert (found.values["town"].text, found.unread) == (best.text, [1])
    assert found.values["town"].confidence == pytest.approx(best.confidence)


def test_a_blank_document_has_no_values(parts, make_image, reading):
    reading(59)
    found = extract(*parts, pages(make_image, 59), Invoice)
    assert found.unread == [1]
    assert all(v.value is None and not v.text and v.page is None for v in found.values.values())
    with pytest.raises(DataError, match="without pages"):
        extract(*parts, [], ["a"])


def test_unsure_values_are_left_empty(parts, make_image, reading, always_there):
    reading(56, "Nairobi is a town")
    keys = {"calibration": Calibration(0.0, -1.0)}  # 0.27, whatever the score
    sure = extract(*parts, pages(make_image, 56), ["town"], min_confidence=0.2, **keys)
    unsure = extract(*parts, pages(make_image, 56), ["town"], min_confidence=0.3, **keys)
    value = unsure.values["town"]
    assert value.text == sure.values["town"].text != ""
    assert sure.values["town"].value == value.text
    assert (value.value, value.note) == (None, "confidence 0.27 is below 0.3")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Extractor(*parts, ["town"], min_confidence=1.5)


def test_values_become_a_pydantic_model():
    from alignvlm.inference.extract import Extraction, FieldValue

    values = {"company": FieldValue("Novak"), "issued": FieldValue(None, "03/04/2018"),
              "total": FieldValue(Decimal("1.50"))}  # fmt: skip
    assert Extraction(values, []).to(Invoice) == Invoice(company="Novak", total=Decimal("1.50"))


def test_a_model_that_does_not_read_is_refused(parts, make_image):
    with pytest.raises(AlignVLMError, match="reads the page"):
        extract(*parts, pages(make_image, 56), ["town"])
