"""AlignVLM with the language model's head: loss, logits and generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..errors import AlignVLMError, ConfigError
from .config import AlignVLMConfig
from .dropping import Compact
from .modeling import AlignVLMModel, AlignVLMPreTrainedModel
from .outputs import CACHE, AlignVLMCausalLMOutput, Encoded, group_images


class AlignVLMForConditionalGeneration(AlignVLMPreTrainedModel, GenerationMixin):
    """AlignVLM with the language model's head: ask it about pages, or train it."""

    _tied_weights_keys: dict[str, str] = {
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }

    def __init__(self, config: AlignVLMConfig) -> None:
        super().__init__(config)
        self.model = AlignVLMModel(config)
        self.lm_head = _head_like(config.text_config)
        embedding = self.get_input_embeddings()
        for name, module in self.model.language_model.named_modules():
            if module is embedding:  # GPT-2 calls it wte, GPT-NeoX embed_in, ...
                key = f"model.language_model.{name}.weight"
                self._tied_weights_keys = {"lm_head.weight": key}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def get_image_features(
        self, pixel_values: Tensor, image_grids: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See :meth:`AlignVLMModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_grids, **kwargs)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> nn.Module:
        """Resize the language model's vocabulary. P_vocab keeps covering the rows it was built for:
        added rows never enter it.

        Raises:
            AlignVLMError: fewer rows than P_vocab covers.
        """
        covered = self.config.connector_vocab_size
        if new_num_tokens is not None and new_num_tokens < covered:
            raise AlignVLMError(
                f"cannot shrink the embeddings to {new_num_tokens}: P_vocab covers {covered} rows; "
                "prune the connector first"
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        vocab_targets: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> AlignVLMCausalLMOutput | tuple:
        """Logits, and the losses that are asked for.

        With ``vocab_targets`` and no ``input_ids`` only encoder and connector run (grounded
        alignment without a language model in the loop). See :meth:`AlignVLMModel.forward` for the
        inputs.

        Args:
            labels: int64 ``[B, L]``, -100 where not supervised.
            logits_to_keep: how many of the last positions get logits; 0: all.
            skip_logits: with ``labels``, compute logits only where there is a label and return
                none: a training step then never holds ``L x V``.
        """
        weight = self.config.vocab_loss_weight
        if input_ids is None and inputs_embeds is None and vocab_targets is not None:
            grounded = self.model.vocab_loss(pixel_values, vocab_targets, image_grids)
            return AlignVLMCausalLMOutput(
                loss=weight * grounded.loss,
                vocab_loss=grounded.loss,
                vocab_text_loss=grounded.text,
                vocab_blank_loss=grounded.blank,
            )
        items = kwargs.pop("num_items_in_batch", None)
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_grids=image_grids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache if past_key_values is None else past_key_values,
            inputs_embeds=inputs_embeds,
            vocab_targets=vocab_targets,
            **kwargs,
        )
        hidden = output.last_hidden_state
        logits, lm_loss = None, None
        if labels is not None and skip_logits:
            lm_loss = self._sparse_loss(hidden, labels, items)
        else:
            count = isinstance(logits_to_keep, int)
            keep = slice(-logits_to_keep, None) if count else logits_to_keep
            logits = self.logits(hidden[:, keep])
            if labels is not None:
                lm_loss = self.loss_function(
                    logits=logits,
                    labels=labels,
                    vocab_size=logits.shape[-1],
                    num_items_in_batch=items,
                )
        loss = lm_loss
        if output.vocab_loss is not None:
            loss = weight * output.vocab_loss + (0 if lm_loss is None else lm_loss)
        result = AlignVLMCausalLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE: output.get(CACHE)},
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=output.image_hidden_states,
            lm_loss=lm_loss,
            vocab_loss=output.vocab_loss,
            vocab_text_loss=output.vocab_text_loss,
            vocab_blank_loss=output.vocab_blank_loss,
        )
        return result.to_tuple() if return_dict is False else result

    def compact_prompt(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_grids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoded: Encoded | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The prompt after blank dropping, as ``generate`` takes it.

        Args:
            encoded: the pages as :meth:`AlignVLMModel.encode` gave them, in place of pixels.

        Returns:
            ``input_ids [B, L']``, ``inputs_embeds [B, L', D]``, ``attention_mask [B, L']``.
        """
        merged = self.model.merge(
            input_ids, pixel_values, image_grids, attention_mask, encoded=encoded
        )
        if merged.kept is None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            embeds = merged.inputs_embeds
            return {"input_ids": input_ids, "inputs_embeds": embeds, "attention_mask": mask}
        compact = Compact.of(merged.kept)
        return {
            "input_ids": compact.gather(input_ids),
            "inputs_embeds": compact.gather(merged.inputs_embeds),
            "attention_mask": compact.mask,
        }

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate``. With ``config.blank_threshold`` the prompt is shortened
        first; what comes back starts with the full prompt all the same."""
        pixels = kwargs.get("pixel_values")
        if self.config.blank_threshold is None or pixels is None:
            return super().generate(inputs, *args, **kwargs)
        prompt = inputs if inputs is not None else kwargs.pop("input_ids")
        kwargs.pop("input_ids", None)
        images = {key: kwargs.pop(key) for key in ("pixel_values", "image_grids")}
        short = self.compact_prompt(
            prompt, **images, attention_mask=kwargs.pop("attention_mask", None)
        )
        output = super().generate(None, *args, **short, **kwargs)
        sequences = output if isinstance(output, Tensor) else output.sequences
        times = sequences.shape[0] // prompt.shape[0]
        new = sequences[:, short["input_ids"].shape[1] :]
        full = torch.cat([prompt.repeat_interleave(times, dim=0), new], dim=-1)
        if isinstance(output, Tensor):
            return full
        output.sequences = full
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """The head, with the scaling or soft cap that some language models put behind it."""
        logits = self.lm_head(hidden)
        config = self.config.text_config
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        return logits

    def _sparse_loss(self, hidden: Tensor, labels: Tensor, items: Any) -> Tensor:
        targets = labels[:, 1:]
        supervised = targets != -100
        logits = self.logits(hidden[:, :-1][supervised]).float()
        total = nn.functional.cross_entropy(
            logits, targets[supervised].to(logits.device), reduction="sum"
        )
        return total / (supervised.sum().clamp_min(1) if items is None else items)

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **kwargs
    ):
        """Beams and several sequences: images belong to prompts, so they repeat as groups."""
        images = {key: kwargs.pop(key, None) for key in ("pixel_values", "image_grids")}
        if expand_size > 1 and images["pixel_values"] is not None:
            images = self._repeat_images(input_ids, expand_size, **images)
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return input_ids, {**kwargs, **{k: v for k, v in images.items() if v is not None}}

    def _repeat_images(
        self, input_ids: Tensor, times: int, pixel_values: Tensor, image_grids: Tensor
    ) -> dict[str, Tensor]:
        tiles = (image_grids[:, 0] * image_grids[:, 1] + image_grids[:, 2]).tolist()
        per_tile = self.config.tokens_per_tile
        wanted = (input_ids == self.config.image_token_id).sum(-1).tolist()
        groups = group_images(wanted, [count * per_tile for count in tiles])
        order = [image for group in groups for image in list(group) * times]
        pixels = pixel_values.split(tiles)
        return {
            "pixel_values": torch.cat([pixels[image] for image in order]),
            "image_grids": image_grids[order],
        }


def _head_like(text_config: Any) -> nn.Linear:
    """An uninitialised head shaped as the language model's own (some have a bias)."""
    with torch.device("meta"):
        head = AutoModelForCausalLM.from_config(text_config).get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"{text_config.model_type!r} has no linear language-model head")
    return nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
