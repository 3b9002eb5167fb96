"""The model behind the web page: the answers of ``ask``, and pages encoded once."""

from __future__ import annotations

import time
from typing import Any

import pytest

from alignvlm.demo.desk import MAX_NEW_TOKENS, Desk, OpenDocument
from alignvlm.demo.overlay import NOISE_SEED, PageView
from alignvlm.inference.ask import Answer, ask
from alignvlm.inference.noise import Noise
from alignvlm.inference.stopping import Stopped

QUESTION = "What is the total?"


@pytest.fixture
def desk(make_model, make_processor):
    model = make_model("align")
    return Desk(model, make_processor(model.config))


@pytest.fixture
def document(make_image):
    return OpenDocument("two", [PageView(make_image(56, 28, seed)) for seed in (1, 2)])


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


def answered(desk: Desk, document: OpenDocument, everything: bool, sigma: float, halved: int):
    *pieces, answer = desk.stream(document, QUESTION, everything, sigma, halved)
    assert isinstance(answer, Answer)
    assert not pieces or pieces[-1].strip() == answer.text
    return answer.text


def test_a_page_is_encoded_once_for_drawing_and_answers(desk, document, encoded):
    desk.overlay(document.page, 0.0, 0)
    one = answered(desk, document, False, 0.0, 0)
    assert encoded == [1]
    both = answered(desk, document, True, 0.0, 0)
    desk.overlay(document.pages[1], 0.0, 0)
    assert answered(desk, document, True, 0.0, 0) == both
    assert encoded == [1, 1]
    images = [view.image for view in document.pages]
    for pages, text in ((images[:1], one), (images, both)):
        wanted = ask(desk.model, desk.processor, pages, QUESTION, max_new_tokens=MAX_NEW_TOKENS)
        assert text == wanted.text


def test_noise_and_fewer_ids_encode_it_anew(desk, document, encoded):
    clean = answered(desk, document, False, 0.0, 0)
    noisy = answered(desk, document, False, 5.0, 0)
    pruned = answered(desk, document, False, 0.0, 5)
    assert encoded == [1, 1, 1]
    wanted = ask(
        desk.model, desk.processor, [document.page.image], QUESTION,
        max_new_tokens=MAX_NEW_TOKENS, noise=Noise(5.0, [NOISE_SEED]),
    )  # fmt: skip
    assert noisy == wanted.text
    assert len({clean, noisy, pruned}) > 1
    assert answered(desk, document, False, 0.0, 0) == clean


@pytest.mark.parametrize("how", ["stop", "leave", "close"])
def test_reading_ends_when_nobody_waits(desk, document, how):
    layers = 0

    def slowly(*_: Any) -> None:
        nonlocal layers
        layers += 1
        time.sleep(1)

    layer = desk.model.model.vision_model.encoder.layers[0]
    layer.register_forward_hook(slowly)
    began = time.monotonic()
    parts = desk.stream(document, QUESTION, True, 0.0, 0)
    assert next(parts) == ""  # a sign of life while the page is read
    if how == "leave":
        parts.close()
    else:
        document.stop.set() if how == "stop" else desk.close(0)
        assert [part for part in parts if part] == []
    assert layers == 1 and time.monotonic() - began < 5
    assert not desk.turn.locked()


def test_a_visitor_stops_waiting_for_the_model(desk, document):
    with desk.turn:
        document.stop.set()
        assert [part for part in desk.stream(document, QUESTION, True, 0.0, 0) if part] == []
        with pytest.raises(Stopped):
            desk.overlay(document.page, 0.0, 0, document.stop)
