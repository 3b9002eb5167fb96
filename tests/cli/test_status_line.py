"""What is shown on a terminal while something is done, and that what is printed then is as
documented."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.test_cli_extract import give_readings
from tests.cli.test_command_line import documented
from tests.transplant.convert_hosts import make_host

from alignvlm.cli import status_line as module
from alignvlm.cli.options import note
from alignvlm.cli.status_line import CLEAR, Doing
from alignvlm.compose.assemble import load_pretrained
from alignvlm.finetune.adapter import lora_config, save_adapter, wrap


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is one of 80 columns, and everything takes long."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(module, "AFTER", 0.0)
    monkeypatch.setattr(module, "EVERY", 0.001)
    monkeypatch.setenv("COLUMNS", "80")


def test_a_line_says_what_is_done_and_goes_away(capfd, monkeypatch):
    on_terminal(monkeypatch)
    with Doing("loading " + "x" * 200) as doing:
        time.sleep(0.05)
        doing.say("reading")
        time.sleep(0.05)
    note("done")
    out, err = capfd.readouterr()
    lines = err.split(CLEAR)
    assert out == "" and lines[0] == "" and lines[-1] == "note: done\n"
    assert lines[1].startswith("loading xxx") and lines[1].endswith("xxx: 0 s")
    assert len(lines[1]) == 79  # a full line would wrap
    assert lines[-3] == "reading: 0 s" and lines[-2] == ""


def test_nothing_is_said_of_what_is_soon_done_nor_elsewhere(capfd, monkeypatch):
    on_terminal(monkeypatch)
    monkeypatch.setattr(module, "AFTER", 60.0)
    with Doing("loading"):
        time.sleep(0.02)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with pytest.raises(ValueError, match="late"), Doing("loading") as doing:
        doing.end()
        raise ValueError("late")
    assert capfd.readouterr() == ("", "")


def test_all_that_loads_a_model_says_so(
    command, tiny_model_dir, tiny_lm_dir, tiny_vision_dir, make_image, tmp_path, monkeypatch
):
    """On standard error; standard output has the documented line alone."""
    on_terminal(monkeypatch)
    pytest.importorskip("peft")
    page = tmp_path / "page.png"
    make_image(56, 28, 0).save(page)
    model, processor = load_pretrained(tiny_model_dir, torch.float32)
    save_adapter(wrap(model, lora_config(model, 4)), processor, str(tiny_model_dir), Path("lora"))
    make_host("smolvlm").save_pretrained("host")
    parts = ("--vision", tiny_vision_dir, "--text", tiny_lm_dir)

    def keys(shown: str, *given: Any) -> set[str]:
        done = command(*given, "--json")
        assert done.code == 0 and done.out.count("\n") == 1, done
        assert f"{CLEAR}{shown}" in done.err, (given[0], done.err)
        return set(json.loads(done.out))

    load = f"loading {tiny_model_dir}"[:40]
    asked = keys(load, "ask", tiny_model_dir, page, "Who?", "--max-new-tokens", 2)
    assert asked == documented("ask")[0]
    assert keys(load, "inspect", tiny_model_dir, page) == documented("inspect")[0]
    assert keys(load, "embed", tiny_model_dir, page, "--out", "x.pt") > documented("embed")[0]
    give_readings(monkeypatch)
    extracted = ("extract", tiny_model_dir, page, "--fields", "x")
    assert keys(load, *extracted) == keys("reading", *extracted) == documented("extract")[1]
    assert keys("loading reader", "read", "reader", page) == documented("read")[1]
    assert keys("planning tiny", "plan", "tiny") == documented("plan")[0]
    pruned = ("prune", tiny_model_dir, "--keep", 280, "--data", page, "--out", "pruned")
    assert keys(load, *pruned, "--max-new-tokens", 2) == documented("prune")[0]
    assert keys("merging lora", "merge", "lora", "--out", "merged") == documented("merge")[0]
    made = keys("putting", "compose", *parts, "--connector", "mlp", "--out", "made")
    assert made == documented("compose")[0]
    assert keys("converting", "convert", "host", "--dry-run") == documented("convert")[0]
