"""Damaged files and model folders: our own errors only, each soon, in bounded memory."""

from __future__ import annotations

import json
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from alignvlm.documents.opening import open_document
from alignvlm.errors import AlignVLMError
from alignvlm.inference.ask import ask
from alignvlm.inference.loading import load_model

SECONDS, GIB = 10.0, 4.0
"""No call takes longer, nor all of them together more memory."""
MAX_PIXELS = 40_000_000

pytestmark = pytest.mark.slow


class Outcomes:
    """How the calls of a run ended, and how long the longest took."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.longest = 0.0
        self.foreign: list[str] = []
        self.before = self.peak()

    @staticmethod
    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def run(self, name: str, call: Callable[[], object]) -> None:
        began, cpu = time.monotonic(), time.process_time()
        try:
            call()
            self.counts["fine"] += 1
        except AlignVLMError as error:
            self.counts[type(error).__name__] += 1
            if "\n" in str(error):
                self.foreign.append(f"{name}: more than a line: {error}")
        except Exception as error:
            self.foreign.append(f"{name}: {type(error).__name__}: {error}")
        # of CPU: what else the machine does is not this call's
        took = min(time.process_time() - cpu, time.monotonic() - began)
        assert took < SECONDS, name
        self.longest = max(self.longest, took)

    def report(self, what: str) -> None:
        grown = self.peak() - self.before
        print(f"{what}: {dict(self.counts)}, longest {self.longest:.1f} s, {grown:.2f} GiB more")
        assert grown < GIB
        assert not self.foreign, "\n".join(self.foreign)


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


def test_a_thousand_damaged_pictures_and_pdfs(tiny_model_dir: Path) -> None:
    chance, files, outcomes = random.Random(0), list(seeds().items()), Outcomes()
    model, processor = load_model(str(tiny_model_dir))

    def read(name: str, data: bytes) -> None:
        with open_document(name, data=data) as document:
            pages = [document.render(i, 144, MAX_PIXELS) for i in range(min(document.count, 8))]
        ask(model, processor, pages[:1], "What is the total?", max_new_tokens=1)

    for number in range(1000):
        name, data = files[number % len(files)]
        changed = mutated(data, chance)
        outcomes.run(f"{number} of {name}", lambda: read(name, changed))  # noqa: B023
    outcomes.report("1000 damaged pictures and PDFs")


@contextmanager
def restored(folder: Path, original: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder)
        shutil.copytree(original, folder)


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


@pytest.mark.filterwarnings("ignore")
def test_two_hundred_damaged_model_folders(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    image = Image.fromarray(np.full((28, 28, 3), 128, np.uint8))
    outcomes = Outcomes()

    def load() -> None:
        model, processor = load_model(str(folder))
        ask(model, processor, [image], "What is the total?", max_new_tokens=1)

    for number in range(200):
        with restored(folder, tiny_model_dir):
            name = damage(folder, random.Random(number))
            outcomes.run(f"{number}: {name}", load)
    outcomes.report("200 damaged model folders")
