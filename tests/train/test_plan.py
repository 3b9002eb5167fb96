"""What a recipe takes on many GPUs, and the tables of docs/scaling.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alignvlm.errors import ConfigError
from alignvlm.train import load_recipe
from alignvlm.train.estimate import estimate, largest_page, meta_model
from alignvlm.train.plan import GPUS, USABLE, Plan, plan, sample_flops

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
PAPER = ("paper/llama-3.2-1b", "paper/llama-3.2-3b", "paper/llama-3.1-8b")


@pytest.fixture(scope="module")
def eight():
    """The 8B recipe on 8 and on 64 GPUs."""
    recipe = load_recipe("paper/llama-3.1-8b")
    return plan(recipe, 8, "h100"), plan(recipe, 64, "h100")


def test_sharding_divides_what_can_be_divided(eight):
    few, many = (made.stages[0] for made in eight)
    assert few.strategy == many.strategy == "fsdp2"
    for part in ("weights", "gradients", "optimizer"):
        assert few.memory_gib[part] == pytest.approx(8 * many.memory_gib[part], abs=0.05)
    for part in ("working copies", "activations"):
        assert few.memory_gib[part] == many.memory_gib[part]
    parameters = sum(estimate(load_recipe("paper/llama-3.1-8b")).parameters.values())
    sharded = sum(few.memory_gib[part] for part in ("weights", "gradients", "optimizer"))
    assert sharded == pytest.approx(16 * parameters / 8 / 2**30, rel=1e-3)


def test_ddp_holds_gradients_once_more_in_buckets():
    one, eight = (plan(load_recipe("paper/llama-3.2-1b"), gpus, "h200") for gpus in (1, 8))
    for alone, among in zip(one.stages, eight.stages, strict=True):
        assert alone.strategy == among.strategy == "ddp"
        more = {"gradients": 2 * alone.memory_gib["gradients"]}
        assert among.memory_gib == pytest.approx({**alone.memory_gib, **more}, abs=0.02)


def test_hours_are_operations_over_rate(eight):
    few, many = eight
    for one, other in zip(few.stages, many.stages, strict=True):
        assert one.exaflops == other.exaflops and one.samples == other.samples
        assert one.hours == pytest.approx(8 * other.hours, rel=5e-3, abs=0.05)
        seconds = one.exaflops * 1e18 / (8 * 989.4e12 * 0.35)
        assert one.hours == pytest.approx(seconds / 3600, rel=1e-3)
    assert few.stages[0].steps == -(-8_100_000 // 64)
    doubled = plan(load_recipe("paper/llama-3.1-8b"), 8, "h100", mfu=0.7)
    assert doubled.hours == pytest.approx(few.hours / 2, rel=1e-3)


def test_operations_of_the_language_model():
    """6 operations a parameter and position, and attention, dominate the largest model."""
    recipe = load_recipe("paper/llama-3.1-8b")
    model = meta_model(recipe)
    visual, tiles = largest_page(recipe, model)
    found = sample_flops(recipe.stages[0], model, visual, tiles)
    layers = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
    length = visual + 128
    text = 6 * layers * length + 3 * 32 * 2 * length**2 * 4096 + 6 * 128 * 128_256 * 4096
    align = 3 * visual * (4 * 128_256 * 4096 + 2 * 1152 * 4096)
    vision = 6 * 412_959_600 * visual + 3 * 27 * 4 * visual * 729 * 1152
    assert found == pytest.approx(text + align + vision, rel=1e-3)


def test_what_is_frozen_costs_less():
    base = load_recipe("paper/llama-3.2-1b")
    model = meta_model(base)

    def flops(train: str) -> float:
        recipe = load_recipe("paper/llama-3.2-1b", [f"stages.0.train={train}"])
        return sample_flops(recipe.stages[0], model, 6561, 9)

    whole = flops("{vision: 1.0, connector: 1.0, text: 1.0}")
    no_text = flops("{vision: 1.0, connector: 1.0}")
    connector = flops("{connector: 1.0}")
    assert whole > no_text > connector
    assert whole - no_text > 2 * 900e6 * 6561  # the decoder layers' weight gradients


def test_a_stage_without_language_model():
    made = plan(load_recipe("tiny"), 2, "rtx4090")
    assert [stage.positions > 0 for stage in made.stages] == [False, True, True]
    assert made.stages[0].samples == 520 * 4 * 2
    assert {stage.strategy for stage in made.stages} == {"ddp"}
    assert made.fits


def test_fewer_tiles_take_less_time_and_the_same_memory():
    recipe = load_recipe("paper/llama-3.2-1b")
    most, mean = plan(recipe, 8, "h100"), plan(recipe, 8, "h100", tiles=3)
    assert mean.hours < 0.5 * most.hours
    assert [s.memory_gib for s in mean.stages] == [s.memory_gib for s in most.stages]
    assert mean.stages[0].visual_tokens == 3 * 729


@pytest.mark.parametrize(
    ("overrides", "gpus", "gpu", "advice"),
    [
        ([], 1, "h100", "more GPUs.*one GPU cannot shard"),
        (["stages.0.batch_size=64"], 8, "h100", "lower stages.alignment.batch_size"),
        (["stages.0.gradient_checkpointing=false"], 64, "a100-40", "gradient_checkpointing=true"),
        (["model.tiling.max_tiles=200", "stages.0.max_length=200000"], 64, "h100", "max_tiles"),
    ],
)
def test_what_to_change_if_it_does_not_fit(overrides, gpus, gpu, advice):
    made = plan(load_recipe("paper/llama-3.1-8b", overrides), gpus, gpu)
    first = made.stages[0]
    assert not first.fits and not made.fits
    assert first.total_gib > USABLE * GPUS[gpu].memory_gib
    assert re.search(advice, first.advice), first.advice
    assert "DOES NOT FIT" in made.to_text() and first.advice in made.to_text()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gpu": "h10"}, "unknown GPU 'h10'.*did you mean 'h100'"),
        ({"gpus": 0}, "at least one GPU"),
        ({"mfu": 0.0}, "mfu is a share"),
        ({"mfu": 35.0}, "mfu is a share"),
        ({"tiles": 10}, "at most the recipe's 9"),
        ({"samples": {"alignmnt": 5}}, "did you mean 'alignment'"),
        ({"samples": {"alignment": 0}}, "samples must be at least 1"),
    ],
)
def test_impossible_plans(keys, message):
    with pytest.raises(ConfigError, match=message):
        plan(load_recipe("paper/llama-3.2-1b"), **{"gpus": 8, "gpu": "h100", **keys})


def test_a_size_that_is_not_known_is_asked_for():
    source = "[{type: hub, path: some/where}]"
    recipe = load_recipe("paper/llama-3.2-1b", [f"stages.documents.sources={source}"])
    with pytest.raises(ConfigError, match=r"some/where is not known; pass --samples documents=N"):
        plan(recipe, 8, "h100")
    assert plan(recipe, 8, "h100", samples={"documents": 77}).stages[1].samples == 77


def test_a_stage_that_goes_by_steps_has_its_size():
    stage = ["stages.documents.steps=10", "stages.documents.epochs=null"]
    recipe = load_recipe("paper/llama-3.2-1b", stage)
    with pytest.raises(ConfigError, match=r"documents: its 10 steps .* --samples documents=N"):
        plan(recipe, 8, "h100", samples={"documents": 77})


def test_text_and_json_say_the_same(eight):
    made = eight[0]
    data = json.loads(json.dumps(made.to_dict()))
    text = made.to_text()
    assert data["stages"][0]["exaflops"] == made.stages[0].exaflops
    assert f"{data['hours']:,.1f} hours" in text
    assert "assumed: 35% of 989.4 dense bf16 TFLOP/s" in text
    assert "mPLUG/DocDownstream-1.0 has about 574,268 samples" in text


def markdown(made: Plan) -> str:
    """The stages as a table, as docs/scaling.md has it."""
    head = (
        "| stage | steps x batch | strategy | weights | gradients | optimizer | working copies "
        "| activations | GiB a GPU | exaFLOPs | hours |\n| --- |" + " --- |" * 10
    )
    rows = [
        f"| {s.name} | {s.steps:,} x {s.batch} | {s.strategy} | "
        + " | ".join(f"{value:.1f}" for value in s.memory_gib.values())
        + f" | {s.total_gib:.1f}{'' if s.fits else ' (too much)'} | {s.exaflops:,.0f} | "
        f"{s.hours:,.1f} |"
        for s in made.stages
    ]
    return "\n".join([head, *rows])


def test_the_tables_of_the_page_are_what_plan_says():
    """Between the markers nothing is typed."""
    page = PAGE.read_text("utf-8")
    for name in PAPER:
        for gpus in (8, 64):
            made = plan(load_recipe(name), gpus, "h100")
            mark = f"<!-- plan {name} {gpus} h100 -->\n"
            assert page.count(mark) == 1
            table = page.split(mark)[1].split("\n<!-- end -->")[0]
            assert table == markdown(made), f"alignvlm plan {name} --gpus {gpus}"
