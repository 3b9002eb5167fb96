"""The model: vision encoder, connector, language model (arXiv 2502.01341, section 3).

Shape letters: T tiles of all images, r x c feature grid of a tile, n visual tokens of a tile,
B prompts, L prompt length, V vocabulary, D language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from ..connectors import build_connector, loaded
from ..errors import AlignVLMError
from ..tiling import Grid, page_order
from . import branches
from .base import AlignVLMPreTrainedModel
from .config import AlignVLMConfig
from .dropping import Compact, blank_tokens, kept_positions
from .encoder_call import check_tiles, encode_tiles, for_reader, rows_read
from .losses import VocabLoss, loss_of, vocab_loss
from .outputs import CACHE, AlignVLMModelOutput, Encoded, Merged, group_images
from .packing import run_packed


class AlignVLMModel(AlignVLMPreTrainedModel):
    """Vision encoder, connector and language model without its head."""

    def __init__(self, config: AlignVLMConfig) -> None:
        super().__init__(config)
        self.vision_model = AutoModel.from_config(config.vision_config, trust_remote_code=False)
        self.connector = build_connector(
            config.connector,
            config.vision_hidden_size,
            config.text_config.hidden_size,
            config.connector_vocab_size,
            config.feature_grid,
        )
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def text_embedding(self) -> Float[Tensor, "vocab d_text"]:
        """E_text: the language model's input embedding table, whole where it is sharded."""
        embedding = self.get_input_embeddings()
        with loaded(embedding):
            table: Any = embedding.weight
        return table.full_tensor() if isinstance(table, DTensor) else table

    def encode_tiles(
        self,
        pixel_values: Float[Tensor, "tiles 3 height width"],
        image_grids: Int[Tensor, "images 3"] | None = None,
    ) -> Float[Tensor, "tiles rows cols d_vision"]:
        """Vision features of each tile, as a grid; class tokens are dropped.

        Args:
            image_grids: how the tiles of each image lie, for an encoder that reads whole pages
                (``reads_pages``); without it each tile is a page of its own.

        Raises:
            AlignVLMError: the tiles have another size than the config's.
            ConfigError: the encoder's output does not have the configured grid.
        """
        return self.see(pixel_values, image_grids)[0]

    def see(
        self, pixel_values: Tensor, image_grids: Tensor | None = None
    ) -> tuple[Float[Tensor, "tiles rows cols d_vision"], list[Any] | None]:
        """:meth:`encode_tiles`, and what an encoder that reads found on each page."""
        output = self._see(pixel_values, image_grids)
        return output.last_hidden_state, getattr(output, "pages", None)

    def _see(self, pixel_values: Tensor, image_grids: Tensor | None, **asked: Any) -> Any:
        if image_grids is not None:
            check_tiles(image_grids, len(pixel_values))
        if getattr(self.vision_model, "reads_pages", False):
            self.vision_model.keep(getattr(self.connector, "token_ids", None))  # type: ignore[operator]
            table, blank_id = self.text_embedding(), self.config.blank_token_id
            asked |= for_reader(image_grids, self.connector, table, blank_id)
        return encode_tiles(self.vision_model, self.config, pixel_values, **asked)

    def assemble(
        self, tokens: Shaped[Tensor, "tiles n d"], image_grids: Int[Tensor, "images 3"]
    ) -> list[Tensor]:
        """Visual tokens of each image in the order the language model reads them.

        Args:
            tokens: of all tiles, image after image.
            image_grids: tile rows, tile columns, and 1 if a thumbnail tile follows.

        Raises:
            AlignVLMError: there are more or fewer tiles than the grids say.
        """
        check_tiles(image_grids, len(tokens))
        layout = self.config.tile_token_grid
        images, start = [], 0
        for rows, cols, thumbnail in image_grids.tolist():
            grid = Grid(rows, cols)
            page = tokens[start : start + grid.tiles].flatten(0, 1)
            if self.config.token_order == "page" and layout is not None:
                page = page[page_order(grid, *layout).to(page.device)]
            start += grid.tiles
            if thumbnail:
                page = torch.cat([page, tokens[start]])
                start += 1
            images.append(page)
        return images

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Float[Tensor, "tiles 3 height width"],
        image_grids: Int[Tensor, "images 3"],
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple:
        """Encode images: ``last_hidden_state`` holds the vision features ``[T, r, c, d_vision]``,
        ``pooler_output`` the list of each image's visual tokens ``[n_i, D]`` in reading order.

        Args:
            output_hidden_states, output_attentions: hand on the vision encoder's, where it has any.
        """
        asked = {"output_hidden_states": output_hidden_states}
        asked |= {"output_attentions": output_attentions}
        seen = self._see(pixel_values, image_grids, **{k: v for k, v in asked.items() if v})
        tokens = self.connector.read(seen.last_hidden_state, self.text_embedding()).tokens
        return BaseModelOutputWithPooling(
            last_hidden_state=seen.last_hidden_state,
            pooler_output=self.assemble(self._scaled(tokens), image_grids),  # type: ignore[arg-type]
            hidden_states=seen.get("hidden_states") if output_hidden_states else None,
            attentions=seen.get("attentions") if output_attentions else None,
        )

    def encode(
        self,
        pixel_values: Float[Tensor, "tiles 3 height width"],
        image_grids: Int[Tensor, "images 3"],
        vocab_targets: Int[Tensor, "tiles n"] | None = None,
    ) -> Encoded:
        """Pages through encoder and connector, once: :meth:`merge`, ``generate`` and
        :func:`alignvlm.inference.inspect.read_page` take what comes back in place of pixels.

        Args:
            pixel_values, image_grids: as :class:`AlignVLMProcessor` gives them.
            vocab_targets: as for :meth:`forward`.

        Raises:
            AlignVLMError: the tiles have another size or number than they should.
        """
        config = self.config
        features, pages = self.see(pixel_values, image_grids)
        blank_id = None if config.blank_threshold is None else config.blank_token_id
        read = self.connector.read(features, self.text_embedding(), vocab_targets, blank_id)
        order, loss = None, None
        blank = blank_tokens(read.blank_log_p, config.blank_threshold)
        if pages is not None and config.tile_token_grid == config.feature_grid:
            order = rows_read(pages, image_grids)
        if vocab_targets is not None:
            loss = loss_of(read, vocab_targets, config.blank_token_id, config.blank_loss_weight)
        return Encoded(
            features=features,
            image_grids=image_grids,
            tokens=self.assemble(self._scaled(read.tokens), image_grids),
            blank=None if blank is None else self.assemble(blank[..., None], image_grids),
            order=order,
            pages=pages,
            vocab_loss=loss,
        )

    def _scaled(self, tokens: Tensor) -> Tensor:
        # a few language models scale inside their embedding module; soft text must match
        scale = getattr(self.get_input_embeddings(), "embed_scale", None)
        return tokens if scale is None else tokens * scale

    def vocab_loss(
        self,
        pixel_values: Float[Tensor, "tiles 3 height width"],
        vocab_targets: Int[Tensor, "tiles n"],
        image_grids: Int[Tensor, "images 3"] | None = None,
    ) -> VocabLoss:
        """Loss on P_vocab from encoder and connector alone; the language model does not run."""
        return vocab_loss(
            self.connector,
            self.encode_tiles(pixel_values, image_grids),
            vocab_targets,
            self.config.blank_token_id,
            self.config.blank_loss_weight,
        )

    def prune_vocabulary(self, token_ids: Int[Tensor, " kept"]) -> None:
        """Keep only these ids in P_vocab, in place; the config follows, so the model can be saved.

        See :meth:`Connector.prune`.
        """
        self.connector.prune(token_ids)
        self.config.connector_config = self.connector.config.model_dump()

    def merge(
        self,
        input_ids: Int[Tensor, "batch length"],
        pixel_values: Float[Tensor, "tiles 3 height width"] | None = None,
        image_grids: Int[Tensor, "images 3"] | None = None,
        attention_mask: Int[Tensor, "batch read"] | None = None,
        vocab_targets: Int[Tensor, "tiles n"] | None = None,
        encoded: Encoded | None = None,
    ) -> Merged:
        """Prompt embeddings with visual tokens written over the placeholders.

        Args:
            attention_mask: with a cache also of what was read before.
            encoded: the images' pages, as :meth:`encode` gave them, in place of pixels.

        Raises:
            AlignVLMError: placeholders and visual tokens do not match; the sample is named.
        """
        embeds = self._embed(input_ids)
        if encoded is None:
            if pixel_values is None:
                return Merged(self._touch_image_path(embeds))
            if image_grids is None:
                raise AlignVLMError(
                    "pixel_values needs image_grids; use AlignVLMProcessor for both"
                )
            encoded = self.encode(pixel_values, image_grids, vocab_targets)
        kept = self.kept(input_ids, encoded, attention_mask)
        embeds, visual = self._write(input_ids, embeds, encoded.tokens)
        image = BaseModelOutputWithPooling(encoded.features, encoded.tokens)  # type: ignore[arg-type]
        return Merged(embeds, visual, encoded.vocab_loss, kept, image)

    def _embed(self, input_ids: Tensor) -> Tensor:
        embedding = self.get_input_embeddings()
        if hasattr(embedding, "set_reshard_after_forward"):
            # FSDP2 made it a group of its own, and would take the table away after the lookup;
            # the connector reads the table too
            embedding.set_reshard_after_forward(False)
        return embedding(input_ids)

    def _write(
        self, input_ids: Tensor, embeds: Tensor, tokens: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Embeddings with visual tokens over the placeholders; and these tokens in one piece."""
        mask = input_ids == self.config.image_token_id
        visual = torch.cat(list(tokens)).to(embeds.device, embeds.dtype)
        if len(visual) != int(mask.sum()):
            raise AlignVLMError(
                f"the prompts have {int(mask.sum())} image placeholders, their images give "
                f"{len(visual)} visual tokens"
            )
        return embeds.masked_scatter(mask[..., None], visual), visual

    def kept(
        self,
        input_ids: Int[Tensor, "batch length"],
        encoded: Encoded,
        attention_mask: Int[Tensor, "batch length"] | None = None,
    ) -> list[Int[Tensor, " _"]] | None:
        """The positions of each prompt that the language model reads; ``None``: all as they stand.

        Raises:
            AlignVLMError: placeholders and visual tokens do not match; the sample is named.
        """
        mask = input_ids == self.config.image_token_id
        lengths = encoded.lengths
        groups = group_images(mask.sum(-1).tolist(), lengths)
        if encoded.blank is None:
            return None
        blank = torch.cat(encoded.blank)[:, 0]
        dropped = torch.zeros_like(mask).masked_scatter(mask, blank.to(mask.device))
        order = encoded.order
        return kept_positions(
            input_ids,
            attention_mask,
            dropped,
            self.config.image_token_id,
            self.config.row_end,
            order and [[(lengths[i], order[i]) for i in group] for group in groups],
        )

    def _touch_image_path(self, embeds: Tensor) -> Tensor:
        # a rank whose batch has no image must still take part in the others' gradient collectives
        # (ZeRO-3, FSDP), so it encodes one blank tile and adds nothing of it
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed and torch.distributed.get_world_size() > 1):
            return embeds
        size = (1, 3, self.config.tile_height, self.config.tile_width)
        features = self.encode_tiles(embeds.new_zeros(size))
        tokens = self.connector.read(features, self.text_embedding()).tokens
        assert tokens is not None  # there is a table
        return embeds + 0 * tokens.sum()

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
        vocab_targets: Tensor | None = None,
        packing: bool = False,
        turn_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> AlignVLMModelOutput | tuple:
        """Run the language model over text and images.

        Args:
            input_ids: int64 ``[B, L]`` with one placeholder per visual token, or ``inputs_embeds``.
            pixel_values: float ``[T, 3, height, width]``, all images' tiles.
            image_grids: int64 ``[images, 3]``, see :meth:`assemble`.
            inputs_embeds: ``[B, L, D]``, as :meth:`merge` returns them; then no images.
            mm_encoder_outputs: ``image``: what :meth:`get_image_features` gave, in place of pixels;
                its visual tokens are written over the placeholders and none is dropped.
            vocab_targets: int64 ``[T, n]``, the id under each visual token in tile order, negative
                where not scored: adds the loss on P_vocab.
            packing: several prompts share a row instead of padding (:mod:`alignvlm.model.packing`).
            turn_ids: int64 ``[B, L]``, which question each token belongs to; questions do not see
                one another (:mod:`alignvlm.model.branches`). Not together with ``packing``.
            cache: the name transformers 5.24 gave to ``past_key_values``.

        With ``config.blank_threshold`` the language model sees only what remains (see
        :mod:`alignvlm.model.dropping`); ``last_hidden_state``, ``hidden_states`` and ``attentions``
        have the prompt's full length, zero where nothing remained, and there is no cache.

        Raises:
            AlignVLMError: both or neither of input_ids and inputs_embeds, images with
                inputs_embeds, images twice, or placeholders that do not match the images.
        """
        image = (mm_encoder_outputs or {}).get("image")
        if (input_ids is None) == (inputs_embeds is None):
            raise AlignVLMError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is not None and (pixel_values is not None or image is not None):
            raise AlignVLMError(
                "pixel_values needs input_ids; with inputs_embeds merge the images before (merge())"
            )
        if pixel_values is not None and image is not None:
            raise AlignVLMError("give one of pixel_values and mm_encoder_outputs")
        merged, compact = Merged(inputs_embeds), None
        if image is not None:
            embeds = self._embed(input_ids)
            merged = Merged(*self._write(input_ids, embeds, image.pooler_output), image=image)
        elif inputs_embeds is None:
            merged = self.merge(input_ids, pixel_values, image_grids, attention_mask, vocab_targets)
        if merged.kept is not None:
            # a cache of the shortened prompt would not fit the caller's positions; generate()
            # shortens the prompt itself and keeps its cache
            compact, kwargs["use_cache"] = Compact.of(merged.kept), False
            merged = merged._replace(inputs_embeds=compact.gather(merged.inputs_embeds))
            attention_mask, position_ids = compact.mask, compact.positions()
        if turn_ids is not None:
            if packing:
                raise AlignVLMError("give one of packing and turn_ids")
            turn_ids = turn_ids if compact is None else compact.gather(turn_ids)
            seen = branches.visible(turn_ids, attention_mask)
            kind = self.language_model.config._attn_implementation
            attention_mask = branches.attention(seen, merged.inputs_embeds.dtype, kind)
            position_ids = branches.positions(seen)
        run = partial(run_packed, self.language_model) if packing else self.language_model
        output = run(
            inputs_embeds=merged.inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **{CACHE: cache if past_key_values is None else past_key_values},
            **kwargs,
        )
        if compact is not None and input_ids is not None:
            compact.scatter_output(output, input_ids.shape[1])
        loss = merged.vocab_loss
        return AlignVLMModelOutput(
            last_hidden_state=output.last_hidden_state,
            **{CACHE: output.get(CACHE)},
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_outputs=merged.image,
            image_hidden_states=merged.visual_tokens,
            vocab_loss=None if loss is None else loss.loss,
            vocab_text_loss=None if loss is None else loss.text,
            vocab_blank_loss=None if loss is None else loss.blank,
        )
