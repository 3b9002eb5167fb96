"""How sure ``alignvlm extract`` is of a document's fields, and a map to probabilities.

    python -m training.smol.calibrate --data ../shared/data --out runs/smol
    python -m training.smol.calibrate --data ../shared/data --out runs/smol --kind deepform

Every document of a split is extracted by the shipped model with no calibration; an answer is right
if the benchmark's metric says so. Documents are dealt into five parts: each part is judged by the
map fitted on the others. Writes ``confidence.json`` with the expected calibration error, the
reliability table and the risk-coverage curve, and ``calibration.json``, fitted on all. With
``--kind deepform`` the files are ``confidence-deepform.json`` and, of contracts, no map: how well
the shipped one, of receipts, does there is what it says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignvlm.data.benchmarks.forms import PDFBenchmark
from alignvlm.data.benchmarks.tables import DeepFormSource, SROIESource
from alignvlm.documents.page_images import Pages
from alignvlm.eval.metrics import METRICS
from alignvlm.eval.tasks.local_tasks import LOCAL_TASKS
from alignvlm.inference.ask import load_model
from alignvlm.inference.confidence import (
    Calibration,
    calibration_error,
    fit_calibration,
    risk_coverage,
)
from alignvlm.inference.extract import Extractor, FieldValue
from alignvlm.weights.resolve import resolve

from .readings import RUNS

SOURCES: dict[str, Any] = {"sroie": SROIESource, "deepform": DeepFormSource}
FIELDS = {
    "sroie": {name: name for name in ("company", "date", "address", "total")},
    "deepform": {
        "contract_num": "contract number", "advertiser": "advertiser",
        "gross_amount": "gross amount", "flight_from": "flight start date",
        "flight_to": "flight end date",
    },
}  # fmt: skip
"""Fields of a benchmark, and what people call them."""
PAGES = 3
"""Of a contract."""
FOLDS = 5


class Marked(NamedTuple):
    """A field that was extracted."""

    document: str
    field: str
    said: str
    score: float
    right: bool


def labelled(source: Any) -> dict[str, dict[str, tuple[str, ...]]]:
    """The accepted answers of each field of each document, by its name."""
    answers: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in source.rows:
        answers.setdefault(row.key, {})[row.id.rpartition("/")[2]] = row.answers
    return answers


def files(source: Any, folder: Path) -> dict[str, Path]:
    """The picture or PDF of each document of a split, which is in ``folder``."""
    if isinstance(source, PDFBenchmark):
        return {row.key: source.path(row) for row in source.rows}
    return {row.key: folder / "img" / row.key for row in source.rows}


def extracted(
    extractor: Extractor, data: Path, kind: str, split: str, chosen: slice = slice(None)
) -> Iterator[tuple[str, dict[str, FieldValue], dict[str, tuple[str, ...]]]]:
    """Documents of a split by name, with the value and the accepted answers of each field."""
    source = SOURCES[kind](data / kind, split)
    paths = files(source, data / kind / split)
    for key, gold in list(labelled(source).items())[chosen]:
        read = extractor(Pages([paths[key]], max_pages=PAGES))
        yield key, {name: read.values[called] for name, called in FIELDS[kind].items()}, gold


def marked(data: Path, kind: str, split: str, limit: int | None) -> list[Marked]:
    """What is extracted from each document of a split, and whether it is right."""
    model, processor = load_model("smol")
    extractor = Extractor(model, processor, list(FIELDS[kind].values()))
    extractor.calibration = None  # whatever the model has by now
    verdict = METRICS[LOCAL_TASKS[kind].metrics[0]].verdict
    found = []
    for key, values, gold in extracted(extractor, data, kind, split, slice(limit)):
        for name, value in values.items():
            if name in gold and value.confidence > 0:
                right = bool(verdict(value.text, gold[name])["tp"])
                score = float(np.log(value.confidence))
                found.append(Marked(key, name, value.text, score, right))
        print(key, [(m.field, m.said, m.right) for m in found if m.document == key], flush=True)
    return found


def held_out(answers: list[Marked]) -> np.ndarray:
    """Confidence of each answer, by the map that was fitted on the other parts."""
    documents = list(dict.fromkeys(one.document for one in answers))
    part = np.array([documents.index(one.document) % FOLDS for one in answers])
    scores = np.array([one.score for one in answers])
    right = np.array([one.right for one in answers])
    confidence = np.zeros(len(answers))
    for fold in range(FOLDS):
        fitted = fit_calibration(scores[part != fold], right[part != fold])
        confidence[part == fold] = [fitted(score) for score in scores[part == fold]]
    return confidence


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> list[dict[str, Any]]:
    """Mean confidence and share of right answers, bin by bin."""
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "from": n / bins,
            "answers": int((number == n).sum()),
            "confidence": round(float(confidence[number == n].mean()), 3),
            "right": round(float(right[number == n].mean()), 3),
        }
        for n in np.unique(number).tolist()
    ]


def summary(answers: list[Marked], given: Calibration | None = None) -> dict[str, Any]:
    """Errors before and after, and what is right at which coverage; by a map that is given, or by
    those of :func:`held_out`."""
    right = np.array([one.right for one in answers])
    scores = [one.score for one in answers]
    raw = np.exp(scores)
    confidence = held_out(answers) if given is None else np.array([given(s) for s in scores])
    coverage, risk = risk_coverage(confidence, right)
    wrong = float(1 - right.mean())
    half = int(np.searchsorted(coverage, 0.5))
    return {
        "answers": len(answers),
        "right": round(float(right.mean()), 4),
        "calibration_error": round(calibration_error(confidence, right), 4),
        "calibration_error_as_it_comes": round(calibration_error(raw, right), 4),
        "risk_at_half": round(float(risk[half]), 4),
        "errors_at_half": round(float(risk[half] * coverage[half] / max(wrong, 1e-9)), 4),
        "reliability": reliability(confidence, right),
        "curve": [[round(float(c), 3), round(float(r), 4)] for c, r in zip(coverage, risk)][::8],
    }


def main() -> None:
    """Extract, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--kind", choices=SOURCES, default="sroie")
    parser.add_argument("--limit", type=int, help="documents")
    parser.add_argument("--out", type=Path, default=RUNS)
    asked = parser.parse_args()
    answers = marked(asked.data, asked.kind, asked.split, asked.limit)
    if asked.kind != "sroie":
        shipped = Calibration.load(resolve("smol") / "calibration.json")
        found = {"by the shipped map": summary(answers, shipped), "by its own": summary(answers)}
        path = asked.out / f"confidence-{asked.kind}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        for name, own in found.items():
            print(name, {k: v for k, v in own.items() if k not in ("curve", "reliability")})
        return
    found = summary(answers)
    (asked.out / "confidence.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    fitted: Calibration = fit_calibration([a.score for a in answers], [a.right for a in answers])
    fitted.save(asked.out / "calibration.json")
    print(json.dumps({k: v for k, v in found.items() if k not in ("curve", "reliability")}))
    print(fitted)


if __name__ == "__main__":
    main()
