"""A pruned model survives saving; a peft-wrapped connector still drops blanks and takes targets."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

peft = pytest.importorskip("peft")


@pytest.fixture
def batch(make_config, make_processor, make_image):
    processor = make_processor(make_config())
    text = f"{processor.image_token} what?"
    return processor(images=[make_image(56, 28, 1)], text=[text], return_tensors="pt")


def test_pruned_model_saves_and_loads(make_model, batch, tmp_path) -> None:
    model = make_model(connector_keys={"gamma": 8.0})
    connector = model.model.connector
    features = model.model.encode_tiles(batch["pixel_values"])
    full = connector.vocab_distribution(features)
    ids = full.flatten(0, -2).mean(0).topk(50).indices
    model.model.prune_vocabulary(ids)
    kept = torch.zeros_like(full)
    kept[..., ids] = full[..., ids]
    pruned = connector.vocab_distribution(features)
    torch.testing.assert_close(pruned, kept / kept.sum(-1, keepdim=True), atol=1e-6, rtol=1e-4)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.connector.kept_tokens == 50
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # peft asks
def test_peft_wrapped_connector(make_model, batch) -> None:
    model = make_model()
    with torch.no_grad():
        plain = model(**batch).logits
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["connector"], r=2)
    wrapped = peft.get_peft_model(model, lora)
    tiles = batch["pixel_values"].shape[0]
    targets = torch.full((tiles, model.config.tokens_per_tile), 30)
    output = wrapped(**batch, vocab_targets=targets)
    torch.testing.assert_close(output.logits, plain)
    output.loss.backward()
    trained = {n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("modules_to_save" in name and "w1" in name for name in trained)
    model.config.blank_threshold = 0.9999
    with torch.no_grad():
        torch.testing.assert_close(wrapped(**batch).logits, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pruned_model_loads_in_another_precision(make_model, tmp_path, dtype) -> None:
    model = make_model(connector_keys={"gamma": 8.0})
    model.model.prune_vocabulary(torch.arange(0, 400, 7))
    exact = model.model.connector.stats_covariance.clone()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    connector = again.model.connector
    full = torch.float64 if dtype == torch.float64 else torch.float32
    assert connector.config.full_statistics and connector.w2.weight.dtype == dtype
    assert connector.stats_covariance.dtype == full
    assert torch.equal(connector.stats_covariance.float(), exact)
    cast = model.to(dtype).model.connector
    assert cast.stats_covariance.dtype == full
    assert torch.equal(cast.stats_covariance.float(), exact)
    again.save_pretrained(tmp_path / "again")  # and back: nothing was lost on the way
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(back.model.connector.stats_covariance, exact)
