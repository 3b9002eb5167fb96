"""What the web page's drawing is made from."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from alignvlm.demo.overlay import (
    NoiseComparison,
    PageView,
    Reading,
    compare,
    halvings,
    jpeg,
    payload,
    round_up,
)
from alignvlm.errors import ConfigError
from alignvlm.inference.inspect import CellReading, PageReading, read_page


@pytest.fixture
def model(make_model):
    return make_model("align")


@pytest.fixture
def processor(make_processor, model):
    return make_processor(model.config)


@pytest.fixture
def view(make_image):
    return PageView(make_image(56, 28, 1))


def test_without_knobs_it_is_read_page(model, processor, view):
    read = compare(model, processor, view)
    assert read.clean.page == read_page(model, processor, view.image)
    assert read.noisy is None and read.cosine_distance is None
    assert read.after is None


def test_noise_moves_the_output_as_far_as_the_sweep_says(model, processor, view):
    read = compare(model, processor, view, sigma=3.0)
    pixels = processor.image_processor([view.image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features, table = model.model.encode_tiles(pixels), model.model.text_embedding()
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        clean = model.model.connector(features, table)
        noisy = model.model.connector(features + 3.0 * noise, table)
    distance = 1 - torch.cosine_similarity(clean, noisy, dim=-1).mean().item()
    assert read.cosine_distance == pytest.approx(distance, rel=1e-3)
    assert read.noisy is not None and read.noisy.page.ids() != read.clean.page.ids()


def test_noise_and_pruning_leave_the_model_as_it_was(model, processor, view):
    before, config = model.model.connector, model.config.connector_config
    state = {name: value.clone() for name, value in model.state_dict().items()}
    compare(model, processor, view, sigma=2.0, keep=20)
    assert model.model.connector is before and model.config.connector_config is config
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.model.vision_model._forward_hooks
    assert not before.w1._forward_pre_hooks


def test_fewer_ids_renormalise_what_they_had(model, processor, view):
    keep = 20
    read = compare(model, processor, view, keep=keep)
    ids = view.most_used(model, processor, keep)
    batch = processor.image_processor([view.image], return_tensors="pt")
    whole = model.model.connector.vocab_distribution(
        model.model.encode_tiles(batch["pixel_values"])
    ).flatten(0, -2)
    expected = (whole[:, ids] / whole[:, ids].sum(-1, keepdim=True)).amax(-1)
    found = torch.tensor([cell.tokens[0][2] for cell in read.clean.page.cells])
    assert torch.allclose(found.sort().values, expected.sort().values, atol=1e-5)
    assert {i for cell in read.clean.page.cells for _, i, _ in cell.tokens} <= set(ids.tolist())
    assert model.config.blank_token_id in ids.tolist()


def test_another_connector_reads_no_words(make_model, make_processor, view):
    model = make_model("mlp")
    with pytest.raises(ConfigError, match="mlp"):
        compare(model, make_processor(model.config), view)


@pytest.mark.parametrize(("size", "steps"), [(1, 0), (16, 0), (31, 0), (32, 1), (3000, 7)])
def test_halvings(size, steps):
    assert halvings(size) == steps
    assert steps == 0 or size >> steps >= 16


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.21, 0.3), (0.3, 0.3), (2.5, 3), (97, 100), (0.0201, 0.03), (0, 1)]
)
def test_the_noise_slider_ends_at_a_round_number(value, rounded):
    assert round_up(value) == pytest.approx(rounded)


def test_the_noise_slider_suits_the_model(model, processor, view):
    size = view.encoded(model, processor).features.float().square().mean().sqrt().item()
    assert 2.5 * size <= view.loudest(model, processor) <= 5 * size


def made_reading(tokens: list[list[tuple[str, int, float]]]) -> PageReading:
    cells = [
        CellReading(0, col, (10.0 * col, 0.0, 10.0 * col + 10, 10.0), 0.5, top)
        for col, top in enumerate(tokens)
    ]
    return PageReading(1, len(cells), cells, 0, 0.5, 2.0)


def compared(make_image, clean: PageReading, noisy: PageReading | None) -> NoiseComparison:
    nothing = torch.ones(4, 3)
    after = None if noisy is None else Reading(noisy, nothing)
    return NoiseComparison(
        make_image(30, 10), Reading(clean, nothing), Reading(clean, nothing), after, 50, 50
    )


MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def clean() -> PageReading:
    reading = made_reading(
        [
            [(MARKUP, 7, 0.9), (" ", 0, 0.1)],
            [(" ", 0, 0.99), ("a", 8, 0.01)],
            [(" ", 0, 0.97), ("a", 8, 0.03)],
            [("outside", 9, 0.9), (" ", 0, 0.1)],
        ]
    )
    # an encoder that reads gives a token the box of its text
    reading.cells[0] = replace(reading.cells[0], box=(1.04, 2.0, 44.0, 8.0))
    return reading


def test_payload_holds_what_is_written(make_image, tokenizer, clean):
    data = json.loads(json.dumps(payload(compared(make_image, clean, None), tokenizer)))
    (cell,) = data["cells"]  # the others are blank, or in the padding
    assert cell["before"] == [[MARKUP, 0.9, 0], ["blank", 0.1, 1]]
    assert cell["box"] == [1.0, 2.0, 30.0, 8.0]  # its text, not its cell; within the page
    assert cell["after"] is None and not cell["changed"] and data["after"] is None
    assert data["size"] == [30, 10]
    assert "nats" not in str(data["facts"])


def test_payload_holds_what_noise_changed(make_image, tokenizer, clean):
    noisy = replace(clean, cells=[*clean.cells])
    noisy.cells[2] = replace(clean.cells[2], tokens=[("a", 8, 0.6), (" ", 0, 0.4)])
    data = json.loads(json.dumps(payload(compared(make_image, clean, noisy), tokenizer)))
    assert [(c["col"], c["changed"]) for c in data["cells"]] == [(0, False), (2, True)]
    assert data["cells"][1]["before"][0] == ["blank", 0.97, 1]
    assert data["cells"][1]["after"][0] == ["a", 0.6, 0]
    facts = {what: value for value, what in data["facts"]}
    assert facts["cell says something else with these settings"] == "1"
    assert float(facts["cosine distance, mean over the cells"]) == pytest.approx(0, abs=1e-4)


def test_pages_are_sent_no_larger_than_asked(make_image):
    with Image.open(io.BytesIO(jpeg(make_image(300, 100), 150))) as small:
        assert small.size == (150, 50) and small.format == "JPEG"
    with Image.open(io.BytesIO(jpeg(make_image(30, 10), 150))) as same:
        assert same.size == (30, 10)
