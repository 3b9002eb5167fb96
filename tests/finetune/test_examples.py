"""The examples of fine-tuning, run as a user runs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.documents.test_documents import make_pdf, text_at

from alignvlm.compose.assemble import load_pretrained
from alignvlm.errors import DataError
from alignvlm.finetune import merge_adapter

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # TRL, peft
def test_trl_trains_an_adapter_that_merges(
    tiny_model_dir: Path, questions_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "adapter"
    example("finetune_with_trl").main(
        [str(tiny_model_dir), str(questions_file), str(out), "--steps", "2"]
    )
    weights = load_file(out / "adapter_model.safetensors")
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)
    before, _ = load_pretrained(tiny_model_dir, torch.float32)
    after, _ = load_pretrained(merge_adapter(out, tmp_path / "model"), torch.float32)
    first, second = before.state_dict(), after.state_dict()
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert any(name.startswith("model.connector.") for name in moved)
    assert any("q_proj" in name for name in moved)
    assert not any(name.startswith("model.vision_model.") for name in moved)


def test_your_pdfs(
    tiny_model_dir: Path, pdf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_model_dir), str(pdf_folder), str(tmp_path), "--epochs", "1"]
    example("finetune_on_your_pdfs").main(arguments)
    printed = capsys.readouterr().out
    assert "token-reading accuracy of pages:" in printed
    assert "the model says:" in printed
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_the_page_to_read_is_the_first_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_page = example("finetune_on_your_pdfs").first_page
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 and nothing else")
    with pytest.raises(DataError, match="no PDF that can be read"):
        first_page(tmp_path)
    (tmp_path / "more").mkdir()
    make_pdf(tmp_path / "more" / "B.PDF", [text_at((20, 150, "jumps"))] * 2)
    assert first_page(tmp_path).size == (600, 400)
    assert "a.pdf: not a PDF, or damaged" in capsys.readouterr().out
