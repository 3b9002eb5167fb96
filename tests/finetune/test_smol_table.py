"""A corrected table teaches the shipped model: pages are read once, and the connector stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignvlm.finetune import finetune, settings_from
from alignvlm.reader.reader_model import ReaderModel

pytest.importorskip("peft")
PAGES = Path(__file__).parents[2] / "examples" / "pages"


@pytest.mark.slow
def test_a_table_of_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        "file,total,town",
        f"{PAGES / 'receipt.png'},12.00,",
        f"{PAGES / 'form.png'},,Turin",
        f"{PAGES / 'report.png'},,Oslo",
    ]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    read: list[int] = []
    forward = ReaderModel.forward

    def counted(*args: Any, **keys: Any) -> Any:
        read.append(1)
        return forward(*args, **keys)

    monkeypatch.setattr(ReaderModel, "forward", counted)
    settings = settings_from(model="smol", data=tmp_path / "table.csv", steps=2)
    lines: list[str] = []
    outcome = finetune(settings, tmp_path / "run", quiet=True, report=lines.append)
    assert "questions: 4 to train on, 2 held out, of 3 documents" in lines
    assert any(line.startswith("2 steps of 1 sample; ") for line in lines)
    # each page once before and while it trains, and the held-out one once after it
    assert len(read) == 4
    weights = load_file(outcome.out / "adapter" / "adapter_model.safetensors")
    assert weights
    assert all("lora_" in name for name in weights)
