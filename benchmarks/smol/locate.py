"""The localiser: where characters stand, from rendered pages. Ten minutes on one core."""

from __future__ import annotations

import math

import numpy as np
import torch
from transformers import AutoModel

from alignvlm.characters import emissions
from alignvlm.data.render import Page, RenderSpec, render_page
from alignvlm.errors import ConfigError
from alignvlm.hub import resolve
from alignvlm.line_reader import LineReaderModel

from .common import CELL_HEIGHT, CELL_WIDTH, arguments, load, save

LAYOUTS = ("text", "text", "form", "receipt", "table")
EPOCHS, BATCH, RATE = 12, 256, 2e-3
PX = torch.tensor([CELL_WIDTH, CELL_HEIGHT, CELL_HEIGHT, CELL_WIDTH])


def spec(index: int, rng: np.random.Generator) -> tuple[RenderSpec, int]:
    size = int(rng.integers(15, 38))
    made = RenderSpec(
        layout=LAYOUTS[index % 5], width=400, height=200, font_px=(size, size),
        fonts=("system",), margin=int(rng.integers(3, 16)), random_text=0.25, degrade=0.2,
        invert_probability=0.03, line_spacing=float(rng.uniform(1.1, 1.5)),
    )  # fmt: skip
    return made, size


@torch.no_grad()
def samples(model: LineReaderModel, page: Page, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the characters read, and where they stand, in the localiser's units."""
    pixels = torch.tensor(np.array(page.image)).permute(2, 0, 1) / 127.5 - 1
    features, probabilities = model.recognise(model.enlarge(pixels))
    found = emissions(probabilities)
    gathered = model.gather(found, features)
    x = (found.column.numpy() + 0.5) * CELL_WIDTH / 2
    y = (found.row.numpy() + 1) * CELL_HEIGHT / 2
    kind, alphabet = found.kind.numpy(), model.config.alphabet
    rows, targets = [], []
    for word in page.words:
        assert word.middle is not None
        rights = [*word.char_x[1:], word.box[2]]
        for char, left, right in zip(word.text, word.char_x, rights, strict=True):
            if char not in alphabet:
                continue
            near = (x >= left - 3) & (x <= right + 4) & (abs(y - word.middle) <= 16)
            for hit in np.flatnonzero(near & (kind == alphabet.index(char))):
                rows.append(hit)
                targets.append(
                    ((left - x[hit]) / CELL_WIDTH, (word.middle - y[hit]) / CELL_HEIGHT,
                     math.log(size / CELL_HEIGHT), (right - x[hit]) / CELL_WIDTH)
                )  # fmt: skip
    return gathered[rows].half(), torch.tensor(targets, dtype=torch.float32).view(-1, 4)


def main() -> None:
    asked = arguments(__doc__, pages=240, threads=1)
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(resolve("pp-ocr")).eval()
    stored = load("places.pt")
    if stored is None:
        rng, parts = np.random.default_rng(1), []
        for index in range(asked.pages):
            made, size = spec(index, rng)
            seed = int(rng.integers(1 << 30))
            try:
                parts.append(samples(model, render_page(made, seed), size))
            except ConfigError:  # a wide font leaves no room on so small a page
                continue
        stored = {
            "features": torch.cat([p[0] for p in parts]),
            "targets": torch.cat([p[1] for p in parts]),
        }
        save(stored, "places.pt")
    features, targets = stored["features"].float(), stored["targets"]
    cut = int(len(features) * 0.95)  # the last pages are held out
    optimizer = torch.optim.AdamW(model.localiser.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=EPOCHS * (cut // BATCH) + 1
    )
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(cut)[: cut // BATCH * BATCH].split(BATCH):
            loss = ((model.localiser(features[chosen]) - targets[chosen]).abs() * PX).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            off = ((model.localiser(features[cut:]) - targets[cut:]).abs() * PX).mean(0)
        print(
            f"{epoch}: off by left {off[0]:.2f}, line {off[1]:.2f}, right {off[3]:.2f} px",
            flush=True,
        )
    save(model.localiser.state_dict(), "localiser.pt")


if __name__ == "__main__":
    main()
