"""What scripts and people depend on: verbs, options, help, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from alignvlm import __version__
from alignvlm.cli import app as cli

COMMAND_LINE = """
ask MODEL FILE... QUESTION --boxes --dpi --each --extractive --json --max-new-tokens --max-pages
    --no-cite --pages --password
batch MODEL INPUT --actors --address --batch-size --dpi --json --max-new-tokens
    --no-repetition-guard --no-retry-errors --num-gpus --out --question --repetition-guard
    --retry-errors
compose --connector --json --no-overwrite --out --overwrite --set --text --vision
convert MODEL --connector --dry-run --json --no-dry-run --out --set --vocab-size
data from-pdf FOLDER --dpi --json --max-pages --min-words --out --pages
data from-scans FOLDER --confidence --dpi --json --max-pages --min-words --out --pages
data read MODEL SOURCE... --json --pages --seed --set --split --stage
data show RECIPE --index --json --model --out --set --stage
demo MODEL --host --max-pages --no-open --open --port
embed MODEL FILE... --base64 --dpi --format --json --max-pages --out --pages --password
    --question
eval compare A B --json --metric --seed
eval run MODEL --answerer --batch-size --data --json --limit --noise --out --overwrite --prune
    --repetition-guard --seed --split --task
eval table FILE... --json
extract MODEL FILE... --address --dates --decimal --dpi --fields --format --max-new-tokens
    --max-pages --min-confidence --out --pages --password --schema
finetune MODEL --batch-size --data --dpi --epochs --json --lora-rank --lr --max-length
    --max-new-tokens --max-questions --micro-batch --no-transcribe --out --overwrite --patience
    --pdfs --resume --seed --steps --train-vision --transcribe --validation
info MODEL --json
inspect MODEL FILE --dpi --json --k --out --page
merge ADAPTER --base --dtype --json --out
plan RECIPE --gpu --gpus --json --mfu --samples --set --tiles
prune MODEL [PAGES]... --data --dpi --json --keep --max-new-tokens --max-questions --out --pages
    --questions
pull REFERENCE --json
serve MODEL --allow-no-key --allow-urls --api-key --host --max-body-mib --max-images
    --max-new-tokens --max-pixels --name --port --queue --timeout
train RECIPE --dry-run --json --no-dry-run --no-overwrite --no-resume --out --overwrite --resume
    --set
"""


def test_the_command_line_is_frozen():
    """Scripts depend on it: change this on purpose, and say so in the changelog."""

    def lines(command: Any, path: str = "") -> list[str]:
        if hasattr(command, "commands"):
            return [
                line
                for name in sorted(command.commands)
                for line in lines(command.commands[name], f"{path} {name}")
            ]
        words = [path.strip()]
        options = []
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                words.append(parameter.metavar or parameter.name.upper())
            elif parameter.name != "help":
                options += [*parameter.opts, *parameter.secondary_opts]
        return [" ".join([*words, *sorted(options)])]

    assert (
        lines(typer.main.get_command(cli.app))
        == COMMAND_LINE.replace("\n    ", " ").strip().splitlines()
    )


def test_the_page_lists_every_verb_with_its_purpose():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")

    def rows(command: Any, path: str) -> list[str]:
        if hasattr(command, "commands"):
            return [
                r for name, one in command.commands.items() for r in rows(one, f"{path} {name}")
            ]
        return [f"| `{path.replace(' eval run', ' eval')}` | {command.help.splitlines()[0]} |"]

    listed = [line for line in page.splitlines() if line.startswith("| `alignvlm ")]
    assert listed == rows(typer.main.get_command(cli.app), "alignvlm")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    cli.app(arguments, standalone_mode=False, prog_name="alignvlm")
    return " ".join(capsys.readouterr().out.split())


def test_help_names_extras_and_the_short_way_to_eval(capsys):
    assert "alignvlm[ocr]" in said(capsys, "data", "from-scans", "--help")
    assert "Usage: alignvlm eval [OPTIONS] [MODEL]" in said(capsys, "eval", "--help")


def test_the_version_and_completion(capsys):
    assert said(capsys, "--version") == f"alignvlm {__version__}"
    code = "import sys; sys.argv = ['alignvlm']; from alignvlm.cli import main; main()"
    asked = {"_ALIGNVLM_COMPLETE": "complete_bash", "COMP_WORDS": "alignvlm pr", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, **asked},
    )  # fmt: skip
    assert done.stdout.split() == ["prune"], done
