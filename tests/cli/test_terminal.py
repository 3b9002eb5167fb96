"""What is shown on a terminal, with its standard error on a pseudo-terminal, and with --json."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_command_line import documented

from alignvlm.cli.status_line import CLEAR

pty = pytest.importorskip("pty")
fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
HERE = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import pytest
from tests.cli.test_cli_extract import give_readings
from alignvlm.cli import status_line
from alignvlm.cli.app import main
status_line.AFTER, status_line.EVERY = 0.0, 0.01  # everything takes long
give_readings(pytest.MonkeyPatch())
sys.argv[0] = "alignvlm"
main()
"""
Shown = tuple[int, str, str]
"""Exit code, standard output, and what the terminal got."""


def on_terminal(*arguments: Any) -> Shown:
    ours, theirs = pty.openpty()
    size = struct.pack("HHHH", 24, 200, 0, 0)  # tqdm draws nothing in a window of no rows
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    command = [sys.executable, "-c", SCRIPT, str(HERE), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200", "TQDM_MININTERVAL": "0"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    got: list[bytes] = []

    def listen() -> None:
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            got.append(data)

    listener = threading.Thread(target=listen)
    listener.start()
    out, _ = child.communicate(timeout=300)
    listener.join()
    os.close(ours)
    return child.returncode, out.decode(), b"".join(got).decode()


@pytest.fixture
def folder(make_image: Callable[..., Any], tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    make_image(56, 28, 1).save(path / "a.png")
    make_image(57, 28, 2).save(path / "b.png")
    return path


@pytest.mark.slow  # a process each
@pytest.mark.parametrize("as_json", [True, False])
def test_extract_says_what_it_does(tiny_model_dir, folder, as_json):
    asked = ("--fields", "x", *(("--json",) if as_json else ()))
    code, out, err = on_terminal("extract", tiny_model_dir, folder, *asked)
    assert code == 0, err
    assert f"{CLEAR}loading {tiny_model_dir}"[:40] in err
    assert "extracting:" in err and "/2 [" in err
    if as_json:
        assert out.count("\n") == 1 and set(json.loads(out)) == {"rows"}
    else:
        assert out.splitlines()[0].split() == ["file", "x"]
    assert "loading" not in out and "extracting" not in out


@pytest.mark.slow
def test_finetune_says_what_it_does(tiny_model_dir, folder, tmp_path):
    pytest.importorskip("peft")
    data = tmp_path / "qa.jsonl"
    rows = [{"image": f"in/{name}.png", "question": "Who?", "answer": name} for name in "ab"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    small = ("--steps", 1, "--batch-size", 1, "--max-questions", 1, "--max-new-tokens", 2)
    given = ("finetune", tiny_model_dir, "--data", data, "--out", tmp_path / "run", *small)
    code, out, err = on_terminal(*given, "--json")
    assert code == 0, err
    assert f"{CLEAR}fine-tuning {tiny_model_dir}"[:40] in err
    assert out.count("\n") == 1, out
    assert [set(json.loads(out))] == documented("finetune")


def test_nothing_is_shown_elsewhere(command, tiny_model_dir, folder, monkeypatch):
    """Where standard error is a file, it has notes and errors alone."""
    from tests.cli.test_cli_extract import give_readings

    give_readings(monkeypatch)
    for more in ((), ("--json",)):
        done = command("extract", tiny_model_dir, folder, "--fields", "x", *more)
        assert (done.code, done.err) == (0, ""), done
