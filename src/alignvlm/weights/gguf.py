"""A language model and its tokenizer from one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def convert_gguf(
    gguf: Path, *, max_length: int, individual_digits: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read the GGUF file with transformers and undo what its loader gets wrong.

    Weights stay float32: the dequantised values fit neither float16 nor bfloat16.

    Args:
        gguf: the file, alone in its folder.
        max_length: tokens the model was trained on.
        individual_digits: the tokenizer splits numbers into digits.
    """
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent,
        padding_side="left",
        model_max_length=max_length,
        trust_remote_code=False,
        **where,
    )
    if individual_digits:
        # The loader ignores GGUF's `tokenizer.ggml.pre = smollm`: digits are split off before
        # the byte-level step, else the space before a number is cut in the wrong place.
        digits = pre_tokenizers.Digits(individual_digits=True)
        split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, split])
    for noise in ("gguf_file", "local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(noise, None)

    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, trust_remote_code=False, **where
    )
    model.hf_quantizer, model.is_quantized = None, False  # or saving refuses "gguf"
    config = model.config
    for noise in ("quantization_config", "_model_name_or_path"):
        vars(config).pop(noise, None)
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")  # GGUF keeps 1e-5 as float32
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    return model, tokenizer
