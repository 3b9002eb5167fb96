"""What each visual token says, as data and as a picture."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alignvlm.cli.info import machine_info, model_info
from alignvlm.errors import ConfigError, WeightsError
from alignvlm.inference.inspect import heat_map, read_page
from alignvlm.tiling import Grid, fit_scale


@pytest.fixture
def model(make_model: Any) -> Any:
    return make_model("align")


@pytest.fixture
def processor(model: Any, make_processor: Any) -> Any:
    return make_processor(model.config, max_tiles=6)


@pytest.mark.parametrize("size", [(28, 28), (56, 28), (28, 84), (70, 50), (200, 133), (9, 7)])
def test_the_boxes_tile_the_canvas(model, processor, make_image, size):
    image = make_image(*size)
    reading = read_page(model, processor, image)
    assert len(reading.cells) == reading.rows * reading.cols
    grid = Grid(reading.rows // 2, reading.cols // 2)
    scale = fit_scale(*size, grid, 28, 28)
    for index, cell in enumerate(reading.cells):
        assert (cell.row, cell.col) == divmod(index, reading.cols)
        x0, y0, x1, y1 = cell.box
        assert (x1 - x0, y1 - y0) == pytest.approx((14 / scale, 14 / scale))
        assert (x0, y0) == pytest.approx((cell.col * 14 / scale, cell.row * 14 / scale))
    # no gap, and the page is covered
    last = reading.cells[-1].box
    assert last[2] >= size[0] - 1e-6 and last[3] >= size[1] - 1e-6


def test_tokens_agree_with_the_distribution(model, processor, make_image):
    image = make_image(56, 56, 5)
    reading = read_page(model, processor, image, k=4)
    batch = processor.image_processor([image], return_tensors="pt")
    assert batch["image_grids"].tolist() == [[2, 2, 0]]
    features = model.model.encode_tiles(batch["pixel_values"])
    full = model.model.connector.vocab_distribution(features)  # tile order
    for cell in reading.cells:
        tile = (cell.row // 2) * 2 + cell.col // 2
        p = full[tile, cell.row % 2, cell.col % 2]
        best = p.topk(4)
        assert [i for _, i, _ in cell.tokens] == best.indices.tolist()
        assert [q for _, _, q in cell.tokens] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert cell.entropy == pytest.approx(-(p * p.log()).sum().item(), abs=1e-4)
        assert [t for t, _, _ in cell.tokens] == [
            processor.tokenizer.decode([i]) for i in best.indices.tolist()
        ]
    assert reading.entropy == pytest.approx(np.mean([c.entropy for c in reading.cells]), abs=1e-5)
    effective = np.mean(np.exp([c.entropy for c in reading.cells]))
    assert reading.effective_vocab == pytest.approx(effective, rel=1e-4)


def test_reading_follows_the_page_over_tiles(model, processor, make_image):
    """The same pixels moved by one tile are read one tile further on."""
    page = Image.new("RGB", (84, 28), "white")
    patch = make_image(28, 28, 3)
    readings = []
    for tile in range(3):
        moved = page.copy()
        moved.paste(patch, (28 * tile, 0))
        reading = read_page(model, processor, moved)
        assert (reading.rows, reading.cols) == (2, 6)
        ids = np.array(reading.ids())
        readings.append(ids[:, 2 * tile : 2 * tile + 2])
    assert np.array_equal(readings[0], readings[1])
    assert np.array_equal(readings[0], readings[2])


def test_the_order_is_that_of_the_language_models_prompt(model, processor, make_image):
    image = make_image(56, 56, 5)
    batch = processor.image_processor([image], return_tensors="pt")
    with torch.no_grad():
        features = model.model.encode_tiles(batch["pixel_values"])
        ids = model.model.connector.top_tokens(features, 1)[1].flatten(1, 2)
        (page,) = model.model.assemble(ids.float(), batch["image_grids"])
    reading = read_page(model, processor, image)
    assert [i for row in reading.ids() for i in row] == page[:, 0].long().tolist()


def test_a_thumbnail_has_no_place_on_the_page(model, make_processor, make_image):
    image = make_image(56, 28, 5)
    plain, with_thumbnail = (
        read_page(model, make_processor(model.config, thumbnail=on), image) for on in (False, True)
    )
    assert with_thumbnail == plain


def test_the_text_drops_blanks(model, processor, make_image, monkeypatch):
    seven, eight = processor.tokenizer.convert_tokens_to_ids(["7", "8"])
    blank = model.config.blank_token_id
    ids = torch.full((1, 2, 2, 1), blank)
    ids[0, 0, 0], ids[0, 0, 1] = seven, eight
    said = (torch.full(ids.shape, 0.75), ids)
    monkeypatch.setattr(model.model.connector, "top_tokens", lambda *_: said)
    reading = read_page(model, processor, make_image(28, 28))
    assert reading.text(processor.tokenizer) == "78"
    assert reading.ids() == [[seven, eight], [blank, blank]]
    assert reading.blank_id == blank


def test_a_pruned_vocabulary_shows_the_language_models_ids(model, processor, make_image):
    kept = torch.arange(20, 40)
    model.model.connector.prune(kept)
    reading = read_page(model, processor, make_image(28, 28), k=50)
    assert all(sorted(i for _, i, _ in c.tokens) == kept.tolist() for c in reading.cells)
    assert all(sum(p for _, _, p in c.tokens) == pytest.approx(1, abs=1e-4) for c in reading.cells)


def test_the_reading_is_plain_data(model, processor, make_image):
    data = read_page(model, processor, make_image(), k=2).to_dict()
    assert (
        json.loads(json.dumps(data))["cells"][0]["tokens"][0][0] == data["cells"][0]["tokens"][0][0]
    )
    keys = {"rows", "cols", "cells", "blank_id", "entropy", "effective_vocab", "order"}
    assert set(data) == keys


@pytest.mark.parametrize(("size", "zoom"), [((56, 28), None), ((40, 90), 2.0), ((300, 30), 1.0)])
def test_the_heat_map_has_the_pages_size(model, processor, make_image, size, zoom):
    image = make_image(*size)
    reading = read_page(model, processor, image)
    picture = heat_map(image, reading, zoom=zoom)
    assert picture.mode == "RGB"
    if zoom is None:
        zoom = 44 / (reading.cells[0].box[2] - reading.cells[0].box[0])
    assert picture.size == (round(size[0] * zoom), round(size[1] * zoom))
    assert np.asarray(picture).std() > 0


def test_the_heat_map_is_dark_only_where_something_stands(model, processor, monkeypatch):
    """Certain tokens colour their cell, certain blanks leave it white."""
    seven, blank = processor.tokenizer.convert_tokens_to_ids("7"), model.config.blank_token_id
    ids = torch.tensor([[[[seven], [blank]], [[blank], [blank]]]])
    said = (torch.ones(ids.shape), ids)
    monkeypatch.setattr(model.model.connector, "top_tokens", lambda *_: said)
    page = Image.new("RGB", (28, 28), "white")
    picture = np.asarray(heat_map(page, read_page(model, processor, page), zoom=2.0)).astype(int)
    assert picture[:27, :27].mean() < 200
    assert picture[30:, 30:].min() == 255
    assert picture[:27, 30:].min() == 255


def test_other_connectors_are_refused(make_model, make_processor, make_image):
    model = make_model("mlp")
    with pytest.raises(ConfigError, match=r"inspect needs the 'align' connector.*'mlp'"):
        read_page(model, make_processor(model.config), make_image())


# --- info --------------------------------------------------------------------------------------


def test_model_info(tiny_model_dir, make_model):
    data = model_info(str(tiny_model_dir))
    model = make_model("align")
    assert data["parameters"] == sum(p.numel() for p in model.parameters())
    parts = [data[f"{part}_parameters"] for part in ("vision", "connector", "text")]
    assert sum(parts) == data["parameters"]  # the head is tied
    assert data["connector"] == "align"
    assert data["vocabulary"] == 400
    assert data["visual_tokens_per_tile"] == 4
    assert data["tile"] == "28x28 px, 2x2 features"
    assert json.dumps(data)


def test_model_info_refuses_other_models(tiny_lm_dir, tmp_path):
    with pytest.raises(WeightsError, match="a 'llama' model, not an alignvlm model"):
        model_info(str(tiny_lm_dir))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not a valid JSON file"):
        model_info(str(tmp_path))


def test_machine_info():
    data = machine_info()
    assert {"alignvlm", "python", "torch", "transformers", "gpu", "cache"} <= set(data)
    assert json.dumps(data)
