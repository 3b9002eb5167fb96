"""docs/cli.md says what is so: keys of JSON lines, exit codes, defaults that differ."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.batch.test_batch import here
from tests.cli.test_cli_data import pdfs as pdfs
from tests.cli.test_cli_eval import data as data
from tests.cli.test_cli_extract import folder as folder
from tests.cli.test_cli_extract import give_readings
from tests.cli.test_command_line import documented
from tests.command import Run

from alignvlm.batch import driver
from alignvlm.demo import desk
from alignvlm.eval.ocr import Box

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")


def inner(words: str, key: str) -> list[set[str]]:
    """Keys of the objects in a verb's list, of each shape that has one."""
    (line,) = [one for one in PAGE.splitlines() if one.startswith(f"| `{words}` | `{{")]
    lists = re.findall(rf'"{key}": \[\{{(.*?)\}}\]', line)
    flat = [re.sub(r": (\{[^{}]*\}|\[[^\[\]]*\])", "", re.sub(r"\{[^{}]*\}", "", one))
            for one in lists]  # fmt: skip
    return [set(re.findall(r'"(\w+)"', one)) for one in flat]


@pytest.fixture
def said(command: Run) -> Any:
    """``said("ask", ...)``: the line that the verb prints with --json."""

    def call(*given: Any) -> dict[str, Any]:
        done = command(*given, "--json")
        assert done.code == 0 and done.out.count("\n") == 1, done
        return json.loads(done.out)

    return call


def test_extract_and_batch(said, tiny_model_dir, folder, monkeypatch):
    give_readings(monkeypatch)
    monkeypatch.setitem(driver.batch.__kwdefaults__, "run", here)
    given = ("extract", tiny_model_dir, folder, "--fields", "x")
    counts, rows = documented("extract")
    assert set(said(*given, "--out", "x.csv")) == counts
    (folder / "c.png").write_bytes(b"no picture")
    data = said(*given)
    good, _, bad = data["rows"]
    assert set(data) == rows and set(bad) == {"file", "error"}
    assert set(good) == {"file", "values"}
    for key in good["values"]["x"]:
        assert f'"{key}"' in PAGE.partition('"values": {FIELD: {')[2].partition("}")[0], key
    small = ("--max-new-tokens", 2, "--out", "out")
    assert [set(said("batch", tiny_model_dir, folder, *small))] == documented("batch")


def test_finetune(said, tiny_model_dir, folder):
    pytest.importorskip("peft")
    rows = [{"image": f"in/{name}.png", "question": "Who?", "answer": name} for name in "ab"]
    Path("qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    small = ("--steps", 1, "--batch-size", 1, "--max-questions", 1, "--max-new-tokens", 2)
    made = said("finetune", tiny_model_dir, "--data", "qa.jsonl", "--out", "run", *small)
    assert [set(made)] == documented("finetune")


def test_data(said, pdfs, tiny_model_dir, monkeypatch):
    made = said("data", "from-pdf", pdfs, "--out", "made", "--dpi", 72)
    assert [set(made)] == documented("data from-pdf")
    Path("scans").mkdir()
    Image.new("RGB", (60, 30), "white").save("scans/a.png")
    boxes = [Box("two words", 5, 5, 50, 20, 0.9)]
    monkeypatch.setattr(
        "alignvlm.data.harvest.from_scans.RapidOcrReader", lambda: lambda page: boxes
    )
    assert [set(said("data", "from-scans", "scans", "--out", "b"))] == documented("data from-scans")
    shown = said("data", "show", "made/records.jsonl", "--model", tiny_model_dir)
    assert set(shown) == documented("data show")[0]
    read = said("data", "read", tiny_model_dir, "made")
    assert [set(read)] == documented("data read")
    assert [set(read["results"][0])] == inner("data read", "results")


def test_eval(said, data, tiny_model_dir):
    task = ("--task", "chartqa", "--data", data, "--limit", 2)
    made = said("eval", tiny_model_dir, *task, "--out", "a.json")
    assert [set(made)] == documented("eval")
    assert [set(made["results"][0])] == inner("eval", "results")
    said("eval", "--answerer", "majority", *task, "--out", "b.json")
    assert [set(said("eval", "compare", "a.json", "b.json"))] == documented("eval compare")
    table = said("eval", "table", "a.json", "b.json")
    assert [set(table)] == documented("eval table")
    assert [set(row) for row in table["results"]] == 2 * inner("eval table", "results")


BUG = """
import sys
from alignvlm.cli import info
def machine_info():
    raise RuntimeError("a bug")
info.machine_info = machine_info
sys.argv = ["alignvlm", "info"]
from alignvlm.cli.app import main
main()
"""
INTERRUPTED = BUG.replace('RuntimeError("a bug")', "KeyboardInterrupt")


def test_exit_codes_are_those_of_the_table(command):
    """Each is made to happen, and the table has no other."""
    table = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", PAGE, re.MULTILINE))

    def ends(script: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    assert command("--version").code == 0 and table["0"].startswith("done")
    code, out, err = ends(BUG)
    assert (code, out) == (1, "")
    assert err.startswith("Traceback") and err.endswith("RuntimeError: a bug\n")
    assert "a bug, with a traceback" in table["1"]
    wrong = command("ask", "--dpi", "nan"), command("ask", "gone", "gone.png", "Who?")
    for done in wrong:
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert ends(INTERRUPTED) == (2, "", "error: interrupted\n")
    for words in ("wrong options", "input that cannot be used", "interrupted"):
        assert words in table["2"]
    assert set(table) == {"0", "1", "2"}


def test_the_demos_own_length_is_said():
    assert f"{desk.MAX_NEW_TOKENS} on `demo`'s page" in PAGE.replace("\n", " ")
