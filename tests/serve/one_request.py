"""One request to ``smol`` in a process of its own, without the network around it.

``python -m tests.serve.one_request CASE`` prints what it took as JSON: gigabytes beside the model
and the request's own files, seconds of all cores together, and tokens of its prompt.
"""

from __future__ import annotations

import io
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from PIL import Image
from tests import drawn
from tests.memory import peak, resident

from alignvlm.inference.loading import load_model
from alignvlm.serve.attachments import Attachment
from alignvlm.serve.generator import Generator
from alignvlm.serve.limits import Limits
from alignvlm.serve.page_fields import wanted_fields
from alignvlm.serve.schema import parse_request

SIDE = 6300
"""Of a square picture of nearly 40 million pixels."""
PLACE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
FIELDS = 24


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def figures_page(lines: int, seed: int) -> bytes:
    """A page full of numbers: each digit is a token, so that few lines fill the context."""
    draw = random.Random(seed)
    pieces = []
    for line in range(lines):
        numbers = ("".join(draw.choices("0123456789", k=10)) for _ in range(14))
        pieces.append(drawn.Piece(" ".join(numbers), 100, 100 + 96 * line, 63))
    return png(drawn.page(pieces, (SIDE, SIDE)))


def empty_page(side: int, colour: str) -> bytes:
    return png(Image.new("RGB", (side, side), colour))


CASES: dict[str, Callable[[], list[bytes]]] = {
    "one black picture": lambda: [empty_page(6000, "black")],
    "eight empty pictures": lambda: [empty_page(SIDE, "black")] * Limits().max_images,
    "three full pages": lambda: [figures_page(17, seed) for seed in range(3)],
    "fields of a full page": lambda: [figures_page(52, 0)],
}


def ask(generator: Generator, files: list[bytes]) -> int:
    """A question, and two tokens of its answer; the tokens of its prompt."""
    request = parse_request(body(len(files)), generator.limits, "smol")
    prompt = generator.prepare(request, attached(files), threading.Event())
    if not prompt.unread:
        prompt.config.max_new_tokens = 2
        generator.model.generate(**prompt.inputs, generation_config=prompt.config)
    return prompt.spent.prompt_tokens


def extract(generator: Generator, files: list[bytes]) -> int:
    """Many fields, a token of each; the tokens of the prompt."""
    names = {f"f{i}": {"type": "string", "description": f"Number {i}?"} for i in range(FIELDS)}
    schema = {"name": "x", "schema": {"type": "object", "properties": names}}
    shape = {"type": "json_schema", "json_schema": schema}
    keys = {"response_format": shape, "max_tokens": 1}
    request = parse_request(body(len(files), **keys), generator.limits, "smol")
    wanted = wanted_fields(request)
    assert wanted is not None
    found = generator.extract(request, wanted, attached(files), threading.Event())
    return found.spent.prompt_tokens


def attached(files: list[bytes]) -> list[Attachment]:
    return [Attachment(str(number), file) for number, file in enumerate(files)]


def body(pictures: int, **keys: Any) -> bytes:
    content = [*[PLACE] * pictures, {"type": "text", "text": "What is the total?"}]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": "smol", "messages": messages, **keys}).encode()


def main(case: str) -> None:
    generator = Generator(*load_model("smol"), Limits())
    files = CASES[case]()
    before, began = resident(), time.process_time()
    work = extract if case.startswith("fields") else ask
    tokens = work(generator, files)
    # the model's weights are read while it is loaded: what was held then counts, too
    took = {"gib": peak() - before, "seconds": time.process_time() - began, "tokens": tokens}
    print(json.dumps(took))


if __name__ == "__main__":
    main(sys.argv[1])
