"""What tests measured is seen in the end, although pytest hides what they print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
def test_that_passes(figures):
    figures("8 pages: 0.9 GiB")
    print("not for the end")

def test_that_fails(figures):
    figures("50 clients: 63 s")
    figures("[50] clients: 7 refusals")
    assert False

def test_that_measures_nothing():
    pass
"""


def test_lines_of_all_tests_are_at_the_end(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    options = ["-q", "-p", "tests.figures", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *options,
            "-c",
            os.devnull,
            f"--rootdir={tmp_path}",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    _, _, end = done.stdout.partition(" figures ")
    assert [line for line in end.splitlines() if ":" in line][:3] == [
        "8 pages: 0.9 GiB",
        "50 clients: 63 s",
        "[50] clients: 7 refusals",
    ]
    assert "not for the end" not in end
