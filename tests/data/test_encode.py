"""A conversation becomes ids and a label mask; a page becomes targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignvlm.data import encode
from alignvlm.data.ground import page_targets, tile_targets
from alignvlm.data.records import Record, make_record, validate_record
from alignvlm.data.sources import RenderSource
from alignvlm.data.synthetic.render import RenderSpec
from alignvlm.documents.words import Word
from alignvlm.errors import DataError
from alignvlm.model.losses import IGNORE
from alignvlm.tiling import Grid

TURNS = [("Who signed the letter?", "Maria Lopez."), ("When?", "In 1999")]


@pytest.fixture
def model(make_model):
    return make_model("align")


@pytest.fixture
def processor(model, make_processor):
    return make_processor(model.config)


def learned(sample: dict[str, torch.Tensor], processor: Any) -> str:
    """The supervised text."""
    mask = sample["labels"] != IGNORE
    return processor.tokenizer.decode(sample["input_ids"][mask])


# --- the label mask ----------------------------------------------------------------------------


def test_only_the_assistants_turns_are_learned(processor, images):
    record = make_record("r", images[:1], TURNS, source="t")
    sample = encode.encode(record, processor)
    assert learned(sample, processor) == "Maria Lopez.<|im_end|>In 1999<|im_end|>"
    mask = sample["labels"] != IGNORE
    assert torch.equal(sample["labels"][mask], sample["input_ids"][mask])
    assert bool(sample["attention_mask"].all())


def test_system_and_user_are_never_learned(processor):
    record = validate_record(
        {
            "id": "r",
            "images": [],
            "messages": [
                {"role": "system", "content": "You read."},
                {"role": "user", "content": "Maria?"},
                {"role": "assistant", "content": "Maria!"},
            ],
        },
        where="r",
    )
    sample = encode.encode(record, processor)
    assert learned(sample, processor) == "Maria!<|im_end|>"
    assert "pixel_values" not in sample
    text = processor.tokenizer.decode(sample["input_ids"])
    assert text.startswith("<|im_start|>system\nYou read.<|im_end|>\n<|im_start|>user\nMaria?")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_mask_does_not_move_with_images(processor, images, count):
    record = make_record("r", images[:count], TURNS, source="t")
    sample = encode.encode(record, processor)
    assert learned(sample, processor) == "Maria Lopez.<|im_end|>In 1999<|im_end|>"
    placeholders = int((sample["input_ids"] == processor.image_token_id).sum())
    grids = sample["image_grids"].tolist() if count else []
    assert len(grids) == count
    assert placeholders == 4 * sum(rows * cols + thumb for rows, cols, thumb in grids)
    assert bool((sample["labels"][sample["input_ids"] == processor.image_token_id] < 0).all())


def test_images_in_several_turns(processor, images):
    record = validate_record(
        {
            "id": "r",
            "images": images[:2],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "This?"}]},
                {"role": "assistant", "content": "One"},
                {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "image"}]},
                {"role": "assistant", "content": "Two"},
            ],
        },
        where="r",
    )
    sample = encode.encode(record, processor)
    assert learned(sample, processor) == "One<|im_end|>Two<|im_end|>"
    assert sample["image_grids"].tolist() == [[1, 2, 0], [2, 1, 0]]
    assert torch.equal(
        sample["pixel_values"],
        processor.image_processor(images[:2], return_tensors="pt")["pixel_values"],
    )


def test_nothing_to_learn_is_refused(processor, images):
    record = Record(
        id="row-9",
        images=images[:1],
        messages=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
    )
    with pytest.raises(DataError, match=r"row-9: no assistant turn"):
        encode.encode(record, processor)


def test_a_placeholder_in_the_text_names_the_record(processor, images):
    record = make_record("row-4", images[:1], [("What is <empty_output>?", "x")], source="t")
    with pytest.raises(DataError, match="row-4"):
        encode.encode(record, processor)


def test_a_missing_image_names_the_record(processor, tmp_path):
    record = make_record("row-5", [str(tmp_path / "gone.png")], TURNS, source="t")
    with pytest.raises(DataError, match=r"row-5.*gone\.png"):
        encode.encode(record, processor)


# --- length ------------------------------------------------------------------------------------


def test_long_samples_are_refused_never_cut(model, processor, images):
    record = make_record("r", images[:1], TURNS, source="t")
    length = len(encode.encode(record, processor)["input_ids"])
    sample = encode.encode_fitting(record, processor, model.config, length)
    assert len(sample["input_ids"]) == length
    with pytest.raises(encode.TooLong, match=f"r: {length} tokens"):
        encode.encode_fitting(record, processor, model.config, length - 1)


# --- images alone ------------------------------------------------------------------------------


def test_images_alone(processor, images):
    record = make_record("r", images, TURNS, source="t")
    full, alone = encode.encode(record, processor), encode.encode_images(record, processor)
    assert set(alone) == {"pixel_values", "image_grids"}
    assert all(torch.equal(alone[key], full[key]) for key in alone)
    with pytest.raises(DataError, match="r: has no image"):
        encode.encode_images(make_record("r", [], TURNS, source="t"), processor)


# --- targets -----------------------------------------------------------------------------------

WORDS = [Word("7", (0, 0, 9, 14), 0, (0,)), Word("total", (15, 0, 50, 14), 0, (15, 22, 29, 36, 43))]


def test_targets_are_those_of_each_page(model, processor, images, tokenizer):
    record = make_record("r", images[:2], TURNS, source="t", words=[WORDS, WORDS])
    grids = encode.encode_images(record, processor)["image_grids"]
    targets = encode.page_vocab_targets(record, grids, model.config, tokenizer)
    expected = [
        tile_targets(
            page_targets(WORDS, image.size, Grid(*grid[:2]), model.config, tokenizer).targets,
            Grid(*grid[:2]),
        )
        for image, grid in zip(images, grids.tolist(), strict=False)
    ]
    assert torch.equal(targets, torch.cat(expected))
    assert tokenizer.convert_tokens_to_ids("7") in targets


def test_thumbnails_are_not_scored(model, make_processor, images, tokenizer):
    processor = make_processor(model.config, thumbnail=True)
    record = make_record("r", images[:1], TURNS, source="t", words=[WORDS])
    sample = encode.encode(record, processor)
    assert sample["image_grids"].tolist() == [[1, 2, 1]]
    targets = encode.page_vocab_targets(record, sample["image_grids"], model.config, tokenizer)
    assert targets.shape == (3, 4)
    assert bool((targets[2] == IGNORE).all())
    assert bool((targets[:2] >= 0).all())


def test_pages_without_words_are_not_scored(model, processor, images, tokenizer):
    record = make_record("r", images, TURNS, source="t")
    grids = encode.encode_images(record, processor)["image_grids"]
    targets = encode.page_vocab_targets(record, grids, model.config, tokenizer)
    assert targets.shape == (5, 4)
    assert bool((targets == IGNORE).all())


def test_images_by_path_have_the_same_targets(model, processor, images, tokenizer, tmp_path):
    images[0].save(tmp_path / "page.png")
    grids = torch.tensor([[1, 2, 0]])
    both = [
        encode.page_vocab_targets(
            make_record("r", [image], TURNS, source="t", words=[WORDS]),
            grids,
            model.config,
            tokenizer,
        )
        for image in (images[0], str(tmp_path / "page.png"))
    ]
    assert torch.equal(*both)


def test_tokens_outside_a_pruned_vocabulary_are_not_scored(make_model, images, tokenizer):
    model = make_model("align")
    align, blank = model.model.connector, model.config.blank_token_id
    seven = tokenizer.convert_tokens_to_ids("7")
    record = make_record("r", images[:1], TURNS, source="t", words=[WORDS])
    grids = torch.tensor([[1, 2, 0]])
    full = encode.vocab_targets(record, grids, model.config, tokenizer, align)
    others = set(full.unique().tolist()) - {seven, blank}
    assert others
    align.prune(torch.tensor(sorted([seven, blank])))
    pruned = encode.vocab_targets(record, grids, model.config, tokenizer, align)
    for token in others:
        assert bool((pruned[full == token] == IGNORE).all())
    for token in (seven, blank):
        assert torch.equal(pruned == token, full == token)
    # and the loss takes them
    pixels = torch.zeros(2, 3, 28, 28)
    assert model(pixel_values=pixels, vocab_targets=pruned).loss.isfinite()


def test_blank_cells_are_drawn_by_the_seed(model, make_processor, tokenizer):
    processor = make_processor(model.config, max_tiles=8)
    spec = RenderSpec(layout="text", width=112, height=56, font_px=(14, 14), margin=2)
    record = RenderSource(spec, 3)[0]
    grids = encode.encode_images(record, processor)["image_grids"]
    keys: dict[str, Any] = {
        "config": model.config, "tokenizer": tokenizer, "connector": model.model.connector
    }  # fmt: skip
    blank = model.config.blank_token_id
    full = encode.vocab_targets(record, grids, **keys)
    some = encode.vocab_targets(record, grids, **keys, blank_cells=2, seed=5)
    assert int((full == blank).sum()) > 2
    assert int((some == blank).sum()) == 2
    assert torch.equal(some[full != blank], full[full != blank])
    assert torch.equal(some, encode.vocab_targets(record, grids, **keys, blank_cells=2, seed=5))
