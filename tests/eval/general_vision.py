"""Little replicas of six data sets of general vision, in the layout that lmms-eval's tasks load.

A folder named as the data set on the hub, ``lmms-lab-encoder/POPE``, is found by ``datasets``
before the hub is asked, if the program runs beside it. So the tasks run as they are, offline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

OWNER = "lmms-lab-encoder"
TASKS = ("pope", "gqa", "mmmu_val", "seedbench", "mmvet", "coco2017_cap_val")
TEXT = Value("string")


def picture(number: int) -> Pictures.Image:
    """A small picture of its own colour."""
    return Pictures.new("RGB", (56, 42), (40 * number % 256, 120, 200))


def write(folder: Path, split: str, features: dict[str, Any], rows: Sequence[dict]) -> None:
    """One parquet file, named as the hub's are."""
    folder.mkdir(parents=True)
    columns = {name: [row[name] for row in rows] for name in features}
    made = Dataset.from_dict(columns, features=Features(features))
    made.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def pope(root: Path) -> None:
    """Yes or no, whether something is in the picture."""
    features = dict.fromkeys(("id", "question_id", "question", "answer", "category"), TEXT)
    rows = [
        {"id": str(n), "question_id": str(n), "question": f"Is there a {thing} in the image?",
         "answer": answer, "category": "random", "image": picture(n)}
        for n, (thing, answer) in enumerate([("cat", "yes"), ("car", "no")])
    ]  # fmt: skip
    write(root / "POPE" / "data", "test", {**features, "image": Image()}, rows)


def gqa(root: Path) -> None:
    """Questions and pictures are two configurations of one data set."""
    names = ("testdev_balanced_instructions", "testdev_balanced_images")
    asked = [
        {"id": "1", "imageId": "n1", "question": "What colour is it?", "answer": "blue"},
        {"id": "2", "imageId": "n2", "question": "Is it big?", "answer": "no"},
    ]
    seen = [{"id": f"n{n}", "image": picture(n)} for n in (1, 2)]
    write(root / "GQA" / names[0], "testdev", dict.fromkeys(asked[0], TEXT), asked)
    write(root / "GQA" / names[1], "testdev", {"id": TEXT, "image": Image()}, seen)
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: testdev\n    path: {name}/testdev-*\n"
        for name in names
    )
    (root / "GQA" / "README.md").write_text(f"---\nconfigs:\n{listed}---\n", "utf-8")


def mmmu(root: Path) -> None:
    """Pictures in the middle of the text; options are a list written as text."""
    features: dict[str, Any] = dict.fromkeys(
        ("id", "question", "options", "explanation", "img_type", "answer", "topic_difficulty",
         "question_type", "subfield"), TEXT,
    )  # fmt: skip
    features |= {f"image_{n}": Image() for n in range(1, 8)}
    common = {"explanation": "", "img_type": "['Diagrams']", "topic_difficulty": "Easy",
              "subfield": "x", **{f"image_{n}": None for n in range(1, 8)}}  # fmt: skip
    rows = [
        {**common, "id": "validation_Art_1", "question": "<image 1> Which one is <image 2>?",
         "options": "['red', 'blue']", "answer": "B", "question_type": "multiple-choice",
         "image_1": picture(1), "image_2": picture(2)},
        {**common, "id": "validation_Math_2", "question": "How many in <image 1>?",
         "options": "[]", "answer": "3", "question_type": "open", "image_1": picture(3)},
    ]  # fmt: skip
    write(root / "MMMU" / "data", "validation", features, rows)


def seedbench(root: Path) -> None:
    """A picture, or frames of a video, and four choices."""
    names = ("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_id", "data_type",
             "question", "question_id")  # fmt: skip
    common = {f"choice_{letter}": f"the {letter}" for letter in "abcd"}
    rows = [
        {**common, "answer": "A", "data_id": "1", "data_type": kind, "question": "What is it?",
         "question_id": str(frames), "image": [picture(n) for n in range(frames)]}
        for kind, frames in (("image", 1), ("video", 3))
    ]  # fmt: skip
    features = {**dict.fromkeys(names, TEXT), "image": List(Image())}
    write(root / "SEED-Bench" / "data", "test", features, rows)


def mmvet(root: Path) -> None:
    """Open questions that a judge scores."""
    names = ("question_id", "question", "answer", "image_source", "capability")
    rows = [
        {"question_id": f"v1_{n}", "question": "What is x?", "answer": "-1<AND>-5",
         "image_source": "x", "capability": "ocr,math", "image": picture(n)}
        for n in range(2)
    ]  # fmt: skip
    write(root / "MMVet" / "data", "test", {**dict.fromkeys(names, TEXT), "image": Image()}, rows)


def coco(root: Path) -> None:
    """Captions."""
    features = {"question_id": TEXT, "image": Image(), "answer": List(TEXT), "id": Value("int64")}
    rows = [
        {"question_id": f"{n:012}.jpg", "image": picture(n), "id": n,
         "answer": ["a blue field", "blue"]}
        for n in (139, 285)
    ]  # fmt: skip
    write(root / "COCO-Caption2017" / "data", "val", features, rows)


def replicas(folder: Path) -> Path:
    """All six under ``folder``, in which lmms-eval is then to be run."""
    for make in (pope, gqa, mmmu, seedbench, mmvet, coco):
        make(folder / OWNER)
    return folder
