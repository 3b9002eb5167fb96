"""What the cells' answers are scored against: kept beside them, for the pages are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .batches import Question, held_out, several
from .measures import PARTS, SEVERAL_PAGES
from .store import Pages
from .stored import QUESTIONS


def questions(pages: Pages) -> dict[str, list[dict[str, Any]]]:
    """Each part's questions, in the order of the stored answers, with what is known of the page."""
    asked = {part: held_out(pages, part, read=False) for part in PARTS}
    asked |= {f"several-{k}": several(pages, k) for k in SEVERAL_PAGES}
    return {part: [_described(pages, one) for one in own] for part, own in asked.items()}


def _described(pages: Pages, one: Question) -> dict[str, Any]:
    meta = pages.meta[one.page]
    kept = {k: meta[k] for k in ("group", "pair", "scanned", "common", "rare") if k in meta}
    return {"question": one.question, "answer": one.answer, "kind": meta["kind"], **kept}


def write(pages: Path, results: Path) -> Path:
    """Write ``questions.json`` beside the cells."""
    file = results / QUESTIONS
    value = questions(Pages.load(pages))
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return file
