"""What the web page's drawing is made from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from studies.connectors.noise_sweep import noise_sweep

from alignvlm.demo.overlay import (
    NoiseComparison,
    PageView,
    Reading,
    compare,
    halvings,
    payload,
    strength,
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
    assert not read.changed_by_noise() and not read.changed_by_pruning()


def test_noise_moves_the_output_as_far_as_the_sweep_says(model, processor, view):
    read = compare(model, processor, view, sigma=3.0)
    pixels = processor.image_processor([view.image], return_tensors="pt")["pixel_values"]
    step = noise_sweep(model.model, pixels, [3.0])[0]
    # a transformer's features are laid out alike in both, so it is the very same noise
    assert read.cosine_distance == pytest.approx(step.cosine_distance, rel=1e-3)
    assert read.changed_by_noise()


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


def made_reading(tokens: list[list[tuple[str, int, float]]]) -> PageReading:
    cells = [
        CellReading(0, col, (10.0 * col, 0.0, 10.0 * col + 10, 10.0), 0.5, top)
        for col, top in enumerate(tokens)
    ]
    return PageReading(1, len(cells), cells, 0, 0.5, 2.0)


def test_payload_holds_what_is_written_or_changed(make_image, tokenizer):
    markup = "<img src=x onerror=alert(1)>"
    clean = made_reading(
        [
            [(markup, 7, 0.9), (" ", 0, 0.1)],
            [(" ", 0, 0.99), ("a", 8, 0.01)],
            [(" ", 0, 0.97), ("a", 8, 0.03)],
            [("outside", 9, 0.9), (" ", 0, 0.1)],
        ]
    )
    noisy = replace(clean, cells=[*clean.cells])
    noisy.cells[2] = replace(clean.cells[2], tokens=[("a", 8, 0.6), (" ", 0, 0.4)])
    nothing = torch.ones(4, 3)
    read = NoiseComparison(
        make_image(30, 10),
        Reading(clean, nothing),
        Reading(clean, nothing),
        Reading(noisy, nothing),
        1.5,
        50,
        50,
    )
    data = json.loads(json.dumps(payload(read, tokenizer)))
    first, second = data["sides"]
    # cell 1 is blank, cell 3 lies in the padding; cell 2 is shown because noise changed it
    assert [cell[1] for cell in first["cells"]] == [0, 2]
    assert [cell[3] for cell in first["cells"]] == [0, 0]
    assert [cell[3] for cell in second["cells"]] == [0, 1]
    assert first["cells"][0][5] == [[markup, 0.9, 0], ["blank", 0.1, 1]]
    assert second["name"] == "Noise σ = 1.5"
    facts = dict(data["facts"])
    assert facts["changed by noise"] == "1 of 4"
    assert float(facts["cosine distance"]) == pytest.approx(0, abs=1e-4)
    assert data["image"].startswith("data:image/jpeg;base64,") and data["cell"] == [10, 10]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([("a", 8, 0.7), (" ", 0, 0.3)], 0.7),
        ([(" ", 0, 0.8), ("a", 8, 0.2)], 0.2),
        ([("a", 8, 0.4), ("b", 9, 0.3)], 1.0),
    ],
)
def test_strength_is_one_minus_blank(tokens, expected):
    cell = CellReading(0, 0, (0, 0, 1, 1), 0.0, tokens)
    assert strength(cell, 0) == pytest.approx(expected)
