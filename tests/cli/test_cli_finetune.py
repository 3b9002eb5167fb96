"""``alignvlm finetune`` and ``alignvlm merge`` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.documents.test_documents import make_pdf, text_at
from typer.testing import CliRunner

from alignvlm.cli.training_commands import finetune, merge
from alignvlm.errors import ConfigError, DataError, WeightsError
from alignvlm.finetune import Settings

pytest.importorskip("peft")

app = typer.Typer()
app.command()(finetune)
app.command()(merge)
runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pdfs")
    for number in range(3):
        make_pdf(folder / f"{number}.pdf", [text_at((20, 150, f"page {number}"))])
    return folder


def run(*arguments: Any) -> Any:
    """Run a command; raises what it raises."""
    return runner.invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_finetune_then_merge(tiny_model_dir: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(
        "finetune", tiny_model_dir, "--pdfs", folder, "--out", out, "--steps", 2, "--batch-size", 1,
        "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert result["out"] == str(out)
    assert result["settings"]["lora_rank"] == 16
    assert set(result["scores"]) == {"reading", "blank", "aloud"}
    assert result["kept"] in ("start", "checkpoint")
    assert set(result["score"]) == {"before", "after"}
    assert "3 documents" in done.stderr
    done = run("merge", out, "--out", tmp_path / "model")
    assert done.stdout == f"model written to {tmp_path / 'model'}\n"
    assert (tmp_path / "model" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="exists already"):
        run("merge", out, "--out", tmp_path / "model")


def test_the_text_says_what_changed(tiny_model_dir: Path, folder: Path, tmp_path: Path) -> None:
    done = run(
        "finetune", tiny_model_dir, "--pdfs", folder, "--out", tmp_path / "run", "--steps", 1,
        "--no-transcribe",
    )  # fmt: skip
    assert "token-reading accuracy of pages: " in done.stdout
    assert f"report.html and report.json are in {tmp_path / 'run'}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), ConfigError, "give --pdfs FOLDER, --data qa.jsonl, or both"),
        (("--pdfs", "gone"), DataError, "gone: no such folder"),
        (("--data", "gone.jsonl"), DataError, r"gone\.jsonl: no such file"),
        (
            ("--pdfs", "x", "--batch-size", "8", "--micro-batch", "3"),
            ConfigError,
            "must be a multiple",
        ),
        (("--data", "x", "--no-transcribe"), ConfigError, "--no-transcribe is for --pdfs alone"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...],
    error: type[Exception],
    message: str,
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message) as caught:
        run("finetune", tiny_model_dir, "--out", tmp_path / "run", *arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no folder"):
        run("finetune", tmp_path / "gone", "--pdfs", folder, "--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_every_setting_is_an_option_with_the_same_default() -> None:
    import inspect

    options = inspect.signature(finetune).parameters
    for name, field in Settings.model_fields.items():
        assert name in options
        if not field.is_required():
            assert options[name].default == field.default, name
