"""A user's folder: a few PDFs, and questions about a few pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.documents.test_documents import make_pdf, text_at

WORDS = ("jumps", "lazy dog", "total", "brown fox", "invoice", "letter", "report", "chart")


@pytest.fixture(scope="session")
def pdf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four PDFs of two pages, and one that holds no text."""
    folder = tmp_path_factory.mktemp("pdfs")
    for number in range(4):
        pages = [text_at((20, 150, WORDS[2 * number + page])) for page in range(2)]
        make_pdf(folder / f"{number}.pdf", pages)
    make_pdf(folder / "empty.pdf", [""])
    return folder


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory: pytest.TempPathFactory, make_image: Any) -> Path:
    """Ten questions about five pictures."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    for number in range(10):
        name = f"{number % 5}.png"
        make_image(56, 28, number % 5).save(folder / name)
        question = ("What is the total?", "Who signed the letter?")[number // 5]
        row = {"image": name, "question": question, "answer": WORDS[number % 5]}
        lines.append(json.dumps({"id": f"q{number}", **row}))
    (folder / "qa.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "qa.jsonl"
