"""Does ``denotation_accuracy`` give the verdicts of the official WikiTableQuestions evaluator?

    python benchmarks/wtq_official.py EVALUATOR.PY --data WTQ [--tagged FILE] [--python2 EXE]

Runs the official ``evaluator.py`` (github.com/ppasupat/WikiTableQuestions) over every dev question
of the folder WTQ (``data/random-split-1-dev.tsv``), for gold, shuffled and perturbed predictions,
as the evaluator judges without its CoreNLP-tagged files. With a tagged file it does the same over
that file's questions with their canonical values. It prints how often the two verdicts agree and
lists every disagreement; the exit code is 1 if there is one.

The evaluator is Python 2. With ``--python2`` it runs unchanged, on files in its own format, under
that interpreter. Otherwise it is read as Python 3: ``ur""`` literals lose the ``u``, the names
``unicode``, ``basestring`` and ``long`` are given, ``\\d`` (ASCII in Python 2) becomes ``[0-9]``,
and ``int`` and ``float`` refuse digits grouped by ``_`` as they did then. Its ``main`` is left out.
"""

from __future__ import annotations

import argparse
import builtins
import os
import random
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alignvlm.eval.metrics import denotation_accuracy
from alignvlm.eval.metrics.denotation import CANONICAL, SEPARATOR

Perturb = Callable[[list[str], random.Random], list[str]]


class Question(NamedTuple):
    id: str
    answers: list[str]
    canonical: list[str] | None


Case = tuple[str, Question, list[str]]
"""Kind of prediction, question, predicted items."""
Judge = Callable[[list[Case]], list[bool]]


class _Strict(type):
    """A number type whose constructor refuses "1_000"; instances are the builtin's."""

    base: Any

    def __call__(cls, value: Any = 0) -> Any:
        if isinstance(value, str) and "_" in value:
            raise ValueError(value)
        return cls.base(value)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, cls.base)


def load_evaluator(path: Path) -> dict[str, Any]:
    """Return the names the official evaluator defines."""
    source = path.read_text("utf-8").partition("\ndef main():")[0]
    source = re.sub(r"\bur(?=['\"])", "r", source).replace(r"\d", "[0-9]")
    integer = _Strict("int", (), {"base": builtins.int})
    number = _Strict("float", (), {"base": builtins.float})
    names: dict[str, Any] = {"unicode": str, "basestring": str, "long": builtins.int}
    names |= {"__name__": "evaluator", "int": integer, "float": number}
    exec(compile(source, str(path), "exec"), names)
    return names


def read_questions(path: Path, unescape_list: Callable[[str], list[str]]) -> Iterator[Question]:
    lines = path.read_text("utf-8").split("\n")
    header = lines[0].rstrip("\r").split("\t")
    for line in filter(None, lines[1:]):
        row = dict(zip(header, line.rstrip("\r").split("\t")))
        canon = unescape_list(row["targetCanon"]) if "targetCanon" in row else None
        yield Question(row["id"], unescape_list(row["targetValue"]), canon)


def _each(change: Callable[[str], str]) -> Perturb:
    return lambda items, draw: [change(item) for item in items]


def _noise(items: list[str], draw: random.Random) -> list[str]:
    """Insert, delete or replace one letter of one item."""
    letters = "aZ09 .,-–'’\"“()[]*†#é\u0301％５½_x"
    at = draw.randrange(len(items))
    item = items[at]
    position = draw.randrange(len(item) + 1)
    end = min(len(item), position + draw.randrange(2))
    changed = item[:position] + draw.choice(["", *letters]) + item[end:]
    return [*items[:at], changed, *items[at + 1 :]]


PERTURBATIONS: dict[str, Perturb] = {
    "gold": lambda items, draw: list(items),
    "upper case": _each(str.upper),
    "spaces": _each(lambda t: f"  {t.replace(' ', '   ')}\u00a0"),
    "final period": _each(lambda t: t + "."),
    "citation": _each(lambda t: t + "[3]†"),
    "detail": _each(lambda t: t + " (see note) [a]"),
    "quoted": _each(lambda t: f'"{t}"'),
    "curly quotes": _each(lambda t: f"“{t.replace(chr(39), '’')}”"),
    "dashes": _each(lambda t: t.replace("-", "–")),
    "decomposed": _each(lambda t: unicodedata.normalize("NFD", t)),
    "full width": _each(
        lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" and c != "|" else c for c in t)
    ),
    "no separators": _each(lambda t: t.replace(",", "")),
    "decimal": _each(lambda t: t + ".0"),
    "units": _each(lambda t: t + " years"),
    "negative": _each(lambda t: "-" + t),
    "grouped": _each(lambda t: re.sub(r"(\d)(\d{3})$", r"\1_\2", t)),
    "first number": _each(lambda t: (re.findall(r"-?\d+(?:\.\d+)?", t) or [t])[0]),
    "as a date": _each(lambda t: f"{t}-xx-xx"),
    "month and day": _each(lambda t: f"xx-{t}-1"),
    "reversed": lambda items, draw: items[::-1],
    "repeated": lambda items, draw: [*items, *items],
    "one more": lambda items, draw: [*items, "other"],
    "one less": lambda items, draw: items[1:],
    "empty item": lambda items, draw: [*items, ""],
    "noise": _noise,
    "noise twice": lambda items, draw: _noise(_noise(items, draw), draw),
    "empty": lambda items, draw: [],
}


def predictions(questions: list[Question], seed: int) -> Iterator[Case]:
    """Yield kind of prediction, question and predicted items."""
    draw = random.Random(seed)
    for kind, perturb in PERTURBATIONS.items():
        for question in questions:
            yield kind, question, perturb(question.answers, draw)
    shuffled = draw.sample(questions, len(questions))
    for question, other in zip(questions, shuffled):
        yield "shuffled", question, other.answers
        if other.canonical is not None:
            yield "shuffled canonical", question, other.canonical
        if question.canonical is not None:
            yield "canonical", question, question.canonical


def judge_here(names: dict[str, Any]) -> Judge:
    """The official functions, read as Python 3, called in this process."""

    def judge(cases: list[Case]) -> list[bool]:
        values, check = names["to_value_list"], names["check_denotation"]
        return [check(values(q.answers, q.canonical), values(items)) for _, q, items in cases]

    return judge


def judge_python2(python2: str, evaluator: Path) -> Judge:
    """The official program, unchanged, on one example a case."""

    def escape(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", r"\p").replace("\n", r"\n")

    def judge(cases: list[Case]) -> list[bool]:
        with tempfile.TemporaryDirectory() as folder:
            targets = ["id\ttargetValue\ttargetCanon"]
            for number, (_, q, _) in enumerate(cases):
                canonical = q.canonical or [""] * len(q.answers)
                lists = ("|".join(map(escape, items)) for items in (q.answers, canonical))
                targets.append("\t".join([str(number), *lists]))
            found = ["\t".join([str(n), *items]) for n, (_, _, items) in enumerate(cases)]
            (tagged := Path(folder, "tagged")).mkdir()
            (tagged / "all.tagged").write_text("\n".join(targets) + "\n", "utf-8")
            Path(folder, "found.tsv").write_text("\n".join(found) + "\n", "utf-8")
            command = [python2, str(evaluator), "-t", str(tagged), f"{folder}/found.tsv"]
            out = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            ).stdout
        verdicts = dict(line.split("\t")[:2] for line in out.splitlines())
        return [{"True": True, "False": False}[verdicts[str(n)]] for n in range(len(cases))]

    return judge


def ours(question: Question, items: list[str]) -> bool:
    canonical = question.canonical or [""] * len(question.answers)
    answers = tuple(a + CANONICAL + c for a, c in zip(question.answers, canonical))
    return denotation_accuracy(SEPARATOR.join(items), answers) == 1.0


def compare(judge: Judge, cases: list[Case], show: int) -> int:
    """Print agreement by kind of prediction; return the number of disagreements."""
    agree, right, count = Counter(), Counter(), Counter()
    differ: list[str] = []
    for (kind, question, items), official in zip(cases, judge(cases), strict=True):
        verdict = ours(question, items)
        count[kind] += 1
        right[kind] += official
        agree[kind] += verdict == official
        if verdict != official:
            differ.append(f"{kind}: {items!r} for {question}: official {official}, ours {verdict}")
    for kind, n in count.items():
        print(f"  {kind:20} {n:6} compared, {agree[kind]:6} agree, {right[kind]:6} right")
    total = count.total()
    print(f"  {'all':20} {total:6} compared, {agree.total():6} agree, {right.total():6} right")
    for line in differ[:show]:
        print("  differs:", line)
    return len(differ)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("evaluator", type=Path, help="the official evaluator.py")
    parser.add_argument("--data", type=Path, required=True, help="folder of WikiTableQuestions")
    parser.add_argument("--tagged", type=Path, help="a CoreNLP-tagged questions file")
    parser.add_argument("--python2", help="a Python 2.7 interpreter to run the evaluator with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=50, help="disagreements listed at most")
    options = parser.parse_args()
    names = load_evaluator(options.evaluator)
    judge = judge_here(names)
    if options.python2:
        judge = judge_python2(options.python2, options.evaluator)
    differ = 0
    files = [options.data / "data" / "random-split-1-dev.tsv"]
    for path in [*files, *([options.tagged] if options.tagged else [])]:
        questions = list(read_questions(path, names["tsv_unescape_list"]))
        known = questions[0].canonical is not None
        print(f"{path.name}: {len(questions)} questions, {'with' if known else 'no'} canonical")
        bare = sum(
            not ours(q._replace(canonical=None), q.canonical or q.answers) for q in questions
        )
        if known:
            print(f"  canonical text as prediction: {bare} are wrong without canonical values")
        cases = list(predictions(questions, options.seed))
        # a bar in an item is our separator; the official file format cannot hold tabs and breaks
        kept = [case for case in cases if not re.search(r"[|\t\n\r\x85\u2028]", "".join(case[2]))]
        print(f"  {len(cases) - len(kept)} predictions with bars, tabs or breaks left out")
        differ += compare(judge, kept, options.show)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
