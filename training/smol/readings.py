"""Read training and validation pages once and store what the reader saw.

    python -m training.smol.readings --data ../shared/data --kind sroie --split train

Writes ``runs/smol/readings/<kind>-<split>.jsonl``, a line a page; a rerun goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alignvlm.data.benchmarks.tables import ChartQASource
from alignvlm.documents.opening import load_pages
from alignvlm.errors import DataError
from alignvlm.reader import ReaderModel

from .store import pack

RUNS = Path("runs/smol")


def documents(data: Path, kind: str, split: str) -> Iterator[tuple[str, Path]]:
    """Name and file of each document of a split."""
    if kind == "chartqa":
        source = ChartQASource(data / kind, split)
        for name in dict.fromkeys(row.key for row in source.rows):
            yield name, data / kind / split / "png" / name
        return
    folder = data / kind / split / ("pdfs" if kind == "deepform" else "img")
    for path in sorted(folder.iterdir()):
        yield path.stem, path


def read(model: ReaderModel, image: Image.Image) -> list[dict]:
    """Rows of a page as they are stored."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float()
    with torch.inference_mode():
        rows = model.read_page(pixels / 127.5 - 1)
    return [{**pack(r.characters), "boxes": [[round(v) for v in r.box]]} for r in rows]


def rapidocr_reader() -> Callable[[Image.Image], list[dict]]:
    """The rival: RapidOCR's pieces joined to rows, without any doubt."""
    from benchmarks.reading.readers import RapidOcr

    rival = RapidOcr(1, "smollm2")

    def rows(image: Image.Image) -> list[dict]:
        return [{"text": line, "options": {}, "boxes": []} for line in rival.rows(image).lines]

    return rows


def main() -> None:
    """Read what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kind", choices=("sroie", "deepform", "chartqa"), required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--limit", type=int, help="documents at most")
    parser.add_argument("--pages", type=int, default=3, help="of each PDF, at 144 dpi")
    parser.add_argument("--reader", default="models/reader", help="or rapidocr")
    parser.add_argument("--out", type=Path, default=RUNS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rival = asked.reader == "rapidocr"
    name = f"rapidocr-{asked.split}" if rival else f"{asked.kind}-{asked.split}"
    target = asked.out / "readings" / f"{name}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if target.is_file():
        done = {json.loads(line)["id"] for line in target.open(encoding="utf-8")}
    if rival:
        rows_of = rapidocr_reader()
    else:
        model = ReaderModel.from_pretrained(asked.reader, dtype=torch.float32).eval()
        rows_of = partial(read, model)
    chosen = list(documents(asked.data, asked.kind, asked.split))[: asked.limit]
    with target.open("a", encoding="utf-8") as file:
        for name, path in chosen:
            if name in done:
                continue
            try:
                images = load_pages(path, max_pages=asked.pages)
            except DataError as error:
                print(f"left out: {error}", flush=True)
                continue
            lines = [
                json.dumps({"id": name, "page": n, "rows": rows_of(i)}, ensure_ascii=False)
                for n, i in enumerate(images)
            ]
            file.write("\n".join(lines) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
