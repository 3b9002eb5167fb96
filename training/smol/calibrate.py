"""How sure ``alignvlm extract`` is of a receipt's fields, and a map that makes probabilities of it.

    python -m training.smol.calibrate --data ../shared/data --out runs/smol

Every receipt of a split is extracted by the shipped model with no calibration; an answer is right
if the benchmark's metric says so. Receipts are dealt into five parts: each part is judged by the
map fitted on the others. Writes ``calibration.json``, fitted on all, and ``confidence.json`` with
the expected calibration error, the reliability table and the risk-coverage curve.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignvlm.data.benchmarks.tables import SROIESource
from alignvlm.documents.page_images import Pages
from alignvlm.eval.metrics import METRICS
from alignvlm.inference.ask import load_model
from alignvlm.inference.confidence import (
    Calibration,
    calibration_error,
    fit_calibration,
    risk_coverage,
)
from alignvlm.inference.extract import Extractor

from .readings import RUNS

FIELDS = ("company", "date", "address", "total")
FOLDS = 5


class Marked(NamedTuple):
    """A field that was extracted."""

    receipt: str
    field: str
    said: str
    score: float
    right: bool


def marked(data: Path, split: str, limit: int | None) -> list[Marked]:
    """What is extracted from each receipt of a split, and whether it is right."""
    source = SROIESource(data / "sroie", split)
    answers: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in source.rows:
        answers.setdefault(row.key, {})[row.id.rpartition("/")[2]] = row.answers
    model, processor = load_model("smol")
    extractor = Extractor(model, processor, FIELDS)
    extractor.calibration = None  # whatever the model has by now
    verdict = METRICS["sroie_f1"].verdict
    found = []
    for key, gold in list(answers.items())[:limit]:
        read = extractor(Pages([data / "sroie" / split / "img" / key]))
        for name, value in read.values.items():
            if name in gold and value.confidence > 0:
                right = bool(verdict(value.text, gold[name])["tp"])
                score = float(np.log(value.confidence))
                found.append(Marked(key, name, value.text, score, right))
        print(key, [(m.field, m.said, m.right) for m in found if m.receipt == key], flush=True)
    return found


def held_out(answers: list[Marked]) -> np.ndarray:
    """Confidence of each answer, by the map that was fitted on the other parts."""
    receipts = list(dict.fromkeys(one.receipt for one in answers))
    part = np.array([receipts.index(one.receipt) % FOLDS for one in answers])
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


def summary(answers: list[Marked]) -> dict[str, Any]:
    """Errors before and after, and what is right at which coverage."""
    right = np.array([one.right for one in answers])
    raw = np.exp([one.score for one in answers])
    confidence = held_out(answers)
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
    parser.add_argument("--limit", type=int, help="receipts")
    parser.add_argument("--out", type=Path, default=RUNS)
    asked = parser.parse_args()
    answers = marked(asked.data, asked.split, asked.limit)
    found = summary(answers)
    (asked.out / "confidence.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    fitted: Calibration = fit_calibration([a.score for a in answers], [a.right for a in answers])
    fitted.save(asked.out / "calibration.json")
    print(json.dumps({k: v for k, v in found.items() if k not in ("curve", "reliability")}))
    print(fitted)


if __name__ == "__main__":
    main()
