"""Teach the page encoder a kind of page that it misreads, by the loss on P_vocab.

    python examples/teach_the_reader.py [--out DIR] [--font FILE] [--noise 0] [--steps 30]

Pages of words and codes are drawn in a font of yours, by default the Fraktur that gradio carries
(pip install gradio). The words' places say which token belongs under each visual token;
the gradient runs from P_vocab through ALIGN and the spelling to the recogniser, the only part that
is trained. Errors are counted on pages that were not trained on, and on pages in usual fonts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignvlm.compose.assemble import compose
from alignvlm.data.ground import page_targets, tile_targets
from alignvlm.data.synthetic.corpus import package_folder
from alignvlm.data.synthetic.render import RenderedPage, RenderSpec, render_page
from alignvlm.model.losses import IGNORE, vocab_loss
from alignvlm.reader import ReaderModel
from alignvlm.tiling import Grid

SIZE = 480
HELD_OUT, USUAL = 1_000_000, 2_000_000
"""First seeds of the pages that errors are counted on; training pages count from 0."""


class Errors(NamedTuple):
    """Lines that are not exactly right, and characters by edit distance, of how many."""

    lines: int
    all_lines: int
    chars: int
    all_chars: int

    def __str__(self) -> str:
        return (
            f"{self.chars} of {self.all_chars} characters wrong "
            f"({self.chars / self.all_chars:.2%}), {self.all_lines - self.lines} of "
            f"{self.all_lines} lines exactly right"
        )


class Pages:
    """Pages by seed: drawn text, ``codes`` of its words random, under noise (grey levels)."""

    def __init__(self, fonts: tuple[str, ...] = (), codes: float = 0.5, noise: float = 0) -> None:
        self.fonts, self.codes, self.noise = fonts, codes, noise

    def __call__(self, seed: int) -> tuple[RenderedPage, Image.Image]:
        spec = RenderSpec(
            layout="text", width=SIZE, height=SIZE, font_px=(22, 32), fonts=self.fonts,
            random_text=self.codes,
        )  # fmt: skip
        page = render_page(spec, seed)
        noise = np.random.default_rng(seed).normal(0, self.noise, (SIZE, SIZE, 1))
        pixels = np.clip(np.asarray(page.image) + noise, 0, 255).astype(np.uint8)
        return page, Image.fromarray(pixels)


def fraktur() -> str:
    """The font that gradio carries for formulas."""
    folder = package_folder("gradio")
    found = sorted((folder or Path()).rglob("KaTeX_Fraktur-Regular*.ttf")) if folder else []
    if not found:
        raise SystemExit("name a font with --font FILE, or pip install gradio")
    return str(found[0])


def edits(a: str, b: str) -> int:
    """Characters put in, left out or exchanged between two texts."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@torch.no_grad()
def count_errors(reader: ReaderModel, pages: Pages, seeds: range) -> Errors:
    """What the reader gets wrong on some pages."""
    wrong = lines = chars = all_chars = 0
    for seed in seeds:
        page, image = pages(seed)
        pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1)
        rows = reader.read_page(pixels)
        for number in {word.line for word in page.words}:
            words = [word for word in page.words if word.line == number]
            text = " ".join(word.text for word in words)
            top, bottom = words[0].box[1], words[0].box[3]
            read = [r.text for r in rows if top < (r.box[1] + r.box[3]) / 2 < bottom]
            distance = edits(text, " ".join(read))
            wrong, lines = wrong + (distance > 0), lines + 1
            chars, all_chars = chars + distance, all_chars + len(text)
    return Errors(wrong, lines, chars, all_chars)


def loss_of(
    core: Any, processor: Any, page: RenderedPage, image: Image.Image
) -> tuple[Tensor, int]:
    """The loss on P_vocab where the true token is among those that the reader considers.

    Elsewhere (a letter too many, a token in the cell beside) it could say nothing useful.
    """
    batch = processor.image_processor([image], return_tensors="pt")
    rows, cols, _ = batch["image_grids"][0].tolist()
    grid, blank = Grid(rows, cols), core.config.blank_token_id
    truth = page_targets(page.words, image.size, grid, core.config, processor.tokenizer).targets
    features, (tokens,) = core.see(batch["pixel_values"], batch["image_grids"])
    cells = torch.from_numpy(tokens.cells)
    wanted = truth.flatten()[cells]
    known = (tokens.ids == wanted[:, None]).any(1)
    targets = torch.full_like(truth.flatten(), IGNORE)
    targets[cells[known]] = wanted[known]
    targets = tile_targets(targets.view_as(truth), grid)
    loss = vocab_loss(core.connector, features, targets, blank, core.config.blank_loss_weight)
    return loss.text, int(known.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="smollm2", help="the language model")
    parser.add_argument("--font", type=Path, help="a font to learn")
    parser.add_argument("--noise", type=float, default=0.0, help="grey levels, of 255")
    parser.add_argument("--steps", type=int, default=30, help="pages to learn from")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--blend", type=float, default=0.7, help="of what was learnt, 0 to 1")
    parser.add_argument("--least", type=float, default=1e-5, help="see ReaderModel.least")
    parser.add_argument("--pages", type=int, default=5, help="pages to count errors on")
    parser.add_argument("--out", type=Path, help="where to save the model")
    args = parser.parse_args()

    model, processor = compose("reader", args.text)
    core: Any = model.model
    reader: ReaderModel = core.vision_model
    odd = Pages((str(args.font) if args.font else fraktur(),), 1.0, args.noise)
    usual = Pages()
    held_out = range(HELD_OUT, HELD_OUT + args.pages)
    others = range(USUAL, USUAL + args.pages)
    print("before, odd pages:  ", count_errors(reader, odd, held_out), flush=True)
    print("before, usual pages:", count_errors(reader, usual, others), flush=True)

    model.requires_grad_(False)
    reader.recogniser.requires_grad_(True)
    weights = list(reader.recogniser.parameters())
    known = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=args.lr, weight_decay=0.0)
    least, reader.least = reader.least, args.least
    # every second page is a usual one, so that what is known is not forgotten
    start, cpu = time.time(), time.process_time()
    for step in range(args.steps):
        for group in optimizer.param_groups:  # up over five steps, and down to nothing at the end
            group["lr"] = args.lr * min((step + 1) / 5, (args.steps - step) / args.steps)
        loss, scored = loss_of(core, processor, *(usual if step % 2 else odd)(step))
        if not scored:
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"page {step + 1}: {scored} tokens, loss {loss.item():.3f}", flush=True)
    reader.least = least
    with torch.no_grad():  # a little back to where it came from: usual pages are as before
        for weight, before in zip(weights, known, strict=True):
            weight.copy_(before.lerp(weight, args.blend))
    print(f"{time.time() - start:.0f} s, {time.process_time() - cpu:.0f} of them on the CPU")

    print("after, odd pages:   ", count_errors(reader, odd, held_out), flush=True)
    print("after, usual pages: ", count_errors(reader, usual, others), flush=True)
    if args.out:
        model.save_pretrained(args.out)
        processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
