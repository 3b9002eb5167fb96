"""The lmms-eval plug-in; where lmms-eval is installed (``make test-lmms``), through its own CLI."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from alignvlm.errors import ConfigError, DataError
from alignvlm.eval import lmms
from alignvlm.eval.lmms_tasks import utils
from alignvlm.eval.runner import evaluate
from alignvlm.eval.tasks import TASKS, load_task
from alignvlm.inference.answerers import ModelAnswerer
from alignvlm.inference.ask import load_model

NAMES = ("wtq", "tabfact", "deepform", "sroie", "klc")
needs_lmms = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed"
)


class Named(yaml.SafeLoader):
    """Reads ``!function a.b`` as the string ``a.b``."""


Named.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def task_file(name: str) -> dict[str, Any]:
    folder = lmms.lmms_task_folder()
    keys = yaml.load((folder / f"alignvlm_{name}.yaml").read_text("utf-8"), Named)
    return {**yaml.load((folder / keys.pop("include")).read_text("utf-8"), Named), **keys}


@pytest.mark.parametrize("name", NAMES)
def test_a_task_file_says_what_the_task_says(name: str):
    keys = task_file(name)
    assert keys["task"] == f"alignvlm_{name}"
    assert [metric["metric"] for metric in keys["metric_list"]] == list(TASKS[name].metrics)
    assert keys["generation_kwargs"]["max_new_tokens"] == TASKS[name].max_new_tokens
    # with none given lmms-eval stops at its few-shot delimiter, two line ends
    assert keys["generation_kwargs"]["until"] == []
    functions = [keys[key] for key in ("process_docs", "doc_to_visual", "process_results")]
    functions += [metric["aggregation"] for metric in keys["metric_list"]]
    for function in functions:
        module, _, attribute = function.rpartition(".")
        assert module == utils.__name__ and callable(getattr(utils, attribute))
    assert keys["process_docs"].endswith(f".{name}")


def test_there_is_a_file_for_every_name():
    files = {file.stem for file in lmms.lmms_task_folder().glob("*.yaml")}
    assert files == {f"alignvlm_{name}" for name in NAMES}


def test_the_folder_is_printed(capsys: pytest.CaptureFixture[str]):
    assert lmms.main(["tasks"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "_common").is_file()
    assert lmms.main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_messages(make_image: Any, tmp_path: Path):
    make_image(10, 9).save(tmp_path / "page.png")
    held = io.BytesIO()
    make_image(11, 9).save(held, "png")
    parts = [
        {"type": "image", "url": make_image(9, 9, mode="L")},
        {"type": "text", "text": "first"},
        {"type": "image", "url": str(tmp_path / "page.png")},
        {"type": "image", "url": {"bytes": held.getvalue(), "path": None}},
        {"type": "text", "text": "second"},
    ]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    pages, prompt = lmms.split_messages(messages, "here")
    assert [(page.size, page.mode) for page in pages] == [
        ((9, 9), "RGB"), ((10, 9), "RGB"), ((11, 9), "RGB"),
    ]  # fmt: skip
    assert prompt == "be brief\nfirst\nsecond"


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        ({"role": "assistant", "content": "a"}, ConfigError, "t/test: a message of the assistant"),
        ({"role": "user", "content": [{"type": "video", "url": "v"}]}, ConfigError, "a video"),
        ({"role": "user", "content": [{"type": "image", "url": "v"}]}, DataError, "no usable"),
        ({"role": "user", "content": [{"type": "image", "url": None}]}, DataError, "no usable"),
    ],
)
def test_messages_that_cannot_be_asked(message: dict[str, Any], error: type, text: str):
    with pytest.raises(error, match=text):
        lmms.split_messages([message], "t/test")


def test_generation_settings():
    assert lmms.new_tokens({"max_new_tokens": 7, "do_sample": False}, 5, "t") == 7
    assert lmms.new_tokens({"temperature": 0, "do_sample": True, "num_beams": 1}, 5, "t") == 5
    with pytest.raises(ConfigError, match="t: asks for do_sample, num_beams=3, but answers are"):
        lmms.new_tokens({"temperature": 0.7, "do_sample": True, "num_beams": 3}, 5, "t")


def test_stop_strings():
    assert lmms.cut("a\n\nb. c", ["\n\n", "."]) == "a"
    assert lmms.cut("a\nb", "\n") == "a"
    assert lmms.cut("a\nb", None) == lmms.cut("a\nb", []) == lmms.cut("a\nb", [""]) == "a\nb"


def write_receipts(folder: Path, make_image: Any, keys: list[dict[str, str]]) -> None:
    """SROIE's layout: one small picture and one key file a receipt."""
    for number, fields in enumerate(keys):
        (folder / "val" / "img").mkdir(parents=True, exist_ok=True)
        (folder / "val" / "key").mkdir(exist_ok=True)
        name = f"{number:03d}"
        make_image(56 + 28 * number, 40, number).save(folder / "val" / "img" / f"{name}.png")
        (folder / "val" / "key" / f"{name}.json").write_text(json.dumps(fields), "utf-8")


FIELDS = ("company", "date", "address", "total")


@pytest.fixture
def receipts(tmp_path: Path, make_image: Any, tiny_model_dir: Path) -> Path:
    """Receipts whose keys are what the model says, for half of the fields: scores are not 0."""
    folder = tmp_path / "sroie"
    write_receipts(folder, make_image, [dict.fromkeys(FIELDS, "?")] * 3)
    said = ours(folder, tiny_model_dir, tmp_path / "first.json").predictions
    keys: list[dict[str, str]] = [{}, {}, {}]
    for index, row in enumerate(said):
        number, field = row["id"].split("/")
        keys[int(number)][field] = row["prediction"] if index % 2 else f"other {index}"
    write_receipts(folder, make_image, keys)
    return folder


def ours(data: Path, model: Path, out: Path) -> Any:
    answerer = ModelAnswerer(*load_model(model))
    return evaluate(answerer, load_task("sroie", data), out, batch_size=2, resamples=10)


def run_cli(model: Path, data: Path, out: Path, *more: str, **environment: str) -> Any:
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "alignvlm",
        "--model_args", f"pretrained={model},dtype=float32", "--tasks", "alignvlm_sroie",
        "--include_path", str(lmms.lmms_task_folder()), "--batch_size", "2",
        "--output_path", str(out), "--log_samples", *more,
    ]  # fmt: skip
    names = {"HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1", "ALIGNVLM_DATA": str(data)}
    done = subprocess.run(
        command,
        env={**os.environ, **names, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done


def read_run(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """lmms-eval's scores and its log, one row a sample."""
    (scores,) = out.rglob("*_results.json")
    (log,) = out.rglob("*_samples_alignvlm_sroie.jsonl")
    rows = [json.loads(line) for line in log.read_text("utf-8").split("\n") if line]
    results = json.loads(scores.read_text("utf-8"))["results"]["alignvlm_sroie"]
    return results, sorted(rows, key=lambda row: row["doc_id"])


@needs_lmms
def test_the_entry_point_is_installed():
    (entry,) = entry_points(group="lmms_eval.models", name="alignvlm")
    manifest = entry.load()()
    assert manifest.model_id == "alignvlm" and manifest.simple_class_path is None
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert (module, name) == ("alignvlm.eval.lmms", "AlignVLM")


@needs_lmms
def test_lmms_eval_and_our_runner_agree(receipts: Path, tiny_model_dir: Path, tmp_path: Path):
    own = ours(receipts, tiny_model_dir, tmp_path / "ours.json")
    done = run_cli(tiny_model_dir, receipts, tmp_path / "lmms")
    assert done.returncode == 0, done.stderr
    results, rows = read_run(tmp_path / "lmms")
    assert [row["filtered_resps"] for row in rows] == [p["prediction"] for p in own.predictions]
    assert len({row["filtered_resps"] for row in rows}) > 1
    assert set(own.metrics) == set(TASKS["sroie"].metrics)
    for name, ours_ in own.metrics.items():
        assert results[f"{name},none"] == ours_["score"]
        assert 0 < ours_["score"] < 1
        for row, prediction in zip(rows, own.predictions, strict=True):
            verdict = {k: row[name][k] for k in prediction["verdict"][name]}
            assert verdict == prediction["verdict"][name]
    assert [row["token_counts"][0]["output_tokens"] for row in rows] == [
        prediction["new_tokens"] for prediction in own.predictions
    ]


@needs_lmms
def test_a_missing_folder_is_one_line(tiny_model_dir: Path, tmp_path: Path):
    done = run_cli(tiny_model_dir, tmp_path / "none", tmp_path / "lmms")
    assert done.returncode == 1
    line = done.stderr.strip().split("\n")[-1]
    assert line.startswith("sroie: ") and line.endswith("(the folder is $ALIGNVLM_DATA)")
    assert "Traceback" not in done.stderr


@needs_lmms
def test_the_model_class(tiny_model_dir: Path, make_image: Any):
    """Requests of two tasks, as lmms-eval makes them; batches do not cross tasks."""
    model = lmms.AlignVLM(str(tiny_model_dir), batch_size="3", device="cpu")
    assert model.is_simple is False and model.device.type == "cpu"
    docs = [{"question": f"question {n}", "page": make_image(40, 30, n)} for n in range(4)]
    model.task_dict = {"a": {"test": docs}, "b": {"test": docs[:1]}}
    sizes: list[int] = []
    answer = model.answerer.answer

    def counted(queries: list[Any]) -> Any:
        sizes.append(len(queries))
        return answer(queries)

    model.answerer.answer = counted  # type: ignore[method-assign]

    def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        page = {"type": "image", "url": doc["page"]}
        return [{"role": "user", "content": [page, {"type": "text", "text": doc["question"]}]}]

    wanted = [("a", n, {"max_new_tokens": 4 + n}) for n in range(4)] + [("b", 0, {})]
    requests = [
        SimpleNamespace(args=("", messages, settings, n, task, "test"))
        for task, n, settings in wanted
    ]
    results = model.generate_until(requests)
    assert sizes == [3, 1, 1]
    counts = [result.token_counts.output_tokens for result in results]
    assert all(count <= limit for count, limit in zip(counts, (4, 5, 6, 7, 128), strict=True))
    alone = answer([model.query(requests[3])])[0]
    assert results[3].text == alone.text
    with pytest.raises(ConfigError, match="--batch_size auto: must be a whole number"):
        lmms.AlignVLM(str(tiny_model_dir), batch_size="auto")
    with pytest.raises(NotImplementedError):
        model.loglikelihood([])
