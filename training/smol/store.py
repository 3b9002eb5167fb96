"""Readings on disk: one JSON line a page, with what each unsure character may be instead."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alignvlm.reader.characters import Characters

LEAST = math.log(1e-3)
"""Characters that are less probable, relative to the best, are not stored."""


def pack(characters: Characters) -> dict[str, Any]:
    """A row as plain values."""
    options = {}
    ratios = characters.log_ratio.tolist()
    for place, (others, ratio) in enumerate(zip(characters.options, ratios)):
        kept = [(o, round(r, 3)) for o, r in zip(others, ratio) if r > LEAST]
        if kept:
            options[str(place)] = ["".join(o for o, _ in kept), [r for _, r in kept]]
    return {"text": characters.text, "options": options}


def unpack(row: dict[str, Any]) -> Characters:
    """The row that :func:`pack` made."""
    size = len(row["text"])
    found = {int(place): value for place, value in row["options"].items()}
    width = max((len(ratios) for _, ratios in found.values()), default=0)
    options, log_ratio = [""] * size, torch.full((size, width), -torch.inf)
    for place, (others, ratios) in found.items():
        keep = [i for i, ratio in enumerate(ratios) if ratio > LEAST]
        options[place] = "".join(others[i] for i in keep)
        log_ratio[place, : len(keep)] = torch.tensor([ratios[i] for i in keep])
    return Characters(row["text"], tuple(options), log_ratio)


class Readings:
    """Documents of one file; a file that grows is read on.

    Example:
        >>> pages = Readings(Path("runs/smol/readings/sroie-train.jsonl")).get("000")
    """

    def __init__(self, path: Path) -> None:
        self.path, self._offset = path, 0
        self._pages: dict[str, list[list[dict[str, Any]]]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what was added since."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                entry = json.loads(line)
                pages = self._pages.setdefault(entry["id"], [])
                number = entry.get("page", len(pages))
                if number == len(pages):
                    pages.append(entry["rows"])

    def __len__(self) -> int:
        return len(self._pages)

    def ids(self) -> Sequence[str]:
        """Names of the documents, in the file's order."""
        return list(self._pages)

    def raw(self, name: str) -> list[list[dict[str, Any]]] | None:
        """The pages' rows as stored, with their boxes."""
        return self._pages.get(name)

    def get(self, name: str) -> list[list[Characters]] | None:
        """A document's pages, each its rows; ``None`` if it was not read yet."""
        pages = self._pages.get(name)
        if pages is None:
            return None
        return [[unpack(row) for row in page if row["text"].strip()] for page in pages]
