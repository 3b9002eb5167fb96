"""What the model with and without its head share."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..connectors import Connector
from ..errors import AlignVLMError
from .config import AlignVLMConfig


class AlignVLMPreTrainedModel(PreTrainedModel):
    """What both model classes share."""

    config: AlignVLMConfig
    config_class = AlignVLMConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Connector):
            module.reset_parameters()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Resize the language model's vocabulary. ALIGN's P_vocab keeps covering the rows it was
        built for: added rows never enter it.

        Raises:
            AlignVLMError: fewer rows than P_vocab covers, or too few for the image placeholder.
        """
        config = self.config
        if new_num_tokens is not None:
            covered = config.connector_vocab_size if config.connector.type == "align" else 0
            if new_num_tokens < covered:
                raise AlignVLMError(
                    f"cannot shrink the embeddings to {new_num_tokens}: P_vocab covers {covered} "
                    "rows; prune the connector first"
                )
            if new_num_tokens <= config.image_token_id:
                raise AlignVLMError(
                    f"cannot shrink the embeddings to {new_num_tokens}: the image placeholder's id "
                    f"is {config.image_token_id}"
                )
            config.connector_vocab_size = min(config.connector_vocab_size, new_num_tokens)
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
