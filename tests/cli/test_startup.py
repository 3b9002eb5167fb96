"""What is imported when: a word of help needs no torch, and the Auto classes know ours always."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alignvlm
from alignvlm.deferred import CLASSES, after_import
from alignvlm.transplant import CONVERTED

HEAVY = ("torch", "transformers", "numpy", "PIL")
LOADED = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


def python(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("arguments", ["--help", "--version", "ask --help", "eval --help", "trian"])
def test_help_and_usage_errors_import_nothing_heavy(arguments):
    code = """
    import sys
    from alignvlm.cli import main
    sys.argv = ["alignvlm", *sys.argv[1:]]
    try:
        main()
    except SystemExit as error:
        assert error.code in (None, 0, 2), error.code
    """
    said = python("\n".join(line[4:] for line in code.splitlines()) + LOADED, *arguments.split())
    assert said.splitlines()[-1] == "[]"


def test_importing_the_package_imports_nothing_heavy():
    code = "import alignvlm; assert set(alignvlm.__all__) <= set(dir(alignvlm)); "
    assert python(code + LOADED) == "[]"


LOAD = """
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__, type(model).__name__,
      type(processor).__name__, type(AutoImageProcessor.from_pretrained(sys.argv[1])).__name__,
      type(AutoModel.from_config(model.config)).__name__)
"""
AUTO = "AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor"
ORDERS = {
    "alignvlm first": f"import sys, alignvlm\nfrom transformers import {AUTO}",
    "transformers first": f"import sys\nfrom transformers import {AUTO}\nimport alignvlm",
    "a model that transformers imports the Auto classes for": "import sys, alignvlm\n"
    f"from transformers import LlavaForConditionalGeneration, {AUTO}",
}


HOSTS = """
from transformers import AutoModelForMultimodalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as HEADS
for key in ("alignvlm_llava", "alignvlm_idefics3", "alignvlm_smolvlm", "alignvlm_ovis2"):
    config = type(AutoConfig.for_model(key))
    print(config.__name__, HEADS[config].__name__, AutoModel._model_mapping[config].__name__)
    assert AutoModelForMultimodalLM._model_mapping[config] is HEADS[config]
"""


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_ours_and_the_converted_hosts(order, tiny_model_dir: Path):
    ours, *hosts = python(f"{ORDERS[order]}\n{LOAD}\n{HOSTS}", tiny_model_dir).splitlines()
    assert ours.split() == [
        "AlignVLMConfig", "AlignVLMForConditionalGeneration", "AlignVLMProcessor",
        "AlignVLMImageProcessor", "AlignVLMModel",
    ]  # fmt: skip
    expected = [(config, head, core) for config, core, head in CONVERTED]
    assert hosts == [" ".join(one.__name__ for one in names) for names in expected]


def test_every_model_type_has_its_own_classes():
    for model_type, names in CLASSES.items():
        config, core, head = (getattr(alignvlm, name) for name in names)
        assert config.model_type == model_type
        assert core.config_class is config and head.config_class is config
    assert len(CLASSES) == len(CONVERTED) + 1


def test_a_spawned_process_knows_the_auto_classes(
    make_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It gets a config, and with it the package."""
    (tmp_path / "spawned.py").write_text("""
def kind(config):
    from transformers import AutoModel
    return type(AutoModel.from_config(config)).__name__
""")
    monkeypatch.syspath_prepend(tmp_path)
    from spawned import kind  # type: ignore[import-not-found]

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(kind, (make_config(),)) == "AlignVLMModel"


def test_what_waits_for_a_module_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "waited_for.py").write_text("NAMES = {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "waited_for", raising=False)
    seen = []
    after_import("waited_for", seen.append)
    assert not seen
    import waited_for  # type: ignore[import-not-found]

    assert seen == [waited_for]
    after_import("waited_for", seen.append)
    assert seen == [waited_for, waited_for]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'alignvlm' has no attribute 'AlignVLMConfg'"):
        getattr(alignvlm, "AlignVLMConfg")  # noqa: B009
