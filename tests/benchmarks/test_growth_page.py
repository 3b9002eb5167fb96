"""docs/cost.md: its sentences are fits, its figures come again, and the published runs stay."""

from __future__ import annotations

import re
import shutil

import pytest
from benchmarks.growth import __main__ as growth
from benchmarks.growth import page, published
from benchmarks.growth.fits import NEAR, fit, words
from benchmarks.growth.sweeps import NAMES, SWEEPS
from tests.pictures import differences, texts

from benchmarks import measure as m
from benchmarks import plots

PLANNED = {
    "LLaVA-1.5 7B, pretraining": 0.97,
    "LLaVA-1.5 7B, instruction": 0.60,
    "LLaVA-1.5 13B, pretraining": 1.19,
    "LLaVA-1.5 13B, instruction": 0.58,
    "Open-LLaVA-NeXT 7B, pretraining": 1.55,
    "Open-LLaVA-NeXT 7B, instruction": 1.03,
    "LLaVA-NeXT 7B, instruction": 1.57,
    "LLaVA-NeXT 13B, instruction": 1.24,
    "LLaVA-NeXT 34B, instruction": 1.28,
    "MobileVLM 1.7B, both stages": 0.09,
}
"""Planned over published hours at 0.35 of the peak rate."""
SIZES = {"vicuna-7b": 7.06e9, "vicuna-13b": 13.35e9, "yi-34b": 34.75e9}
"""Parameters of LLaVA-NeXT with these language models, as its authors publish them."""


def made(results, folder):
    """Page and figures from stored results, as bytes."""
    folder.mkdir()
    shutil.copy(page.PAGE, folder / "cost.md")
    page.write(results, folder / "cost.md")
    return {file.name: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """The page made from what is stored."""
    return made(m.RESULTS, tmp_path_factory.mktemp("growth") / "docs")


# --- the page ------------------------------------------------------------------------------------


def test_the_page_is_what_the_stored_results_say(again):  # else: python -m benchmarks.growth page
    assert again["cost.md"].decode() == page.PAGE.read_text("utf-8")
    figures = page.PAGE.parent / plots.FIGURES
    pictures = {name for name in again if name.endswith(".svg")}
    assert pictures == {file.name for file in figures.glob("growth-*.svg")}
    for name in pictures:
        assert differences(again[name], (figures / name).read_bytes()) == [], name


def test_every_sentence_about_growth_is_a_fit_in_a_figure(again):
    """Each generated sentence names the shape that the figure's legend names for the same title."""
    shapes = {
        "is flat": "flat",
        "grows linearly": "linear",
        "grows quadratically": "quadratic",
        "follows none": "none",
    }
    legends = [text for name in again if name.endswith(".svg") for text in texts(again[name])]
    said = re.findall(r"^- The (.+?) \((?:fit|nearest) (.+?)\)", again["cost.md"].decode(), re.M)
    assert len(said) >= 8
    for sentence, off in said:
        (shape,) = (shape for begin, shape in shapes.items() if begin in sentence)
        assert f"{shape}, {off}" in legends, sentence


def test_what_was_measured_covers_the_page():
    file, rows = page.load(m.RESULTS)
    assert file is not None
    text = page.PAGE.read_text("utf-8")
    for sweep in SWEEPS:
        missing = re.search(rf"^Not measured yet: .*\b{sweep.name}\b", text, re.M)
        assert (sweep.name in rows) != bool(missing), sweep.name
    assert {sweep.section for sweep in SWEEPS} == set(page.SECTIONS)


def test_a_page_without_markers_is_refused(tmp_path):
    (tmp_path / "cost.md").write_text("nothing", "utf-8")
    with pytest.raises(ValueError, match="results: reading"):
        page.write(tmp_path, tmp_path / "cost.md")


def test_without_results_it_says_so(tmp_path):
    text = made(tmp_path / "none", tmp_path / "docs")["cost.md"].decode()
    assert text.count(plots.NOTHING.strip()) == len(page.SECTIONS)


# --- fits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ys", "shape"),
    [
        ([5.0, 5.2, 4.9, 5.1], "flat"),
        ([3.0, 5.1, 8.9, 17.0], "linear"),
        ([2.0, 5.0, 17.0, 65.0], "quadratic"),
        ([9.0, 3.0, 8.0, 2.0], "none"),
    ],
)
def test_the_simplest_near_curve_is_named(ys, shape):
    xs = [1.0, 2.0, 4.0, 8.0]
    curve = fit(xs, ys)
    assert curve.shape == shape
    assert min(curve.coefficients) >= 0
    if shape != "none":
        assert curve.off <= NEAR[shape]
        apart = max(abs(curve.at(x) / y - 1) for x, y in zip(xs, ys, strict=True))
        assert apart == pytest.approx(curve.off)


def test_two_points_are_no_line():
    assert fit([1.0, 2.0], [1.0, 2.0]).shape == "none"
    assert fit([1.0, 2.0], [1.0, 1.05]).shape == "flat"
    with pytest.raises(ValueError, match="two points"):
        fit([1.0], [1.0])


def test_a_fit_in_words():
    line = words(fit([1.0, 2.0, 3.0], [12.0, 16.0, 20.0]), "pages", page.amount("ms"))
    assert line.startswith("grows linearly with pages: 8.00 ms and 4.00 ms for each (fit off by")
    none = words(fit([1.0, 2.0], [1.0, 2.0]), "pages", page.amount("ms"))
    assert none.startswith("follows none of the three shapes")


# --- the script ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_smoke_run_measures_everything(tiny_model_dir, tmp_path, capsys):
    common = ["--smoke", "--model", str(tiny_model_dir), "--out", str(tmp_path), "--threads", "1"]
    assert growth.main([*common, "--repeats", "1"]) == 0
    assert "reading-pixels: a square page" in capsys.readouterr().out
    _, rows = page.load(tmp_path)
    assert set(rows) == set(NAMES)
    for sweep in SWEEPS:
        assert len(rows[sweep.name]) == len(sweep.smoke)
        for row in rows[sweep.name]:
            assert float(row["cpu_ms"]) > 0 and not row["skipped"], row
            assert bool(row["peak_mib"]) == ("memory" in sweep.modes)


# --- published runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("run", published.RUNS, ids=lambda run: run.name)
def test_the_plan_against_a_published_run(run):
    plan = published.planned(run)
    assert plan.hours / run.hours == pytest.approx(PLANNED[run.name], abs=0.006)
    stages = plan.stages
    assert [stage.visual_tokens for stage in stages] == [run.tiles * run.tokens] * len(stages)
    assert sum(stage.samples for stage in stages) == sum(run.samples)
    if run.text in SIZES:
        assert plan.parameters == pytest.approx(SIZES[run.text], rel=2e-3)
    assert f"[{run.name}]({run.source})" in page.PAGE.read_text("utf-8")
