"""Lines of text to learn spelling from: passages, tables, receipts, contracts (train splits)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from alignvlm.data.benchmark_fields import SROIESource
from alignvlm.data.benchmarks import TabFactSource, WTQSource
from alignvlm.data.corpus import builtin_passages
from alignvlm.data.documents import pdf_page_count, pdf_words
from alignvlm.errors import DataError

from .common import OUT, arguments


def wrapped(text: str, rng: random.Random) -> Iterator[str]:
    words, start = text.split(), 0
    while start < len(words):
        size = rng.randint(3, 14)
        yield " ".join(words[start : start + size])
        start += size


def table_lines(
    source: WTQSource | TabFactSource, tables: int, rng: random.Random
) -> Iterator[str]:
    seen = set()
    for index in rng.sample(range(len(source)), len(source)):
        table = source.table(index)
        key = (table.header, table.rows[:1])
        if key in seen:
            continue
        seen.add(key)
        for row in (table.header, *table.rows[:20]):
            cells = [cell for cell in row if cell.strip()]
            if cells:
                size = rng.randint(1, len(cells))
                start = rng.randint(0, len(cells) - size)
                yield " ".join(cells[start : start + size])[:160]
        if len(seen) >= tables:
            return


def pdf_lines(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.pdf")):
        try:
            for page in range(min(pdf_page_count(file), 3)):
                lines: dict[int, list[str]] = {}
                for word in pdf_words(file, page):
                    lines.setdefault(word.line, []).append(word.text)
                yield from (" ".join(words)[:160] for words in lines.values())
        except DataError as error:
            print(f"left out: {error}")


def collect(data: Path) -> list[str]:
    rng = random.Random(0)
    lines = [line for text in builtin_passages() for line in wrapped(text, rng)]
    for text in (data / "rendering/enwiki.txt").open(encoding="utf-8"):
        lines += wrapped(text, rng)
    lines += table_lines(WTQSource(data / "wtq", "train"), 1500, rng)
    lines += table_lines(TabFactSource(data / "tabfact", "train"), 3000, rng)
    receipts = SROIESource(data / "sroie", "train")
    for record in {
        r.id.split("/")[0]: r for r in (receipts[i] for i in range(len(receipts)))
    }.values():
        by_line: dict[int, list[str]] = {}
        for word in record.words[0] if record.words else []:
            by_line.setdefault(word["line"], []).append(word["text"])
        lines += [" ".join(words) for words in by_line.values()]
    lines += pdf_lines(data / "deepform/train/pdfs")
    for entry in json.loads((data / "chartqa/train/train_augmented.json").read_text("utf-8")):
        lines += [entry["query"], str(entry["label"])]
    rng.shuffle(lines)
    return [" ".join(line.split()) for line in lines if line.strip()]


if __name__ == "__main__":
    found = collect(arguments(__doc__).data)
    (OUT / "lines.txt").write_text("\n".join(found), "utf-8")
    print(f"{len(found)} lines in {OUT / 'lines.txt'}")
