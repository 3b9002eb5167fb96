"""Samples to batches."""

from __future__ import annotations

import torch

from alignvlm.data.collate import Collator
from alignvlm.model.losses import IGNORE

PAD = 7


def sample(length: int, tiles: int = 0, targets: bool = False) -> dict[str, torch.Tensor]:
    ids = torch.arange(1, length + 1)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids + 100}
    if tiles:
        made["pixel_values"] = torch.full((tiles, 3, 4, 4), float(length))
        made["image_grids"] = torch.tensor([[1, tiles, 0]])
    if targets:
        made["vocab_targets"] = torch.full((tiles, 5), length)
    return made


def test_text_is_padded_on_the_left():
    batch = Collator(PAD)([sample(2), sample(4)])
    assert batch["input_ids"].tolist() == [[PAD, PAD, 1, 2], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 101, 102], [101, 102, 103, 104]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_tiles_of_all_samples_follow_one_another():
    batch = Collator(PAD)([sample(2, 1, True), sample(3), sample(4, 3, True)])
    assert batch["pixel_values"].shape == (4, 3, 4, 4)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [2, 4, 4, 4]
    assert batch["image_grids"].tolist() == [[1, 1, 0], [1, 3, 0]]
    assert batch["vocab_targets"][:, 0].tolist() == [2, 4, 4, 4]
    assert batch["input_ids"].shape == (3, 4)


def test_images_alone():
    samples = [{"pixel_values": torch.zeros(n, 3, 4, 4)} for n in (1, 2)]
    assert Collator(PAD)(samples)["pixel_values"].shape[0] == 3


def test_one_sample_is_not_changed():
    one = sample(3, 2, True)
    batch = Collator(PAD)([one])
    assert torch.equal(batch["input_ids"][0], one["input_ids"])
    assert torch.equal(batch["pixel_values"], one["pixel_values"])


def test_a_padded_batch_gives_each_samples_own_loss(make_model, make_processor, make_image):
    """Left padding and images of other samples change nothing."""
    from alignvlm.data import encode
    from alignvlm.data.records import make_record

    model = make_model("align")
    processor = make_processor(model.config)
    records = [
        make_record("a", [make_image(56, 28, 1)], [("Who?", "Maria")], source="t"),
        make_record(
            "b", [], [("What is the total amount on this?", "The total is 5.")], source="t"
        ),
        make_record("c", [make_image(9, 9, 2), make_image(28, 56, 3)], [("A?", "map")], source="t"),
    ]
    samples = [encode.encode(record, processor) for record in records]
    collate = Collator(processor.tokenizer.pad_token_id)
    with torch.no_grad():
        counts = [int((s["labels"][1:] != IGNORE).sum()) for s in samples]
        alone = [model(**collate([s])).loss.item() for s in samples]
        together = model(**collate(samples)).loss.item()
    expected = sum(n * loss for n, loss in zip(counts, alone, strict=True)) / sum(counts)
    assert abs(together - expected) < 1e-4
