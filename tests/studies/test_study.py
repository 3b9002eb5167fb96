"""The connector study: one small run from end to end, its rules, and its page."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from studies.connectors import claims, data, language, report, stored, vision
from studies.connectors.__main__ import main
from studies.connectors.noise_sweep import noise_sweep, pixel_noise
from studies.connectors.pca import principal_components, spread
from studies.connectors.settings import SIGMAS, VARIANTS, Settings, cells
from studies.connectors.stored import Estimate, Study
from studies.connectors.vocabulary_analysis import vocabulary_use
from tests.pictures import differences, texts
from transformers import AutoConfig, AutoModel

from alignvlm.data.sources import draw
from alignvlm.data.synthetic.render import render_page
from alignvlm.errors import ConfigError
from alignvlm.train import load_recipe

# ------------------------------------------------------------------------------- reusable analyses


def test_components_are_those_of_a_singular_value_decomposition():
    table = torch.randn(40, 6, dtype=torch.float64) * torch.arange(1.0, 7.0)
    found = principal_components(table, 3)
    _, values, axes = torch.linalg.svd(table - table.mean(0), full_matrices=False)
    assert torch.allclose((found.axes * axes[:3]).sum(1).abs(), torch.ones(3).double())
    assert torch.allclose(found.explained, (values**2 / (values**2).sum())[:3])
    assert (found.axes.gather(1, found.axes.abs().argmax(1, keepdim=True)) > 0).all()
    again = principal_components(table + 5, 3)  # a shift changes nothing
    assert torch.allclose(again.project(table + 5), found.project(table))


def test_spread_of_all_rows_is_one_and_of_a_plane_is_none():
    table = torch.randn(60, 5)
    table[:30, 0] = 0
    table[:, 0] *= 9  # the first component is the first coordinate
    assert torch.allclose(spread(table, torch.arange(60), 5), torch.ones(5).double())
    assert spread(table, torch.arange(30), 1).item() < 0.3
    with pytest.raises(ConfigError, match="fewer than two"):
        spread(table, torch.tensor([1]))
    with pytest.raises(ConfigError, match="no 6 principal"):
        principal_components(table, 6)


def test_noise_moves_the_output_more_the_more_there_is(make_model):
    model = make_model("mlp").model
    pixels = torch.rand(2, 3, 28, 28)
    for place in ("features", "pixels"):
        steps = noise_sweep(model, pixels, SIGMAS, place=place)
        distances = [step.cosine_distance for step in steps]
        assert distances[0] == pytest.approx(0, abs=1e-5)
        assert distances[0] < distances[1] < distances[-1] <= 2
        assert noise_sweep(model, pixels, SIGMAS, place=place) == steps
        clean = model.encode_tiles(pixels) if place == "features" else pixels
        assert steps[2].relative == pytest.approx(1 / clean.std().item())
        scaled = noise_sweep(model, pixels, [steps[1].relative], place=place, relative=True)
        assert scaled[0].absolute == pytest.approx(0.5)
        assert scaled[0].cosine_distance == pytest.approx(distances[1], rel=1e-4)
    with pytest.raises(ConfigError, match="no negative sigma"):
        noise_sweep(model, pixels, [-1.0])


def test_pixel_noise_ends_with_its_context(make_model):
    model = make_model("mlp").model
    pixels = torch.rand(1, 3, 28, 28)
    clean = model.encode_tiles(pixels)
    with pixel_noise(model, 1.0, seed=3):
        first = model.encode_tiles(pixels)
    with pixel_noise(model, 1.0, seed=3):
        assert torch.equal(model.encode_tiles(pixels), first)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(model.encode_tiles(pixels + noise), first)
    assert torch.equal(model.encode_tiles(pixels), clean)


def test_use_of_a_vocabulary(tokenizer):
    mass = torch.zeros(len(tokenizer))
    space, letter = (tokenizer.encode(t, add_special_tokens=False)[0] for t in (" ", "a"))
    mass[space], mass[letter] = 30, 10
    use = vocabulary_use(mass, tokenizer, top=(1, 2))
    assert (use.largest, use.largest_token, use.above, use.for_99) == (0.75, " ", 2, 2)
    assert use.shares == {1: 0.75, 2: 1.0} and use.whitespace == 0.75
    assert use.effective == pytest.approx(4 / 3**0.75)
    with pytest.raises(ValueError, match="no probability"):
        vocabulary_use(mass * 0, tokenizer)


# ---------------------------------------------------------------------------------------- pages


def test_look_alikes_differ_in_one_letter_and_are_no_other_city():
    pairs = data.look_alikes(12)
    for pair in pairs:
        one, other = pair.common.answer, pair.rare.answer
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1
        assert one in data.layouts.CITIES and other not in data.layouts.CITIES
        assert pair.common.page.size == (data.WIDTH, data.HEIGHT)
        assert pair.common.page.tobytes() != pair.rare.page.tobytes()
    assert [p.rare.answer for p in data.look_alikes(12)] == [p.rare.answer for p in pairs]


def test_each_character_has_its_cell():
    for seed, spec in ((5, data.FORMS), (6, data.TEXT)):
        page = render_page(spec, seed)
        rows = [data.spelled(page)[i : i + 24] for i in range(0, 72, 24)]
        assert [row.split() for row in rows if row.strip()] == [
            [word.text for word in page.words if word.line == line]
            for line in range(page.words[-1].line + 1)
        ]


def test_snippets_can_be_read():
    source = data.SnippetSource(30, seed=3)
    for i in range(30):
        record = source[i]
        assert record.question == data.READ
        assert record.words is not None
        assert "".join(word["text"] for word in record.words[0]) == record.answer
        assert source[i].images[0].tobytes() == record.images[0].tobytes()
    assert len({source[i].answer for i in range(30)}) > 20


def test_features_of_text_are_centred():
    keys = vision.vision_keys(Settings.smallest())
    model = AutoModel.from_config(AutoConfig.for_model(keys.pop("model_type"), **keys)).eval()
    vision.centre(model, 8)
    pixels, wanted = vision._batch([draw(13, -1, i) for i in range(8)])
    with torch.no_grad():
        features = model(pixels).last_hidden_state.permute(0, 2, 3, 1)
    assert features[wanted != data.BLANK].mean(0).abs().max() < 1e-4 < features.abs().max()


def test_cells_are_one_token_each():
    tokenizer = language.build_tokenizer(400)
    page = render_page(data.FORMS, 5)
    ids, answers = language.encode(tokenizer, data.spelled(page), [("Q", "A")], cells=True)
    start = len(tokenizer("<|im_start|>user\n")["input_ids"])
    text = tokenizer.batch_decode([[i] for i in ids[start : start + 72]])
    assert "".join(text) == data.spelled(page)
    assert (
        tokenizer.decode([i for i, own in zip(ids, answers, strict=True) if own]) == "A<|im_end|>"
    )


def test_the_encoder_never_saw_a_held_out_page():
    trained = {render_page(data.FORMS, seed * 1_000_003 + i).image.tobytes()
               for seed in range(3) for i in range(40)}  # fmt: skip
    assert not trained & {asked.page.tobytes() for asked in data.held_out_forms(40)}


# ---------------------------------------------------------------------------------------- rules


def made_up(variant: str, seed: int, anls: float, blind: float = 0.1) -> dict:
    """A cell with everything the page reads."""
    settings = Settings(samples=64)
    sweep = [
        {"sigma": x, "relative": x / 2, "cosine_distance": x / 10, "anls": anls / (1 + x)}
        for x in SIGMAS
    ]
    cell = {
        "variant": variant,
        "seed": seed,
        "settings": json.loads(json.dumps(settings.to_dict())),
        "parameters": {"vision": 10, "connector": 20, "text": 30},
        "visual_tokens": 72,
        "vocabulary": 1024,
        "language_model": {"exact_from_text": 0.9, "exact_from_cells": 0.8},
        "vision": {"characters_read": 0.8},
        "curve": [{"samples": n, "loss": 1.0, "anls": anls * n / 64} for n in (4, 16, 64)],
        "scores": {"anls": anls, "exact": anls / 2},
        "blind": {"anls": blind, "exact": 0.0},
        "noise": {"features": sweep, "pixels": copy.deepcopy(sweep)},
        "covered": {k: {"exact": 0.0, "jaccard": 0.01} for k in ("easy", "hard")},
        "look_alikes": {"common_right": 0.5, "rare_right": 0.2, "rare_as_common": 0.3},
        "train_cpu_s": 9.0,
        "cpu_s": 10.0,
        "versions": {"torch": "2", "transformers": "5"},
    }
    if variant.startswith("align"):
        cell |= {
            "vocabulary_use": {
                "vocabulary": 1024, "largest": 0.01, "largest_token": " ", "effective": 90.0,
                "above": 80, "whitespace": 0.2, "shares": {"10": 0.5, "100": 0.9}, "for_99": 300,
            },
            "pruning": [{"kept": 1024, "anls": anls}, {"kept": 300, "anls": anls - 0.002}],
            "pca": {"spread": [1.0] * 10, "points": [[0.0, 1.0], [1.0, 0.0]], "used": [1]},
            "telemetry": {"effective_vocab": 3.0},
        }  # fmt: skip
    return cell


def made_up_study(**scores: tuple[float, ...]) -> Study:
    """``align=(0.5, 0.6, 0.55)``: ANLS of each seed; ``_`` stands for ``-``."""
    study = Study()
    for name, values in scores.items():
        variant = name.replace("_", "-")
        study.cells[variant] = {i: made_up(variant, i, v) for i, v in enumerate(values)}
    return study


def test_an_interval_by_hand():
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.303 / 3**0.5)
    assert found.text(1) == "2.0 ± 2.5" and Estimate.of([2.0]).text(1) == "2.0"
    assert Estimate.of([]) is None


@pytest.mark.parametrize(
    ("align", "mlp", "outcome", "says"),
    [
        ((0.60, 0.62, 0.61), (0.40, 0.43, 0.42), claims.YES, "above 0"),
        ((0.40, 0.43, 0.42), (0.60, 0.62, 0.61), claims.NO, "the opposite"),
        ((0.60, 0.40, 0.50), (0.40, 0.60, 0.50), claims.NO, "no difference"),
        ((0.60, 0.62), (0.40, 0.43), claims.PENDING, "2 of 3 seeds"),
        ((0.14, 0.14, 0.14), (0.1, 0.1, 0.1), claims.UNTESTABLE, "above the blind"),
    ],
)
def test_the_rule_for_a_difference(align, mlp, outcome, says):
    study = made_up_study(align=align, mlp=mlp)
    verdict = claims.better("align", "mlp")(study)
    assert verdict.outcome == outcome and says in verdict.evidence


def test_seeds_are_paired():
    # each seed differs by 0.05, though the seeds themselves differ by far more
    study = made_up_study(align=(0.35, 0.55, 0.951), mlp=(0.30, 0.50, 0.90))
    assert claims.better("align", "mlp")(study).outcome == claims.YES


def test_low_resource_needs_a_gap_that_shrinks():
    study = made_up_study(align=(0.60, 0.61, 0.62), mlp=(0.60, 0.61, 0.62))
    assert claims.low_resource(study).outcome == claims.NO
    for i, cell in study.cells["align"].items():
        cell["curve"][1]["anls"] += 0.2 + 0.01 * i
    assert claims.low_resource(study).outcome == claims.YES


def test_noise_is_judged_only_where_both_read():
    study = made_up_study(align=(0.6, 0.6, 0.6), mlp=(0.12, 0.12, 0.12))
    assert claims.noise("features")(study).outcome == claims.UNTESTABLE
    assert claims.better("align", "mlp")(study).outcome == claims.YES
    study = made_up_study(align=(0.6, 0.61, 0.6), mlp=(0.5, 0.5, 0.5))
    for cell in study.cells["mlp"].values():
        for row in cell["noise"]["features"][1:]:
            row.update(anls=row["anls"] / 3, cosine_distance=0.9)
    assert claims.noise("features")(study).outcome == claims.YES
    assert claims.noise("pixels")(study).outcome == claims.NO
    assert claims.cosine(study).outcome == claims.YES


def test_the_rules_about_the_vocabulary():
    study = made_up_study(align=(0.6, 0.6, 0.6))
    judges = (claims.dense, claims.whitespace, claims.few_tokens, claims.pruning, claims.spans)
    assert [judge(study, "align").outcome for judge in judges] == [claims.YES] * 5
    for cell in study.cells["align"].values():
        cell["vocabulary_use"].update(largest=0.3, whitespace=0.01, above=900)
        cell["pruning"][1]["anls"] -= 0.1
        cell["pca"]["spread"][4] = 0.5
    assert [judge(study, "align").outcome for judge in judges] == [claims.NO] * 5
    for cell in study.cells["align"].values():
        cell["vocabulary_use"]["for_99"] = 600
    assert claims.spans(study, "align").outcome == claims.UNTESTABLE


def test_where_align_does_not_read_grounded_align_is_looked_at():
    study = made_up_study(align=(0.1, 0.1, 0.1))
    judge = claims.of_align(claims.dense)
    assert "With grounding" not in judge(study).evidence
    study.cells["align-grounded"] = made_up_study(align=(0.6, 0.6, 0.6)).cells["align"]
    found = judge(study)
    assert found.outcome == claims.UNTESTABLE
    assert "With grounding it would be reproduced: largest probability" in found.evidence
    study.cells["align"] = made_up_study(align=(0.6, 0.6, 0.6)).cells["align"]
    assert judge(study).evidence.startswith("largest probability")


def test_covered_words_look_alikes_and_cost():
    study = made_up_study(align=(0.6, 0.6, 0.6), mlp=(0.5, 0.5, 0.5))
    assert claims.covered("easy")(study).outcome == claims.UNTESTABLE
    assert claims.cost(study).outcome == claims.UNTESTABLE
    assert claims.look_alikes(study).outcome == claims.NO
    for i, cell in study.cells["align"].items():
        cell["covered"]["easy"]["jaccard"] = 0.3 + 0.01 * i
        cell["look_alikes"]["rare_as_common"] = 0.6 + 0.01 * i
    assert claims.covered("easy")(study).outcome == claims.YES
    assert claims.covered("hard")(study).outcome == claims.UNTESTABLE
    assert claims.look_alikes(study).outcome == claims.YES
    study.cells["mlp"][1]["look_alikes"]["common_right"] = -1
    assert claims.look_alikes(study).outcome == claims.UNTESTABLE


# ---------------------------------------------------------------------------------------- page


FIGURES = ("curves.svg", "noise.svg", "vocabulary.svg")


def test_the_page_and_its_figures_come_again(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for place, variant in enumerate(VARIANTS):
        for seed in range(3):
            cell = made_up(variant, seed, 0.3 + 0.02 * place + 0.01 * seed)
            (results / f"{variant}-{seed}.json").write_text(json.dumps(cell), encoding="utf-8")
    pages = []
    for name in ("one", "other"):
        report.write(results, tmp_path / name / "study.md")
        folder = tmp_path / name
        pages.append({f.name: f.read_bytes() for f in folder.rglob("*.*") if f.is_file()})
    assert [set(page) for page in pages] == [{"study.md", *FIGURES}] * 2
    for name in FIGURES:
        assert differences(pages[0][name], pages[1][name]) == [], name
    assert {"align", "mlp", "samples seen"} <= set(texts(pages[0]["curves.svg"]))
    assert pages[0]["study.md"] == pages[1]["study.md"]
    text = pages[0]["study.md"].decode()
    assert "33 of 33 cells" in text and "not complete" not in text and "FIGURE" not in text
    assert text.count("*Rule:*") == text.count("*Claim:*") == 21
    assert "| align | 0.310 ± 0.025 | 0.155 ± 0.012 | 0.100 ± 0.000 |" in text
    assert "**ALIGN against MLP: not reproduced.**" in text
    for variant in VARIANTS:
        assert f"| {variant} |" in text


def test_the_page_of_nothing(tmp_path):
    text = report.write(tmp_path, tmp_path / "study.md").read_text("utf-8")
    assert "0 of 33 cells" in text
    assert text.count(f": {claims.PENDING}.**") == 21
    assert not (tmp_path / "assets").exists()


# ---------------------------------------------------------------------------------------- run


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_keys_of_the_recipe(variant):
    recipe = load_recipe("study", list(VARIANTS[variant]))
    changed = load_recipe("study").to_yaml() != recipe.to_yaml()
    assert changed == (variant != "align")


def test_one_knob():
    assert Settings.at(1) == Settings()
    half = Settings.at(0.5)
    assert half.samples == Settings().samples // 2
    assert half.language_steps == Settings().language_steps // 2
    assert Settings.at(0.01).language_steps == Settings.at(0.5).language_steps  # no smaller
    assert list(half.curve_steps().values())[-1] == half.samples
    assert cells(2)[: len(VARIANTS)] == [(variant, 0) for variant in VARIANTS]
    with pytest.raises(ConfigError, match="--scale"):
        Settings.at(0)


def test_a_small_study_from_end_to_end(tmp_path, capsys):
    command = ["--smoke", "--out", str(tmp_path / "out"), "--seeds", "1", "--only"]
    assert main([*command, "align"]) == 0
    results = tmp_path / "out" / "smoke" / "results"
    cell = json.loads((results / "align-0.json").read_text("utf-8"))
    assert [point["samples"] for point in cell["curve"]] == [8, 16]
    assert [row["sigma"] for row in cell["noise"]["pixels"]] == list(SIGMAS)
    assert cell["noise"]["features"][0]["cosine_distance"] == pytest.approx(0, abs=1e-5)
    assert cell["pruning"][0]["kept"] == cell["vocabulary"]
    assert cell["vocabulary_use"]["shares"]["100"] <= 1
    written = (results / "align-0.json").stat().st_mtime_ns

    assert main([*command, "align", "mlp", "--jobs", "2"]) == 0  # goes on where it stopped
    assert "1 of 2 cells are there" in capsys.readouterr().out
    assert (results / "align-0.json").stat().st_mtime_ns == written
    assert "vocabulary_use" not in json.loads((results / "mlp-0.json").read_text("utf-8"))
    assert {f.name for f in results.iterdir()} == {"align-0.json", "mlp-0.json"}
    assert not list((tmp_path / "out").rglob("scratch*"))

    page = tmp_path / "page" / "study.md"
    assert main(["report", "--results", str(results), "--page", str(page)]) == 0
    assert "2 of 33 cells" in page.read_text("utf-8")
    assert stored.Study.load(results).count == 2

    assert main(["--scale", "0.5", "--results", str(results), "--only", "mlp"]) == 2
    assert "was made at --scale 0" in capsys.readouterr().out
