"""The script for a rented card loses nothing when a step fails, hangs or finds no time."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "steps.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_step_costs_its_own_line_only(tmp_path: Path):
    chosen = [
        gpu.Step("good", ("-c", "print('measured')"), 60),
        gpu.Step("bad", ("-c", "raise MemoryError('too large')"), 60),
        gpu.Step("slow", ("-c", "import time; print('begun', flush=True); time.sleep(99)"), 6),
        gpu.Step("late", ("-c", "print(1)"), 60),
    ]
    seen = []
    for row in gpu.run_all(chosen, tmp_path, 10.0):
        seen.append(row["outcome"])
        assert rows_of(tmp_path)[-1]["outcome"] == row["outcome"]  # on the disk already
    assert seen == ["done", "failed with exit code 1", "stopped at its limit", "skipped: no time"]
    assert (tmp_path / "good.log").read_text() == "measured\n"
    assert "MemoryError: too large" in (tmp_path / "bad.log").read_text()
    assert (tmp_path / "slow.log").read_text() == "begun\n"


def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(SystemExit) as stopped:
        gpu.main([])
    assert stopped.value.code == 2
    assert "--rehearse" in capsys.readouterr().err


def test_steps_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--rehearse", "--out", str(tmp_path), "--steps", "fails", "mixtrue"])
    assert stopped.value.code == 2
    assert "'mixtrue'; there are tests, mixture" in capsys.readouterr().err
    assert gpu.main(["--rehearse", "--out", str(tmp_path), "--steps", "fails"]) == 0
    assert [row["step"] for row in rows_of(tmp_path)] == ["fails"]


@pytest.mark.slow
def test_the_rehearsal_goes_through_every_step(tmp_path: Path):
    assert gpu.main(["--rehearse", "--out", str(tmp_path)]) == 0
    outcomes = {row["step"]: row["outcome"] for row in rows_of(tmp_path)}
    assert outcomes.pop("fails") == "failed with exit code 1"
    assert outcomes.pop("hangs") == "stopped at its limit"
    assert set(outcomes.values()) == {"done"}, outcomes
    assert list(tmp_path.glob("vocab_mixture-cpu-*.csv"))
    assert list(tmp_path.glob("end_to_end-cpu-*.csv"))
