"""Put the parts together as ``models/smol``: what differs from public weights, in fp16.

A part that was not trained anew is the one that ``models/smol`` has.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel

from alignvlm.connectors import AlignConnector
from alignvlm.hub import resolve
from alignvlm.shipped import LORA, SETTINGS, WEIGHTS

from .adapt import ALPHA, RANK
from .common import BLANK, TEXT, arguments, load, load_tokenizer, new_parts, shipped

FOLDER = Path("models/smol")
BLANK_GAMMA = 8.0
"""The blank is no target on text: its γ is set, a little above the others', so that it can be said
for sure."""
TILE, CELL = [96, 200], [16, 8]
"""Px of tiles and cells: size 1 is twice as large. All parts count in cells, so that they can be
trained with others (``common.CELL_HEIGHT``)."""
SCALES = [0.8, 1.5, 1.1, 0.45]
"""Sizes for print of 26 px and more (28 at best), up to 17, up to 25 and from 45."""
VISION_KEYS = (
    "model_type", "image_size", "patch_size", "cell_features", "scales", "pool_width",
    "alphabet", "hidden_size", "speller_depth",
)  # fmt: skip


def find_blank(start: torch.Tensor, align: AlignConnector, blank_id: int) -> torch.Tensor:
    """The feature of cells in which nothing was read: one that ALIGN takes for the blank."""
    align.requires_grad_(False)
    feature = start.detach().clone().requires_grad_()
    target = torch.tensor([blank_id])
    optimizer = torch.optim.Adam([feature], lr=0.05)
    for _ in range(800):
        result = align.mixture(align.hidden(feature[None]), None, target)
        loss = (result.logsumexp - result.target_logits).sum()
        if loss < 1e-4:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"blank: {loss.item():.5f} nats")
    return feature.detach()


def without_doubles(align: dict[str, torch.Tensor], blank_id: int) -> dict[str, torch.Tensor]:
    """ALIGN without the tokens whose rows of W2 are the blank's.

    The language model never saw its reserved tokens (nor a few others, " transistorsum"): their
    rows are one and the same, and P_vocab could not say blank without saying all of them.
    """
    ids, rows = align["token_ids"], align["w2.weight"]
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=-1)
    keep = (rows @ rows[ids == blank_id][0] < 0.9) | (ids == blank_id)
    per_token = ("token_ids", "w2.weight", "outer_norm_weight", "outer_norm_bias")
    return {key: value[keep] if key in per_token else value for key, value in align.items()}


def language_model_changes() -> dict[str, torch.Tensor]:
    """Low-rank changes, B already scaled."""
    adapted = load("lora.pt")
    if adapted is None:
        return {f"{LORA}{name}": value for name, value in shipped(LORA).items()}
    changes = {}
    for key, value in adapted["lora"].items():
        name, side = key.removeprefix("base_model.model.model.").split(".lora_")
        scaled = value if side.startswith("A") else value * (ALPHA / RANK)
        changes[f"{LORA}{name}.{side[0].lower()}"] = scaled
    return changes


def main() -> None:
    arguments(__doc__)
    spelled = load("spell.pt") or {}
    vision = AutoModel.from_pretrained(resolve("pp-ocr"))
    vision.speller.load_state_dict(spelled.get("speller") or shipped("vision.speller."))
    vision.localiser.load_state_dict(load("localiser.pt") or shipped("vision.localiser."))
    tokenizer = load_tokenizer()
    blank_id = tokenizer.convert_tokens_to_ids(BLANK)
    kept = spelled.get("align") or shipped("connector.")
    _, connector = new_parts(kept["token_ids"].long(), tokenizer)
    kept = without_doubles({**connector.state_dict(), **kept}, blank_id)
    _, connector = new_parts(kept["token_ids"].long(), tokenizer)
    kept["outer_norm_weight"][kept["token_ids"] == blank_id] = BLANK_GAMMA
    connector.load_state_dict(kept)
    vision.blank.data = find_blank(vision.blank, connector, blank_id)
    tensors = {f"vision.{key}": value for key, value in vision.state_dict().items()}
    align = {key: value for key, value in kept.items() if key != "w2.weight"}
    tensors |= {f"connector.{key}": value for key, value in align.items()}
    tensors |= language_model_changes()
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            k: (v.half() if v.is_floating_point() else v.int()).contiguous()
            for k, v in tensors.items()
        },
        FOLDER / WEIGHTS,
    )
    config = vision.config.to_dict() | {"image_size": TILE, "patch_size": CELL, "scales": SCALES}
    settings = {
        "text": TEXT,
        "vision": {key: config[key] for key in VISION_KEYS},
        "connector": {
            "type": "align", "init": "lm_head", "gamma": 6.0,
            "kept_tokens": len(align["token_ids"]),
        },
        "tiling": {"max_tiles": 256},
        "options": {"blank_threshold": 0.5, "blank_token": BLANK},
    }  # fmt: skip
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (FOLDER / SETTINGS).write_text(text, "utf-8")
    size = (FOLDER / WEIGHTS).stat().st_size / 2**20
    print(f"{FOLDER}: {size:.1f} MiB, {sum(t.numel() for t in tensors.values()):,} numbers")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
