"""Stored pages."""

import numpy as np
from studies.connectors.store import STEPS, Pages, packed


def made():
    rng = np.random.default_rng(0)
    features = [rng.normal(3, 2, (n, 120)).astype(np.float32) for n in (40, 30)]
    places = [rng.random((n, 2), np.float32) for n in (40, 30)]
    targets = [np.arange(n) for n in (40, 30)]
    facts = [("What is the city?", "Oslo")]
    meta = [{"part": part, "text": "City: Oslo", "facts": facts} for part in ("train", "test")]
    return features, packed(features, places, targets, meta)


def test_features_are_kept_to_half_a_step():
    features, pages = made()
    mean, deviation = features[0].mean(0), features[0].std(0)
    back = pages.features[pages.cells(1)].astype(np.float32) / STEPS * deviation + mean
    assert np.abs((back - features[1]) / deviation).max() <= 0.5 / STEPS + 1e-3


def test_saved_and_loaded(tmp_path):
    _, pages = made()
    pages.save(tmp_path / "pages.npz")
    again = Pages.load(tmp_path / "pages.npz")
    np.testing.assert_array_equal(again.features, pages.features)
    assert again.of_part("test") == [1] and again.cells(1) == slice(40, 70)
    assert [p.name for p in tmp_path.iterdir()] == ["pages.npz"]
