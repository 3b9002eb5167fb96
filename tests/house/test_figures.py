"""The docs' figures can be drawn again."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "figures.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["page-to-tokens", "blank-dropping", "confidence"])
def test_the_figures_are_drawn(tmp_path, name):
    spec = importlib.util.spec_from_file_location("figures", SCRIPT)
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    getattr(figures, name.replace("-", "_"))(tmp_path)
    with Image.open(tmp_path / f"{name}.png") as made:
        with Image.open(SCRIPT.parent / "images" / f"{name}.png") as stored:
            assert made.size == stored.size
        assert made.convert("L").getextrema()[0] < 80  # something is drawn
