"""Damaged files and model folders: our own errors only, each soon, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from tests.house.fuzzing import Prepared, fuzz

Say = Callable[[str], None]
MAX_PIXELS = 40_000_000


def page() -> Image.Image:
    image = Image.new("RGB", (200, 120), "white")
    ImageDraw.Draw(image).text((10, 10), "Invoice 1234\nTotal 31.48", fill="black")
    return image


def seeds() -> dict[str, bytes]:
    """A small valid file of each kind."""
    made, image = {}, page()
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("png", "RGB", {}), ("png", "P", {}), ("png", "I;16", {}), ("jpeg", "RGB", {}),
        ("jpeg", "CMYK", {}), ("tiff", "RGB", {}), ("tiff", "1", {"compression": "group4"}),
        ("tiff", "L", {"compression": "tiff_lzw", "save_all": True, "append_images": [image]}),
        ("webp", "RGB", {}), ("gif", "P", {}), ("bmp", "RGB", {}), ("ppm", "L", {}),
        ("jpeg2000", "RGB", {}), ("pdf", "RGB", {"save_all": True, "append_images": [image]}),
    ]  # fmt: skip
    for number, (kind, mode, keys) in enumerate(ways):
        file = BytesIO()
        shown = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
        shown.save(file, kind, **keys)
        made[f"{number}.{kind}"] = file.getvalue()
    for name in ("form.pdf", "letter.pdf"):
        made[name] = text_pdf(name)
    return made


def text_pdf(words: str) -> bytes:
    """A PDF with a text layer, its objects in plain text so that changes reach them."""
    stream = f"BT /F1 24 Tf 20 100 Td ({words}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data = b"%PDF-1.4\n"
    for number, text in enumerate(objects, start=1):
        data += b"%d 0 obj\n%s\nendobj\n" % (number, text)
    return data + b"trailer << /Size 6 /Root 1 0 R >>\n%%EOF\n"


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut out, repeated or put in, most of them near the head."""
    result = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        if not result:
            break
        near = chance.random() < 0.6
        at = chance.randrange(min(len(result), 200) if near else len(result))
        match chance.randrange(6):
            case 0:
                result[at] = chance.randrange(256)
            case 1:
                result[at] ^= 1 << chance.randrange(8)
            case 2:  # the numbers that lengths and sizes go wrong at
                special = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80"])
                result[at : at + len(special)] = special
            case 3:
                del result[at : at + chance.randrange(1, 20)]
            case 4:
                piece = result[at : at + chance.randrange(1, 40)]
                result[at:at] = piece * chance.randrange(1, 4)
            case _:
                result = result[: max(at, 12)]
    # numbers of text formats
    if data.startswith((b"%PDF", b"P")) and chance.random() < 0.3:
        digits = [i for i, byte in enumerate(result) if 48 <= byte <= 57]
        if digits:
            at = chance.choice(digits)
            result[at : at + 1] = chance.choice([b"99999999999", b"-1", b"0", b"1e9"])
    return bytes(result)


def damaged(number: int, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A file's name, and what is left of it."""
    name, data = files[number % len(files)]
    return name, mutated(data, random.Random(number))


def pages_of(name: str, data: bytes) -> list[Image.Image]:
    from alignvlm.documents.opening import open_document

    with open_document(name, data=data) as document:
        return [document.render(i, 144, MAX_PIXELS) for i in range(min(document.count, 8))]


def asked_about(folder: str) -> Prepared:
    """Pages for a tiny model, which shows decoders and what comes after them, not reading."""
    from alignvlm.inference.ask import ask
    from alignvlm.inference.loading import load_model

    model, processor = load_model(folder)
    files = list(seeds().items())

    def prepared(number: int) -> tuple[str, Callable[[], object]]:
        name, data = damaged(number, files)
        return name, lambda: ask(
            model, processor, pages_of(name, data)[:1], "What is the total?", max_new_tokens=1
        )

    return prepared


def read() -> Prepared:
    """Pages for the page encoder of `smol`, which comes with the project."""
    from alignvlm.inference.page_reader import PageReader

    reader = PageReader.load("reader")
    files = list(seeds().items())

    def prepared(number: int) -> tuple[str, Callable[[], object]]:
        name, data = damaged(number, files)
        return name, lambda: [reader.read(page) for page in pages_of(name, data)[:1]]

    return prepared


@pytest.mark.slow
def test_a_thousand_damaged_pictures_and_pdfs(tiny_model_dir: Path, figures: Say) -> None:
    outcomes = fuzz(asked_about, 1000, tiny_model_dir)
    outcomes.check(figures, "damaged pictures and PDFs", refusals=500, fine=100)


@pytest.mark.slow
def test_damaged_pictures_and_pdfs_are_read(figures: Say) -> None:
    fuzz(read, 96).check(figures, "damaged pictures and PDFs, read", refusals=40, fine=10)


def changed_json(value: Any, chance: random.Random) -> Any:
    """One value of a JSON document replaced by one of a kind that nobody expects."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    node, key = chance.choice(places)
    odd = [None, -1, 0, 2**31, 2**63, 10**30, 1e308, "", "x" * 1000, [], {}, [[]], True, "auto"]
    if chance.random() < 0.2:
        del node[key]
    elif isinstance(node[key], int) and not isinstance(node[key], bool):
        near = [node[key] + 1, node[key] * 2, -node[key]]
        node[key] = chance.choice([*odd, *near, 10**4, 10**6, 10**9])
    else:
        node[key] = chance.choice(odd)
    return value


def damage(folder: Path, chance: random.Random) -> str:
    """Change one file of a model folder; says which."""
    names = ["config.json"] * 3 + ["model.safetensors.index.json", "model.safetensors"] + [
        "tokenizer.json", "tokenizer_config.json", "processor_config.json",
        "generation_config.json",
    ]  # fmt: skip
    name = chance.choice(names)
    file = folder / name
    if name == "model.safetensors":
        data = bytearray(file.read_bytes())
        size = int.from_bytes(data[:8], "little")
        head = mutated(bytes(data[: 8 + size]), chance)
        file.write_bytes(head + bytes(data[8 + size :]))
    elif name.endswith("index.json"):
        weights = {"lm_head.weight": chance.choice(["model.safetensors", "../x", "", "a" * 300])}
        index = changed_json({"metadata": {"total_size": 1}, "weight_map": weights}, chance)
        file.write_text(json.dumps(index), "utf-8")
        if chance.random() < 0.5:
            (folder / "model.safetensors").rename(folder / "part.safetensors")
    elif chance.random() < 0.3:
        file.write_bytes(mutated(file.read_bytes(), chance))
    else:
        value = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps(changed_json(value, chance)), "utf-8")
    return name


def loaded(original: str, place: str) -> Prepared:
    """A damaged copy of a model, made anew for each call."""
    from alignvlm.inference.ask import ask
    from alignvlm.inference.loading import load_model

    folder, image = Path(place), Image.new("RGB", (28, 28), "grey")

    def prepared(number: int) -> tuple[str, Callable[[], object]]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        name = damage(folder, random.Random(number))

        def call() -> None:
            ask(*load_model(str(folder)), [image], "What is the total?", max_new_tokens=1)

        return name, call

    return prepared


@pytest.mark.slow
def test_two_hundred_damaged_model_folders(
    tiny_model_dir: Path, tmp_path: Path, figures: Say
) -> None:
    outcomes = fuzz(loaded, 200, tiny_model_dir, tmp_path / "model")
    outcomes.check(figures, "damaged model folders", refusals=80, fine=20)


def bad() -> Prepared:
    """Everything that a call must not do."""

    def lines() -> None:
        from alignvlm.errors import DataError

        raise DataError("one\ntwo")

    def end() -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def stray() -> None:
        print("stray output")
        raise KeyError("x")

    calls: list[Any] = [lambda: None, lambda: time.sleep(600), stray, end, lines, lambda: None]
    return lambda number: (f"call {number}", calls[number])


def test_hangs_and_deaths_are_found() -> None:
    """What the slow tests rely on: each is named with its seed, and the next calls are made."""
    outcomes = fuzz(bad, 6, wall=2)
    assert outcomes.counts == {"fine": 2, "foreign": 1, "DataError": 1}
    assert outcomes.faults == [
        "seed 1, call 1: killed after 2 s",
        "seed 2, call 2: KeyError: 'x'",
        f"seed 3, call 3: the process ended with -{int(signal.SIGSEGV)}: stray output",
        "seed 4, call 4: more than a line: one\ntwo",
    ]
    assert 0 < outcomes.peak < 1


def unprepared() -> Prepared:
    raise RuntimeError("nothing works")


def test_what_cannot_begin_is_found() -> None:
    (fault,) = fuzz(unprepared, 3).faults
    assert fault == ("before the first call: the process ended with 1: RuntimeError: nothing works")
