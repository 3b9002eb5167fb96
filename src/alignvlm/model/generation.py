"""AlignVLM with the language model's head: loss, logits and generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from ..errors import AlignVLMError, ConfigError
from .base import AlignVLMPreTrainedModel
from .config import AlignVLMConfig
from .dropping import Compact
from .modeling import AlignVLMModel
from .outputs import CACHE, AlignVLMCausalLMOutput, Encoded
from .stepping import Step, prepare, restore


class AlignVLMForConditionalGeneration(AlignVLMPreTrainedModel, GenerationMixin):
    """AlignVLM with the language model's head: ask it about pages, or train it."""

    _tp_plan = {"lm_head": "colwise_gather_output"}
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
        self._step: Step | None = None
        self.post_init()

    def hasten(self) -> None:
        """Make later steps of generation faster where :mod:`.stepping` can; elsewhere nothing
        changes."""
        self._step = prepare(self)

    def unhasten(self) -> None:
        """Lay weights out as they are in files again, for whoever takes the language model out."""
        if self._step is not None:
            restore(self)
            self._step = None

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``save_pretrained``; weights that :meth:`hasten` laid out anew are written
        as they were."""
        if self._step is not None and len(args) < 2 and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = {k: v.contiguous() for k, v in self.state_dict().items()}
        return super().save_pretrained(save_directory, *args, **kwargs)

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
    ) -> BaseModelOutputWithPooling | tuple:
        """See :meth:`AlignVLMModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_grids, **kwargs)

    @can_return_tuple
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
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        vocab_targets: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> AlignVLMCausalLMOutput | tuple:
        """Logits, and the losses that are asked for.

        With ``vocab_targets`` and no ``input_ids`` only encoder and connector run (grounded
        alignment without a language model in the loop). See :meth:`AlignVLMModel.forward` for the
        inputs.

        Args:
            labels: int64 ``[B, L]``, -100 where not supervised.
            shift_labels: in place of ``labels``: the target of each position, as trainers that cut
                sequences into parts (context parallelism) make them before they cut.
            logits_to_keep: how many of the last positions get logits; 0: all.
            skip_logits: with ``labels``, compute logits only where there is a label and return
                none: a training step then never holds ``L x V``.
        """
        cache = cache if past_key_values is None else past_key_values
        if self._step is not None and self._step.suits(
            self, input_ids, cache, attention_mask,
            pixel_values, inputs_embeds, mm_encoder_outputs, vocab_targets, labels, shift_labels,
            **kwargs,
        ):  # fmt: skip
            logits = self._step(self, input_ids, cache, attention_mask, position_ids)
            return AlignVLMCausalLMOutput(logits=logits, **{CACHE: cache})
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
            cache=cache,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            vocab_targets=vocab_targets,
            return_dict=True,
            **kwargs,
        )
        hidden = output.last_hidden_state
        logits, lm_loss = None, None
        supervised = labels is not None or shift_labels is not None
        if supervised and skip_logits:
            lm_loss = self._sparse_loss(hidden, labels, shift_labels, items)
        else:
            count = isinstance(logits_to_keep, int)
            keep = slice(-logits_to_keep, None) if count else logits_to_keep
            logits = self.logits(hidden[:, keep])
            if supervised:
                lm_loss = self.loss_function(
                    logits=logits,
                    labels=labels,
                    shift_labels=shift_labels,
                    vocab_size=logits.shape[-1],
                    num_items_in_batch=items,
                )
        loss = lm_loss
        if output.vocab_loss is not None:
            loss = weight * output.vocab_loss + (0 if lm_loss is None else lm_loss)
        return AlignVLMCausalLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE: output.get(CACHE)},
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_outputs=output.image_outputs,
            image_hidden_states=output.image_hidden_states,
            lm_loss=lm_loss,
            vocab_loss=output.vocab_loss,
            vocab_text_loss=output.vocab_text_loss,
            vocab_blank_loss=output.vocab_blank_loss,
        )

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
        if encoded is None and pixel_values is not None and image_grids is not None:
            encoded = self.model.encode(pixel_values, image_grids)
        kept = None if encoded is None else self.model.kept(input_ids, encoded, attention_mask)
        if encoded is None or kept is None:
            embeds = self.model.merge(input_ids, pixel_values, encoded=encoded).inputs_embeds
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            return {"input_ids": input_ids, "inputs_embeds": embeds, "attention_mask": mask}
        compact = Compact.of(kept)
        ids = self._short_ids(input_ids, compact)
        embeds = self.model.merge(ids).inputs_embeds
        # blank tokens, which are most of a page, are never put together
        place, number = self._placeholders(input_ids)
        place = compact.gather(place) & compact.mask.bool()
        visual = encoded.visual(compact.gather(number)[place]).to(embeds.device, embeds.dtype)
        embeds = embeds.masked_scatter(place[..., None], visual)
        return {"input_ids": ids, "inputs_embeds": embeds, "attention_mask": compact.mask}

    def _placeholders(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Which positions they are, and the number of each in all prompts together."""
        place = input_ids == self.config.image_token_id
        return place, (place.flatten().cumsum(0) - 1).view_as(place)

    def _short_ids(self, input_ids: Tensor, compact: Compact) -> Tensor:
        # padding points at the prompt's start, which may be a placeholder
        padding = int(self.config.image_token_id == 0)
        return compact.gather(input_ids).masked_fill(compact.mask == 0, padding)

    def _encoded_prompt(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        image_grids: Tensor,
        attention_mask: Tensor | None,
    ) -> dict[str, Any]:
        """The prompt after blank dropping as token ids, with the visual tokens that remain in the
        order of their placeholders; so token ids still say all that the language model reads."""
        encoded = self.model.encode(pixel_values, image_grids)
        kept = self.model.kept(input_ids, encoded, attention_mask)
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        prompt, tokens = {"input_ids": input_ids, **mask}, encoded.tokens
        if kept is not None:
            compact = Compact.of(kept)
            place, number = self._placeholders(input_ids)
            chosen = [number[b, row[place[b, row]]] for b, row in enumerate(kept)]
            tokens = [encoded.visual(index) for index in chosen if len(index)]
            ids = self._short_ids(input_ids, compact)
            prompt = {"input_ids": ids, "attention_mask": compact.mask}
        image = BaseModelOutputWithPooling(pooler_output=tokens)  # type: ignore[arg-type]
        return {**prompt, "mm_encoder_outputs": {"image": image} if tokens else {}}

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate``. With ``config.blank_threshold`` the prompt is shortened
        first; what comes back starts with the full prompt all the same, and ``max_length`` and
        ``min_length`` count it.

        Raises:
            AlignVLMError: drafts (``assistant_model``, ``prompt_lookup_num_tokens``) for
                ``inputs_embeds``, which do not say what the language model has read.
        """
        generate = super().generate  # pyright: ignore[reportAttributeAccessIssue]
        if kwargs.get("pixel_values") is None:
            if kwargs.get("inputs_embeds") is not None and self._drafts(kwargs):
                raise AlignVLMError(
                    "assistant_model and prompt_lookup_num_tokens need input_ids and pixel_values, "
                    "not inputs_embeds"
                )
            return generate(inputs, *args, **kwargs)
        prompt = inputs if inputs is not None else kwargs.pop("input_ids")
        images = (kwargs.pop("pixel_values"), kwargs.pop("image_grids", None))
        if images[1] is None:
            raise AlignVLMError("pixel_values needs image_grids; use AlignVLMProcessor for both")
        short = self._encoded_prompt(prompt, *images, kwargs.pop("attention_mask", None))
        length = short["input_ids"].shape[1]
        self._count_full_prompt(kwargs, prompt.shape[1] - length)
        output = generate(None, *args, **short, **kwargs)
        sequences = output if isinstance(output, Tensor) else output.sequences
        times = sequences.shape[0] // prompt.shape[0]
        full = torch.cat([prompt.repeat_interleave(times, dim=0), sequences[:, length:]], dim=-1)
        if isinstance(output, Tensor):
            return full
        output.sequences = full
        return output

    def _asked(self, kwargs: dict[str, Any], key: str) -> Any:
        """A setting of this call, of its generation config, or of the model's."""
        configs = (kwargs.get("generation_config"), self.generation_config)
        found = [kwargs.get(key), *(getattr(config, key, None) for config in configs)]
        return next((value for value in found if value is not None), None)

    def _drafts(self, kwargs: dict[str, Any]) -> bool:
        given = kwargs.get("assistant_model") is not None
        return given or self._asked(kwargs, "prompt_lookup_num_tokens") is not None

    def _count_full_prompt(self, kwargs: dict[str, Any], dropped: int) -> None:
        """Lengths that count the prompt count the one that was given."""
        for kind in ("max", "min") if dropped else ():
            length = self._asked(kwargs, f"{kind}_length")
            if length and self._asked(kwargs, f"{kind}_new_tokens") is None:
                kwargs[f"{kind}_length"] = max(length - dropped, 0)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head, with the scaling or soft cap that some language models put behind it."""
        return self.scaled_logits(self.lm_head(hidden))

    def scaled_logits(self, logits: Tensor) -> Tensor:
        """What some language models do with their head's output."""
        config = self.config.text_config
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        return logits

    def _sparse_loss(
        self, hidden: Tensor, labels: Tensor | None, shift_labels: Tensor | None, items: Any
    ) -> Tensor:
        if shift_labels is None:
            assert labels is not None
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        supervised = shift_labels != -100
        logits = self.logits(hidden[supervised]).float()
        total = nn.functional.cross_entropy(
            logits, shift_labels[supervised].to(logits.device), reduction="sum"
        )
        return total / (supervised.sum().clamp_min(1) if items is None else items)


def _head_like(text_config: Any) -> nn.Linear:
    """An uninitialised head shaped as the language model's own (some have a bias)."""
    with torch.device("meta"):
        head = AutoModelForCausalLM.from_config(
            text_config, trust_remote_code=False
        ).get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"{text_config.model_type!r} has no linear language-model head")
    return nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
