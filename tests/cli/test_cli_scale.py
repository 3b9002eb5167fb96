"""``alignvlm batch`` and ``alignvlm plan`` as a person types them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from alignvlm.batch import driver as batch_module
from alignvlm.batch.pool import Pool
from alignvlm.batch.requests import Unit
from alignvlm.batch.worker import Job, Worker
from alignvlm.cli import scaling as cli_scale
from alignvlm.data.sources import TRANSCRIBE_QUESTION
from alignvlm.errors import AlignVLMError, ConfigError

app = typer.Typer()
app.command()(cli_scale.batch)
app.command()(cli_scale.plan)


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def docs(tmp_path: Path, make_image: Any) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    make_image().save(folder / "a.png")
    (folder / "b.pdf").write_bytes(b"%PDF-1.4 and nothing else")
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Job, Pool]]:
    """The jobs that were run, by the real worker in this process instead of Ray's."""
    made: list[tuple[Job, Pool]] = []

    def here(units: Sequence[Unit], job: Job, pool: Pool) -> Iterator[int]:
        made.append((job, pool))
        yield Worker(job)({"unit": [unit.to_json() for unit in units]})["rows"][0]

    monkeypatch.setitem(batch_module.batch.__kwdefaults__, "run", here)
    return made


def test_batch(docs, tiny_model_dir, tmp_path, calls):
    out = tmp_path / "out"
    common = ["batch", tiny_model_dir, docs, "--out", out, "--max-new-tokens", 3]
    text = run(*common, "--batch-size", 2, "--actors", 3, "--num-gpus", 0.5, "--address", "auto")
    assert text.startswith(f"{out}/results.jsonl: 2 rows (1 answers, 1 errors); ")
    job, pool = calls[0]
    assert pool == Pool(address="auto", actors=3, num_gpus=0.5, batch_size=2)
    assert job.asking.question == TRANSCRIBE_QUESTION and job.asking.max_new_tokens == 3
    data = json.loads(run(*common, "--json"))
    assert data["rows"] == data["reused"] == 2 and len(calls) == 1
    run(*common, "--question", "Who?", "--no-repetition-guard")
    assert calls[1][0].asking.question == "Who?" and not calls[1][0].asking.repetition_guard


def test_plan():
    text = run("plan", "paper/llama-3.2-1b", "--gpus", 8, "--gpu", "h100")
    assert text.startswith("paper/llama-3.2-1b: 1,914.1 M parameters on 8 x h100")
    arguments = ["--samples", "instruction=1000", "--tiles", 3, "--set", "stages.0.epochs=2"]
    data = json.loads(run("plan", "paper/llama-3.2-1b", *arguments, "--json"))
    assert [s["samples"] for s in data["stages"]] == [16_200_000, 7_500_000, 1000]
    assert data["tiles"] == 3 and data["gpus"] == 8 and data["fits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "instruction"], "--samples instruction: write it as STAGE=N"),
        (["--samples", "instruction=many"], "write it as STAGE=N"),
        (["--gpu", "h1000"], "unknown GPU"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        run("plan", "paper/llama-3.2-1b", *arguments)


def test_a_batch_of_nothing(tiny_model_dir, tmp_path):
    with pytest.raises(AlignVLMError, match="gone: no such folder"):
        run("batch", tiny_model_dir, tmp_path / "gone", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
