"""lmms-eval's tasks of general vision through our plug-in, as they are, on local replicas."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.eval.general_vision import TASKS, replicas

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed"
)
KEYS = ("OPENAI_API_KEY", "OPENAI_API_URL", "API_TYPE", "HF_TOKEN")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder to run lmms-eval in: it holds the data sets under their names on the hub."""
    return replicas(tmp_path_factory.mktemp("hub"))


def run(hub: Path, model: Path, out: Path, task: str, *more: str, **environment: str) -> Any:
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "alignvlm",
        "--model_args", f"pretrained={model},dtype=float32", "--tasks", task,
        "--batch_size", "2", "--gen_kwargs", "max_new_tokens=8",
        "--output_path", str(out), "--log_samples", *more,
    ]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name not in KEYS}
    kept |= {"HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, env=kept, cwd=hub, capture_output=True, text=True, timeout=900)


def scores(out: Path, done: Any) -> dict[str, dict[str, Any]]:
    """lmms-eval's results by task."""
    found = [file for file in out.rglob("*_results.json") if file.parent.name != "submissions"]
    assert len(found) == 1, done.stderr[-4000:]
    return json.loads(found[0].read_text("utf-8"))["results"]


def answers(out: Path, task: str) -> list[dict[str, Any]]:
    """What was said to each sample of a task."""
    (log,) = out.rglob(f"*_samples_{task}.jsonl")
    return [json.loads(line) for line in log.read_text("utf-8").splitlines() if line]


class Judge(BaseHTTPRequestHandler):
    """A judge on this machine that speaks OpenAI's interface and gives everybody half."""

    asked: list[str] = []

    def do_POST(self) -> None:
        """Answer a chat."""
        chat = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Judge.asked.append(chat["messages"][0]["content"])
        message = {"role": "assistant", "content": "0.5"}
        reply = {
            "id": "1", "object": "chat.completion", "created": 0, "model": chat["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }  # fmt: skip
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def judge() -> Iterator[str]:
    """Address of the judge."""
    server = HTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


METRICS = {
    "pope": "pope_accuracy", "gqa": "exact_match", "mmmu_val": "mmmu_acc",
    "seedbench": "seed_all", "mmvet": "gpt_eval_score", "coco2017_cap_val": "coco_CIDEr",
}  # fmt: skip
CAPTIONS = shutil.which("java") and importlib.util.find_spec("pycocoevalcap")


def test_all_tasks_are_asked_and_scored(
    hub: Path, judge: str, tiny_model_dir: Path, tmp_path: Path
):
    tasks = [task for task in TASKS if CAPTIONS or task != "coco2017_cap_val"]
    keys = {"OPENAI_API_KEY": "none", "OPENAI_API_URL": judge, "NO_PROXY": "127.0.0.1"}
    done = run(hub, tiny_model_dir, tmp_path, ",".join(tasks), **keys)
    found = scores(tmp_path, done)
    for task in tasks:
        assert isinstance(found[task][f"{METRICS[task]},none"], float), task
        assert len(answers(tmp_path, task)) == 2
    assert found["mmvet"]["gpt_eval_score,none"] == 50
    assert len(Judge.asked) == 2 and all("-1 <AND> -5" in text for text in Judge.asked)


def test_mmvet_without_a_judge_is_an_error(hub: Path, tiny_model_dir: Path, tmp_path: Path):
    done = run(hub, tiny_model_dir, tmp_path, "mmvet")
    assert "Error during evaluation" in done.stderr + done.stdout
    assert "OPENAI_API_KEY" in done.stderr + done.stdout
    assert not list(tmp_path.rglob("*_results.json"))
