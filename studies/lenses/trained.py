"""Models of the connector study with their weights kept, for lenses to look into."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ..connectors.batches import Batcher, page_order
from ..connectors.cell import Bench
from ..connectors.reader import Reader
from ..connectors.settings import VARIANTS, Cell, Variant
from ..connectors.train import Trainee, start_fitted, timed

RATE = 3e-3
"""Peak learning rate; the study's sweep chose it for every connector."""
FITTED = {"align-fitted": "closed form", "mlp-fitted": "regression"}
"""Connectors made from the pages' truth alone, without a step through the language model."""
ROUNDS, ROWS = 1500, 512
"""Steps of the regression, and cells of each."""
VARIANTS.setdefault("mlp-fitted", Variant({"type": "mlp"}, "mlp"))


@dataclass(frozen=True)
class Model:
    """A trained connector with its language model.

    Attributes:
        facts: how it was trained, for the page that reports it.
    """

    reader: Reader
    batcher: Batcher
    facts: dict[str, Any]


def train(bench: Bench, cell: Cell, results: Path, folder: Path) -> Path:
    """Train a cell of the study and keep its weights; the path of its folder.

    What is already there is not trained again.
    """
    out = folder / cell.variant
    if (out / "facts.json").exists():
        return out
    variant = VARIANTS[cell.variant]
    bench.language.adapt(variant.rank, [cell.seed])
    one = bench.trainee(replace(cell, rate=RATE), results)
    if cell.variant == "align-fitted":
        start_fitted(one, bench.device)
        facts: dict[str, Any] = {"steps": 0}
    elif cell.variant == "mlp-fitted":
        regress(one, bench.device)
        facts = {"steps": 0}
    else:
        (training,) = timed([one], bench.language, bench.device)
        facts = {"steps": cell.steps, "batch": cell.batch, **training}
    weights = {
        k: v.detach().cpu().contiguous() for k, v in one.reader.connector.state_dict().items()
    }
    if variant.rank:
        weights["changes"] = bench.language.changes.detach().cpu().contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "weights.safetensors")
    facts |= {"variant": cell.variant, "pages": cell.size, "seed": cell.seed}
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    return out


def regress(one: Trainee, device: str) -> None:
    """Train an MLP to say the text embedding of the token that starts in each cell.

    It has the truth that ALIGN's closed form has: the cells of the cell's own training pages.
    """
    batcher, connector = one.batcher, one.reader.connector
    own = page_order(batcher.pages, one.cell.seed)[: one.cell.size].tolist()
    cells = torch.cat([batcher.cells(page) for page in own]).to(device)
    targets = torch.cat(
        [torch.from_numpy(batcher.pages.targets[batcher.pages.cells(page)]) for page in own]
    )
    wanted = one.reader.float_table[targets.long().to(device)]
    scale = wanted.std()
    optimizer = torch.optim.AdamW(connector.parameters(), lr=1e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(one.cell.seed)
    for step in range(ROUNDS):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / ROUNDS)
        rows = torch.randint(len(cells), (ROWS,), generator=generator).to(device)
        said = connector(cells[rows][None, None], one.reader.language.table)[0]
        loss = F.mse_loss(said / scale, wanted[rows] / scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def load(bench: Bench, folder: Path, results: Path) -> Model:
    """A kept model; its changes are put into the bench's language model."""
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    variant, seed = facts["variant"], facts["seed"]
    weights = load_file(folder / "weights.safetensors", device=bench.device)
    bench.language.adapt(VARIANTS[variant].rank, [seed])
    if "changes" in weights:
        with torch.no_grad():
            bench.language.changes.copy_(weights.pop("changes"))
    one = bench.trainee(Cell(variant, facts["pages"], seed, 0, rate=RATE), results)
    one.reader.connector.load_state_dict(weights)
    return Model(one.reader.eval(), one.batcher, facts)
