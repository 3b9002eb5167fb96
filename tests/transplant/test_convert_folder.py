"""Converted folders: the command line, what is copied, and who can load them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
import typer
from tests.transplant.convert_hosts import IMAGE, connector_of, make_host
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from alignvlm.cli import models as cli_convert
from alignvlm.errors import ConfigError
from alignvlm.transplant.convert import convert, convert_folder


def test_loads_after_importing_the_package_alone_and_not_without(tmp_path) -> None:
    convert(make_host("smolvlm")).save_pretrained(tmp_path)
    code = f"""
from transformers import AutoModelForImageTextToText
try:
    AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})
except ValueError as error:
    print("alignvlm_smolvlm" in str(error))
import alignvlm
print(type(AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["True", "AlignVLMSmolVLMForConditionalGeneration"], done.stderr


@pytest.fixture
def host_dir(tmp_path, make_tokenizer):
    host = make_host("smolvlm")
    folder = tmp_path / "host"
    host.save_pretrained(folder)
    (folder / "processor_config.json").write_text('{"processor_class": "SmolVLMProcessor"}')
    return folder


def run_cli(*arguments: Any) -> Any:
    app = typer.Typer()
    app.command()(cli_convert.convert)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_command_line(host_dir, tmp_path) -> None:
    out = tmp_path / "new"
    dry = run_cli(host_dir, "--dry-run", "--json")
    assert dry.exit_code == 0 and not out.exists(), dry.output
    done = run_cli(host_dir, "--out", out, "--set", "gamma=4", "--json")
    assert done.exit_code == 0, done.output
    said, planned = json.loads(done.stdout), json.loads(dry.stdout)
    assert {**planned, "out": str(out)} == said
    assert said["tokens_per_tile"] == 4 and said["vocabulary"] == IMAGE
    new = AutoModelForImageTextToText.from_pretrained(out)
    assert new.config.connector.gamma == 4
    copied = (out / "processor_config.json").read_bytes()
    assert copied == (host_dir / "processor_config.json").read_bytes()
    old = AutoModelForImageTextToText.from_pretrained(host_dir)
    assert torch.equal(connector_of(new).align.w2.weight, old.lm_head.weight[:IMAGE])
    text = run_cli(host_dir, "--dry-run").stdout
    assert "visual tokens a tile: 4, unchanged" in text and "shared, not copied" in text
    for arguments, message in (
        ((host_dir, "--out", out), "exists already"),
        ((out, "--dry-run"), "already"),
        ((host_dir,), "needs --out"),
        ((host_dir, "--dry-run", "--set", "gamma"), "key=value"),
        ((host_dir, "--dry-run", "--connector", "mlp"), "only 'align'"),
    ):
        error = run_cli(*arguments).exception
        assert isinstance(error, ConfigError) and message in str(error)


def test_added_tokens_stay_out_of_p_vocab(tmp_path, make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    words = tokenizer.vocab_size
    tokenizer.add_tokens(["<row_1>", "<image>"], special_tokens=True)
    host = make_host("smolvlm")
    host.resize_token_embeddings(words + 8, mean_resizing=False)
    host.config.image_token_id = words + 1
    host.save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")
    report = convert_folder(str(tmp_path / "host"), None)
    assert (report.vocabulary, report.table_rows) == (words, words + 8)


def test_a_language_model_is_not_a_host(tiny_lm_dir) -> None:
    with pytest.raises(ConfigError, match="'llama' model; supported: llava, idefics3"):
        convert_folder(str(tiny_lm_dir), None)
