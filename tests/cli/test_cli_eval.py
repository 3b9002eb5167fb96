"""``alignvlm eval``: what it prints and writes, and one line for whatever cannot be done."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.command import Result, Run

from alignvlm.cli import evaluation as cli_eval


@pytest.fixture
def run(command: Run) -> Run:
    """``run("majority", ...)``: ``alignvlm eval`` in this process."""
    return partial(command, "eval")


def refused(result: Result, *words: str) -> None:
    """Exactly one line, on stderr, and exit code 2."""
    assert result.code == 2, result
    assert result.out == ""
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a little ChartQA: six questions about three charts, and a train split."""
    root = tmp_path_factory.mktemp("benchmarks")
    rng = np.random.default_rng(0)
    for split, labels in (("val", "112312"), ("train", "2233222")):
        folder = root / "chartqa" / split / "png"
        folder.mkdir(parents=True)
        items = []
        for number, label in enumerate(labels):
            name = f"chart{number // 2}.png"
            pixels = rng.integers(0, 256, (28, 40 + 9 * number, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            items.append({"imgname": name, "query": f"How many in {number}?", "label": label})
        (folder.parent / f"{split}_human.json").write_text(json.dumps(items))
    return root


@pytest.fixture
def chart(run: Run, data: Path) -> Run:
    """``chart("MODEL", "--limit", 2, ...)``: on that task, to ``r.json`` unless told otherwise."""

    def call(*arguments: Any) -> Result:
        out = [] if "--out" in arguments else ["--out", "r.json"]
        return run(*arguments, "--task", "chartqa", "--data", data, *out)

    return call


def saved(name: str = "r.json") -> dict[str, Any]:
    return json.loads(Path(name).read_text("utf-8"))


def test_the_model(chart, tiny_model_dir):
    done = chart(tiny_model_dir, "--batch-size", 2)
    assert (done.code, done.err) == (0, ""), done
    assert done.out.startswith("chartqa val, model: relaxed_accuracy 0.0 % [0.0, 0.0] on 6 samples")
    assert done.out.endswith("s each; wrote r.json\n")
    data = saved()
    assert list(data["settings"]["answerer"]["model"]["sha256"]) == ["model.safetensors"]
    assert data["settings"]["run"] == {"limit": None, "batch_size": 2, "seed": 0}
    assert data["predictions"][0]["visual_tokens"] > 0
    again = chart(tiny_model_dir, "--batch-size", 2, "--json")
    (row,) = json.loads(again.out)["results"]
    assert row["samples"] == 6 and row["already_there"]
    assert chart(tiny_model_dir, "--batch-size", 2).out.endswith("s each; already there: r.json\n")
    refused(chart(tiny_model_dir), "r.json exists", "batch_size", "--overwrite")
    assert chart(tiny_model_dir, "--limit", 2, "--overwrite").code == 0
    assert len(saved()["predictions"]) == 2


def test_other_images_under_the_same_names(run, data, tiny_model_dir, tmp_path):
    """Labels and file names are as before: nothing but the pixels says that it is another set."""
    shutil.copytree(data / "chartqa", tmp_path / "charts")
    given = (tiny_model_dir, "--task", "chartqa", "--data", "charts", "--out", "r.json")
    assert run(*given, "--limit", 2).code == 0
    before = Path("r.json").read_bytes()
    picture = tmp_path / "charts" / "val" / "png" / "chart0.png"
    Image.new("RGB", (49, 28), "white").save(picture)  # as large as before
    refused(run(*given, "--limit", 2), "r.json", "other pages", "--overwrite")
    assert Path("r.json").read_bytes() == before
    assert "wrote r.json" in run(*given, "--limit", 2, "--overwrite").out


def test_run_may_be_said(chart, run, data):
    assert chart("run", "--answerer", "majority").code == 0
    with_options_first = run(
        "--answerer", "majority", "--data", data, "--out", "b.json", "--task", "chartqa"
    )
    assert with_options_first.code == 0
    assert saved()["predictions"] == saved("b.json")["predictions"]


def test_floors_answer_from_the_train_split(chart):
    assert chart("--answerer", "majority").code == 0
    data = saved()
    assert data["settings"]["answerer"] == {"name": "majority", "answers_from": "chartqa train"}
    assert {row["prediction"] for row in data["predictions"]} == {"2"}
    assert data["score"] == pytest.approx(2 / 6)
    assert chart("--answerer", "random", "--seed", 3, "--out", "x.json").code == 0
    assert {row["prediction"] for row in saved("x.json")["predictions"]} <= {"2", "3"}


def test_floors_without_a_train_split(run, data, tmp_path):
    shutil.copytree(data / "chartqa" / "val", tmp_path / "own" / "val")
    done = run("--answerer", "majority", "--task", "chartqa", "--data", "own", "--out", "r.json")
    assert done.code == 0, done
    assert saved()["settings"]["answerer"]["answers_from"] == "chartqa val"
    assert {row["prediction"] for row in saved()["predictions"]} == {"1"}


def test_text_only_of_both_kinds_of_model(chart, tiny_model_dir, tiny_lm_dir):
    for model, out in ((tiny_model_dir, "a.json"), (tiny_lm_dir, "b.json")):
        done = chart(model, "--answerer", "text-only", "--limit", 2, "--out", out)
        assert done.code == 0, done
        assert saved(out)["settings"]["answerer"]["model"]["reference"] == str(model)
    assert "visual_tokens" not in saved("a.json")["predictions"][0]


def test_ocr(chart, tiny_model_dir, monkeypatch):
    from alignvlm.eval import ocr

    monkeypatch.setattr(ocr, "RapidOcrReader", lambda: lambda page: [ocr.Box("12", 0, 0, 9, 9)])
    done = chart(tiny_model_dir, "--answerer", "ocr", "--limit", 2)
    assert done.code == 0, done
    assert saved()["predictions"][0]["ocr_tokens"] == 2


def test_noise_pruning_and_guard_are_recorded(chart, tiny_model_dir, tmp_path):
    done = chart(tiny_model_dir, "--noise", 3, "--prune", 50, "--repetition-guard", "--limit", 2)
    assert done.code == 0, done
    said = saved()["settings"]["answerer"]
    assert said["noise"] == 3.0 and said["generation"]["repetition_guard"]["repeats"] == 4
    assert said["prune"]["kept"] == 50
    assert said["prune"]["chosen_by"] == "first 4 documents of chartqa train"
    (tmp_path / "ids.json").write_text("[5, 3, 9]")
    assert chart(tiny_model_dir, "--prune", "ids.json", "--out", "b.json", "--limit", 1).code == 0
    assert saved("b.json")["settings"]["answerer"]["prune"]["kept"] == 3


def test_several_tasks_need_a_folder(run, data, monkeypatch):
    from alignvlm.eval import tasks

    real = tasks.load_task
    monkeypatch.setattr(tasks, "load_task", lambda name, *rest: real("chartqa", *rest))
    base = ["--answerer", "random", "--data", data, "--task", "chartqa,tabfact"]
    refused(run(*base, "--out", "r.json"), "one file for 2 tasks")
    done = run(*base, "--out", "deep/er", "--json")
    assert done.code == 0, done
    assert done.out.count("\n") == 1 and done.err == ""
    assert [row["out"] for row in json.loads(done.out)["results"]] == [
        "deep/er/chartqa.json", "deep/er/tabfact.json",
    ]  # fmt: skip
    assert saved("deep/er/tabfact.json")["settings"]["task"]["name"] == "chartqa"


def test_tasks_are_checked_before_a_model_is_loaded(run, data, monkeypatch):
    from alignvlm.inference import ask

    monkeypatch.setattr(ask, "load_model", lambda *a: pytest.fail("loaded"))
    base = ["some/model", "--data", data, "--out", "o", "--task"]
    refused(run(*base, "chartqa,sroie"), "sroie")
    refused(run(*base, "chartqaa"), "chartqaa", "did you mean 'chartqa'")
    refused(run(*base, "chartqa", "--split", "tset"), "tset")


def test_what_cannot_be_evaluated(run, chart, data, tiny_model_dir, tmp_path):
    model = tiny_model_dir
    refused(run(model, "--out", "r.json"), "needs --task")
    refused(run(model, "--task", "chartqa", "--data", data), "needs --out")
    refused(run(model, "--task", "wtq,wtq", "--out", "o"), "'wtq' twice")
    refused(chart(), "'model' needs a MODEL")
    refused(chart("--answerer", "ocr"), "'ocr' needs a MODEL")
    refused(chart("./gone"), "gone")
    refused(chart(model, "--answerer", "guess"), "--answerer")
    refused(chart(model, "--answerer", "text-only", "--noise", 1), "not for 'text-only'")
    refused(chart("--answerer", "majority", "--prune", 5), "not for 'majority'")
    refused(chart(model, "--noise", -1), "--noise")
    refused(chart(model, "--noise", "nan"), "--noise")
    refused(chart(model, "--noise", "inf"), "finite")
    refused(chart(model, "--limit", 0), "--limit")
    refused(chart(model, "--batch-size", 0), "--batch-size")
    refused(chart(model, "--prune", 0), "cannot keep 0")
    refused(chart(model, "--prune", 10**6), "cannot keep 1000000")
    refused(chart(model, "--prune", "gone.json"), "no file gone.json")
    for text in ("{", "{}", "[]", '["a"]', "[true]"):
        (tmp_path / "ids.json").write_text(text)
        refused(chart(model, "--prune", "ids.json"), "ids.json")
    (tmp_path / "ids.json").write_text("[1, 1]")
    refused(chart(model, "--prune", "ids.json"), "duplicates")
    (tmp_path / "file").touch()
    refused(chart("--answerer", "majority", "--out", "file/r.json"), "file")
    assert not (tmp_path / "r.json").exists()


def test_pruning_needs_align(chart, make_model, make_processor, tmp_path):
    model = make_model("mlp")
    model.save_pretrained(tmp_path / "mlp")
    make_processor(model.config).save_pretrained(tmp_path / "mlp")
    refused(chart("mlp", "--prune", 5), "'align'", "'mlp'")
    assert chart("mlp", "--limit", 1).code == 0


def test_compare_and_table(chart, run, tiny_model_dir):
    assert chart("--answerer", "majority", "--out", "a.json").code == 0
    assert chart(tiny_model_dir, "--out", "b.json").code == 0
    found = run("compare", "b.json", "a.json")
    assert (found.code, found.err) == (0, "")
    assert "B - A: +33.33 points" in found.out and "sign-flip p = " in found.out
    data = json.loads(run("compare", "a.json", "b.json", "--json").out)
    assert data["difference"] == pytest.approx(-2 / 6) and data["groups"] == 3
    shown = run("table", "a.json", "b.json").out.splitlines()
    assert shown[0] == "| task | split | metric | n | majority | model |"
    assert shown[2].startswith("| chartqa | val | relaxed_accuracy | 6 | 33.3 [")
    rows = json.loads(run("table", "a.json", "b.json", "--json").out)["results"]
    assert [row["answerer"] for row in rows] == ["majority", "model"]


def test_what_cannot_be_compared(chart, run):
    chart("--answerer", "majority", "--out", "a.json")
    chart("--answerer", "majority", "--limit", 2, "--out", "b.json")
    refused(run("compare", "a.json", "b.json"), "different samples: 6 and 2")
    refused(run("compare", "a.json", "gone.json"), "gone.json: no such file")
    refused(run("compare", "a.json"), "Missing argument", "B")
    refused(run("compare", "a.json", "a.json", "--metric", "anls"), "no metric 'anls'")
    refused(run("table"), "Missing argument")
    Path("x.json").write_text("{}")
    refused(run("table", "x.json"), "not a result")


def test_help_reads_as_one_command(run):
    for arguments in ((), ("--help",), ("run", "--help")):
        text = run(*arguments).out
        assert "alignvlm eval [OPTIONS]" in text.replace("python -m ", "")
        assert "eval run" not in text
        assert "--answerer" in text and "alignvlm eval compare A B" in " ".join(text.split())
    assert "Is B better than A?" in run("compare", "--help").out
    assert run("--no-such-option").err.startswith("error: No such option")
    assert cli_eval.PRUNE_PAGES == 16
