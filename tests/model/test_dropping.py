"""Blank dropping: what leaves the sequence, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

from alignvlm.errors import ConfigError
from alignvlm.model.dropping import Compact, kept_positions

IMG = 9


def test_empty_rows_lose_their_newline() -> None:
    ids = torch.tensor([[1, IMG, IMG, 5, IMG, IMG, 5, 7]])
    dropped = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 0]]).bool()
    (kept,) = kept_positions(ids, None, dropped, IMG, row_end=True)
    assert kept.tolist() == [0, 5, 6, 7]
    (kept,) = kept_positions(ids, None, dropped, IMG, row_end=False)
    assert kept.tolist() == [0, 3, 5, 6, 7]


def test_rows_in_reading_order_each_end_in_a_newline() -> None:
    ids = torch.tensor([[1, IMG, IMG, 5, IMG, IMG, 5, 7, IMG, 5, 8]])
    dropped = torch.zeros_like(ids).bool()
    dropped[0, 4] = True
    columns = [torch.tensor([0, 2]), torch.tensor([1, 3])]
    images = [[(4, columns), (1, [torch.tensor([0])])]]
    (kept,) = kept_positions(ids, None, dropped, IMG, True, images)
    assert kept.tolist() == [0, 1, 3, 2, 5, 3, 7, 8, 9, 10]
    (kept,) = kept_positions(ids, None, dropped, IMG, False, images)
    assert kept.tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    (kept,) = kept_positions(ids, None, dropped, IMG, True, [[(4, []), (1, [])]])
    assert kept.tolist() == [0, 7, 10]


def test_of_a_repeated_newline_the_last_reading_is_scattered_back() -> None:
    compact = Compact.of([torch.tensor([0, 2, 1, 2]), torch.tensor([1])])
    values = torch.arange(1.0, 9.0).view(2, 4, 1)
    assert compact.scatter(values, 3)[..., 0].tolist() == [[1, 3, 4], [0, 8, 0]]


def test_padding_never_remains() -> None:
    ids = torch.tensor([[0, 0, IMG, 5, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    (kept,) = kept_positions(ids, mask, torch.zeros_like(ids).bool(), IMG, row_end=True)
    assert kept.tolist() == [2, 3, 4]


def test_compact_gathers_in_order_and_scatters_back() -> None:
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(5, 11, generator=generator) < 0.5
    keep[:, -1] = True
    values = torch.arange(5 * 11 * 2).view(5, 11, 2).float()
    compact = Compact.of([row.nonzero()[:, 0] for row in keep])
    short = compact.gather(values)
    for row in range(5):
        kept = values[row][keep[row]]
        assert torch.equal(short[row][compact.mask[row].bool()], kept)
        assert compact.mask[row].tolist() == sorted(compact.mask[row].tolist())
        positions = compact.positions()[row][compact.mask[row].bool()]
        assert positions.tolist() == list(range(len(kept)))
    assert torch.equal(compact.scatter(short, 11), values * keep[..., None])


@pytest.fixture
def batch(make_config, make_processor, make_image):
    processor = make_processor(make_config())
    pages = [make_image(56, 28, 1), make_image(28, 28, 2)]
    texts = [f"{processor.image_token} what?", f"{processor.image_token} who is it? say"]
    return processor(images=[[p] for p in pages], text=texts, padding=True, return_tensors="pt")


def set_quantile(model, batch, quantile: float) -> None:
    features = model.model.encode_tiles(batch["pixel_values"])
    blank = model.model.connector.vocab_distribution(features)[..., model.config.blank_token_id]
    model.config.blank_threshold = float(blank.flatten().quantile(quantile))


def test_no_token_below_the_threshold_changes_nothing(make_model, batch) -> None:
    model = make_model()
    with torch.no_grad():
        plain = model(**batch).logits
        model.config.blank_threshold = 0.999999
        same = model(**batch).logits
    attended = batch["attention_mask"].bool()
    torch.testing.assert_close(same[attended], plain[attended], atol=1e-5, rtol=1e-4)


def test_dropping_equals_deleting_by_hand(make_model, batch) -> None:
    model = make_model()
    set_quantile(model, batch, 0.5)
    with torch.no_grad():
        merged = model.model.merge(
            batch["input_ids"], batch["pixel_values"], batch["image_grids"], batch["attention_mask"]
        )
        logits = model(**batch).logits
        assert 0 < sum(map(len, merged.kept)) < int(batch["attention_mask"].sum())
        for row, keep in enumerate(merged.kept):
            alone = model(inputs_embeds=merged.inputs_embeds[row, keep][None]).logits[0]
            torch.testing.assert_close(logits[row, keep], alone, atol=1e-5, rtol=1e-4)


def test_generation_equals_forward_without_cache(make_model, batch) -> None:
    model = make_model()
    set_quantile(model, batch, 0.5)
    new = 4
    output = model.generate(**batch, max_new_tokens=new, do_sample=False, eos_token_id=None)
    length = batch["input_ids"].shape[1]
    assert torch.equal(output[:, :length], batch["input_ids"])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for _ in range(new):
        with torch.no_grad():
            logits = model(**{**batch, "input_ids": ids, "attention_mask": mask}).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=-1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
    assert torch.equal(output, ids)


def test_batched_generation_equals_single(
    make_model, make_config, make_processor, make_image
) -> None:
    model = make_model()
    processor = make_processor(model.config)
    pages = [make_image(56, 28, 1), make_image(28, 28, 2)]
    texts = [f"{processor.image_token} what?", f"{processor.image_token} who is it? say"]
    both = processor(images=[[p] for p in pages], text=texts, padding=True, return_tensors="pt")
    set_quantile(model, both, 0.5)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    together = model.generate(**both, **options)[:, -4:]
    for row, (page, text) in enumerate(zip(pages, texts, strict=True)):
        one = processor(images=[page], text=[text], return_tensors="pt")
        assert torch.equal(model.generate(**one, **options)[0, -4:], together[row])


def test_beams_and_text_only_prompts(make_model, batch, make_processor) -> None:
    model = make_model()
    set_quantile(model, batch, 0.5)
    options = {"max_new_tokens": 3, "do_sample": False}
    beams = model.generate(**batch, num_beams=2, num_return_sequences=2, **options)
    length = batch["input_ids"].shape[1]
    assert torch.equal(beams[:, :length], batch["input_ids"].repeat_interleave(2, 0))
    text = make_processor(model.config)(text=["who?"], return_tensors="pt")
    assert model.generate(**text, **options).shape[0] == 1


def test_losses_and_gradients_flow_through_what_remains(make_model, batch) -> None:
    model = make_model()
    set_quantile(model, batch, 0.5)
    labels = batch["input_ids"].clone()
    labels[batch["input_ids"] == model.config.image_token_id] = -100
    labels[batch["attention_mask"] == 0] = -100
    tiles = batch["pixel_values"].shape[0]
    targets = torch.full((tiles, model.config.tokens_per_tile), 30)
    output = model(**batch, labels=labels, vocab_targets=targets, skip_logits=True)
    full = model(**batch, labels=labels, vocab_targets=targets)
    torch.testing.assert_close(output.loss, full.loss)
    output.loss.backward()
    assert float(model.model.connector.w1.weight.grad.abs().sum()) > 0
    alone = model.model.vocab_loss(batch["pixel_values"], targets)
    torch.testing.assert_close(output.vocab_loss, alone.loss)


def test_only_align_can_drop(make_config) -> None:
    with pytest.raises(ConfigError, match="blank_threshold needs the 'align' connector"):
        make_config("mlp", blank_threshold=0.5)
