"""Small copies of published data sets, laid out file by file as these lie on the hub."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from alignvlm.data.hub.catalogue import published

ROWS = 4
"""Of each replica; row ``i`` has an image ``20 + i`` px wide, question ``qi``, answer ``ai``."""
BENCH = ("Chart2MD", "GUI-VQA", "Image2SVG")
BIGDOCS = "ServiceNow/BigDocs-7.5M"


def picture(index: int) -> Image.Image:
    return Image.new("RGB", (20 + index, 10), (index, 90, 200))


def content(index: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(index).save(buffer, kind)
    return buffer.getvalue()


def write_json(path: Path, rows: list[Any], *, lines: bool = False) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def page(folder: Path, configs: dict[str, str]) -> None:
    """A set's page, whose head declares its configurations and their files."""
    lines = ["---", "configs:"]
    for config, files in configs.items():
        lines += [f"- config_name: {config}", "  data_files:", "  - split: train"]
        lines += [f"    path: {files}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def parquet(path: Path, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(path)


def bigdocs_rows(folder: Path, config: str, *, images: bool = True) -> None:
    text, many = datasets.Value("string"), [datasets.Value("string")]
    columns = {
        "sample_id": [f"{config}.{i}" for i in range(ROWS)],
        "img_id": [f"pic_{i}" for i in range(ROWS)],
        "image": [picture(i) if images else None for i in range(ROWS)],
        "query": [[f"q{i}"] for i in range(ROWS)],
        "annotations": [[f"a{i}"] for i in range(ROWS)],
    }
    features = {
        "sample_id": text, "img_id": text, "image": datasets.Image(), "query": many,
        "annotations": many,
    }  # fmt: skip
    parquet(folder / config / "train-00000-of-00001.parquet", columns, features)


def bigdocs(root: Path) -> None:
    folder, known = root / BIGDOCS, published(BIGDOCS)
    assert known is not None
    for config in known.configs:
        bigdocs_rows(folder, config, images=config not in known.images_elsewhere)
    page(folder, {config: f"{config}/train-*" for config in known.configs})
    pictures = {f"pic_{i}.jpg": content(i, "JPEG") for i in range(ROWS)}
    for name in ("train2014", "train_val_images"):
        write_zip(root / f"{name}.zip", {f"{name}/{key}": data for key, data in pictures.items()})
    tables = root / "bsmock" / "pubtables-1m"
    tables.mkdir(parents=True)
    for part, names in (("1", ("pic_0.jpg", "pic_1.jpg")), ("2", ("pic_2.jpg", "pic_3.jpg"))):
        file = tables / f"PubTables-1M-Detection_Images_Train_Part{part}.tar.gz"
        file.write_bytes(tar_bytes({f"images/{n}": pictures[n] for n in names}, "w:gz"))


def bigdocs_bench(root: Path) -> None:
    folder = root / "ServiceNow" / "BigDocs-Bench"
    for config in BENCH:
        bigdocs_rows(folder, config)
    page(folder, {config: f"{config}/train-*" for config in BENCH})


def docdownstream(root: Path) -> None:
    """One tar.gz cut into parts in the middle of a file."""
    folder = root / "mPLUG" / "DocDownstream-1.0"
    rows = [
        {
            "image": [f"./imgs/DocVQA/pngs/{i}.png"],
            "messages": [
                {"role": "user", "content": f"<|image|>q{i}"},
                {"role": "assistant", "content": f"a{i}"},
            ],
            "task_name": "qa_sft",
            "dataset_name": "DocVQA",
        }
        for i in range(ROWS)
    ]
    write_json(folder / "train.jsonl", rows, lines=True)
    write_json(folder / "val.jsonl", rows[:1], lines=True)
    files = {f"./imgs/DocVQA/pngs/{i}.png": content(i) for i in reversed(range(ROWS))}
    data = tar_bytes(files, "w:gz")
    cut = len(data) // 2
    (folder / "partial-imgs00").write_bytes(data[:cut])
    (folder / "partial-imgs01").write_bytes(data[cut:])


def cc12m(root: Path) -> None:
    folder = root / "pixparse" / "cc12m-wds"
    folder.mkdir(parents=True)
    for shard in range(2):
        files: dict[str, bytes] = {}
        for i in range(2 * shard, 2 * shard + 2):
            files[f"{i:09d}.jpg"] = content(i, "JPEG")
            files[f"{i:09d}.json"] = json.dumps({"key": f"{i:09d}"}).encode()
            files[f"{i:09d}.txt"] = f"a{i}".encode()
        (folder / f"cc12m-train-{shard:04d}.tar").write_bytes(tar_bytes(files))
    (folder / "_info.json").write_text('{"splits": {}}', encoding="utf-8")


def conversation(index: int, image: Any, marks: str = "<image>\n") -> dict[str, Any]:
    turns = [
        {"from": "human", "value": f"{marks}q{index}"},
        {"from": "gpt", "value": f"a{index}"},
    ]
    row = {"id": f"{index:09d}", "image": image, "conversations": turns}
    return {key: value for key, value in row.items() if value is not None}


def llava_pretrain(root: Path) -> None:
    folder = root / "liuhaotian" / "LLaVA-Pretrain"
    rows = [conversation(i, f"0000{i}/{i:09d}.jpg") for i in range(ROWS)]
    write_json(folder / "blip_laion_cc_sbu_558k.json", rows)
    write_json(folder / "blip_laion_cc_sbu_558k_meta.json", [{"id": "0", "url": "none"}])
    files = {f"0000{i}/{i:09d}.jpg": content(i, "JPEG") for i in range(ROWS)}
    write_zip(folder / "images.zip", files)


def llava_next(root: Path) -> None:
    """The last row has no image."""
    rows = [conversation(i, True, "<image>\n" if i < ROWS - 1 else "") for i in range(ROWS)]
    text = datasets.Value("string")
    columns = {
        "id": [row["id"] for row in rows],
        "conversations": [row["conversations"] for row in rows],
        "data_source": ["ai2d"] * ROWS,
        "image": [picture(i) if i < ROWS - 1 else None for i in range(ROWS)],
    }
    features = {
        "id": text, "conversations": [{"from": text, "value": text}], "data_source": text,
        "image": datasets.Image(),
    }  # fmt: skip
    folder = root / "lmms-lab" / "LLaVA-NeXT-Data"
    parquet(folder / "data" / "train-00000-of-00001.parquet", columns, features)


def mammoth(root: Path) -> None:
    """Rows of one image, of several, and of none; numbers and strings as ids."""
    folder = root / "MAmmoTH-VL" / "MAmmoTH-VL-Instruct-12M"
    rows = [conversation(i, f"LLaVA-OneVision-Data/chart/{i}.png") for i in range(ROWS - 1)]
    rows.append({**conversation(ROWS - 1, None, ""), "source": "text only"})
    write_json(folder / "mammoth_si_10M.json", rows)
    two = [f"M4-Instruct-Data/{i}.png" for i in (0, 1)]
    mixed = [
        {**conversation(0, two, "<image><image>\n"), "id": 7},
        {**conversation(1, two[1]), "id": "m4"},
    ]
    write_json(folder / "mammoth_ov_2M.json", mixed)
    for kind, names in (("single", rows[:-1]), ("multi", [{"image": path} for path in two])):
        for shard, row in enumerate(names):
            file = folder / f"{kind}_image_data" / f"shard_{shard}.tar.gz"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(tar_bytes({row["image"]: content(shard)}, "w:gz"))


def chat_columns(images: bool = True) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    text = datasets.Value("string")
    columns: dict[str, list[Any]] = {
        "texts": [[{"user": f"q{i}", "assistant": f"a{i}"}] for i in range(ROWS)]
    }
    features: dict[str, Any] = {"texts": [{"user": text, "assistant": text}]}
    if images:
        columns["images"] = [[picture(i)] for i in range(ROWS)]
        features["images"] = datasets.List(datasets.Image())
    return columns, features


def finevision(root: Path) -> None:
    folder = root / "HuggingFaceM4" / "FineVision"
    for config in ("ai2d_merged", "docvqa"):
        columns, features = chat_columns()
        columns["source"], features["source"] = [config] * ROWS, datasets.Value("string")
        parquet(folder / config / "train-00000-of-00001.parquet", columns, features)
    page(folder, {config: f"{config}/train-*" for config in ("ai2d_merged", "docvqa")})


def docmatix(root: Path) -> None:
    folder = root / "HuggingFaceM4" / "Docmatix"
    parquet(folder / "data" / "train-00000-of-00001.parquet", *chat_columns())
    columns, features = chat_columns(images=False)
    columns["pdf"], features["pdf"] = [], datasets.Value("binary")
    for i in range(ROWS):
        buffer = io.BytesIO()
        picture(i).save(buffer, "PDF")
        columns["pdf"].append(buffer.getvalue())
    parquet(folder / "pdf" / "train-00000-of-00001.parquet", columns, features)
    page(folder, {"images": "data/train-*", "pdf": "pdf/train-*"})


def vcr_wiki(root: Path) -> None:
    """Both settings; a row has one or more covered texts, and other pictures beside the page."""
    text = datasets.Value("string")
    for setting in ("easy", "hard"):
        columns: dict[str, list[Any]] = {
            "image": [picture(9)] * ROWS,
            "caption": ["all of it"] * ROWS,
            "stacked_image": [picture(i) for i in range(ROWS)],
            "crossed_text": [[f"a{i}"] for i in range(ROWS)],
        }
        features = {
            "image": datasets.Image(), "caption": text, "stacked_image": datasets.Image(),
            "crossed_text": [text],
        }  # fmt: skip
        folder = root / "vcr-org" / f"VCR-wiki-en-{setting}" / "data"
        parquet(folder / "train-00000-of-00001.parquet", columns, features)


REPLICAS: dict[str, Callable[[Path], None]] = {
    BIGDOCS: bigdocs,
    "ServiceNow/BigDocs-Bench": bigdocs_bench,
    "mPLUG/DocDownstream-1.0": docdownstream,
    "pixparse/cc12m-wds": cc12m,
    "liuhaotian/LLaVA-Pretrain": llava_pretrain,
    "lmms-lab/LLaVA-NeXT-Data": llava_next,
    "MAmmoTH-VL/MAmmoTH-VL-Instruct-12M": mammoth,
    "HuggingFaceM4/FineVision": finevision,
    "HuggingFaceM4/Docmatix": docmatix,
    "vcr-org/VCR-wiki-en-easy": vcr_wiki,
    "vcr-org/VCR-wiki-en-hard": vcr_wiki,
}


def make_replicas(root: Path, *ids: str) -> Path:
    """Replicas of some sets, or of all, as a folder for ``$ALIGNVLM_DATA``."""
    for one in ids or REPLICAS:
        REPLICAS[one](root)
    return root
