"""What it takes to teach a model a kind of document that it has never seen.

    python -m training.smol.train --data ../shared/data --without receipts --to runs/smol/unseen
    python -m training.smol.own_kind --data ../shared/data --out runs/smol/unseen

Receipts were left out of the model's training (``checkpoint.pt`` of the folder). It is fine-tuned
as a user would, ``alignvlm finetune --data TABLE`` with all defaults, on a few labelled receipts of
the training split, and what ``alignvlm extract`` finds on validation receipts is scored, each time
on the same ones. Beside it stand the model without any and ``smol``, whose training saw them all.

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
from alignvlm.eval.intervals import bootstrap_interval
from alignvlm.eval.metrics import METRICS
from alignvlm.eval.tasks.local_tasks import LOCAL_TASKS
from alignvlm.files import new_folder
from alignvlm.inference.extract import Extractor
from alignvlm.inference.loading import load_model
from alignvlm.weights.resolve import resolve

from .calibrate import FIELDS, SOURCES, extracted, labelled
from .export import from_checkpoint
from .readings import RUNS
from .train import TEXT

KIND = "sroie"
NAMES = list(FIELDS[KIND].values())
SIZES = ["0", "5", "10", "20", "50", "all"]
UNTAUGHT = ("0", "all")
"""Without fine-tuning: the base, and ``smol``."""


def base_model(folder: Path) -> Path:
    """The model that has never seen a receipt, as a folder to fine-tune."""
    target = folder / "model"
    if not target.is_dir():
        model, processor = compose("reader", str(resolve(TEXT)))
        changes, _ = from_checkpoint(folder / "checkpoint.pt")
        add_low_rank(model.model.language_model, {k: v.float() for k, v in changes.items()})
        with new_folder(target) as partial:
            model.save_pretrained(partial)
            processor.save_pretrained(partial)
    return target


def write_table(data: Path, target: Path, documents: int, draw: int) -> None:
    """Labelled receipts of the training split as the table that ``alignvlm extract`` writes; a
    draw of more documents holds those of fewer."""
    rows = labelled(SOURCES[KIND](data / KIND, "train"))
    whole = [key for key, values in rows.items() if len(values) == len(NAMES)]
    random.Random(draw).shuffle(whole)
    with target.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["file", *NAMES])
        table.writeheader()
        for key in whole[:documents]:
            table.writerow({"file": key, **{name: own[0] for name, own in rows[key].items()}})


def score(model: str | Path, data: Path, split: str, chosen: slice) -> dict[str, Any]:
    """F1 of what is extracted, with its interval over documents, and each field's share."""
    extractor = Extractor(*load_model(str(model)), NAMES)
    metric = METRICS[LOCAL_TASKS[KIND].metrics[0]]
    keys, verdicts, said = [], [], []
    for key, values, gold in extracted(extractor, data, KIND, split, chosen):
        for name, answers in gold.items():
            keys.append(key)
            verdicts.append(metric.verdict(values[name].text, answers))
            said.append([key, name, values[name].text, answers[0], bool(verdicts[-1]["tp"])])
    shares = {
        name: sum(right for *_, right in own) / len(own)
        for name in NAMES
        if (own := [one for one in said if one[1] == name])
    }
    return {
        "f1": metric.aggregate(verdicts),
        "interval": list(bootstrap_interval(keys, verdicts, metric.aggregate)),
        "fields": len(verdicts), "right": shares, "said": said,
    }  # fmt: skip


def taught(
    base: Path, data: Path, folder: Path, documents: int, draw: int, options: list[str]
) -> tuple[Path, dict[str, Any]]:
    """The model after ``alignvlm finetune`` and ``merge``, and how long the former took."""
    work = folder / f"{documents}-{draw}"
    shutil.rmtree(work / "model", ignore_errors=True)
    command = [sys.executable, "-m", "alignvlm"]
    if not (work / "run").is_dir():
        work.mkdir(exist_ok=True)
        write_table(data, work / "receipts.csv", documents, draw)
        images = ["--images", str(data / KIND / "train" / "img")]
        table = ["--data", str(work / "receipts.csv"), *images]
        asked = [*command, "finetune", str(base), *table, "--out", str(work / "run"), *options]
        subprocess.run([*asked, "--overwrite"], check=True)
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
        found = {**about, **score(model, asked.data, asked.split, chosen)}
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
            model, about = taught(base, asked.data, folder, int(size), draw, asked.options)
            write(name, model, about)
            shutil.rmtree(model)
    summary(folder)


if __name__ == "__main__":
    main()
