"""The paper's three models at their true sizes, on the meta device: shapes and counts only."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, SiglipVisionConfig

from alignvlm import AlignVLMConfig, AlignVLMForConditionalGeneration
from alignvlm.tiling import Grid, token_row_lengths

VOCAB, D_VISION = 128256, 1152
LLAMAS = {
    "llama-3.2-1b": (
        1_235_814_400,
        {
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "head_dim": 64,
            "intermediate_size": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.2-3b": (
        3_212_749_824,
        {
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "head_dim": 128,
            "intermediate_size": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3.1-8b": (
        8_030_261_248,
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "head_dim": 128,
            "intermediate_size": 14336,
            "tie_word_embeddings": False,
        },
    ),
}


def siglip_so400m() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=D_VISION,
        num_hidden_layers=27,
        intermediate_size=4304,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )


def siglip_count() -> int:
    """Patch and position embedding, layers (attention, two norms, MLP), last norm."""
    h, inner = D_VISION, 4304
    embedding = (3 * 14 * 14 * h + h) + 27 * 27 * h
    layer = 4 * (h * h + h) + 2 * 2 * h + (h * inner + inner) + (inner * h + h)
    return embedding + 27 * layer + 2 * h


def count(*modules: torch.nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(p.numel() for p in {p for module in modules for p in module.parameters()})


@pytest.mark.parametrize("name", LLAMAS)
def test_the_papers_models(name):
    lm_count, keys = LLAMAS[name]
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    text = LlamaConfig(vocab_size=VOCAB, **{**heads, **keys})
    config = AlignVLMConfig(siglip_so400m(), text, "align", image_token_id=128002)
    with torch.device("meta"):
        model = AlignVLMForConditionalGeneration(config)
    d = text.hidden_size
    connector_count = D_VISION * d + 2 * d + VOCAB * d + 2 * VOCAB
    assert count(model.model.vision_model) == siglip_count()
    assert count(model.model.connector) == connector_count
    assert count(model.model.language_model, model.lm_head) == lm_count
    assert count(model) == siglip_count() + connector_count + lm_count
    assert config.tokens_per_tile == 729
    for order in ("page", "tile"):
        assert sum(token_row_lengths(Grid(3, 3), False, 27, 27, order)) == 6561
