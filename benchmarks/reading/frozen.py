"""The frozen language model on drawn forms: soft text against true text and RapidOCR's text.

    python -m benchmarks.reading.frozen --pages 24        # some minutes of a core

SmolLM2-135M-Instruct is composed with the reader and nothing is trained. The same weights answer
the same questions from the page, from its true text and from RapidOCR's text, in the same prompt.
It answers in sentences, so an answer counts where the right one stands in it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from alignvlm.compose.assemble import compose
from alignvlm.data.synthetic.render import RenderSpec, render_page
from alignvlm.inference.answerers import LanguageModel
from alignvlm.inference.ask import ask

from . import metrics, pages, report
from .readers import RapidOcr, versions

FILE = Path(__file__).parents[1] / "results" / "reading" / "frozen.json"
PX, NEW_TOKENS = 24, 24


def right(said: str, wanted: str) -> bool:
    """Whether the answer contains the right one, white space and case ignored."""
    return metrics.squeezed(wanted) in metrics.squeezed(said)


def measure(count: int, threads: int) -> dict[str, list[metrics.Count]]:
    """For each way of giving the page: questions answered right, and their number, page by page."""
    torch.set_num_threads(threads)
    model, processor = compose("reader", "smollm2")
    language = LanguageModel.of(model, processor)
    rival = RapidOcr(threads, "smollm2")
    found: dict[str, list[metrics.Count]] = {"page": [], "true text": [], "rapidocr": []}
    for number in range(count):
        size = {"width": pages.WIDTH, "height": pages.HEIGHT, "font_px": (PX, PX)}
        page = render_page(
            RenderSpec(layout="form", **size),  # type: ignore[arg-type]
            pages.SEED + 50_000 + number,
        )
        questions = [fact.question for fact in page.facts[:3]]
        wanted = [fact.answer for fact in page.facts[:3]]
        texts = {
            "true text": pages.lines_of(page.words),
            "rapidocr": rival.rows(page.image).lines,
        }
        said = {"page": [
            ask(model, processor, [page.image], question, max_new_tokens=NEW_TOKENS).text
            for question in questions
        ]}  # fmt: skip
        for name, lines in texts.items():
            prompts = ["\n".join([*lines, "", question]) for question in questions]
            said[name] = [
                language.answer([prompt], [NEW_TOKENS], guard=False)[0].text for prompt in prompts
            ]
        for name, answers in said.items():
            hits = sum(right(a, w) for a, w in zip(answers, wanted, strict=True))
            found[name].append((hits, len(wanted)))
        print(number, {name: counts[-1] for name, counts in found.items()}, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=FILE)
    asked = parser.parse_args(arguments)
    found = measure(asked.pages, asked.threads)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    partial = asked.out.with_suffix(".partial")
    text = json.dumps({"table": "frozen", "versions": versions(), "counts": found}, indent=1)
    partial.write_text(text + "\n", "utf-8")
    os.replace(partial, asked.out)
    print("\n".join(report.frozen({"counts": found})))


if __name__ == "__main__":
    main()
