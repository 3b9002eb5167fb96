"""Documents are drawn page by page, and the oldest are put away."""

from __future__ import annotations

import io

import pytest

from alignvlm.demo import shelf as module
from alignvlm.demo.shelf import OpenDocument, Shelf
from alignvlm.errors import DataError


@pytest.fixture
def tiff(make_image) -> bytes:
    out = io.BytesIO()
    first, *rest = (make_image(40, 20, seed) for seed in range(3))
    first.save(out, "TIFF", save_all=True, append_images=rest)
    return out.getvalue()


def test_pages_are_drawn_when_they_are_looked_at(tiff):
    document = OpenDocument("three.tif", tiff, 2)
    assert document.count == 3 and len(document.pages) == 2
    assert document.pages[0] is not None and document.pages[1] is None
    assert document.pixels == 800
    assert document.page(2) is document.page(2)
    assert document.pixels == 1600


@pytest.mark.parametrize("number", [0, 3, -1])
def test_other_pages_are_refused(tiff, number):
    with pytest.raises(DataError, match=f"three.tif has no page {number}"):
        OpenDocument("three.tif", tiff, 2).page(number)


def test_what_cannot_be_drawn_is_refused_at_once():
    with pytest.raises(DataError, match=r"damaged\.pdf: not a PDF, or damaged"):
        OpenDocument("damaged.pdf", b"%PDF-1.4 nothing", 2)


def test_the_oldest_are_put_away(tiff, monkeypatch):
    monkeypatch.setattr(module, "MAX_HELD", 2500)
    shelf = Shelf()
    keys = [shelf.add(OpenDocument("three.tif", tiff, 3)) for _ in range(3)]
    assert len(set(keys)) == 3 and all(len(key) > 20 for key in keys)
    shelf.get(keys[0])
    for number in (1, 2, 3):
        shelf.get(keys[2]).page(number)
    shelf.get(keys[2])
    for key in keys[:2]:
        with pytest.raises(DataError, match="put away: open it again"):
            shelf.get(key)
    shelf.remove(keys[2])
    with pytest.raises(DataError, match="open it again"):
        shelf.get(keys[2])
