"""The questions of validation splits as they are put to the language model, by what it is given.

    python -m training.smol.asked --data ../shared/data --out runs/smol      # here: to sequences
    python -m training.smol.answer --language-model DIR --out runs/smol      # anywhere, also a GPU
    python -m training.smol.judge --data ../shared/data --out runs/smol      # here: scores

*reader* is what our reader reads, with its doubts, *hard* its most probable characters alone,
*rapidocr* RapidOCR's text, *true* the transcription, the text layer or the drawn table, *nothing*
the question alone. Readings come from :mod:`.readings`; a document that was not read is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from alignvlm.data.synthetic.render import render_table
from alignvlm.documents.opening import pdf_page_count, pdf_words
from alignvlm.errors import AlignVLMError
from alignvlm.eval.tasks import load_task
from alignvlm.eval.tasks.local_tasks import LOCAL_TASKS
from alignvlm.weights.resolve import resolve

from .excerpt import rows_of
from .pages import Prompts, Rows, plain
from .readings import RUNS
from .sequences import Sequence4D, branch
from .shards import LONGEST_ASKED, pack, write
from .store import Readings
from .train import TEXT

SPLITS = {"sroie": "val", "deepform": "val", "wtq": "dev", "tabfact": "val", "chartqa": "val"}
GIVEN = ("reader", "hard", "rapidocr", "true", "nothing")
PAGES = 3
"""Of a contract."""


class Document(NamedTuple):
    """A document and its questions.

    Attributes:
        key: its name.
        numbers: of its samples in the task.
        pages: what the model is given; ``None``: nothing at all.
    """

    key: str
    numbers: list[int]
    pages: list[Rows] | None


def documents(
    task: Any, data: Path, readings: Path, given: str, limit: int | None
) -> Iterator[Document]:
    """Documents of a task in order, until there are so many questions."""
    groups: dict[str, list[int]] = {}
    for index in range(len(task)):
        groups.setdefault(task.sample(index).group, []).append(index)
    stored = Readings(readings / f"{task.name}-{SPLITS[task.name]}.jsonl")
    if given == "rapidocr":
        stored = Readings(readings / "rapidocr-val.jsonl")
    count = 0
    for key, numbers in groups.items():
        if limit is not None and count >= limit:
            return
        if given == "nothing":
            pages: Any = None
        elif given == "true":
            pages = true_pages(task, data, key, numbers[0])
        else:
            pages = stored.get(key) or stored.get(Path(key).stem)
            if given == "hard" and pages:
                pages = [[plain(row.text) for row in page] for page in pages]
        if pages is None and given != "nothing":
            continue
        count += len(numbers)
        yield Document(key, numbers, pages)


def true_pages(task: Any, data: Path, key: str, number: int) -> list[Rows] | None:
    """Rows of a document as they are, where that is known."""
    try:
        if task.name in ("wtq", "tabfact"):
            found = [rows_of(render_table(task.source.table(number)).words)]
        elif task.name == "deepform":
            path = data / "deepform" / SPLITS["deepform"] / "pdfs" / key
            found = [rows_of(pdf_words(path, n)) for n in range(min(PAGES, pdf_page_count(path)))]
        elif task.name == "sroie":
            words = task.source[number].words
            found = [rows_of(words[0])] if words else []
        else:
            return None
    except AlignVLMError:
        return None
    pages = [[plain(row) for row in page] for page in found if page]
    return pages or None


def sequence(prompts: Prompts, task: Any, document: Document) -> Sequence4D:
    """A page and the questions about it, without answers."""
    ids, q = prompts.prefix(document.pages or [])
    asked = [prompts.question(task.sample(number).prompt) for number in document.numbers]
    return branch(ids, q, [(question, []) for question in asked])


def main() -> None:
    """Write what was not written yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--tasks", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--given", nargs="+", choices=GIVEN, default=list(GIVEN))
    parser.add_argument("--limit", type=int, help="questions of a task")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    prompts = Prompts(AutoTokenizer.from_pretrained(resolve(TEXT)))
    folder = asked.out / "asked"
    folder.mkdir(parents=True, exist_ok=True)
    for name in asked.tasks:
        task = load_task(name, asked.data / name, SPLITS[name])
        for given in asked.given:
            if given == "rapidocr" and name != "sroie":
                continue
            target = folder / f"{name}-{given}.npz"
            if target.is_file():
                continue
            made, about = [], []
            for one in documents(task, asked.data, asked.out / "readings", given, asked.limit):
                made_one = sequence(prompts, task, one)
                if len(made_one.ids) <= LONGEST_ASKED:
                    made.append((name, made_one))
                    about.append({"key": one.key, "numbers": one.numbers})
            if made:
                longest = LOCAL_TASKS[name].max_new_tokens
                entry = {
                    "task": name,
                    "given": given,
                    "max_new_tokens": longest,
                    "documents": about,
                }
                target.with_suffix(".json").write_text(json.dumps(entry), "utf-8")
                write(target, pack(made))
            print(f"{name} from {given}: {len(made)} documents", flush=True)


if __name__ == "__main__":
    main()
