"""The page encoder that reads: its plumbing with tiny networks, and what the shipped one reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.reader.test_boxes import boxes
from torch import Tensor, nn
from transformers.models.pp_ocrv6_small_det import PPOCRV6SmallDetConfig
from transformers.models.pp_ocrv6_small_rec import PPOCRV6SmallRecConfig

from alignvlm.data.synthetic.fonts import plain_font
from alignvlm.data.synthetic.render import Canvas
from alignvlm.errors import ConfigError, DataError
from alignvlm.reader import ReaderConfig, ReaderModel
from alignvlm.reader.boxes import nothing
from alignvlm.reader.resize import LONG, SHORT, STRIDE, detector_input

REPOSITORY = Path(__file__).parents[2]
ALPHABET = "abcdefghij "
WIDTH = 32
LINES = boxes((40, 20, 70, 16, 0), (40, 60, 50, 16, 0))
WIDE_LINES = boxes((80, 20, 140, 16, 0), (110, 60, 60, 16, 0))


def tiny_config(**keys) -> ReaderConfig:
    stages = {
        "detector": [[[3, 4, 4, 1, False]], [[3, 4, 8, 2, False]], [[3, 8, 8, 2, True]],
                     [[3, 8, 8, 2, False]]],
        "recogniser": [[[3, 8, 8, 1, False]], [[3, 8, 8, 1, False]], [[3, 8, 8, [2, 1], True]],
                       [[3, 8, 16, [2, 1], False]]],
    }  # fmt: skip
    backbone = {"model_type": "pp_lcnet_v4", "stem_channels": [3, 4, 4]}
    detector = PPOCRV6SmallDetConfig(
        backbone_config={
            **backbone,
            "block_configs": stages["detector"],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        layer_list_out_channels=[4, 8, 8, 8],
        neck_out_channels=8,
        reduction=2,
    )
    recogniser = PPOCRV6SmallRecConfig(
        backbone_config={
            **backbone,
            "stem_channels": [3, 4, 8],
            "block_configs": stages["recogniser"],
            "out_features": ["stage4"],
        },
        hidden_size=16,
        num_attention_heads=2,
        depth=1,
        head_out_channels=len(ALPHABET) + 1,
    )
    over = {"alphabet": ALPHABET, "image_size": (80, 80), "hidden_size": WIDTH, **keys}
    return ReaderConfig(detector, recogniser, **over)


def tiny(tokenizer=None, lines=LINES, sharpness: float = 10) -> ReaderModel:
    """A reader that finds the same lines on every page, and is sure of some nonsense."""
    torch.manual_seed(0)
    model = ReaderModel(tiny_config()).eval()
    for module in model.recogniser.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, sharpness if module.out_features == 12 else 1)
    if tokenizer is not None:
        model.compose(tokenizer, WIDTH)
    model.find_lines = lambda page: lines  # type: ignore[method-assign]
    return model


def noise(tiles: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(tiles, 3, 16, 16, generator=generator) * 2 - 1
    return nn.functional.interpolate(small, scale_factor=5)


TABLE = torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(3))
BLANK = torch.full((WIDTH,), 7.0)


def feature_of(ids: Tensor, q: Tensor) -> Tensor:
    return (TABLE[ids.clamp_min(0)] * q[..., None]).sum(1)


def encode(model: ReaderModel, tiles: Tensor, grids: list[list[int]] | None = None):
    table = None if grids is None else torch.tensor(grids)
    return model(tiles, table, feature_of=feature_of, blank=BLANK)


# --- features ------------------------------------------------------------------------------------


def test_tokens_stand_in_their_cells_and_the_rest_is_blank(tokenizer):
    model = tiny(tokenizer)
    with torch.no_grad():
        output = encode(model, noise())
    (page,) = output.pages
    assert output.last_hidden_state.shape == (1, WIDTH, 4, 8)
    assert len(page) > 3
    features = output.last_hidden_state[0].flatten(1).T
    torch.testing.assert_close(features[page.cells], feature_of(page.ids, page.q))
    others = np.setdiff1d(np.arange(32), page.cells)
    assert (features[others] == BLANK).all()
    torch.testing.assert_close(page.q.sum(1), torch.ones(len(page)))
    # the tokens spell what was read
    texts = [tokenizer.decode(page.ids[page.row == r, 0].tolist()) for r in range(len(page.rows))]
    assert [text.strip() for text in texts] == page.text.split("\n")
    # each token lies on its row
    for (left, top, right, bottom), row in zip(page.boxes, page.row, strict=True):
        x0, y0, x1, y1 = page.rows[row].box
        assert x0 <= left < right <= x1
        assert y0 <= top < bottom <= y1


def test_a_blank_page_has_only_blank_features(tokenizer):
    model = tiny(tokenizer)
    del model.find_lines
    for grey in (1.0, 0.0, -1.0):
        output = encode(model, torch.full((2, 3, 80, 80), grey), [[1, 2, 0]])
        assert (output.last_hidden_state == BLANK[:, None, None]).all()
        assert len(output.pages[0]) == 0
        assert output.pages[0].text == ""
    assert model.find_lines(torch.full((3, 80, 80), 0.5)).centre.shape == (0, 2)


def test_a_page_on_which_no_line_is_found(tokenizer):
    output = encode(tiny(tokenizer, nothing()), noise())
    assert (output.last_hidden_state == BLANK[:, None, None]).all()


def test_tiles_are_read_as_one_page(tokenizer):
    model = tiny(tokenizer, WIDE_LINES)
    tiles = noise(2)
    with torch.no_grad():
        output = encode(model, tiles, [[1, 2, 0]])
        page = model.read_tokens(torch.cat([tiles[0], tiles[1]], 2))
    assert output.last_hidden_state.shape == (2, WIDTH, 4, 8)
    assert torch.equal(output.pages[0].ids, page.ids)
    features = torch.cat(tuple(output.last_hidden_state), 2).flatten(1).T
    torch.testing.assert_close(features[page.cells], feature_of(page.ids, page.q))
    assert (page.cells % 16 >= 8).any()


def test_images_of_a_batch_and_their_thumbnails(tokenizer):
    model = tiny(tokenizer)
    tiles = noise(5)
    with torch.no_grad():
        output = encode(model, tiles, [[1, 1, 0], [2, 1, 1], [1, 1, 0]])
        alone = [encode(model, tiles[i : i + 1]) for i in (0, 3, 4)]
    assert len(output.pages) == 4
    assert output.last_hidden_state.shape == (5, WIDTH, 4, 8)
    for index, single in zip((0, 3, 4), alone, strict=True):
        torch.testing.assert_close(output.last_hidden_state[index], single.last_hidden_state[0])


def test_without_grids_each_tile_is_a_page(tokenizer):
    model = tiny(tokenizer)
    with torch.no_grad():
        output = encode(model, noise(3))
    assert len(output.pages) == 3


def test_more_tokens_than_cells_are_refused(tokenizer):
    model = tiny(tokenizer, boxes(*[(40, y, 78, 4, 0) for y in range(4, 76, 5)]))
    with pytest.raises(DataError, match="more than its 32 cells"):
        encode(model, noise())


# --- training ------------------------------------------------------------------------------------


def test_gradients_reach_the_recogniser_and_the_pixels(tokenizer):
    model = tiny(tokenizer, sharpness=3).train()  # in doubt: several candidates
    pixels = noise().requires_grad_()
    output = encode(model, pixels)
    assert (output.pages[0].q > 0).sum(1).max() > 1
    loss = (output.last_hidden_state * torch.randn(output.last_hidden_state.shape)).sum()
    loss.backward()
    assert pixels.grad.isfinite().all()
    assert (pixels.grad[0, :, 14:26, 10:70] != 0).any()
    gradients = {name: p.grad for name, p in model.recogniser.named_parameters()}
    missing = [name for name, g in gradients.items() if g is None or not bool((g != 0).any())]
    assert len(missing) < 0.2 * len(gradients), missing
    assert all(p.grad is None for p in model.detector.parameters())


def test_the_detector_takes_no_gradient():
    model = tiny()
    assert not any(p.requires_grad for p in model.detector.parameters())
    assert all(p.requires_grad for p in model.recogniser.parameters())


def test_batch_norms_keep_their_statistics(tokenizer):
    model = tiny(tokenizer)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    with torch.no_grad():
        before = encode(model, noise()).last_hidden_state
        assert model.train() is model
        assert model.training and model.recogniser.training
        assert not any(m.training for m in norms)
        after = encode(model, noise()).last_hidden_state
    assert torch.equal(before, after)
    assert not model.eval().training


# --- files, config, speller ----------------------------------------------------------------------


def test_a_saved_reader_reads_and_spells_the_same(tokenizer, tmp_path):
    model = tiny(tokenizer)
    model.save_pretrained(tmp_path / "reader")
    loaded = ReaderModel.from_pretrained(tmp_path / "reader").eval()
    loaded.find_lines = lambda page: LINES
    assert loaded.config.speller_bytes == len(loaded.speller) > 100
    assert torch.equal(loaded.speller, model.speller)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with torch.no_grad():
        ours, theirs = encode(model, noise()), encode(loaded, noise())
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    assert ours.pages[0].text == theirs.pages[0].text


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_any_attention_may_be_asked_for(tmp_path, attention):
    """Convolutions have none to switch; a model that holds the reader asks all its parts."""
    tiny().save_pretrained(tmp_path)
    loaded = ReaderModel.from_pretrained(tmp_path, attn_implementation=attention)
    assert loaded.recogniser.config._attn_implementation == attention
    loaded.set_attn_implementation("eager")
    loaded.set_attn_implementation(attention)
    assert loaded.recogniser.config._attn_implementation == attention


def test_half_precision_does_not_touch_the_speller(tokenizer):
    model = tiny(tokenizer).bfloat16()
    assert model.speller.dtype == torch.uint8
    with torch.no_grad():
        output = encode(model, noise())
    assert len(output.pages[0]) > 0


def test_without_a_language_model_a_page_is_text():
    model = tiny()
    with torch.no_grad():
        rows = model.read_page(noise()[0])
    assert len(rows) == 2
    assert set("".join(row.text for row in rows)) <= set(ALPHABET)
    with pytest.raises(ConfigError, match="knows no language model yet"):
        model.read_tokens(noise()[0])


def test_a_pruned_vocabulary_spells_with_what_is_kept(tokenizer):
    model = tiny(tokenizer)
    letters = torch.tensor(sorted({tokenizer.convert_tokens_to_ids(c) for c in "abcdefghijĠ"}))
    with torch.no_grad():
        before = model.read_tokens(noise()[0])
        model.keep(letters)
        page = model.read_tokens(noise()[0])
        assert set(page.ids[page.ids >= 0].tolist()) <= set(letters.tolist())
        assert page.text == before.text
        model.keep(None)
        assert torch.equal(model.read_tokens(noise()[0]).ids, before.ids)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_size": (80, 85)}, "not a whole number of cells"),
        ({"patch_size": (30, 10)}, "not a whole number of cells"),
        ({"alphabet": "abc "}, "does not fit a recogniser of 12 classes"),
        ({"alphabet": "abcdefghijk"}, "lacks the space"),
    ],
)
def test_configs_that_do_not_fit(keys, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**keys)


def test_a_config_is_its_dict_form():
    config = tiny_config(patch_size=20)
    again = ReaderConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.patch_size == [20, 20]
    assert again.recogniser_config.hidden_size == 16


# --- the detector's input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "inner"),
    [
        ((300, 600), (736, 1472)),
        ((736, 900), (736, 900)),
        ((1000, 1400), (1000, 1400)),
        ((3000, 1500), (2000, 1000)),
        ((100, 4000), (50, 2000)),
        ((100, 500), (400, 2000)),
        ((4, 3000), (32, 2000)),
    ],
)
def test_the_detectors_input(size, inner):
    high, wide = size
    page = torch.linspace(-1, 1, wide).expand(3, high, wide)
    pixels, scale, found = detector_input(page)
    assert found == inner
    assert max(inner) <= LONG
    assert min(inner) >= min(SHORT, min(inner))
    assert all(side % STRIDE == 0 for side in pixels.shape[2:])
    assert all(0 <= p - i < STRIDE for p, i in zip(pixels.shape[2:], inner, strict=True))
    assert scale == (wide / inner[1], high / inner[0])
    # places agree: the middle of the input is the middle of the page
    middle = pixels[0, 0, 0, inner[1] // 2 - 1 : inner[1] // 2 + 1].mean()
    assert middle.abs() < 0.01


# --- the shipped reader --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> ReaderModel:
    return ReaderModel.from_pretrained(REPOSITORY / "models/reader", dtype=torch.float32).eval()


def pixels_of(image: Image.Image) -> Tensor:
    array = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 127.5 - 1
    return torch.from_numpy(array)


@torch.no_grad()
def read(reader: ReaderModel, image: Image.Image) -> list[str]:
    return [row.text for row in reader.read_page(pixels_of(image))]


def written(*lines: tuple[str, int], size=(760, 500), ink: int = 0) -> Image.Image:
    """A page with lines of text in DejaVu Sans at the given sizes."""
    image = Image.new("L", size, 255 - ink)
    top = 20
    for text, px in lines:
        canvas = Canvas(
            *size, font=plain_font(), px=px, margin=20, line_spacing=1.25,
            background=255 - ink, ink=ink,
        )  # fmt: skip
        canvas.put(24, top, text)
        box = (0, top, size[0], top + canvas.line_height)
        image.paste(canvas.image.crop(box), box)
        top += round(1.5 * px) + 8
    return image


SIZES = [(f"Invoice total {px}.50 EUR", px) for px in (14, 18, 24, 32, 44, 56)]
LETTER = [("Dear Mrs Carter,", 24), ("thank you for your order of 3 May,", 24), ("No. 48-1279", 24)]


@pytest.mark.parametrize("ink", [0, 255], ids=["black", "white"])
def test_text_of_any_size_is_read(reader, ink):
    assert read(reader, written(*SIZES, ink=ink)) == [text for text, _ in SIZES]


def test_accents_and_signs_are_read(reader):
    lines = [
        ("Müller & Söhne, Straße, € 31.48, Łódź", 28),
        ("Año 2009: 50 % + £7 = $12 (à côté)", 22),
    ]
    assert read(reader, written(*lines)) == [text for text, _ in lines]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_page_is_read(reader, degrees):
    page = written(*LETTER, size=(560, 500)).rotate(-degrees, expand=True)
    with torch.no_grad():
        rows = reader.read_page(pixels_of(page))
    assert [row.text for row in rows] == [text for text, _ in LETTER]
    assert {row.turned for row in rows} == {degrees // 90}


@pytest.mark.parametrize("degrees", [4, -4])
def test_a_slanted_page_is_read(reader, degrees):
    page = written(*LETTER, size=(560, 500))
    page = page.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=255)
    assert read(reader, page) == [text for text, _ in LETTER]


FORM = {
    "Registration": (211, 16, 389, 41),
    "Town: Nairobi": (12, 48, 200, 70),
    "Company: Carter Ltd": (13, 80, 296, 106),
    "Serial no.: DN94-8986": (14, 112, 319, 135),
    "Date: 08.07.08": (14, 144, 216, 167),
    "TOTAL: 3.48": (12, 176, 182, 199),
}
"""What the form page says and where, px."""


def test_the_form_page(reader):
    with Image.open(REPOSITORY / "examples/pages/form.png") as image:
        page = pixels_of(image)
    with torch.no_grad():
        rows = reader.read_page(page)
    assert [row.text for row in rows] == list(FORM)
    np.testing.assert_allclose([row.box for row in rows], list(FORM.values()), atol=2)
    for row in rows:
        assert row.turned == 0
        assert np.exp(np.log(row.probability).mean()) > 0.95
        # characters go on to the right, along one line
        left = row.boxes[:, 0]
        assert (np.diff(left) > 0).all()
        assert np.ptp(row.boxes[:, 1]) < 1


def test_a_page_of_noise_has_no_text(reader):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    assert "".join(read(reader, Image.fromarray(pixels))) == ""
