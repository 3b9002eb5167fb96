"""Do our metrics give the verdicts of other people's scorers? Generated pairs, seeded.

    python -m benchmarks.crosscheck_metrics REPOSITORIES [--pairs 4000] [--seed 0]

REPOSITORIES is a folder with clones, whichever there are, under these names: ``lmms-eval``,
``VLMEvalKit``, ``due-evaluator`` (due-benchmark/evaluator), ``pix2struct`` (google-research).
Single functions are taken from their files, so nothing of theirs needs to be installed. The
packages anls-star and spacy are compared where they are installed.

Prints, for each metric and scorer, how many verdicts agree, and one example for each class of
disagreement. ``--golden N`` prints instead N rows a metric for the frozen table of the tests.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alignvlm.eval import metrics
from alignvlm.eval.metrics.vcr_overlap import vcr_verdict
from alignvlm.eval.metrics.vqa import textvqa_normalize, vqa_normalize
from benchmarks.reference_scorers import READERS, Scorer, anls_star

Pair = tuple[str, tuple[str, ...]]


class Check(NamedTuple):
    """A metric, the other scorer's name, both functions, and what tells disagreements apart."""

    metric: str
    other: str
    ours: Scorer
    theirs: Scorer
    pairs: Callable[[random.Random, int], Iterator[Pair]]
    why: Callable[[str, tuple[str, ...]], str]


# ------------------------------------------------------------------ generated pairs

WORDS = re.split(
    "[;\n]",
    """Paris;the Coca-Cola Company;12,467;1999;3.5%;42;-7;0;0.5;$1,250.00;n/a;two dogs;None;10 kg
January 5, 2010;2010-05-01;Dr. O'Neil;U.S.;José María;naïve café;“quoted”;1990–91;５５;½
dont know;can't;couldnt've;somebody'd;a;the;A/B;e-mail: a@b.org;x_y;NaN;inf;1e3;+5;5.;.5
Straße;İzmir;no;yes;Not sure;tens of thousands;what?;it's;oclock;[1];100%;%
line one two three""",
)


def change(text: str, draw: random.Random) -> str:
    """Change a text as a model might: case, spaces, marks, numbers, letters."""
    at = draw.randrange(len(text) + 1)
    letter = draw.choice("abz059 .,-–%$'’\u0301é!?")
    return draw.choice(
        (
            text, text, text.upper(), text.lower(), text.title(), f" {text} ", f"{text}.",
            text.replace(" ", "  "), text.replace(",", ""), text.replace("%", ""), f"{text}%",
            f"the {text}", f"{text}, {text}", text[:at] + letter + text[at:],
            text[:at] + text[at + 1 :], text[:at] + letter + text[at + 1 :], text[:at],
            text[at:], f"{text}\n", "", f"{text}?",
            scaled(text, draw), scaled(text, draw), draw.choice(WORDS),
        )
    )  # fmt: skip


def scaled(text: str, draw: random.Random) -> str:
    try:
        return f"{float(text.rstrip('%')) * draw.choice((0.94, 0.95, 0.96, 1, 1.04, 1.05, 1.06)):g}"
    except ValueError:
        return text


def alternatives(draw: random.Random, count: int) -> Iterator[Pair]:
    for _ in range(count):
        answers = tuple(draw.choice(WORDS) for _ in range(draw.choice((1, 1, 2, 3))))
        yield change(change(draw.choice(answers), draw), draw), answers


def people(draw: random.Random, count: int) -> Iterator[Pair]:
    for _ in range(count):
        base, spread = draw.choice(WORDS), draw.choice((0, 0.3, 0.7))
        answers = [change(base, draw) if draw.random() < spread else base for _ in range(10)]
        yield change(draw.choice(answers), draw), tuple(answers)


def labels(draw: random.Random, count: int) -> Iterator[Pair]:
    parts = [*"yes no Yes No YES NO not True false maybe 1 0 none".split(" "), "a dog"]  # noqa: SIM905
    ends = ("", ".", ",", "!", ". ", "\n", ". There is no cat.", ", it is", " sure")
    for _ in range(count):
        text = " ".join(draw.choice(parts) for _ in range(draw.choice((1, 1, 1, 2, 3))))
        yield draw.choice(("", text + draw.choice(ends), text)), (draw.choice(("yes", "no")),)


def fields(draw: random.Random, count: int) -> Iterator[Pair]:
    for prediction, answers in alternatives(draw, count):
        yield prediction, answers if draw.random() > 0.1 else ()


def lists(draw: random.Random, count: int) -> Iterator[Pair]:
    for _, answers in alternatives(draw, count):
        items = [change(answer, draw) for answer in answers]
        if draw.random() < 0.2:
            items.append(draw.choice(items))
        draw.shuffle(items)
        if draw.random() < 0.2:
            answers = tuple(f"{a}\t{draw.choice(('5.0', '2010-05-01', a))}" for a in answers)
        yield "|".join(items), answers


def covered(draw: random.Random, count: int) -> Iterator[Pair]:
    for _ in range(count):
        words = [draw.choice(WORDS) for _ in range(draw.randrange(3, 9))]
        text = " ".join(words)
        spans = [sorted(draw.sample(range(len(words) + 1), 2)) for _ in range(draw.randrange(1, 4))]
        yield change(text, draw), tuple(" ".join(words[a:b]) for a, b in spans)


# ------------------------------------------------------------------ classes of disagreement


def why_anls(p: str, a: tuple[str, ...]) -> str:
    plain = [" ".join(x.lower().split()) for x in (p, *a)]
    if any(y != x.lower() for x, y in zip((p, *a), plain)):
        return "whitespace to spare"
    if any(len(x) != len(x.upper()) or len(x) != len(x.lower()) for x in (p, *a)):
        return "a letter whose upper case is longer"
    return "similarity of exactly 0.5" if metrics.anls(p, a) == 0.5 else "other"


def why_relaxed(p: str, a: tuple[str, ...]) -> str:
    if p.strip().lower() in ("nan", "inf") or {"nan", "inf"} & {x.lower() for x in a}:
        return "nan or inf"
    return "surrounding whitespace" if p != p.strip() else "other"


def why_vqa(p: str, a: tuple[str, ...]) -> str:
    texts = (p, *a)
    if any(re.search(r"\d\.(?!\d)", x) for x in texts):
        return "a period after a digit"
    if any(vqa_normalize(x) != textvqa_normalize(x) for x in texts):
        return "comma, question mark or 's"
    return "other"


def why_yes_no(p: str, a: tuple[str, ...]) -> str:
    words = set(re.findall(r"\w+", p.lower()))
    if not p.strip():
        return "empty answer"
    if {"yes", "no"} <= words:
        return "both yes and no"
    if words & {"true", "false", "0", "1"}:
        return "true, false, 1, 0"
    return "a negation" if "not" in words else "longer answer, case or mark after the word"


def why_field(p: str, a: tuple[str, ...]) -> str:
    if p.strip().lower() == "none":
        return '"None" as no value'
    return "surrounding whitespace" if p != p.strip() else "other"


def why_denotation(p: str, a: tuple[str, ...]) -> str:
    return "empty prediction" if not p.strip() else "other"


def why_vcr(p: str, a: tuple[str, ...]) -> str:
    return "texts split differently"


def field_counts(p: str, a: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(metrics.field_verdict(p, a).values())


def vcr_sums(p: str, a: tuple[str, ...], **options: Any) -> tuple[float, ...]:
    return tuple(vcr_verdict(p, a, **options).values())[:2]


def vcr_spacy(p: str, a: tuple[str, ...]) -> tuple[float, ...]:
    import spacy

    if not hasattr(vcr_spacy, "english"):
        vcr_spacy.english = spacy.blank("en")
    return vcr_sums(p, a, tokenize=lambda text: [str(x) for x in vcr_spacy.english(text)])


OURS: dict[str, tuple[Scorer, Any, Any]] = {
    "anls": (metrics.anls, alternatives, why_anls),
    "relaxed_accuracy": (metrics.relaxed_accuracy, alternatives, why_relaxed),
    "textvqa_accuracy": (metrics.textvqa_accuracy, people, why_vqa),
    "denotation_accuracy": (metrics.denotation_accuracy, lists, why_denotation),
    "tabfact_accuracy": (metrics.tabfact_accuracy, labels, why_yes_no),
    "field_f1": (field_counts, fields, why_field),
    "vcr": (vcr_sums, covered, why_vcr),
    "vcr, spaCy tokens in ours": (vcr_spacy, covered, why_vcr),
}


def checks(repositories: Path) -> Iterator[Check]:
    found = [(name, READERS[name](repositories / name)) for name in READERS
             if (repositories / name).is_dir()]  # fmt: skip
    for name, scorers in [*found, ("anls-star", anls_star())]:
        for metric, theirs in scorers:
            yield Check(metric, name, OURS[metric][0], theirs, *OURS[metric][1:])


def equal(a: Any, b: Any) -> bool:
    pairs = zip(a, b) if isinstance(a, tuple) else [(a, b)]
    return all(math.isclose(x, y, abs_tol=1e-9) for x, y in pairs)


def report(check: Check, count: int, seed: int) -> None:
    classes: Counter[str] = Counter()
    example: dict[str, str] = {}
    for prediction, answers in check.pairs(random.Random(seed), count):
        ours, theirs = check.ours(prediction, answers), check.theirs(prediction, answers)
        if not equal(ours, theirs):
            why = check.why(prediction, answers)
            classes[why] += 1
            shown = sorted(set(answers))
            example.setdefault(why, f"{prediction!r} for {shown!r}: ours {ours}, theirs {theirs}")
    print(f"{check.metric} | {check.other}: {count - classes.total()} of {count} agree")
    for why, number in classes.most_common():
        print(f"    {number:5} {why}; {example[why]}")


GOLDEN = {
    ("anls", "lmms-eval"), ("relaxed_accuracy", "pix2struct"),
    ("textvqa_accuracy", "lmms-eval"), ("denotation_accuracy", "WikiTableQuestions"),
    ("tabfact_accuracy", "VLMEvalKit"), ("field_f1", "due-evaluator"),
}  # fmt: skip


def golden(every: list[Check], count: int, seed: int) -> None:
    """Print rows for the tests: metric, prediction, answers and the other scorer's verdict.

    Only where both agree, and of each verdict no more than half of the rows.
    """
    for check in every:
        if (check.metric, check.other) not in GOLDEN:
            continue
        kept: Counter[Any] = Counter()
        for prediction, answers in check.pairs(random.Random(seed), 2000):
            theirs = check.theirs(prediction, answers)
            if kept[theirs] < count // 2 and equal(check.ours(prediction, answers), theirs):
                kept[theirs] += 1
                print(f"    {(check.metric, prediction, answers, theirs)!r},")
            if kept.total() == count:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("repositories", type=Path)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--golden", type=int, metavar="N", help="print N rows a metric for tests")
    options = parser.parse_args()
    every = list(checks(options.repositories))
    if options.golden:
        golden(every, options.golden, options.seed)
        return
    for check in every:
        report(check, options.pairs, options.seed)


if __name__ == "__main__":
    main()
