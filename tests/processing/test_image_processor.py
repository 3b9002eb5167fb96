"""Any image becomes white-padded tiles in [-1, 1]."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from alignvlm import AlignVLMImageProcessor
from alignvlm.errors import DataError
from alignvlm.processing import image_processor as module
from alignvlm.processing.image_processor import to_rgb
from alignvlm.tiling import Grid, cut, fit_scale

TILE = {"height": 28, "width": 28}


@pytest.fixture
def processor():
    return AlignVLMImageProcessor(size=TILE, max_tiles=4)


def pixels_of(output) -> np.ndarray:
    """Back from [-1, 1] to 0..255."""
    return np.asarray(output["pixel_values"]) * 127.5 + 127.5


def first_pixel(processor, image) -> tuple[int, ...]:
    return tuple(np.rint(pixels_of(processor(image))[0, :, 0, 0]).astype(int).tolist())


def test_shapes_and_types(processor, images):
    output = processor(images, return_tensors="pt")
    assert output["pixel_values"].shape == (5, 3, 28, 28)
    assert output["pixel_values"].dtype == torch.float32
    assert output["image_grids"].dtype == torch.int64
    assert output["image_grids"].tolist() == [[1, 2, 0], [2, 1, 0], [1, 1, 0]]


def test_values_are_normalised(processor):
    page = np.zeros((28, 28, 3), np.uint8)
    page[0, 0] = (255, 128, 0)
    output = processor(Image.fromarray(page))
    pixels = np.asarray(output["pixel_values"])
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert np.allclose(pixels[0, :, 0, 0], [1, 128 / 127.5 - 1, -1], atol=1e-6)


def test_a_page_of_the_canvas_size_is_not_resampled(processor, make_image):
    page = make_image(56, 56)
    output = processor(page)
    expected = cut(np.asarray(page).transpose(2, 0, 1), Grid(2, 2), 28, 28)
    assert np.array_equal(np.rint(pixels_of(output)), expected)


def test_padding_is_white_at_the_right_and_bottom(processor):
    wide = pixels_of(processor(Image.new("RGB", (100, 40)), max_tiles=1))[0]
    assert (np.rint(wide[:, :11]) == 0).all()
    assert (wide[:, 11:] == 255).all()
    tall = pixels_of(processor(Image.new("RGB", (40, 100)), max_tiles=1))[0]
    assert (np.rint(tall[:, :, :11]) == 0).all()
    assert (tall[:, :, 11:] == 255).all()


def test_the_thumbnail_comes_last(processor, make_image):
    page = make_image(56, 28)
    output = processor(page, thumbnail=True)
    assert output["image_grids"].tolist() == [[1, 2, 1]]
    small = np.full((28, 28, 3), 255, np.uint8)
    small[:14] = np.asarray(page.resize((28, 14), Image.Resampling.BICUBIC))
    assert np.array_equal(np.rint(pixels_of(output)[2]), small.transpose(2, 0, 1))
    # a page that is one tile already needs none
    assert processor(make_image(20, 20), thumbnail=True)["image_grids"].tolist() == [[1, 1, 0]]


def test_one_pixel(processor):
    output = processor(Image.new("RGB", (1, 1), (10, 20, 30)))
    assert output["image_grids"].tolist() == [[1, 1, 0]]
    assert first_pixel(processor, Image.new("RGB", (1, 1), (10, 20, 30))) == (10, 20, 30)


def test_extreme_aspect_ratio(processor):
    assert processor(Image.new("RGB", (10000, 10)))["image_grids"].tolist() == [[1, 4, 0]]


def assert_one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value)


def test_too_many_pixels_are_refused(processor):
    with pytest.raises(DataError, match="14000x13000 px, more than the limit of 17895697") as error:
        processor(Image.new("1", (14000, 13000)))
    assert_one_line(error)
    with pytest.raises(DataError, match="100x50 px, more than the limit of 4999"):
        processor(Image.new("RGB", (100, 50)), max_pixels=4999)
    with pytest.raises(DataError, match="100x50 px, more than the limit of 4999"):
        processor(np.zeros((50, 100, 3), np.uint8), max_pixels=4999)
    processor(Image.new("RGB", (100, 50)), max_pixels=5000)


def test_empty_and_broken_images_are_refused(processor, make_image):
    with pytest.raises(DataError, match="empty") as error:
        processor(Image.new("RGB", (0, 5)))
    assert_one_line(error)
    file = io.BytesIO()
    make_image(64, 64).save(file, "PNG")
    broken = Image.open(io.BytesIO(file.getvalue()[:2000]))
    with pytest.raises(DataError, match="cannot be decoded") as error:
        processor(broken)
    assert_one_line(error)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32768, (128, 128, 128)),
        ("I", 65535, (255, 255, 255)),
        ("I", 200, (200, 200, 200)),
        ("F", 1.0, (255, 255, 255)),
        ("F", 0.5, (128, 128, 128)),
        ("F", 64.0, (64, 64, 64)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 255), (0, 0, 0)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("HSV", (0, 0, 255), (255, 255, 255)),
    ],
)
def test_image_modes(processor, mode, colour, expected):
    assert first_pixel(processor, Image.new(mode, (28, 28), colour)) == expected


def test_palettes(processor):
    image = Image.new("P", (28, 28), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert first_pixel(processor, image) == (200, 100, 50)
    image.info["transparency"] = 1
    assert first_pixel(processor, image) == (255, 255, 255)
    image.info["transparency"] = bytes([255, 0])
    assert first_pixel(processor, image) == (255, 255, 255)


def test_exif_rotation_comes_before_the_grid(processor, make_image):
    upright = make_image(28, 56)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    stored = Image.open(file)
    assert stored.size == (56, 28)
    turned, straight = processor(stored), processor(upright)
    assert turned["image_grids"].tolist() == [[2, 1, 0]]
    assert np.array_equal(turned["pixel_values"], straight["pixel_values"])


def test_arrays_and_tensors_equal_the_image(processor, make_image):
    page = make_image(50, 30)
    expected = np.asarray(processor(page)["pixel_values"])
    array = np.asarray(page)
    variants = {
        "HWC uint8": array,
        "CHW uint8": array.transpose(2, 0, 1),
        "HWC float": array.astype(np.float32) / 255,
        "CHW tensor": torch.from_numpy(array.transpose(2, 0, 1).copy()),
        "CHW float tensor": torch.from_numpy(array.transpose(2, 0, 1).copy()).float() / 255,
        "0..255 float": array.astype(np.float64),
    }
    for name, variant in variants.items():
        assert np.array_equal(processor(variant)["pixel_values"], expected), name


def test_grey_and_transparent_arrays(processor, make_image):
    grey = make_image(28, 28, mode="L")
    expected = np.asarray(processor(grey)["pixel_values"])
    array = np.asarray(grey)
    for variant in (array, array[None], array[..., None], array / 255.0):
        assert np.array_equal(processor(variant)["pixel_values"], expected)
    clear = np.zeros((28, 28, 4), np.uint8)
    assert first_pixel(processor, clear) == (255, 255, 255)
    with pytest.raises(ValueError):
        processor(np.zeros((28, 28, 7), np.uint8))


def test_paths_equal_the_opened_image(processor, make_image, tmp_path):
    clear = make_image(30, 20, mode="RGBA")
    clear.putalpha(Image.new("L", (30, 20), 90))
    clear.save(tmp_path / "clear.png")
    Image.new("I;16", (28, 28), 40000).save(tmp_path / "deep.png")
    for name in ("clear.png", "deep.png"):
        path = tmp_path / name
        with Image.open(path) as image:
            expected = processor(image)["pixel_values"]
        assert np.array_equal(processor(str(path))["pixel_values"], expected)
        assert np.array_equal(processor([path])["pixel_values"], expected)


@pytest.mark.parametrize("enlarge", [True, False])
@pytest.mark.parametrize("tiles", [1, 4, 9, 12])
def test_a_finer_page_than_is_useful_gets_the_same_tiles(monkeypatch, tiles, enlarge):
    monkeypatch.setattr(module, "ORDINARY_PIXELS", 1)
    processor = AlignVLMImageProcessor(
        size={"height": 160, "width": 224}, max_tiles=tiles, enlarge=enlarge
    )
    useful = processor.useful_pixels()
    assert useful == tiles * 160 * 224
    for aspect in (0.1, 0.35, 0.707, 1.0, 1.33, 1.5, 2.2, 7.0):
        fits = [round((useful * aspect) ** 0.5) + 1, round((useful / aspect) ** 0.5) + 1]
        grids = {processor.grid_for(fits[0] * k, fits[1] * k)[0] for k in (1, 2, 5)}
        assert len(grids) == 1, (aspect, grids)
        (grid,) = grids  # nor is it enlarged
        assert fit_scale(*fits, grid, 224, 160) <= 1


def test_what_is_useful_is_bounded_by_what_is_taken():
    big = AlignVLMImageProcessor(size={"height": 160, "width": 160}, max_tiles=256)
    assert big.useful_pixels() == 256 * 160 * 160
    assert AlignVLMImageProcessor(max_tiles=4).useful_pixels() == module.ORDINARY_PIXELS
    assert AlignVLMImageProcessor(max_tiles=4, max_pixels=1000).useful_pixels() == 1000


def test_unreadable_files_are_named(processor, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "text.png", tmp_path / "missing.png", str(tmp_path / "missing.png")):
        with pytest.raises(DataError, match=f"cannot read the image .*{str(path)[-9:]}") as error:
            processor(path)
        assert_one_line(error)
    with pytest.raises(DataError, match="cannot read the image"):
        processor(3)


def test_settings_of_a_call_do_not_stay(processor, make_image):
    page = make_image(56, 56)
    assert processor(page, max_tiles=1)["image_grids"].tolist() == [[1, 1, 0]]
    assert processor(page)["image_grids"].tolist() == [[2, 2, 0]]
    assert processor(make_image(9, 9), min_tiles=4)["image_grids"].tolist() == [[2, 2, 0]]
    other = processor(page, size={"height": 14, "width": 56})
    assert other["image_grids"].tolist() == [[4, 1, 0]]
    assert np.asarray(other["pixel_values"]).shape == (4, 3, 14, 56)
    raw = processor(page, do_rescale=False, do_normalize=False)
    assert np.asarray(raw["pixel_values"]).max() > 200


def test_save_and_load(tmp_path, make_image):
    saved = AlignVLMImageProcessor(
        size={"height": 28, "width": 14}, max_tiles=6, thumbnail=True, max_pixels=10**6
    )
    saved.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is AlignVLMImageProcessor
    assert loaded.to_dict() == saved.to_dict()
    assert (loaded.max_tiles, loaded.thumbnail, loaded.max_pixels) == (6, True, 10**6)
    page = make_image(90, 50)
    for key, value in saved(page).items():
        assert np.array_equal(value, loaded(page)[key])


def test_to_rgb_leaves_rgb_alone(make_image):
    page = make_image(13, 7)
    assert np.array_equal(np.asarray(to_rgb(page)), np.asarray(page))


# --- pages that keep their own pixels ------------------------------------------------------------


@pytest.fixture
def keeping():
    return AlignVLMImageProcessor(size=TILE, max_tiles=6, enlarge=False)


def canvas_of(output) -> np.ndarray:
    """The one page of an output, its tiles laid side by side; uint8 HWC."""
    ((rows, cols, _),) = output["image_grids"].tolist()
    tiles = np.rint(pixels_of(output)).astype(np.uint8)
    lines = [np.concatenate(list(tiles[r * cols : (r + 1) * cols]), 2) for r in range(rows)]
    return np.concatenate(lines, 1).transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((9, 9), [1, 1]),
        ((28, 28), [1, 1]),
        ((29, 28), [1, 2]),
        ((70, 40), [2, 3]),
        ((84, 56), [2, 3]),
    ],
    ids=str,
)
def test_a_page_that_is_not_enlarged_keeps_its_pixels(keeping, make_image, size, grid):
    page = make_image(*size)
    output = keeping(page)
    assert output["image_grids"].tolist() == [[*grid, 0]]
    canvas = canvas_of(output)
    wide, high = size
    assert np.array_equal(canvas[:high, :wide], np.asarray(page))
    assert (canvas[high:] == 255).all()
    assert (canvas[:, wide:] == 255).all()
    assert canvas.shape == (28 * grid[0], 28 * grid[1], 3)


def test_a_page_that_does_not_fit_is_scaled_down(keeping, make_image):
    page = make_image(200, 100)
    output = keeping(page)
    # 2 x 3 tiles hold 84 x 42 px of it, 1 x 6 only 56 x 28
    assert output["image_grids"].tolist() == [[2, 3, 0]]
    canvas = canvas_of(output)
    small = page.resize((84, 42), Image.Resampling.BICUBIC)
    assert np.array_equal(canvas[:42], np.asarray(small))
    assert (canvas[42:] == 255).all()


def test_a_call_can_say_whether_to_enlarge(processor, keeping, make_image):
    page = make_image(20, 14)
    for one, other in ((processor, keeping), (keeping, processor)):
        turned = one(page, enlarge=not one.enlarge)
        assert np.array_equal(turned["pixel_values"], other(page)["pixel_values"])
    small = canvas_of(keeping(page))
    assert np.array_equal(small[:14, :20], np.asarray(page))
    assert not np.array_equal(canvas_of(processor(page)), small)
    grid, _ = processor.grid_for(84, 84, enlarge=False, max_tiles=9)
    assert grid == (3, 3)


def test_a_page_that_keeps_its_pixels_has_a_smaller_thumbnail(keeping, make_image):
    output = keeping(make_image(56, 14), thumbnail=True)
    assert output["image_grids"].tolist() == [[1, 2, 1]]
    small = np.rint(pixels_of(output)[2])
    assert (small[:, 7:] == 255).all()


def test_enlarge_is_saved(keeping, tmp_path):
    keeping.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).enlarge is False
