"""Features of all pages of the study, stored once.

Takes about half an hour of one core. Resumable: parts of 64 pages lie in ``OUT/parts`` until
they are put together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from . import drawn
from .drawn import TEST_FROM, TRAIN_FROM, Drawn
from .encode import Encoder
from .store import Pages, packed

PART = 64
LEAST, MOST = 8, 128
"""Cells of a page; others are left out."""
TRAIN, REAL = 4160, 4
"""Training pages, a few more than are used; every ``REAL``-th is a crop of a real receipt."""
TEST, RECEIPTS, LAYOUTS, SCANS, LOOK_ALIKES = 192, 96, 32, 48, 48


def training(receipts: Path) -> Iterator[tuple[str, Drawn]]:
    """Training pages, so mixed that any first part of them is like the whole."""
    files = drawn.receipts(receipts, held_out=False)
    rng = np.random.default_rng(TRAIN_FROM)
    number = 0
    while True:
        number += 1
        if number % REAL:
            yield "train", drawn.rendered(TRAIN_FROM + number)
        elif page := drawn.receipt_crop(files[int(rng.integers(len(files)))], rng):
            yield "train", page


def testing(receipts: Path) -> Iterator[tuple[str, Drawn]]:
    """All other pages."""
    seeds = range(TEST_FROM, TEST_FROM + 10_000)
    yield from (("test", drawn.rendered(seed)) for seed in seeds[:TEST])
    files = drawn.receipts(receipts, held_out=True)
    rng = np.random.default_rng(TEST_FROM)
    for box_file in (files * 3)[:RECEIPTS]:
        if page := drawn.receipt_crop(box_file, rng):
            yield "receipts", page
    for part, make, count in (
        ("layouts", drawn.laid_out, LAYOUTS),
        ("scans", drawn.with_scan, SCANS),
        ("look-alikes", drawn.look_alike, LOOK_ALIKES),
    ):
        for seed in seeds[1000 : 1000 + count]:
            yield from ((part, page) for page in make(seed))


def prepare(out: Path, language_model: Path, receipts: Path, reader: Path) -> Path:
    """Read what is not read yet, and put it together; the path of the pages.

    Args:
        out: folder of ``pages.npz``.
        language_model: its folder, for the tokens.
        receipts: SROIE's training split.
        reader: the recogniser's folder.
    """
    file = out / "pages.npz"
    if file.exists():
        return file
    torch.set_num_threads(1)
    encoder = Encoder(reader, PreTrainedTokenizerFast.from_pretrained(language_model))
    encode(encoder, testing(receipts), out / "parts", "test")
    encode(encoder, islice(training(receipts), TRAIN), out / "parts", "train")
    pages = pack(out / "parts")
    pages.save(file)
    size = file.stat().st_size / 2**20
    print(f"{len(pages)} pages, {len(pages.targets)} cells, {size:.1f} MiB")
    return file


def encode(encoder: Encoder, pages: Iterator[tuple[str, Drawn]], folder: Path, name: str) -> None:
    """Write parts of :data:`PART` pages that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while part := list(islice(pages, PART)):
        file = folder / f"{name}-{number:04}.npz"
        number += 1
        if file.exists():
            continue
        found = [(kind, page, encoder(page)) for kind, page in part]
        arrays: dict[str, Any] = {}
        for i, (_, _, cells) in enumerate(found):
            arrays[f"features-{i}"] = cells.features.astype(np.float16)
            arrays[f"places-{i}"], arrays[f"targets-{i}"] = cells.places, cells.targets
        meta = [described(kind, page) for kind, page, _ in found]
        partial = file.with_name("partial-" + file.name)
        np.savez(partial, meta=np.array(json.dumps(meta)), **arrays)
        partial.rename(file)
        print(file.name, flush=True)


def described(part: str, page: Drawn) -> dict[str, Any]:
    """What is kept of a page beside its cells."""
    return {
        "name": page.name, "kind": page.kind, "part": part, "text": page.text,
        **page.more, "facts": page.facts,
    }  # fmt: skip


def pack(parts: Path) -> Pages:
    """All parts as one."""
    features, places, targets, kept = [], [], [], []
    for file in sorted(parts.glob("t*-*.npz")):
        with np.load(file) as stored:
            for i, meta in enumerate(json.loads(str(stored["meta"]))):
                own = stored[f"features-{i}"]
                if LEAST <= len(own) <= MOST and meta["facts"]:
                    features.append(own)
                    places.append(stored[f"places-{i}"])
                    targets.append(stored[f"targets-{i}"])
                    kept.append(meta)
    return packed(features, places, targets, kept)
