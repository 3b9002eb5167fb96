"""Recipes: every shipped one is good, and every mistake is one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignvlm.errors import ConfigError
from alignvlm.train import load_recipe
from alignvlm.train.recipe import Recipe, StageSpec, find_recipe, parse_recipe, recipe_folders

FOLDER = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.rglob("*.yaml"))
PAGE = {"layout": "form", "width": 112, "height": 56, "font_px": [14, 14]}


def recipe(**over: Any) -> dict[str, Any]:
    stage = {
        "name": "one",
        "steps": 3,
        "train": {"connector": 1e-3},
        "sources": [{"type": "render", "page": PAGE}],
    }
    model = {"text": "smollm2", "vision": {"patch_size": 14}, "connector": {"type": "align"}}
    return {"name": "mine", "model": model, "stages": [stage], **over}


def stage(**over: Any) -> dict[str, Any]:
    return recipe(stages=[{**recipe()["stages"][0], **over}])


def model(**over: Any) -> dict[str, Any]:
    return recipe(model={**recipe()["model"], **over})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe()))
    return path


# --- the shipped ones --------------------------------------------------------------------------


def test_there_are_shipped_recipes():
    assert {"tiny", "smollm2-grounded", "paper/llama-3.2-1b", "paper/llama-3.1-8b"} <= set(SHIPPED)
    assert FOLDER in recipe_folders()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_and_survives_its_own_yaml(name):
    loaded = load_recipe(name)
    assert loaded.name == name
    assert loaded.description
    again = parse_recipe(yaml.safe_load(loaded.to_yaml()))
    assert again == loaded


@pytest.mark.parametrize("name", [n for n in SHIPPED if n.startswith("paper/")])
def test_the_papers_stages(name):
    """Section 4: everything trains, everything trains, then all but the vision encoder."""
    loaded = load_recipe(name)
    assert [s.name for s in loaded.stages] == ["alignment", "documents", "instruction"]
    assert [set(s.train) for s in loaded.stages] == [
        {"vision", "connector", "text"},
        {"vision", "connector", "text"},
        {"connector", "text"},
    ]
    assert loaded.model.tiling.max_tiles == 9
    assert loaded.model.token_order == "tile"
    assert loaded.model.connector.init == "lm_head"
    assert all(s.loss.vocab == 0 for s in loaded.stages)


# --- finding -----------------------------------------------------------------------------------


def test_a_recipe_is_found_by_name_or_path(file):
    assert find_recipe("paper/llama-3.2-1b").is_file()
    assert find_recipe(str(file)) == file
    with pytest.raises(ConfigError, match=r"no recipe 'tinyy' \(did you mean 'tiny'\?\)"):
        find_recipe("tinyy")
    with pytest.raises(ConfigError, match="is now 'smollm2-grounded'"):
        find_recipe("smol")
    with pytest.raises(ConfigError, match=r"no recipe file .*gone\.yaml"):
        find_recipe("gone.yaml")


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tx: 1"])
def test_bad_yaml_is_one_line(file, text):
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.yaml: not a readable recipe: ") as caught:
        load_recipe(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just text"])
def test_a_recipe_is_a_mapping(file, text):
    file.write_text(text)
    with pytest.raises(ConfigError, match="a recipe is a mapping"):
        load_recipe(str(file))


def test_bytes_that_are_no_text(file):
    file.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ConfigError, match="not a readable recipe"):
        load_recipe(str(file))


# --- mistakes ----------------------------------------------------------------------------------

MISTAKES: list[tuple[dict[str, Any], str]] = [
    (recipe(stags=[]), r"unknown key 'stags' \(did you mean 'stages'\?\)"),
    (stage(stepss=3), r"unknown key 'stages\.0\.stepss' \(did you mean 'steps'\?\)"),
    (stage(loss={"lmm": 1}), r"unknown key 'stages\.0\.loss\.lmm'"),
    (model(tilng={}), r"unknown key 'model\.tilng' \(did you mean 'tiling'\?\)"),
    (model(tiling={"max_tile": 3}), r"max_tile' \(did you mean 'max_tiles'\?\)"),
    (model(connector={"type": "align", "gama": 2}), r"gama' \(did you mean 'gamma'\?\)"),
    (model(connector={"type": "algin"}), r"unknown connector 'algin' \(did you mean 'align'\?\)"),
    (model(connector={"gamma": 1}), r"model\.connector"),
    (model(connector={"type": "align", "gamma": 0}), r"gamma: .*greater than 0"),
    (model(token_order="rows"), r"model\.token_order"),
    (stage(sources=[{"type": "rendr"}]), r"sources\.0.*rendr"),
    (stage(sources=[]), r"stages\.0\.sources"),
    (stage(sources=[{"type": "render", "page": {**PAGE, "widht": 3}}]), r"did you mean 'width'"),
    (stage(sources=[{"type": "render", "page": PAGE, "weight": 0}]), r"weight"),
    (stage(steps=None), r"exactly one of steps and epochs"),
    (stage(epochs=1), r"exactly one of steps and epochs"),
    (stage(train={"connecter": 1}), r"unknown part 'connecter' \(did you mean 'connector'\?\)"),
    (stage(train={}), r"nothing trains"),
    (stage(train={"connector": 0}), r"nothing trains"),
    (stage(train={"connector": -1}), r"cannot be negative"),
    (stage(loss={"lm": 0, "vocab": 0}), r"needs lm or vocab above 0"),
    (stage(loss={"lm": 0, "vocab": 1}, train={"text": 1}), r"train\.text needs loss\.lm"),
    (stage(name="Bad Name"), r"stages\.0\.name"),
    (stage(steps="many"), r"stages\.0\.steps"),
    (recipe(stages=[]), r"stages"),
    (recipe(stages=recipe()["stages"] * 2), r"two stages have the same name"),
    ({**stage(loss={"vocab": 1}), "model": model(connector={"type": "mlp"})["model"]}, "'align'"),
    ({"name": "x"}, r"model: Field required"),
]


@pytest.mark.parametrize(("data", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_names_the_place(data, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_recipe(data, where="mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    assert "\n" not in str(caught.value)


def test_every_connector_can_be_chosen():
    from alignvlm import CONNECTORS

    for name in CONNECTORS:
        assert parse_recipe(model(connector={"type": name})).model.connector.type == name


# --- overrides ---------------------------------------------------------------------------------


def test_overrides_reach_everything(file):
    loaded = load_recipe(
        str(file),
        [
            "seed=7",
            "model.connector.gamma=2.5",
            "model.tiling.max_tiles=4",
            "stages.0.steps=9",
            "stages.one.batch_size=2",
            "stages.one.sources.0.page.layout=receipt",
            "stages.one.train={connector: 0.5, connector.w2: 0}",
            "description=text with = in it",
        ],
    )
    assert loaded.seed == 7
    assert loaded.model.connector.gamma == 2.5
    assert loaded.model.tiling.max_tiles == 4
    only = loaded.stages[0]
    assert (only.steps, only.batch_size) == (9, 2)
    assert only.sources[0].page.layout == "receipt"
    assert only.train == {"connector": 0.5, "connector.w2": 0}
    assert loaded.description == "text with = in it"


def test_a_whole_connector_is_one_override(file):
    loaded = load_recipe(str(file), ["model.connector={type: h_reducer, kernel: 2}"])
    assert loaded.model.connector.kernel == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.stepz=9", r"unknown key 'stages\.0\.stepz' \(did you mean 'steps'\?\)"),
        ("seed", "write it as key=value"),
        ("seed=[1", "not a YAML value"),
        ("stages.3.steps=9", "no entry '3'; there are 1"),
        ("stages.onee.steps=9", r"no entry 'onee' \(did you mean 'one'\?\)"),
        ("stages.-1.steps=9", "no entry '-1'"),
        ("name.deeper=1", "does not lead to a key"),
        ("name.deeper.still=1", "nothing lies below"),
        ("seed=many", "seed: "),
        ("model.connector.type=alig", "unknown connector 'alig'"),
        ("=3", "unknown key"),
    ],
)
def test_a_wrong_override_is_one_line(file, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(str(file), [override])
    assert "\n" not in str(caught.value)


# --- what a stage is ---------------------------------------------------------------------------


def test_defaults_and_batch():
    only = parse_recipe(stage(batch_size=3, gradient_accumulation=4)).stages[0]
    assert isinstance(only, StageSpec)
    assert only.batch == 12
    assert (only.loss.lm, only.loss.vocab, only.loss.blank) == (1, 0, 0.25)


def test_a_recipe_cannot_be_changed():
    loaded = parse_recipe(recipe())
    assert isinstance(loaded, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        loaded.seed = 3


def test_the_saved_yaml_holds_what_differs_from_defaults():
    text = parse_recipe(model(connector={"type": "align", "gamma": 3})).to_yaml()
    data = yaml.safe_load(text)
    assert data["model"]["connector"] == {"type": "align", "gamma": 3.0}
    assert "seed" not in data
    assert list(data) == ["name", "model", "stages"]
