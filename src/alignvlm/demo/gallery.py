"""Three pages to try, with questions about each; ``examples/pages`` of the project."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

QUESTIONS = "questions.json"


@cache
def gallery() -> list[dict[str, Any]]:
    """Each page's ``title``, ``page`` (a file's name), ``questions`` and ``fields``; none where the
    pages do not come with the installation."""
    folder = gallery_folder()
    if folder is None:
        return []
    told = json.loads((folder / QUESTIONS).read_text("utf-8"))
    shown = ("title", "page", "questions", "fields")
    return [{key: one[key] for key in shown} for one in told]


def gallery_folder() -> Path | None:
    """Where the pages lie, in the package or in the repository."""
    here = Path(__file__).resolve()
    places = (here.parent / "pages", here.parents[3] / "examples" / "pages")
    return next((folder for folder in places if (folder / QUESTIONS).is_file()), None)
