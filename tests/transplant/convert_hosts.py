"""Tiny random models of each host, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from alignvlm.transplant.convert import tokens_per_tile

V, D, IMAGE = 60, 16, 50
"""Rows of the table, its width, and the placeholder: rows from it on are not text."""
TEXT = {
    "hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": V, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
KINDS = ("llava-clip", "llava-siglip", "idefics3", "smolvlm", "ovis2")


def llava(vision: Any, tied: bool, **keys: Any) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT, tie_word_embeddings=tied),
        image_token_index=IMAGE,
        tie_word_embeddings=tied,
        **keys,
    )
    return LlavaForConditionalGeneration(config)


def idefics3(tied: bool) -> Idefics3ForConditionalGeneration:
    text = {**TEXT, "model_type": "llama", "tie_word_embeddings": tied}
    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=VISION, text_config=text, image_token_id=IMAGE, tie_word_embeddings=tied
        )
    )


def smolvlm(tied: bool) -> SmolVLMForConditionalGeneration:
    text = {**TEXT, "model_type": "llama", "tie_word_embeddings": tied}
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=VISION, text_config=text, image_token_id=IMAGE, tie_word_embeddings=tied
        )
    )


def ovis2(tied: bool) -> Ovis2ForConditionalGeneration:
    return Ovis2ForConditionalGeneration(
        Ovis2Config(
            vision_config={**VISION, "vocab_size": 40, "hidden_stride": 3},
            text_config=Qwen2Config(**TEXT, tie_word_embeddings=tied),
            image_token_id=IMAGE,
            visual_indicator_token_ids=[51, 52, 53, 54, 55],
            vocab_size=V,
            hidden_size=D,
            tie_word_embeddings=tied,
        )
    )


def make_host(kind: str, tied: bool = True) -> Any:
    torch.manual_seed(0)
    if kind == "llava-clip":
        model = llava(CLIPVisionConfig(**VISION, projection_dim=8), tied)
    elif kind == "llava-siglip":
        vision = SiglipVisionConfig(**VISION, vision_use_head=False)
        layers = {"vision_feature_layer": [-2, -1]}
        model = llava(vision, tied, vision_feature_select_strategy="full", **layers)
    else:
        model = {"idefics3": idefics3, "smolvlm": smolvlm, "ovis2": ovis2}[kind](tied)
    with torch.no_grad():  # away from the initial values, so that logits and images differ
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs_for(model: Any) -> dict[str, Any]:
    """Two prompts of one image each."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 16, 16, generator=generator)
    tokens = tokens_per_tile(model.config)
    assert tokens is not None
    indicators = [51, 52] if "ovis2" in model.config.model_type else []
    ids = torch.tensor(
        [[3, *indicators, *[IMAGE] * tokens, 7, 9], [4, *indicators, *[IMAGE] * tokens, 8, 5]]
    )
    if model.config.model_type.endswith(("idefics3", "smolvlm")):
        pixels = pixels[:, None]
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}


def image_tokens(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    output = model.get_image_features(pixel_values=batch["pixel_values"], return_dict=True)
    return torch.stack(list(output.pooler_output))


def connector_of(model: Any) -> Any:
    return getattr(model.model, model.model.connector_name)
