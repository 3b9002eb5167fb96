"""The VLMEvalKit launcher, on a tree of stubs with VLMEvalKit's names.

Importing VLMEvalKit's data sets and models needs torchvision. With ``VLMEVALKIT`` set to a clone,
a slow test puts the real ``run.py``, ``inference.py``, ``smp`` and ``vlm/base.py`` into the tree;
only the tables of data sets and models stay stubs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignvlm.errors import ConfigError, DataError
from alignvlm.eval import vlmevalkit
from alignvlm.inference.ask import ask, load_model

QUESTIONS = ["What is the total?", "Who signed the letter?"]

STUB_BASE = """
class BaseModel:
    INTERLEAVE = False
    allowed_types = ["text", "image", "video"]

    def __init__(self):
        self.dump_image_func = None

    def set_dump_image(self, function):
        self.dump_image_func = function

    def generate(self, message, dataset=None):
        for item in message:
            assert item["type"] in self.allowed_types, item
        return self.generate_inner(message, dataset)
"""
STUB_RUN = """
import argparse
import json
from vlmeval.config import supported_VLM
from vlmeval.dataset import build_dataset
import vlmeval.vlm

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="+")
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--config")
    parser.add_argument("--work-dir")
    args = parser.parse_args()
    if args.config:
        (name, keys), = json.load(open(args.config))["model"].items()
        model = getattr(vlmeval.vlm, keys.pop("class"))(**keys)
    else:
        assert supported_VLM[args.model[0]].func.__module__
        model = supported_VLM[args.model[0]](**{})
    data = build_dataset(args.data[0] if args.data else "Tiny").data
    said = [model.generate(build_dataset("Tiny").build_prompt(row), dataset="Tiny")
            for _, row in data.iterrows()]
    json.dump(said, open(args.work_dir + "/said.json", "w"))
"""
STUB_DATASET = """
import os
import pandas as pd

def DATASET_TYPE(name, default="VQA"):
    return default

class Tiny:
    MODALITY, TYPE, dataset_name = "IMAGE", "VQA", "Tiny"

    def __init__(self):
        self.data = pd.read_csv(os.environ["TINY_DATA"])

    def __len__(self):
        return len(self.data)

    def dump_image(self, line):
        return [line["image_path"]]

    def build_prompt(self, line):
        return [dict(type="image", value=line["image_path"]),
                dict(type="text", value=line["question"])]

    supported_datasets = staticmethod(lambda: ["Tiny"])
    report_infer_err = staticmethod(lambda path: {"failed": 0, "total": 2})
    report_judge_err = staticmethod(lambda path, **kwargs: {})
    report_primary_metric = staticmethod(lambda metrics: {})

DATASET_CLASSES = [Tiny]

def build_dataset(name, **kwargs):
    return Tiny()
"""
STUBS = {
    "__init__.py": "",
    "config.py": "import vlmeval.vlm\nsupported_VLM = {}\n",
    "dataset/__init__.py": STUB_DATASET,
    "dataset/video_dataset_config.py": "supported_video_datasets = {}\n",
    "vlm/__init__.py": "from .base import BaseModel\n",
    "vlm/base.py": STUB_BASE,
    "api/__init__.py": "LMDeployAPI = None\n",
    "inference_mt.py": "infer_data_job_mt = None\n",
    "inference_video.py": "infer_data_job_video = None\n",
}


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A folder like a clone of VLMEvalKit."""
    folder = tmp_path / "kit"
    for name, text in STUBS.items():
        file = folder / "vlmeval" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    (folder / "run.py").write_text(STUB_RUN, "utf-8")
    return folder


@pytest.fixture
def data(tmp_path: Path, make_image: Any) -> Path:
    """Two questions about two images, as the stub's data set reads them."""
    lines = ["index,image_path,question"]
    for index, question in enumerate(QUESTIONS):
        make_image(56, 28, index).save(tmp_path / f"{index}.png")
        lines.append(f"{index},{tmp_path / f'{index}.png'},{question}")
    file = tmp_path / "tiny.csv"
    file.write_text("\n".join(lines), "utf-8")
    return file


def launch(kit: Path, data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alignvlm.eval.vlmevalkit", *words]
    environment = {**os.environ, "TINY_DATA": str(data), "LMUData": str(kit / "cache")}
    return subprocess.run(
        command, cwd=kit, env=environment, capture_output=True, text=True, timeout=300
    )


def expected(folder: Path, make_image: Any) -> list[str]:
    model, processor = load_model(folder)
    pages = [make_image(56, 28, index) for index in range(len(QUESTIONS))]
    return [
        ask(model, processor, [page], question, max_new_tokens=12).text
        for page, question in zip(pages, QUESTIONS, strict=True)
    ]


def test_run_py_finds_the_model_by_name(kit: Path, data: Path, tiny_model_dir: Path, make_image):
    done = launch(
        kit, data, str(tiny_model_dir), "--kit", str(kit), "--max-new-tokens", "12",
        "--", "--data", "Tiny", "--work-dir", str(kit),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads((kit / "said.json").read_text("utf-8"))
    assert said == expected(tiny_model_dir, make_image)
    assert len(set(said)) == 2


def test_a_config_file_finds_the_class(kit: Path, data: Path, tiny_model_dir: Path, make_image):
    keys = {"class": "AlignVLM", "model_path": str(tiny_model_dir), "max_new_tokens": 12}
    file = kit / "config.json"
    file.write_text(json.dumps({"model": {"tiny": keys}}), "utf-8")
    done = launch(
        kit, data, str(tiny_model_dir), "--kit", str(kit),
        "--", "--config", str(file), "--work-dir", str(kit),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads((kit / "said.json").read_text("utf-8"))
    assert said == expected(tiny_model_dir, make_image)


def test_a_wrong_folder_is_one_line(kit: Path, data: Path, tiny_model_dir: Path):
    done = launch(kit, data, str(tiny_model_dir), "--kit", str(kit.parent), "--", "--data", "Tiny")
    assert done.returncode != 0
    assert done.stderr.strip().endswith("say --kit FOLDER")
    assert "Traceback" not in done.stderr


def test_without_vlmevalkit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vlmevalkit.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        vlmevalkit.find_run_script(None)


def test_the_model_is_asked_for_by_name():
    options, rest = vlmevalkit.parse(["m", "--name", "mine", "--", "--data", "A", "B"])
    assert (options.model, rest) == ("m", ["--model", "mine", "--data", "A", "B"])
    assert vlmevalkit.parse(["m", "--", "--model", "x", "y"])[1] == ["--model", "x", "y"]
    assert vlmevalkit.parse(["m", "--", "--config=c.json"])[1] == ["--config=c.json"]


def test_messages(tmp_path: Path, make_image: Any):
    make_image(9, 9).save(tmp_path / "a.png")
    make_image(10, 9).save(tmp_path / "b.png")
    image = [{"type": "image", "value": str(tmp_path / name)} for name in ("a.png", "b.png")]
    text = [{"type": "text", "value": value} for value in ("first", "second")]
    pages, prompt = vlmevalkit.read_message([text[0], image[0], text[1], image[1]], "Tiny")
    assert [page.size for page in pages] == [(9, 9), (10, 9)]
    assert prompt == "first\nsecond"
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Tiny: .*a\.png: no usable image"):
        vlmevalkit.read_message([image[0]], "Tiny")


def test_dtypes(tiny_model_dir: Path):
    assert str(vlmevalkit.load_answerer(tiny_model_dir, "cpu").model.dtype) == "torch.float32"
    half = vlmevalkit.load_answerer(tiny_model_dir, "cpu", "bfloat16", repetition_guard=True)
    assert str(half.model.dtype) == "torch.bfloat16" and half.repetition_guard
    with pytest.raises(ConfigError, match="dtype 'int8': choose one of auto, float32"):
        vlmevalkit.load_answerer(tiny_model_dir, "cpu", "int8")


@pytest.mark.slow
def test_the_real_run_py(kit: Path, data: Path, tiny_model_dir: Path, make_image: Any):
    """All that VLMEvalKit's inference goes through, without its tables of data sets and models."""
    pandas = pytest.importorskip("pandas")
    for name in ("validators", "sty", "tabulate", "openpyxl", "xlsxwriter"):
        pytest.importorskip(name)
    clone = os.environ.get("VLMEVALKIT")
    if not clone:
        pytest.skip("VLMEVALKIT names no clone of VLMEvalKit")
    for name in ("run.py", "vlmeval/inference.py", "vlmeval/vlm/base.py"):
        shutil.copy(Path(clone) / name, kit / name)
    for name in ("smp", "utils"):
        shutil.copytree(Path(clone) / "vlmeval" / name, kit / "vlmeval" / name)
    transfer = "MMMU_result_transfer = MMTBench_result_transfer = None\n"
    (kit / "vlmeval/utils/result_transfer.py").write_text(transfer, "utf-8")  # needs its judges
    done = launch(
        kit, data, str(tiny_model_dir), "--kit", str(kit), "--max-new-tokens", "12",
        "--", "--data", "Tiny", "--mode", "infer", "--work-dir", str(kit / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = (kit / "out").rglob("T*/alignvlm_Tiny.xlsx")
    table = pandas.read_excel(file, keep_default_na=False)
    assert table["prediction"].tolist() == expected(tiny_model_dir, make_image)
