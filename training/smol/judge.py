"""Scores of what :mod:`.answer` said, beside what could be said without a page.

    python -m training.smol.judge --data ../shared/data --out runs/smol

A line a task and what the model was given: score with its interval over documents, and the paired
difference to our reader on the same questions. *majority* is the most frequent answer of the
training split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from alignvlm.errors import DataError
from alignvlm.eval.baselines import KnownAnswers, MajorityAnswerer, training_task
from alignvlm.eval.intervals import Paired, bootstrap_interval
from alignvlm.eval.tasks import load_task
from alignvlm.inference.answerers import Query
from alignvlm.weights.resolve import resolve

from .asked import GIVEN, SPLITS
from .readings import RUNS
from .train import TEXT

Said = dict[int, str]
"""Answers by the number of the sample."""


def load(path: Path, tokenizer: Any) -> Said:
    """Answers as text."""
    stored = json.loads(path.read_text("utf-8"))["said"]
    return {number: tokenizer.decode(ids, skip_special_tokens=True) for number, ids in stored}


def majority(task: Any, data: Path, numbers: list[int]) -> Said:
    """The floor that looks at no page."""
    answerer = MajorityAnswerer(KnownAnswers.of(training_task(task, data)))
    samples = [task.sample(number) for number in numbers]
    queries = [Query(s.id, [], s.prompt, 0) for s in samples]
    return {n: reply.text for n, reply in zip(numbers, answerer.answer(queries), strict=True)}


class Scorer:
    """The task's first metric over samples."""

    def __init__(self, task: Any) -> None:
        self.task, self.metric = task, task.metrics[0]

    def verdicts(self, said: Said, numbers: list[int]) -> list[Any]:
        answers = [self.task.sample(n).answers for n in numbers]
        return self.metric.verdicts([said[n] for n in numbers], answers)

    def row(self, said: Said, beside: Said | None) -> dict[str, Any]:
        """Score, interval, and the difference to other answers to the same questions."""
        numbers = sorted(said)
        keys = [self.task.sample(n).group for n in numbers]
        own = self.verdicts(said, numbers)
        score = self.metric.aggregate(own)
        found: dict[str, Any] = {
            "score": round(score, 4), "questions": len(numbers), "documents": len(set(keys)),
            "interval": [round(v, 4) for v in bootstrap_interval(keys, own, self.metric.aggregate)],
        }  # fmt: skip
        both = sorted(set(said) & set(beside)) if beside else []
        if both:
            pair = [self.verdicts(one, both) for one in (said, beside or {})]
            keys = [self.task.sample(n).group for n in both]
            paired = Paired(keys, *pair, self.metric.aggregate)
            found["reader less it"] = round(paired.difference, 4)
            found["its interval"] = [round(v, 4) for v in paired.interval()]
            found["shared"] = len(both)
        return found


def main() -> None:
    """Print and write ``judged.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--show", type=int, default=0, help="answers of each")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve(TEXT))
    judged: dict[str, Any] = {}
    for name, split in SPLITS.items():
        task = load_task(name, asked.data / name, split)
        scorer = Scorer(task)
        paths = {given: asked.out / "answers" / f"{name}-{given}.json" for given in GIVEN}
        said = {given: load(path, tokenizer) for given, path in paths.items() if path.is_file()}
        if not said:
            continue
        first = said.get("reader")
        try:
            widest = max(said.values(), key=len)
            said["majority"] = majority(task, asked.data / name, sorted(widest))
        except DataError as error:
            print(f"{name}: {error}")
        rows = {g: scorer.row(s, None if g == "reader" else first) for g, s in said.items()}
        judged[name] = {"metric": scorer.metric.name, "rows": rows}
        for given, row in rows.items():
            print(f"{name:9} {given:9} {json.dumps(row)}", flush=True)
        for given, own in said.items():
            for number in sorted(own)[: asked.show]:
                sample = task.sample(number)
                about = f"{given} {sample.group} {sample.question!r}"
                print(f"  {about}: {own[number]!r} {sample.answers}")
    (asked.out / "judged.json").write_text(json.dumps(judged, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
