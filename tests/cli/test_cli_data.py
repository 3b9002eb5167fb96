"""``alignvlm data``: harvest a folder, look at it, read it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import transformers
import yaml
from PIL import Image

from alignvlm.cli import app as cli
from alignvlm.cli.datasets import open_source, reading_report
from alignvlm.data.harvest.ocr_words import Box
from alignvlm.data.records import load_images
from alignvlm.data.sources import JsonlSource
from alignvlm.errors import AlignVLMError
from alignvlm.eval.reading_accuracy import PageAccuracy, ReadingAccuracy, size_names

PAGE = {
    "layout": "text", "width": 112, "height": 28, "font_px": [20, 20], "fonts": ["DejaVuSans"],
    "margin": 2,
}  # fmt: skip


@pytest.fixture
def run(monkeypatch, capfd, tmp_path):
    """``run("data", ...)``: exit code, stdout and stderr of the entry point."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["alignvlm", *map(str, arguments)])
        capfd.readouterr()
        code, level = 0, transformers.logging.get_verbosity()
        try:
            cli.main()
        except SystemExit as error:
            code = error.code
        finally:
            transformers.logging.set_verbosity(level)
            transformers.logging.enable_progress_bar()
        return code, *capfd.readouterr()

    return call


def refused(result, *words):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.fixture
def pdfs(tmp_path: Path) -> Path:
    folder = tmp_path / "pdfs"
    folder.mkdir()
    content = "BT /F1 24 Tf 20 50 Td (The total is 12) Tj ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [4 0 R] /Count 1 >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 224 112] /Contents 5 0 R "
        "/Resources << /Font << /F1 3 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
    ]
    body = "".join(f"{n} 0 obj\n{o}\nendobj\n" for n, o in enumerate(objects, start=1))
    (folder / "a.pdf").write_text(f"%PDF-1.4\n{body}trailer\n<< /Root 1 0 R >>\n%%EOF\n")
    (folder / "broken.pdf").write_text("nothing")
    return folder


def test_from_pdf_to_reading(run, pdfs, tiny_model_dir, tmp_path):
    code, out, err = run("data", "from-pdf", pdfs, "--out", "made", "--dpi", 72)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "skipped broken.pdf: not a PDF, or damaged",
        "made/records.jsonl: 1 pages with 4 words from 1 of 2 files",
    ]
    assert len(load_images(JsonlSource("made/records.jsonl")[0])) == 1
    shown = run("data", "show", "made/records.jsonl", "--model", tiny_model_dir, "--json")
    assert json.loads(shown[1])["cells"]
    for name in ("made", "made/records.jsonl"):
        code, out, err = run("data", "read", tiny_model_dir, name, "--json")
        assert (code, err) == (0, "")
        (result,) = json.loads(out)["results"]
        assert (result["source"], result["pages"]) == (name, 1)
        assert result["text_cells"] == sum(
            part["text_cells"] for part in result["by_text_height"].values()
        )
    code, out, _ = run("data", "read", tiny_model_dir, "made")
    assert out.startswith("made: 1 pages of 1 documents\n  text  ")
    assert " px " in out and "blank" in out


def test_from_scans(run, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (60, 30), "white").save(tmp_path / "in" / "a.png")
    boxes = [Box("two words", 5, 5, 50, 20, 0.9)]
    monkeypatch.setattr(
        "alignvlm.data.harvest.from_scans.RapidOcrReader", lambda: lambda page: boxes
    )
    code, out, err = run("data", "from-scans", "in", "--out", "made", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["words"] == 2
    refused(run("data", "from-scans", "in", "--out", "made", "--confidence", 0.5), "choose another")
    refused(run("data", "from-scans", "gone", "--out", "x"), "gone: no such folder")


def test_what_cannot_be_harvested(run, pdfs, tmp_path):
    (tmp_path / "none").mkdir()
    refused(run("data", "from-pdf", "none", "--out", "x"), "no file that ends in .pdf")
    refused(run("data", "from-pdf", pdfs, "--out", "x", "--pages", "3-1"), "backwards")
    refused(run("data", "from-pdf", pdfs, "--out", "x", "--pages", "7"), "no page was chosen")
    refused(run("data", "from-pdf", pdfs), "--out")


@pytest.fixture
def recipe(tmp_path: Path, tiny_lm_dir: Path) -> Path:
    stage = {
        "name": "read", "steps": 2, "train": {"connector": 1e-3}, "loss": {"vocab": 1},
        "sources": [{"type": "render", "page": PAGE}],
    }  # fmt: skip
    plain = {**stage, "name": "own", "sources": [{"type": "jsonl", "path": "x.jsonl"}]}
    model = {"text": str(tiny_lm_dir), "vision": {}, "connector": {"type": "align"}}
    path = tmp_path / "little.yaml"
    path.write_text(yaml.safe_dump({"name": "l", "model": model, "stages": [stage, plain]}))
    return path


def test_rendered_pages_are_those_training_never_shows(recipe):
    from alignvlm.train.recipe import load_recipe
    from alignvlm.train.stages import build_mix
    from alignvlm.train.training import _probe

    stage = load_recipe(str(recipe)).stages[0]
    unseen = open_source(str(recipe), pages=3)
    probe, trained = _probe(stage, 1000), build_mix(stage, 1000)
    seeds = [{s[i].id.rsplit("/", 1)[0] for i in range(len(s))} for s in (unseen, probe, trained)]
    assert seeds[0] == seeds[1] == {"render-text/501000"}
    assert seeds[0].isdisjoint(seeds[2])
    assert len(unseen) == 3


def test_recipes_and_their_entries(run, recipe, tiny_model_dir):
    entry = "{type: render, size: 2, page: " + json.dumps(PAGE) + "}"
    code, out, err = run("data", "read", tiny_model_dir, recipe, entry, "--limit", 2, "--json")
    assert (code, err) == (0, "")
    assert [r["pages"] for r in json.loads(out)["results"]] == [2, 2]


def test_a_document_is_read_once(tmp_path):
    folder = tmp_path / "sroie" / "test"
    for part in ("img", "box", "key"):
        (folder / part).mkdir(parents=True)
    Image.new("RGB", (112, 56), "white").save(folder / "img" / "1.png")
    (folder / "box" / "1.txt").write_text("4,4,60,4,60,24,4,24,The total\n")
    (folder / "key" / "1.json").write_text('{"total": "12", "company": "The total"}')
    source = open_source(str(tmp_path / "sroie"))
    assert len(source) == 1
    assert source[0].words is not None
    with pytest.raises(AlignVLMError, match="with a split 'train'"):
        open_source(str(tmp_path / "sroie"), split="train")


def test_sources_that_cannot_be_read(run, recipe, tiny_model_dir, tmp_path):
    def read(*arguments):
        return run("data", "read", tiny_model_dir, *arguments)

    (tmp_path / "empty").mkdir()
    refused(read("empty"), "holds neither records.jsonl nor")
    refused(read("gone.jsonl"), "gone.jsonl: no such file")
    refused(read("tinny"), "did you mean 'tiny'")
    refused(read(recipe, "--stage", 3), "has 2 stages")
    refused(read(recipe, "--stage", 2), "has no render source")
    refused(read("{type: rendr}"), "rendr")
    refused(read("{type: ["), "not a source entry")
    refused(run("data", "read", "./gone", recipe), "gone")


def test_the_interval_draws_documents():
    """Two documents of equal pages: the interval is theirs, however many pages they have."""

    def page(document: str, right: int) -> PageAccuracy:
        sizes = [(0, 0)] * len(size_names())
        sizes[2] = (right, 10)
        return PageAccuracy(document, (right, 10), (90, 90), tuple(sizes))

    pages = tuple(page(name, right) for name, right in (("a", 10), ("b", 0)) for _ in range(50))
    report = reading_report(ReadingAccuracy(0.5, 1.0, 2.0, 1000, 9000, pages))
    assert report["interval"] == [0.0, 1.0]
    assert (report["pages"], report["documents"]) == (100, 2)
    assert report["by_text_height"] == {
        "12-16": {"text": 0.5, "interval": [0.0, 1.0], "text_cells": 1000}
    }
    alone = tuple(page(str(n), p.text[0]) for n, p in enumerate(pages))
    low, high = reading_report(ReadingAccuracy(0.5, 1.0, 2.0, 1000, 9000, alone))["interval"]
    assert 0.35 < low < 0.45 and 0.55 < high < 0.65
