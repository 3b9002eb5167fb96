"""Model folders of strangers: no code is run, nothing is unpickled, no file elsewhere is read."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.house.layers import ROOT
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from alignvlm.cli.info import model_info
from alignvlm.errors import AlignVLMError, ConfigError, WeightsError
from alignvlm.inference.answerers import LanguageModel
from alignvlm.inference.loading import load_model
from alignvlm.inference.prompt import build_prompts, chat
from alignvlm.transplant.convert import convert_folder
from alignvlm.weights.folder import loaded
from alignvlm.weights.resolve import resolve

LOADERS: tuple[Callable[[str], object], ...] = (
    load_model,
    model_info,
    LanguageModel.load,
    lambda folder: convert_folder(folder, None, "align"),
)


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def set_keys(file: Path, **keys: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **keys}), "utf-8")


def refusal(call: Callable[[], object], kind: type[AlignVLMError] = WeightsError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a method of that name in the package, with its place."""
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == name:
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def test_every_loading_call_refuses_code_of_the_folder() -> None:
    found = 0
    for name in ("from_pretrained", "from_config"):
        for where, call in calls(name):
            if getattr(call.func, "value", None) is not None and (
                ast.unparse(call.func) == "PeftModel.from_pretrained"
            ):
                continue  # has no such word: adapters bring no code
            said = {key.arg: ast.unparse(key.value) for key in call.keywords}
            assert said.get("trust_remote_code") == "False", where
            found += 1
    assert found >= 8


@pytest.mark.parametrize("load", LOADERS)
def test_code_of_the_folder_is_never_run_nor_asked_about(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str], object]
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("asked whether to run code")

    monkeypatch.setattr("builtins.input", asked)
    mark = tmp_path / "ran"
    (copy / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\nclass M: pass\n")
    code = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"}
    set_keys(copy / "config.json", model_type="evil", auto_map=code)
    assert "code of its own (auto_map), which is never run" in refusal(lambda: load(str(copy)))
    assert not mark.exists()


def test_code_beside_a_model_that_is_known_is_passed_over(copy: Path) -> None:
    set_keys(copy / "config.json", auto_map={"AutoConfig": "evil.C"})
    set_keys(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    load_model(str(copy))


def test_pickled_weights_are_never_loaded(copy: Path, tiny_lm_dir: Path, tmp_path: Path) -> None:
    language = Path(shutil.copytree(tiny_lm_dir, tmp_path / "lm"))
    for folder, load in ((copy, load_model), (language, LanguageModel.load)):
        (folder / "model.safetensors").unlink()
        assert "no *.safetensors" in refusal(lambda: load(str(folder)))  # noqa: B023
        torch.save({}, folder / "pytorch_model.bin")
        assert "pickled (pytorch_model.bin)" in refusal(lambda: load(str(folder)))  # noqa: B023
        # another safetensors file does not bring the pickled one back
        (folder / "other.safetensors").write_bytes(b"")
        assert "not a usable model" in refusal(lambda: load(str(folder)))  # noqa: B023


@pytest.mark.parametrize(
    "name", ["../elsewhere/model.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "x.bin", 3]
)
def test_an_index_names_files_of_its_folder(copy: Path, tmp_path: Path, name: object) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (copy / "model.safetensors").rename(elsewhere / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no *.safetensors file of this folder" in refusal(lambda: load_model(str(copy)))


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": [1]}}'])
def test_an_index_that_is_none_is_one_line(copy: Path, text: str) -> None:
    (copy / "model.safetensors.index.json").write_text(text)
    assert "cannot be read as an index" in refusal(lambda: load_model(str(copy)))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_links_out_of_the_folder_are_refused(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    message = refusal(lambda: load_model(str(copy)))
    assert f"{name} is a link out of the folder" in message
    assert message == refusal(lambda: resolve(copy))


def test_a_hub_cache_is_made_of_links(copy: Path, tmp_path: Path) -> None:
    root = tmp_path / "models--org--name"
    snapshot = root / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for number, file in enumerate(sorted(copy.iterdir())):
        file.rename(root / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    load_model(str(snapshot))
    (tmp_path / "named").symlink_to(snapshot)  # a link to the folder is the user's own
    load_model(str(tmp_path / "named"))


def test_a_pipe_is_no_file(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    os.mkfifo(copy / "tokenizer.json")
    assert "tokenizer.json is not a file" in refusal(lambda: load_model(str(copy)))


def test_an_adapter_does_not_bring_another_model(copy: Path) -> None:
    adapter = {"base_model_name_or_path": "somebody/else", "peft_type": "LORA"}
    (copy / "adapter_config.json").write_text(json.dumps(adapter))
    assert "alignvlm merge" in refusal(lambda: load_model(str(copy)))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(10 ** 9) %}a{% endfor %}",
        "{% for i in range(9 ** 5) %}{% for j in range(9 ** 5) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(99) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10 ** 11 }}",
        "{{ 7 ** (7 ** (7 ** 7)) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ messages[0].role.center(10 ** 8) }}",
        "{% set n = namespace(x='a') %}{% for i in 'a' * 40 %}{% set n.x = n.x * 2 %}{% endfor %}",
        "{{ raise_exception('no\nsystem message') }}",
        "{{ messages[7].content.text }}",
        "{{ 1 / 0 }}",
        "{% for %}",
        None,
    ],
)
def test_a_hostile_chat_template_is_one_line(copy: Path, make_image, template: str | None) -> None:
    file = copy / "chat_template.jinja"
    file.unlink() if template is None else file.write_text(template)
    model, processor = load_model(str(copy))
    asked = [chat("Who?", [make_image()])]
    message = refusal(lambda: build_prompts(model, processor, asked), ConfigError)
    assert "chat template" in message


def test_a_hostile_chat_template_for_text_alone_is_one_line(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ 'a' * 10 ** 11 }}")
    language = LanguageModel.of(*load_model(str(copy)))
    said = refusal(lambda: language.answer(["Who?"], [4], guard=False), ConfigError)
    assert "chat template cannot be used: it takes too much time or memory" in said


def test_each_kind_of_loader_loads(tiny_lm_dir: Path) -> None:
    for loader in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        loaded(loader, tiny_lm_dir)


def test_a_config_that_asks_for_outputs_by_a_number_is_one_line(tiny_model_dir, tmp_path):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["text_config"]["output_hidden_states"] = 1e308
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(WeightsError, match="output_hidden_states is neither true nor false"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vision_config", "num_channels", 10**6),  # 25 GB
        ("text_config", "intermediate_size", 2**31),
        ("text_config", None, None),  # then a Llama of seven billion is meant
    ],
)
def test_a_config_that_asks_for_more_than_the_files_hold_is_refused_before_it_is_made(
    tiny_model_dir, tmp_path, part, key, value
):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if key is None:
        del config[part]
    else:
        config[part][key] = value
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(
        WeightsError, match=r"asks for a model of .* numbers, but the weights in it"
    ):
        load_model(str(folder))
