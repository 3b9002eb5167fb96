"""What it takes to teach a model a kind of document that it has never seen.

    python -m training.smol.train --data ../shared/data --without receipts --to runs/smol/unseen
    python -m training.smol.own_kind --data ../shared/data --out runs/smol/unseen --kind receipts

Receipts, or contracts, were left out of the model's training (``checkpoint.pt`` of the folder). It
is fine-tuned as a user would, ``alignvlm finetune --data TABLE`` with all defaults, on a few
labelled documents of the training split, and what ``alignvlm extract`` finds on those of the
validation split is scored, each time on the same ones. Beside it stand the model without any and
``smol``, whose training saw them all. The page on which a value of a PDF stands is looked up in the
PDF's own text; a value that is on none of the first pages is not taught.

Writes ``own_kind/<documents>-<draw>.json`` with score and minutes. What is there is not made again:
without the JSON a run that has ended is scored anew, without its folder it is trained anew.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from alignvlm.compose.assemble import compose
from alignvlm.compose.shipped import add_low_rank
from alignvlm.documents.opening import pdf_page_count, pdf_words
from alignvlm.eval.intervals import bootstrap_interval
from alignvlm.eval.metrics import METRICS
from alignvlm.eval.tasks.local_tasks import LOCAL_TASKS
from alignvlm.files import new_folder
from alignvlm.inference.extract import Extractor
from alignvlm.inference.loading import load_model
from alignvlm.weights.resolve import resolve

from .calibrate import FIELDS, PAGES, SOURCES, extracted, files, labelled
from .export import from_checkpoint
from .readings import RUNS
from .train import TEXT

KINDS = {"receipts": "sroie", "contracts": "deepform"}
SIZES = ["0", "5", "10", "20", "50", "all"]
UNTAUGHT = ("0", "all")
"""Without fine-tuning: the base, and ``smol``."""


def base_model(folder: Path) -> Path:
    """The model that has never seen the kind, as a folder to fine-tune."""
    target = folder / "model"
    if not target.is_dir():
        model, processor = compose("reader", str(resolve(TEXT)))
        changes, _ = from_checkpoint(folder / "checkpoint.pt")
        add_low_rank(model.model.language_model, {k: v.float() for k, v in changes.items()})
        with new_folder(target) as partial:
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
    return target


def write_table(data: Path, target: Path, kind: str, documents: int, draw: int) -> None:
    """Labelled documents of the training split as the table that ``alignvlm extract`` writes; a
    draw of more documents holds those of fewer."""
    source, called = SOURCES[KINDS[kind]](data / KINDS[kind], "train"), FIELDS[KINDS[kind]]
    rows, paths = labelled(source), files(source, data / KINDS[kind] / "train")
    whole = [key for key, values in rows.items() if len(values) == len(called)]
    random.Random(draw).shuffle(whole)
    details = [f"{name}_{detail}" for name in called.values() for detail in ("page", "note")]
    with target.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["file", *called.values(), *details])
        table.writeheader()
        for key in whole[:documents]:
            cells = {"file": str(paths[key].absolute())}
            texts = page_texts(paths[key])
            for name, (value, *_) in rows[key].items():
                page = page_of(value, texts)
                there = {called[name]: value, f"{called[name]}_page": str(page)}
                cells |= there if page else {f"{called[name]}_note": "not in the PDF's text"}
            table.writerow(cells)


def page_texts(path: Path) -> list[str] | None:
    """The words of the first pages of a PDF; ``None`` of a picture."""
    if path.suffix.lower() != ".pdf":
        return None
    pages = range(min(PAGES, pdf_page_count(path)))
    return [" ".join(word.text for word in pdf_words(path, page)) for page in pages]


def page_of(value: str, texts: list[str] | None) -> int:
    """The first page with a value, from 1; 0: it is on none."""
    if texts is None:
        return 1
    wanted = "".join(value.split()).lower()
    there = (wanted in "".join(text.split()).lower() for text in texts)
    return next((number for number, found in enumerate(there, start=1) if found), 0)


def score(model: str | Path, data: Path, kind: str, split: str, chosen: slice) -> dict[str, Any]:
    """F1 of what is extracted, with its interval over documents, and each field's share."""
    name = KINDS[kind]
    extractor = Extractor(*load_model(str(model)), list(FIELDS[name].values()))
    metric = METRICS[LOCAL_TASKS[name].metrics[0]]
    keys, verdicts, said = [], [], []
    for key, values, gold in extracted(extractor, data, name, split, chosen):
        for field, answers in gold.items():
            keys.append(key)
            verdicts.append(metric.verdict(values[field].text, answers))
            said.append([key, field, values[field].text, answers[0], bool(verdicts[-1]["tp"])])
    shares = {
        field: sum(right for *_, right in own) / len(own)
        for field in FIELDS[name]
        if (own := [one for one in said if one[1] == field])
    }
    return {
        "f1": metric.aggregate(verdicts),
        "interval": list(bootstrap_interval(keys, verdicts, metric.aggregate)),
        "fields": len(verdicts), "right": shares, "said": said,
    }  # fmt: skip


def taught(
    base: Path, data: Path, kind: str, folder: Path, documents: int, draw: int, options: list[str]
) -> tuple[Path, dict[str, Any]]:
    """The model after ``alignvlm finetune`` and ``merge``, and how long the former took."""
    work = folder / f"{documents}-{draw}"
    shutil.rmtree(work / "model", ignore_errors=True)
    command = [sys.executable, "-m", "alignvlm"]
    if (work / "run").is_dir():
        if (kept := json.loads((work / "options.json").read_text("utf-8"))) != options:
            raise SystemExit(f"error: {work / 'run'} was trained with {kept}: give another --to")
    else:
        work.mkdir(exist_ok=True)
        (work / "options.json").write_text(json.dumps(options), "utf-8")
        table = work / f"{kind}.csv"
        write_table(data, table, kind, documents, draw)
        asked = [*command, "finetune", str(base), "--data", str(table), "--out", str(work / "run")]
        subprocess.run([*asked, "--overwrite", *options], check=True)
    subprocess.run([*command, "merge", str(work / "run"), "--out", str(work / "model")], check=True)
    report = json.loads((work / "run" / "report.json").read_text("utf-8"))
    return work / "model", {"minutes": report["seconds"] / 60, "kept": report["kept"]}


def summary(folder: Path) -> None:
    """A line a number of documents: mean over draws, and each draw."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*.json")):
        found.setdefault(path.stem.partition("-")[0], []).append(
            json.loads(path.read_text("utf-8"))
        )
    for name in sorted(found, key=lambda name: int(name) if name.isdigit() else sys.maxsize):
        runs = found[name]
        scores, minutes = ([run[key] for run in runs] for key in ("f1", "minutes"))
        each = ", ".join(f"{one:.3f}" for one in scores)
        mean = sum(scores) / len(scores)
        print(f"{name:>4} documents: F1 {mean:.3f} ({each}), {max(minutes):.1f} minutes at most")


def main() -> None:
    """Fine-tune and score what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RUNS / "unseen", help="has the checkpoint")
    parser.add_argument("--kind", choices=KINDS, required=True, help="that was left out")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, help="documents")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="val", help="of the documents that are scored")
    parser.add_argument("--chosen", type=int, nargs=2, metavar=("FROM", "TO"), default=(0, None))
    parser.add_argument("--to", default="own_kind", help="name of the folder of results")
    parser.add_argument("options", nargs="*", help="behind --, for alignvlm finetune")
    asked = parser.parse_args()
    folder, base, chosen = asked.out / asked.to, base_model(asked.out), slice(*asked.chosen)
    folder.mkdir(exist_ok=True)

    def write(name: str, model: str | Path, about: dict[str, Any]) -> None:
        found = {**about, **score(model, asked.data, asked.kind, asked.split, chosen)}
        (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        print(name, {key: value for key, value in found.items() if key != "said"}, flush=True)

    for draw in asked.draws:
        for size in asked.sizes:
            name = f"{size}-{draw}"
            if (folder / f"{name}.json").is_file():
                continue
            if size in UNTAUGHT:
                if draw == asked.draws[0]:
                    write(name, base if size == "0" else "smol", {"minutes": 0.0})
                continue
            model, about = taught(
                base, asked.data, asked.kind, folder, int(size), draw, asked.options
            )
            write(name, model, about)
            shutil.rmtree(model)
    summary(folder)


if __name__ == "__main__":
    main()
