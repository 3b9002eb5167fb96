"""The scorers of other repositories, as functions of a prediction and its answers.

Each reader takes the folder of a clone and yields the name of our metric and their function.
Single functions are run out of their files, so nothing of theirs has to be installed.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.wtq_official import load_evaluator

Scorer = Callable[[str, tuple[str, ...]], Any]


def extract(path: Path, names: str, **given: Any) -> dict[str, Any]:
    """Run only the named top-level functions, classes and constants of a file.

    Decorators are dropped, except ``dataclass``; ``given`` are the names they use.
    """
    wanted, nodes = set(names.split()), []
    for node in ast.parse(python3(path.read_text("utf-8"))).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in wanted:
            node.decorator_list = [d for d in node.decorator_list if "dataclass" in ast.dump(d)]
            nodes.append(node)
    future = ast.parse("from __future__ import annotations").body
    module = ast.Module([*future, *nodes], [])
    space: dict[str, Any] = {"re": re, "math": math, "statistics": statistics, **given}
    space["__name__"] = "extracted"
    sys.modules.setdefault("extracted", type(sys)("extracted"))  # dataclasses look there
    exec(compile(module, str(path), "exec"), space)
    return space


def python3(source: str) -> str:
    """Make the print statements of the VQA scorer calls."""
    return re.sub(r'^(\s*)print "(.*)"$', r'\1print("\2")', source, flags=re.M)


def lmms(root: Path) -> Iterator[tuple[str, Scorer]]:
    tasks = root / "lmms_eval" / "tasks"
    anls = extract(root / "lmms_eval/api/metrics.py", "anls levenshtein_distance")["anls"]
    yield "anls", lambda p, a: float(anls(list(a), [p])["anls"])
    relaxed = extract(tasks / "chartqa/utils.py", "relaxed_correctness")["relaxed_correctness"]
    yield "relaxed_accuracy", lambda p, a: float(any(relaxed(p, x) for x in a))
    processor = extract(tasks / "_task_utils/vqa_eval_metric.py", "EvalAIAnswerProcessor")
    names = {"EvalAIAnswerProcessor": processor["EvalAIAnswerProcessor"]}
    text = extract(tasks / "textvqa/utils.py", "textvqa_process_results", **names)

    doc = lambda a: {"answers": list(a), "question_id": 0}  # noqa: E731
    yield (
        "textvqa_accuracy",
        lambda p, a: text["textvqa_process_results"](doc(a), [p])["exact_match"],
    )
    try:
        import spacy
    except ImportError:
        return
    english = spacy.blank("en")
    ngrams = lambda t, n: zip(*(t[i:] for i in range(n)))  # noqa: E731
    rouge = type("", (), {"compute": staticmethod(lambda **_: {"rouge1": 0.0})})
    single = extract(
        tasks / "vcr_wiki/utils.py", "vcr_process_results_single tokenize fast_filter",
        nlp={"en": english}, ngrams=ngrams, SM=SequenceMatcher, rouge=rouge, partial=partial,
    )["vcr_process_results_single"]  # fmt: skip

    def vcr(p: str, a: tuple[str, ...]) -> tuple[float, float]:
        found = [single(x, p, "en") for x in a]
        return sum(x["exact_match"] for x in found), sum(x["jaccard"] for x in found)

    yield "vcr", vcr
    yield "vcr, spaCy tokens in ours", vcr


def vlmevalkit(root: Path) -> Iterator[tuple[str, Scorer]]:
    punctuation = extract(root / "vlmeval/smp/misc.py", "process_punctuation")
    names = "process_line process_answer _process_digit_article anls_compute "
    names += "levenshtein_distance relaxed_correctness"
    line = extract(
        root / "vlmeval/dataset/utils/vqa_eval.py", names, istype=lambda x, _: True,
        process_punctuation=punctuation["process_punctuation"], Optional=None,
    )["process_line"]  # fmt: skip

    def match(method: str, p: str, a: tuple[str, ...]) -> list[float]:
        return line({"answer": repr(list(a)), "prediction": p}, method=method)["match"]

    def anls(p: str, a: tuple[str, ...]) -> float:
        best = 1 - min(match("anls", p, a))
        return best if best >= 0.5 else 0.0

    yield "anls", anls
    yield "relaxed_accuracy", lambda p, a: float(max(match("relaxed_accuracy", p, a)))
    yield "textvqa_accuracy", lambda p, a: statistics.mean(match("vqa_score", p, a))
    read = extract(
        root / "vlmeval/dataset/utils/yorn.py", "YOrN_Extraction",
        process_punctuation=punctuation["process_punctuation"],
    )["YOrN_Extraction"]  # fmt: skip
    yield "tabfact_accuracy", lambda p, a: float(read(p).lower() == a[0])


def due(root: Path) -> Iterator[tuple[str, Scorer]]:
    path = root / "due_evaluator/scorers/fscorer.py"
    scorer = extract(
        path, "Annotation FScorer", dataclass=dataclasses.dataclass, field=dataclasses.field,
        BaseScorer=object,
    )["FScorer"]  # fmt: skip

    def counts(p: str, a: tuple[str, ...]) -> tuple[int, int, int]:
        one, upper = scorer(), [x.upper() for x in a]
        values = [{"value": upper[0], "value_variants": upper}] if a else []
        found = [{"value": p.upper()}] if p else []
        document = lambda v: {"annotations": [{"key": "k", "values": v}]}  # noqa: E731
        one.add(document(found), document(values))
        return one.true_positive(), one.false_positive(), one.false_negative()

    yield "field_f1", counts


def pix2struct(root: Path) -> Iterator[tuple[str, Scorer]]:
    from rapidfuzz.distance import Levenshtein

    distance = type("", (), {"eval": staticmethod(Levenshtein.distance)})
    theirs = extract(
        root / "pix2struct/metrics.py", "anls_metric relaxed_correctness", editdistance=distance
    )
    relaxed, one = theirs["relaxed_correctness"], theirs["anls_metric"]
    yield "relaxed_accuracy", lambda p, a: float(any(relaxed(x, p) for x in a))
    yield (
        "anls",
        lambda p, a: max(float(one(x.lower(), p.lower())) if x or p else 1.0 for x in a),
    )


def wtq(root: Path) -> Iterator[tuple[str, Scorer]]:
    names = load_evaluator(root / "evaluator.py")
    values, check = names["to_value_list"], names["check_denotation"]

    def right(p: str, a: tuple[str, ...]) -> float:
        target, _, canonical = zip(*(item.partition("\t") for item in a))
        return float(check(values(target, canonical), values(p.split("|"))))

    yield "denotation_accuracy", right


def anls_star() -> Iterator[tuple[str, Scorer]]:
    try:
        from anls_star import anls_score
    except ImportError:
        return
    yield "anls", lambda p, a: float(anls_score(a if len(a) > 1 else a[0], p))


READERS = {
    "lmms-eval": lmms, "VLMEvalKit": vlmevalkit, "due-evaluator": due,
    "pix2struct": pix2struct, "WikiTableQuestions": wtq,
}  # fmt: skip
