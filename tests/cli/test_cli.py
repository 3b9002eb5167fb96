"""The command line: what each verb prints, and one line for whatever cannot be done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tests.command import Result, Run

from alignvlm.cli import app as cli
from alignvlm.data.synthetic.render import RenderSpec, render_page
from alignvlm.errors import ConfigError

PAGE = {
    "layout": "text", "width": 112, "height": 28, "font_px": [20, 20], "fonts": ["DejaVuSans"],
    "margin": 2,
}  # fmt: skip


@pytest.fixture
def run(command: Run) -> Run:
    """``run("ask", ...)``: the entry point, in this process."""
    return command


def shell(*arguments: Any) -> Result:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "alignvlm", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def refused(result: Result, *words: str) -> None:
    """Exactly one line, on stderr, and exit code 2."""
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def answered(result: Result) -> dict[str, Any]:
    """One JSON line on stdout."""
    assert result.code == 0, result
    assert result.out.count("\n") == 1
    return json.loads(result.out)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.png"
    render_page(RenderSpec(**PAGE), 1).image.save(path)
    return path


@pytest.fixture
def pdf(tmp_path: Path, page: Path) -> Path:
    path = tmp_path / "pages.pdf"
    pages = [Image.open(page).convert("RGB") for _ in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    return path


@pytest.fixture
def recipe(tmp_path: Path, tiny_lm_dir: Path) -> Path:
    vision = {
        "model_type": "convnext", "image_size": [28, 56], "patch_size": 7, "num_stages": 2,
        "hidden_sizes": [16, 32], "depths": [1, 1],
    }  # fmt: skip
    data = {
        "name": "little",
        "model": {
            "text": str(tiny_lm_dir),
            "vision": vision,
            "connector": {"type": "align"},
            "tiling": {"tile_height": 28, "tile_width": 56, "max_tiles": 2},
        },
        "stages": [
            {
                "name": name,
                "steps": 2,
                "train": {"connector": 1e-3},
                "loss": {"lm": 1, "vocab": 1},
                "sources": [{"type": "render", "page": PAGE, "task": task}],
            }
            for name, task in (("read", "transcribe"), ("answer", "qa"))
        ],
    }
    path = tmp_path / "little.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def damaged(tmp_path: Path, tiny_model_dir: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        folder = tmp_path / f"damaged-{kind}"
        shutil.copytree(tiny_model_dir, folder)
        weights, config = folder / "model.safetensors", folder / "config.json"
        if kind == "weights":
            weights.write_bytes(weights.read_bytes()[:-2000])
        elif kind == "header":
            weights.write_bytes(b"\x10")
        elif kind == "no-weights":
            weights.unlink()
        elif kind == "json":
            config.write_text(config.read_text()[:100])
        elif kind == "connector":
            data = json.loads(config.read_text())
            data["connector_config"]["type"] = "algin"
            config.write_text(json.dumps(data))
        elif kind == "shape":
            data = json.loads(config.read_text())
            data["text_config"]["hidden_size"] = 64
            config.write_text(json.dumps(data))
        elif kind == "processor":
            (folder / "processor_config.json").unlink()
        elif kind == "tokenizer":
            (folder / "tokenizer.json").write_text("{")
        return folder

    return make


# --- what the verbs do -------------------------------------------------------------------------


def test_pull_a_local_folder(run, tiny_model_dir):
    assert run("pull", tiny_model_dir).out == f"{tiny_model_dir} is at {tiny_model_dir}\n"
    assert answered(run("pull", tiny_model_dir, "--json")) == {
        "reference": str(tiny_model_dir), "path": str(tiny_model_dir),
    }  # fmt: skip


def test_info_on_machine_and_model(run, tiny_model_dir):
    assert "torch: " in run("info").out
    assert answered(run("info", "--json"))["alignvlm"]
    assert "connector: align" in run("info", tiny_model_dir).out
    assert answered(run("info", tiny_model_dir, "--json"))["visual_tokens_per_tile"] == 4


def test_ask_about_images(run, tiny_model_dir, page):
    plain = run("ask", tiny_model_dir, page, "Who signed?", "--max-new-tokens", 3)
    assert (plain.code, plain.err) == (0, "")
    data = answered(run("ask", tiny_model_dir, page, page, "Who?", "--max-new-tokens", 3, "--json"))
    assert data["files"] == [str(page)] * 2
    assert data["question"] == "Who?"
    assert data["visual_tokens"] % 8 == 0 and data["visual_tokens"] > 0
    assert 1 <= data["new_tokens"] <= 3
    assert 0 < data["prefill_ms"] <= data["total_ms"]


def test_ask_about_pages_of_a_pdf(run, tiny_model_dir, pdf):
    counts = {}
    for pages in ("1", "1-3", "1,3"):
        data = answered(
            run("ask", tiny_model_dir, pdf, "Who?", "--pages", pages, "--dpi", 72, "--json",
                "--max-new-tokens", 1)
        )  # fmt: skip
        counts[pages] = data["visual_tokens"]
    assert counts["1-3"] == 3 * counts["1"]
    assert counts["1,3"] == 2 * counts["1"]


def test_inspect_writes_a_picture_and_a_table(run, tiny_model_dir, page, pdf, tmp_path):
    plain = run("inspect", tiny_model_dir, page)
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.startswith("reads: ")
    assert "effective vocabulary" in plain.out
    assert "wrote inspect/page.png and inspect/page.json" in plain.out
    data = answered(
        run("inspect", tiny_model_dir, pdf, "--out", "deep/er", "--pages", 2, "--k", 3, "--json")
    )
    assert data["file"] == str(pdf)
    (data,) = data["pages"]
    assert data["page"] == 2
    with Image.open(data["heat_map"]) as picture:
        assert picture.size[0] > 0
    table = json.loads(Path(data["json"]).read_text())
    assert len(table["cells"]) == table["rows"] * table["cols"]
    assert len(table["cells"][0]["tokens"]) == 3
    assert table["entropy"] == data["entropy"]
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == [
        "pages.json", "pages.png",
    ]  # fmt: skip
    several = run("inspect", tiny_model_dir, pdf, "--out", "all", "--pages", "1-2")
    assert [line for line in several.out.splitlines() if line.startswith(("page", "wrote"))] == [
        "page 1", "wrote all/pages-1.png and all/pages-1.json",
        "page 2", "wrote all/pages-2.png and all/pages-2.json",
    ]  # fmt: skip


def test_train_and_then_ask(run, recipe, page, tmp_path):
    done = run("train", recipe, "--out", "model", "--set", "stages.read.log_steps=1")
    assert (done.code, done.err) == (0, ""), done
    assert "stage 2/2 answer: 2 steps" in done.out
    assert done.out.endswith("model written to " + str(tmp_path / "model") + "\n")
    assert len((tmp_path / "model" / "metrics.jsonl").read_text().splitlines()) == 4
    assert "log_steps: 1" in (tmp_path / "model" / "recipe.yaml").read_text()
    assert run("ask", "model", page, "Who?", "--max-new-tokens", 2).code == 0
    assert answered(run("info", "model", "--json"))["vision"] == "convnext"
    refused(run("train", recipe, "--out", "model"), "model exists", "--overwrite")


def test_train_prints_one_json_line(run, recipe, tmp_path):
    done = run("train", recipe, "--out", "model", "--json", "--set", "stages.0.steps=1")
    assert answered(done) == {"out": str(tmp_path / "model")}
    assert "stage 1/2 read" in done.err


def test_dry_runs(run, recipe, tmp_path):
    assert "peak GiB" in run("train", recipe, "--dry-run").out
    data = answered(run("train", "paper/llama-3.2-1b", "--dry-run", "--json"))
    assert data["parameters"]["text"] == 1_235_814_400
    tiny = answered(run("train", "tiny", "--dry-run", "--json", "--set", "stages.0.steps=7"))
    assert tiny["stages"][0]["steps"] == 7
    assert not list(tmp_path.glob("*.training"))


def test_data_show_prints_what_the_model_gets(run, recipe, tmp_path):
    shown = run("data", "show", recipe, "--out", "pages")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0].startswith("render-text/")
    assert lines[1] == "page 112x28 px, 1x2 tiles"
    assert any(" learn " in line for line in lines)
    assert any("  -  " in line and "<empty_output>" in line for line in lines)
    assert any(line.startswith("tokens that start in each cell") for line in lines)
    (saved,) = (tmp_path / "pages").iterdir()
    with Image.open(saved) as picture:
        assert picture.size == (112, 28)
    data = answered(run("data", "show", recipe, "--json"))
    assert data["image_grids"] == [[1, 2, 0]]
    assert data["images"] == [[112, 28]]
    assert len(data["cells"]) == 2 and all(len(row) == 8 for row in data["cells"])
    learned = "".join(t["text"] for t in data["tokens"] if t["supervised"])
    assert learned.endswith("<|im_end|>")
    read = "".join(cell for row in data["cells"] for cell in row if cell != "·")
    assert read.startswith(learned.split()[0][:3].removesuffix("<|im_end|>"))
    other = answered(run("data", "show", recipe, "--json", "--stage", 2, "--index", 1))
    assert other["id"] != data["id"]


def test_data_show_of_a_jsonl_file(run, tiny_model_dir, page, tmp_path):
    rows = tmp_path / "rows.jsonl"
    words = [{"text": "7", "box": [0, 0, 10, 14]}]
    row = {"image": "page.png", "question": "Who?", "answer": "Maria", "words": words}
    rows.write_text(json.dumps(row) + "\n")
    data = answered(run("data", "show", rows, "--model", tiny_model_dir, "--json"))
    assert data["source"] == "rows"
    assert data["cells"][0][0] == "7"
    assert data["lost"] == 0
    refused(run("data", "show", rows), "needs --model")
    refused(run("data", "show", rows, "--model", tiny_model_dir, "--index", 5), "1 samples")


# --- what cannot be done -----------------------------------------------------------------------


def test_usage_errors(run, tmp_path):
    refused(run("train"), "Missing argument")
    refused(run("ask", "m"), "Missing argument")
    refused(run("trian"), "No such command 'trian'")
    refused(run("info", "--jsn"), "No such option", "--jsn")
    refused(run("train", "tiny", "--out"), "requires an argument")
    refused(run("inspect", "m", "f", "--k", "many"), "--k")
    refused(run("ask", "m", "f", "q", "--max-new-tokens", 0), "--max-new-tokens")


def test_no_verb_prints_help_and_nothing_else(run):
    for verb in ([], ["data"]):
        result = run(*verb)
        assert "Usage:" in result.out + result.err
        assert "error:" not in result.err
    assert run("--help").code == 0


def test_files_that_cannot_be_read(run, tiny_model_dir, page, tmp_path):
    ask: Callable[[Any], Result] = lambda file: run("ask", tiny_model_dir, file, "Who?")  # noqa: E731
    refused(ask("gone.png"), "gone.png: no such file")
    (tmp_path / "folder").mkdir()
    refused(ask("folder"), "no PDF and no picture")
    (tmp_path / "notes.txt").write_text("no image at all")
    refused(ask("notes.txt"), "notes.txt: not an image")
    (tmp_path / "empty.png").touch()
    refused(ask("empty.png"), "empty.png: the file is empty")
    Image.open(page).convert("RGB").resize((400, 300)).save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    refused(ask("cut.jpg"), "cut.jpg: the image is truncated")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    refused(ask("bad.pdf"), "bad.pdf")
    refused(run("inspect", tiny_model_dir, "gone.png"), "gone.png: no such file")
    assert not (tmp_path / "inspect").exists()


def test_questions_and_pages(run, tiny_model_dir, page, pdf):
    refused(run("ask", tiny_model_dir, page, "  "), "the question is empty")
    refused(run("ask", tiny_model_dir, page), "at least one FILE and a")
    for pages in ("0", "4", "2-1", "x", "-1", ""):
        refused(run("ask", tiny_model_dir, pdf, "Who?", "--pages", pages), "page")
    refused(run("inspect", tiny_model_dir, pdf, "--pages", 9), "page")
    refused(run("inspect", tiny_model_dir, page, "--pages", 2), "page")
    refused(run("inspect", tiny_model_dir, page.parent), "not a folder")


def test_models_that_are_not_there(run, page, tiny_lm_dir, tmp_path):
    for verb in (["ask", "./gone", page, "Who?"], ["inspect", "./gone", page], ["info", "./gone"]):
        refused(run(*verb), "gone")
    refused(run("ask", "no/such-model", page, "Who?"), "no/such-model")
    refused(run("pull", "smolm2"), "did you mean 'smollm2'")
    refused(run("pull", "./gone"), "no folder")
    refused(run("info", tiny_lm_dir), "not an alignvlm model")
    refused(run("ask", tiny_lm_dir, page, "Who?"))


@pytest.mark.parametrize(
    "kind", ["weights", "header", "no-weights", "json", "connector", "shape", "tokenizer"]
)
def test_damaged_models(run, damaged, page, kind):
    folder = damaged(kind)
    refused(run("ask", folder, page, "Who?"), f"damaged-{kind}")
    refused(run("inspect", folder, page), f"damaged-{kind}")
    if kind in ("json", "connector"):
        refused(run("info", folder))


def test_inspect_needs_align(run, make_model, make_processor, page, tmp_path):
    model = make_model("mlp")
    model.save_pretrained(tmp_path / "mlp")
    make_processor(model.config).save_pretrained(tmp_path / "mlp")
    refused(run("inspect", "mlp", page), "needs the 'align' connector")


def test_recipes_that_cannot_be_used(run, recipe, tmp_path):
    train: Callable[..., Result] = lambda *a: run("train", recipe, "--out", "m", *a)  # noqa: E731
    refused(train("--set", "stages.0.stepz=1"), "unknown key", "did you mean 'steps'")
    refused(train("--set", "model.connector.type=algin"), "did you mean 'align'")
    refused(train("--set", "seed"), "write it as key=value")
    refused(train("--set", "stages.9.steps=1"), "no entry '9'")
    refused(train("--set", "model.text=./gone"), "gone")
    refused(train("--set", "model.connector.kept_tokens=9999"), "kept_tokens=9999")
    refused(run("train", recipe), "needs --out")
    refused(run("train", "gone.yaml", "--out", "m"), "no recipe file gone.yaml")
    refused(run("train", "papr/llama-3.2-1b", "--out", "m"), "did you mean 'paper/llama-3.2-1b'")
    refused(run("train", recipe, "--out", tmp_path), "exists")
    refused(run("train", recipe, "--out", "."), "exists")
    (tmp_path / "bad.yaml").write_text("a: [")
    refused(run("train", "bad.yaml", "--out", "m"), "bad.yaml: not a readable recipe")
    assert not (tmp_path / "m").exists()


def test_data_that_cannot_be_shown(run, recipe, tiny_model_dir, tmp_path):
    refused(run("data", "show", "gone.jsonl", "--model", tiny_model_dir), "no such file")
    refused(run("data", "show", recipe, "--stage", 3), "has 2 stages")
    refused(run("data", "show", recipe, "--index", 99), "2 samples")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    refused(run("data", "show", "rows.jsonl", "--model", tiny_model_dir), "rows.jsonl:1")


def test_output_that_cannot_be_written(run, tiny_model_dir, page, tmp_path):
    (tmp_path / "file").touch()
    refused(run("inspect", tiny_model_dir, page, "--out", "file"), "file")
    refused(run("inspect", tiny_model_dir, page, "--out", "file/deeper"), "file")


def test_a_process_of_its_own_is_as_quiet(damaged, tiny_model_dir, page, tmp_path):
    """What libraries write while they load would be seen here."""
    refused(shell("ask", damaged("weights"), page, "Who?"), "not a usable model")
    good = shell("ask", tiny_model_dir, page, "Who?", "--max-new-tokens", 1, "--json")
    assert answered(good)["question"] == "Who?"
    assert good.err == ""


def test_interrupted(run, monkeypatch, tiny_model_dir):
    def interrupt(*args: Any, **keys: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alignvlm.weights.resolve.resolve", interrupt)
    refused(run("pull", tiny_model_dir), "interrupted")


def test_bugs_are_not_hidden(run, monkeypatch, tiny_model_dir):
    """Only what a person can act on becomes one line."""

    def bug(*args: Any, **keys: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("alignvlm.weights.resolve.resolve", bug)
    with pytest.raises(ZeroDivisionError):
        run("pull", tiny_model_dir)


def test_compose_puts_a_model_together(tiny_lm_dir, tmp_path, capsys):
    out = tmp_path / "model"
    run = ["compose", "--text", str(tiny_lm_dir), "--out", str(out), "--json"]
    cli.app(run, standalone_mode=False)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["connector"]["init"] == "keys" and said["vision"] == "reader"
    assert (out / "model.safetensors").is_file() and (out / "chat_template.jinja").is_file()
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(ConfigError, match="exists: give another folder, or --overwrite"):
        cli.app(run, standalone_mode=False)
    cli.app([*run, "--overwrite", "--set", "gamma=4"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["connector"]["gamma"] == 4
