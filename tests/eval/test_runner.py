"""The runner: what it writes, and that kills, torn lines and full disks lose nothing."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from tests.eval.little_task import Echo, LittleTask, Logged

from alignvlm.errors import ConfigError, DataError
from alignvlm.eval import results
from alignvlm.eval.compare import compare
from alignvlm.eval.results import read_result
from alignvlm.eval.runner import evaluate
from alignvlm.eval.shown import pages_sha256
from alignvlm.inference.answerers import Weights
from alignvlm.inference.ask import load_model

KEPT = ("score", "interval", "metrics", "predictions", "settings")


def kept(path: Path) -> bytes:
    """The part of a result file that must be reproduced, as it is written."""
    data = json.loads(path.read_text("utf-8"))
    return json.dumps({key: data[key] for key in KEPT}).encode()


def test_what_the_file_says(tmp_path):
    task = LittleTask()
    result = evaluate(Echo(), task, tmp_path / "deep" / "r.json", batch_size=3)
    data = json.loads((tmp_path / "deep" / "r.json").read_text("utf-8"))
    assert list(data) == ["format", *KEPT, "environment", "timing"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.json"]
    assert data["score"] == data["metrics"]["anls"]["score"] == result.score
    assert list(data["metrics"]) == ["anls", "field_f1"]
    # 1, 3, 5 and 7 are answered right; 0 and 4 ask for "the same"
    assert data["metrics"]["field_f1"]["score"] == pytest.approx(0.5)
    assert data["interval"][0] <= data["score"] <= data["interval"][1]
    assert data["predictions"][1] == {
        "id": "s1",
        "group": "doc0",
        "prompt": "What is number 1? Please.",
        "answers": ["answer 1"],
        "prediction": "answer 1",
        "verdict": {"anls": {"score": 1.0}, "field_f1": {"tp": 1.0, "fp": 0.0, "fn": 0.0}},
        "visual_tokens": 4,
        "new_tokens": 8,
        "seen": 2,
        "pages_sha256": pages_sha256(LittleTask().pages(1)),
    }
    assert data["predictions"][0]["prediction"] == "né 中"
    settings = data["settings"]
    assert settings["task"]["name"] == "little" and settings["task"]["made"] == "in memory"
    assert settings["task"]["samples"] == 8
    assert settings["answerer"] == {"name": "echo", "answers": "every other"}
    assert settings["run"] == {"limit": None, "batch_size": 3, "seed": 0}
    assert {"alignvlm", "torch", "transformers", "python", "commit"} <= set(data["environment"])
    assert read_result(tmp_path / "deep" / "r.json") == result
    assert task.opened == list(range(8))


def test_limit_and_batches(tmp_path):
    result = evaluate(Echo(), LittleTask(), tmp_path / "r.json", limit=5, batch_size=2)
    spread = ["s0", "s1", "s3", "s4", "s6"]  # neighbours are often about one document
    assert [row["id"] for row in result.predictions] == spread
    assert [row["prediction"] for row in result.predictions] == [
        row["prediction"]
        for row in evaluate(Echo(), LittleTask(), tmp_path / "whole.json").predictions
        if row["id"] in spread
    ]
    everything = evaluate(Echo(), LittleTask(), tmp_path / "all.json", limit=99)
    assert len(everything.predictions) == 8
    for wrong in ({"limit": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            evaluate(Echo(), LittleTask(), tmp_path / "x.json", **wrong)
    with pytest.raises(DataError, match="has no samples"):
        evaluate(Echo(), LittleTask(0), tmp_path / "x.json")


def test_pages_are_loaded_for_those_who_look(tmp_path):
    class Blind(Echo):
        needs_pages = False

    task = LittleTask()
    result = evaluate(Blind(), task, tmp_path / "r.json")
    assert evaluate(Blind(), task, tmp_path / "r.json").found
    assert task.opened == []
    assert result.predictions[0]["seen"] == 0
    assert "pages_sha256" not in result.predictions[0]


def test_a_finished_run_is_read_back(tmp_path):
    out, log = tmp_path / "r.json", tmp_path / "log"
    first = evaluate(Echo(log), LittleTask(), out)
    again = evaluate(Echo(log), LittleTask(), out)
    assert again == first and again.found and not first.found
    assert len(log.read_text().split()) == 8
    with pytest.raises(DataError, match=r"r.json exists, with run.seed = 0, now 1"):
        evaluate(Echo(), LittleTask(), out, seed=1)
    with pytest.raises(DataError, match=r"answerer\.k = None, now 2"):
        evaluate(Echo(k=2), LittleTask(), out)
    again = evaluate(Echo(log), LittleTask(), out, seed=1, overwrite=True)
    assert again.settings["run"]["seed"] == 1
    assert len(log.read_text().split()) == 16


class OtherPages(LittleTask):
    """The same names, questions and answers; the picture of s5 is another one."""

    def pages(self, index: int) -> list[Image.Image]:
        found = super().pages(index)
        turned = [page.transpose(Image.Transpose.ROTATE_180) for page in found]
        return turned if index == 5 else found


def test_other_pages_under_the_same_names_are_noticed(tmp_path):
    out = tmp_path / "r.json"
    first = evaluate(Echo(), LittleTask(), out)
    with pytest.raises(DataError, match=r"r\.json answers sample 's5' about other pages"):
        evaluate(Echo(), OtherPages(), out)
    fresh = evaluate(Echo(), OtherPages(), out, overwrite=True)
    assert not fresh.found
    with pytest.raises(DataError, match="sample 's5' was asked about different pages"):
        compare(first, fresh)


def test_an_interrupted_run_notices_other_pages(tmp_path):
    out = interrupted(tmp_path, 6)
    with pytest.raises(DataError, match=r"partial\.jsonl answers sample 's5' about other pages"):
        evaluate(Echo(), OtherPages(), out, batch_size=2)
    assert not evaluate(Echo(), LittleTask(), out, batch_size=2).found


def test_a_result_that_does_not_name_its_pages_is_not_taken_for_this_run(tmp_path):
    out = tmp_path / "r.json"
    evaluate(Echo(), LittleTask(), out)
    data = json.loads(out.read_text("utf-8"))
    for row in data["predictions"]:
        del row["pages_sha256"]
    out.write_text(json.dumps(data))
    with pytest.raises(DataError, match="does not say which pages"):
        evaluate(Echo(), LittleTask(), out)


def test_the_digest_knows_sizes_and_pixels():
    page = Image.new("RGB", (4, 2))
    turned, red = Image.new("RGB", (2, 4)), Image.new("RGB", (4, 2), "red")
    digests = [pages_sha256(pages) for pages in ([page], [turned], [red], [page, page])]
    assert len(set(digests)) == 4
    assert pages_sha256([page.copy()]) == digests[0]


SCRIPT = """
import sys
here, model, out, log = sys.argv[1:]
sys.path.insert(0, here)
from tests.eval.little_task import LittleTask, Logged
from alignvlm.eval.runner import evaluate
from alignvlm.inference.ask import load_model

evaluate(Logged(load_model(model), log, die=4), LittleTask(), out, batch_size=2)
"""


def test_sigkill_and_restart_give_the_same_bytes(tmp_path, tiny_model_dir):
    """The tiny model, killed at half of the samples, goes on; nothing is answered twice."""
    here, log, out = Path(__file__).parents[2], tmp_path / "log", tmp_path / "broken.json"
    command = [sys.executable, "-c", SCRIPT, *map(str, (here, tiny_model_dir, out, log))]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    assert len((tmp_path / "broken.json.partial.jsonl").read_text().splitlines()) == 5
    model = load_model(tiny_model_dir)
    evaluate(Logged(model, log), LittleTask(), out, batch_size=2)
    assert log.read_text().split() == [f"s{i}" for i in range(8)]
    whole = tmp_path / "whole.json"
    evaluate(Logged(model, log), LittleTask(), whole, batch_size=2)
    assert kept(out) == kept(whole)
    assert not (tmp_path / "broken.json.partial.jsonl").exists()


def interrupted(tmp_path: Path, done: int, batch_size: int = 2) -> Path:
    """A run that stopped after so many samples."""

    class Stops(Echo):
        def answer(self, queries):
            if self.asked >= done:
                raise KeyboardInterrupt
            return super().answer(queries)

    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stops(), LittleTask(), out, batch_size=batch_size)
    return out


@pytest.mark.parametrize("cut", [1, 10, 60, 130, 10_000])
def test_torn_lines_are_answered_again(tmp_path, cut):
    """Whatever the kill tore: the end of a line, lines of a batch, or the header."""
    evaluate(Echo(), LittleTask(), tmp_path / "whole.json", batch_size=2)
    out = interrupted(tmp_path, 4)
    partial = tmp_path / "r.json.partial.jsonl"
    data = partial.read_bytes()
    partial.write_bytes(data[: max(0, len(data) - cut)])
    left = max(0, partial.read_bytes().count(b"\n") - 1) // 2 * 2
    log = tmp_path / "log"
    evaluate(Echo(log), LittleTask(), out, batch_size=2)
    assert log.read_text().split() == [f"s{i}" for i in range(left, 8)]
    assert kept(out) == kept(tmp_path / "whole.json")


def test_other_settings_do_not_go_on(tmp_path):
    out = interrupted(tmp_path, 4)
    with pytest.raises(DataError, match=r"begun with run.batch_size = 2, now 4; .*--overwrite"):
        evaluate(Echo(), LittleTask(), out, batch_size=4)
    with pytest.raises(DataError, match=r"begun with task.samples = 8, now 6"):
        evaluate(Echo(), LittleTask(6), out, batch_size=2)
    assert evaluate(Echo(), LittleTask(), out, batch_size=4, overwrite=True).score > 0


@pytest.mark.parametrize("line", [0, 2])
def test_damage_in_the_middle_is_refused(tmp_path, line):
    out = interrupted(tmp_path, 4)
    partial = tmp_path / "r.json.partial.jsonl"
    lines = partial.read_text("utf-8").splitlines()
    for wrong in ("{", "[]", '{"id": "s9", "prediction": ""}'):
        damaged = [*lines[:line], wrong, *lines[line + 1 :]]
        partial.write_text("\n".join(damaged) + "\n")
        with pytest.raises(DataError, match=rf"jsonl:{line + 1}: damaged .*--overwrite"):
            evaluate(Echo(), LittleTask(), out, batch_size=2)


def test_a_full_disk_leaves_no_half_result(tmp_path, monkeypatch):
    whole = evaluate(Echo(), LittleTask(), tmp_path / "whole.json")
    out = tmp_path / "r.json"

    def full(*args, **keys):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(results.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            evaluate(Echo(), LittleTask(), out)
        assert not out.exists()
    log = tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            evaluate(Echo(log), LittleTask(), out)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"whole.json", "r.json.partial.jsonl", "log"}
    asked = log.read_text()
    assert evaluate(Echo(log), LittleTask(), out).predictions == whole.predictions
    assert log.read_text() == asked  # everything was answered before the disk was full


def test_a_page_that_cannot_be_used_names_its_samples(tmp_path):
    class Refuses(Echo):
        def answer(self, queries):
            raise DataError("the image is empty (0x9 px)")

    with pytest.raises(DataError, match=r"little val, among samples s0, s1: the image is empty"):
        evaluate(Refuses(), LittleTask(), tmp_path / "r.json", batch_size=2)


def test_two_runs_do_not_write_one_file(tmp_path):
    with FileLock(tmp_path / "r.json.lock"), pytest.raises(DataError, match="another run"):
        evaluate(Echo(), LittleTask(), tmp_path / "r.json")


def test_progress_is_shown_on_a_terminal_only(tmp_path, capfd):
    evaluate(Echo(), LittleTask(), tmp_path / "a.json")
    assert capfd.readouterr() == ("", "")
    evaluate(Echo(), LittleTask(), tmp_path / "b.json", quiet=False)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "little echo" in shown.err and "8/8" in shown.err and "anls 0.5" in shown.err


def test_files_that_are_no_results(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[1]")
    evaluate(Echo(), LittleTask(), tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text("utf-8"))
    (tmp_path / "c.json").write_text(json.dumps({**data, "format": 99}))
    for name, words in (
        ("gone", "no such file"), ("a", "not a result"), ("b", "not a result"), ("c", "format 99"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            read_result(tmp_path / f"{name}.json")


def test_weights_are_named_by_their_sha256(tiny_model_dir):
    import hashlib

    weights = Weights.of(tiny_model_dir)
    data = (tiny_model_dir / "model.safetensors").read_bytes()
    assert weights.sha256 == {"model.safetensors": hashlib.sha256(data).hexdigest()}
    assert weights.reference == str(tiny_model_dir)


def test_the_little_task_has_pages_of_several_tiles():
    sizes = {LittleTask().pages(index)[0].size for index in range(8)}
    assert len(sizes) == 4
    assert isinstance(LittleTask().pages(0)[0], Image.Image)
    assert not np.array_equal(LittleTask().pages(0)[0], LittleTask().pages(2)[0])
