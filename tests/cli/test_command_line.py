"""What scripts and people depend on: verbs, options, help, completion."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

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
data read MODEL SOURCE... --json --limit --seed --set --split --stage
data show RECIPE --index --json --model --out --set --stage
demo MODEL --host --json --max-pages --no-open --open --port
embed MODEL FILE... --base64 --dpi --format --json --max-pages --out --pages --password
    --question
eval compare A B --json --metric --seed
eval run MODEL --answerer --batch-size --data --json --limit --no-overwrite --no-repetition-guard
    --noise --out --overwrite --prune --repetition-guard --seed --split --task
eval table FILE... --json
extract MODEL FILE... --actors --address --dates --decimal --dpi --fields --format --json
    --max-new-tokens --max-pages --min-confidence --num-gpus --out --pages --password --schema
finetune MODEL --batch-size --data --dpi --epochs --images --json --lora-rank --lr --max-length
    --max-new-tokens --max-questions --micro-batch --no-overwrite --no-resume --no-transcribe --out
    --overwrite --patience --pdfs --resume --seed --steps --train-vision --transcribe --validation
info MODEL --json
inspect MODEL FILE --dpi --json --k --out --pages
merge ADAPTER --base --dtype --json --out
plan RECIPE --gpu --gpus --json --mfu --samples --set --tiles
prune MODEL [PAGES]... --data --dpi --json --keep --max-new-tokens --max-questions --out --pages
    --questions
pull REFERENCE --json
read MODEL FILE... --dpi --format --json --max-pages --out --pages --password --tokens
serve MODEL --allow-no-key --allow-urls --api-key --host --json --max-body-mib --max-images
    --max-new-tokens --max-pixels --name --port --queue --timeout
train RECIPE --check-data --dry-run --json --no-dry-run --no-overwrite --no-resume --out --overwrite
    --resume --set
"""


def verbs(command: Any = None, path: str = "") -> dict[str, Any]:
    """Every verb of the command tree, by its words."""
    command = typer.main.get_command(cli.app) if command is None else command
    if not hasattr(command, "commands"):
        return {path.strip(): command}
    names = sorted(command.commands)
    return {
        words: one
        for name in names
        for words, one in verbs(command.commands[name], f"{path} {name}").items()
    }


VERBS = verbs()
PARAMETERS = {
    (words, parameter.name): parameter for words, verb in VERBS.items() for parameter in verb.params
}


def kind_of(words: str, parameter: Any) -> Any:
    """``int`` of ``int | None``, as the verb's function takes it."""
    taken = get_type_hints(inspect.unwrap(VERBS[words].callback))[parameter.name]
    return next((one for one in get_args(taken) if one is not NoneType), taken)


def is_option(parameter: Any) -> bool:
    return parameter.param_type_name == "option" and parameter.name != "help"


def test_the_command_line_is_frozen():
    """Scripts depend on it: change this on purpose, and say so in the changelog."""

    def line(words: str, verb: Any) -> str:
        own = [one for one in verb.params if one.param_type_name == "argument"]
        options = [o for p in filter(is_option, verb.params) for o in (*p.opts, *p.secondary_opts)]
        named = [one.metavar or one.name.upper() for one in own]
        return " ".join([words, *named, *sorted(options)])

    found = [line(words, verb) for words, verb in VERBS.items()]
    assert found == COMMAND_LINE.replace("\n    ", " ").strip().splitlines()


def test_everything_has_help():
    assert all(verb.help for verb in VERBS.values())
    assert not [key for key, parameter in PARAMETERS.items() if not parameter.help]


def test_every_verb_has_json_and_its_shape_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    for words, verb in VERBS.items():
        assert any("--json" in parameter.opts for parameter in verb.params), words
        assert f"| `{words.removesuffix(' run')}` | `{{" in page, words


LONGER = {("batch", "max_new_tokens"): "whole pages", ("serve", "max_new_tokens"): "may ask for"}
"""Defaults that differ from the other verbs', and words of the help that say why."""
SAME_DEFAULT = ("max_new_tokens", "dpi", "seed", "stage", "resume", "overwrite", "dry_run")


def test_one_name_is_one_thing():
    """What several verbs have is spelled alike, takes the same and does the same by default."""
    named: dict[str, dict[str, Any]] = {}
    for (words, name), parameter in PARAMETERS.items():
        if is_option(parameter):
            named.setdefault(name, {})[words] = parameter
    for name, own in named.items():
        spelled = {(*p.opts, "|", *p.secondary_opts) for p in own.values()}
        assert len(spelled) == 1, (name, spelled)
        taken = {words: kind_of(words, p) for words, p in own.items()}
        assert len(set(taken.values())) == 1 or name == "data", (name, taken)
        if name in SAME_DEFAULT:
            plain = {words: p.default for words, p in own.items() if (words, name) not in LONGER}
            assert len(set(plain.values())) == 1, (name, plain)
    for key, why in LONGER.items():
        assert why in PARAMETERS[key].help
    assert all("1-3,5" in parameter.help for parameter in named["pages"].values())


BAD = {float: ("nan", "inf", "-inf", "-1"), int: ("-1", "nan", "1e3")}


@pytest.mark.parametrize("words", VERBS)
def test_bad_numbers_are_refused_by_every_option(words):
    """While options are read: no model and no file is there."""
    verb, given = VERBS[words], {}
    for parameter in verb.params:
        if parameter.required:
            value = "1" if kind_of(words, parameter) is int else "x"
            named = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
            given[parameter.name] = [*named, value] + (["x"] if parameter.nargs == -1 else [])
    for parameter in filter(is_option, verb.params):
        others = [part for name, parts in given.items() if name != parameter.name for part in parts]
        for text in BAD.get(kind_of(words, parameter), ()):
            with pytest.raises(Exception, match=r".") as caught:
                verb.make_context(words, [*others, parameter.opts[0], text])
            said = caught.value.format_message()  # app.py prints it after "error: "
            assert parameter.opts[0] in said and "\n" not in said, (text, said)


def test_bad_pages_are_one_line(command):
    for text in ("nan", "-1", "1-inf", "1e3", "9" * 30):
        done = command("ask", "m", "x.png", "Who?", "--pages", text)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done


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


@pytest.mark.parametrize("key", ["model.connector.gamma=.inf", "model.connector.gamma=.nan"])
def test_bad_numbers_in_recipes_are_one_line(command, key):
    done = command("train", "tiny", "--dry-run", "--set", key)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done
    assert "should be a finite number" in done.err, done


def documented(words: str) -> list[set[str]]:
    """Keys of the objects that docs/cli.md shows for a verb, without those inside of others."""
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    (line,) = [one for one in page.splitlines() if one.startswith(f"| `{words}` | `{{")]
    shapes = []
    for shape in re.findall(r"`(\{.*?\})`", line):
        flat = re.sub(r"\[\{.*\}\]", "", shape)
        shapes.append(set(re.findall(r'"(\w+)"', flat)))
    return shapes


def test_json_lines_have_the_documented_keys(command, tiny_model_dir, make_image, tmp_path):
    def keys(*given: Any) -> set[str]:
        done = command(*given, "--json")
        assert done.code == 0 and done.out.count("\n") == 1, done
        return set(json.loads(done.out))

    page = tmp_path / "page.png"
    make_image(56, 28, 0).save(page)
    machine, model = documented("info")
    assert keys("info") == machine
    assert keys("info", tiny_model_dir) == model
    ask = ("ask", tiny_model_dir, page, "Who?", "--max-new-tokens", 2)
    assert [keys(*ask)] == documented("ask")
    assert keys(*ask, "--boxes") == documented("ask")[0] | {"boxes"}
    common = {"question", "files", "left_out", "unreadable"}
    assert keys(*ask, "--each") == common | {"answers"}
    assert [keys("inspect", tiny_model_dir, page)] == documented("inspect")
    embedded = keys("embed", tiny_model_dir, page, "--out", "x.pt")
    assert [embedded - {"out"}] == documented("embed")
    assert keys("train", "tiny", "--dry-run") == documented("train")[1]
    assert keys("train", "tiny", "--check-data") == documented("train")[2]
    assert [keys("plan", "tiny")] == documented("plan")
    assert [
        keys("data", "show", "tiny", "--model", tiny_model_dir),
        keys("data", "show", "mPLUG/DocDownstream-1.0"),
    ] == documented("data show")
