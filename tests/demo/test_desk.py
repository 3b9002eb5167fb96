"""The model behind the web page: the answers of ``ask``, pages encoded once, ended at any time."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignvlm.demo.desk import MAX_NEW_TOKENS, Desk, joined_places
from alignvlm.demo.overlay import NOISE_SEED
from alignvlm.demo.shelf import OpenDocument
from alignvlm.demo.turns import Stopped, Watch
from alignvlm.errors import ConfigError
from alignvlm.inference.ask import ask
from alignvlm.inference.cite import Citation
from alignvlm.inference.noise import Noise

QUESTION = "What is the total?"


@pytest.fixture
def desk(make_model, make_processor):
    model = make_model("align")
    return Desk(model, make_processor(model.config))


@pytest.fixture
def document(make_image):
    out = io.BytesIO()
    first, second = (make_image(56, 28, seed) for seed in (1, 2))
    first.save(out, "TIFF", save_all=True, append_images=[second])
    return OpenDocument("two.tif", out.getvalue(), 8)


@pytest.fixture
def encoded(desk, monkeypatch):
    """How many images each run of the encoder saw."""
    seen: list[int] = []
    encode = desk.model.model.encode

    def watch(pixels: Any, grids: Any) -> Any:
        seen.append(len(grids))
        return encode(pixels, grids)

    monkeypatch.setattr(desk.model.model, "encode", watch)
    return seen


def answered(desk: Desk, document: OpenDocument, numbers: list[int], sigma=0.0, halved=0) -> str:
    told: list[Any] = []
    watch = Watch(told.append)
    answer = desk.ask(document, numbers, QUESTION, watch, sigma, halved)
    said = [event["text"] for event in told if event["event"] == "answering"]
    assert said[-1].strip() == answer["text"]
    assert answer["seconds"] > 0
    return answer["text"]


def test_a_page_is_encoded_once_for_text_window_and_answers(desk, document, encoded):
    desk.text(document, 1, Watch())
    desk.window(document, 1, 0.0, 0, Watch())
    one = answered(desk, document, [1])
    assert encoded == [1]
    both = answered(desk, document, [1, 2])
    desk.text(document, 2, Watch())
    assert answered(desk, document, [1, 2]) == both
    assert encoded == [1, 1]
    images = [document.page(number).image for number in (1, 2)]
    for pages, text in ((images[:1], one), (images, both)):
        wanted = ask(desk.model, desk.processor, pages, QUESTION, max_new_tokens=MAX_NEW_TOKENS)
        assert text == wanted.text


def test_noise_and_fewer_ids_encode_it_anew(desk, document, encoded):
    clean = answered(desk, document, [1])
    noisy = answered(desk, document, [1], sigma=5.0)
    pruned = answered(desk, document, [1], halved=5)
    assert encoded == [1, 1, 1]
    wanted = ask(
        desk.model, desk.processor, [document.page(1).image], QUESTION,
        max_new_tokens=MAX_NEW_TOKENS, noise=Noise(5.0, [NOISE_SEED]),
    )  # fmt: skip
    assert noisy == wanted.text
    assert len({clean, noisy, pruned}) > 1
    assert answered(desk, document, [1]) == clean


def test_halvings_stop_where_the_slider_does(desk):
    assert desk.kept(0) == desk.ids
    assert desk.kept(1) == desk.ids // 2
    assert desk.kept(desk.halvings) >= 16 > desk.kept(desk.halvings + 1)


def test_stop_ends_the_language_model_between_its_layers(desk, document):
    watch = Watch()
    layers = desk.model.model.language_model.layers
    ran = []
    hook = layers[0].register_forward_hook(lambda *given: (ran.append(1), watch.stop.set()))
    try:
        with pytest.raises(Stopped):
            desk.ask(document, [1], QUESTION, watch)
    finally:
        hook.remove()
    assert ran == [1]  # not even the first token's prefill ran to its end
    assert all(not layer._forward_pre_hooks for layer in layers)
    assert answered(desk, document, [1])


def test_stop_ends_reading_between_batches_of_lines(desk, document, monkeypatch):
    encoder, told = desk.model.model.vision_model, []
    encoder.progress = None
    desk.reads = True
    watch = Watch(told.append)

    def reading(*given: Any) -> Any:
        encoder.progress(2, 9)
        watch.stop.set()
        encoder.progress(4, 9)

    monkeypatch.setattr(desk.model.model, "encode", reading)
    with pytest.raises(Stopped):
        desk.text(document, 1, watch)
    assert [(event["done"], event["of"]) for event in told] == [(0, 0), (2, 9)]
    assert encoder.progress is None


def test_lines_read_a_second_time_are_told_as_such(desk, document, monkeypatch):
    encoder, told = desk.model.model.vision_model, []
    encoder.progress = None
    desk.reads = True
    encode = desk.model.model.encode

    def reading(*given: Any) -> Any:
        for done, of in ((4, 9), (9, 9), (1, 3)):
            encoder.progress(done, of)
        return encode(*given)

    monkeypatch.setattr(desk.model.model, "encode", reading)
    desk.text(document, 1, Watch(told.append))
    assert [event["again"] for event in told] == [False, False, False, True]


def test_fields_need_an_encoder_that_reads(desk, document):
    with pytest.raises(ConfigError):
        desk.fields(document, [1], ["total"], Watch())


def test_another_connector_answers_without_places(make_model, make_processor, document):
    model = make_model("mlp")
    desk = Desk(model, make_processor(model.config))
    assert desk.ids == desk.halvings == 0
    assert desk.text(document, 1, Watch()).lines == []
    answer = desk.ask(document, [1], QUESTION, Watch())
    assert answer["places"] == [] and answer["missing"] == []


def test_the_window_says_where_its_noise_ends(desk, document):
    before = {name: value.clone() for name, value in desk.model.state_dict().items()}
    drawn = desk.window(document, 1, 2.0, 1, Watch())
    assert drawn["noise"]["max"] == pytest.approx(20 * drawn["noise"]["step"])
    assert any(cell["changed"] for cell in drawn["cells"])
    after = desk.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def cited(index: int, box: tuple[float, ...], page: int = 1) -> Any:
    return SimpleNamespace(spec=Citation, index=index, box=box, page=page)


def test_words_side_by_side_share_a_place():
    found = [
        cited(0, (10, 10, 40, 20)),
        cited(1, (45, 11, 80, 21)),
        cited(2, (10, 30, 40, 40)),  # the next line
        cited(4, (45, 30, 60, 40)),  # a word between was not found
        cited(5, (62, 30, 70, 40), page=2),
    ]
    assert joined_places(found) == [
        {"page": 1, "box": [10, 10, 80, 21]},
        {"page": 1, "box": [10, 30, 40, 40]},
        {"page": 1, "box": [45, 30, 60, 40]},
        {"page": 2, "box": [62, 30, 70, 40]},
    ]
