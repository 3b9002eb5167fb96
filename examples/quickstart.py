"""Train the tiny recipe, then ask about a page the training never saw.

    python examples/quickstart.py [--out demo]

About five minutes of training on 2 CPU cores. What the model answers is what it learned in those
minutes: it reads some of the page, not all of it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from alignvlm.analysis import heat_map, read_page
from alignvlm.ask import ask, load_model
from alignvlm.data.render import RenderSpec, render_page
from alignvlm.train import load_recipe, train

UNSEEN_PAGE = 7
"""Seed of the demo's page; training draws its pages from seeds above a thousand million."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out = parser.parse_args().out

    folder = out / "model"
    if not folder.exists():
        start = time.perf_counter()
        unfinished = (out / "model.training").exists()
        train(load_recipe("tiny"), folder, resume=unfinished, quiet=True, report=print)
        print(f"trained in {time.perf_counter() - start:.0f} s")

    model, processor = load_model(folder)
    spec = RenderSpec(layout="form", font_px=(28, 28), fonts=("DejaVuSans",))
    page = render_page(spec, UNSEEN_PAGE)
    page.image.save(out / "page.png")
    reading = read_page(model, processor, page.image)
    heat_map(page.image, reading).save(out / "heatmap.png")

    print(f"\npage never seen in training: {out / 'page.png'}")
    lines: dict[int, list[str]] = {}
    for word in page.words:
        lines.setdefault(word.line, []).append(word.text)
    for line in lines.values():
        print("  on the page:  " + " ".join(line))
    for line in reading.text(processor.tokenizer).splitlines():
        print("  ALIGN reads:  " + line)
    print("  most probable vocabulary tokens: ", end="")
    print(", ".join(f"{text!r} {mass:.2f}" for text, mass in reading.most_probable(10)))
    print(f"  effective vocabulary of P_vocab: {reading.effective_vocab:.1f} tokens")
    print(f"  heat map: {out / 'heatmap.png'}")

    for fact in page.facts[:3]:
        answer = ask(model, processor, [page.image], fact.question, max_new_tokens=24)
        print(f"\nQ: {fact.question}\nA: {answer.text}\n   (on the page: {fact.answer})")
        print(
            f"   {answer.visual_tokens} visual tokens, {answer.kept_visual_tokens} not blank; "
            f"first token after "
            f"{answer.prefill_ms:.0f} ms, {answer.new_tokens} tokens in {answer.total_ms:.0f} ms"
        )


if __name__ == "__main__":
    main()
