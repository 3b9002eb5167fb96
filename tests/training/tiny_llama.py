"""A language model small enough for tests of training."""

from __future__ import annotations

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

VOCABULARY, END = 40, 2


def tiny_llama(seed: int = 0, **changes: float) -> LlamaForCausalLM:
    """Two layers over :data:`VOCABULARY` ids; ``changes`` go to its config."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=1, eos_token_id=END, pad_token_id=0, **changes,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=0)
    return model
