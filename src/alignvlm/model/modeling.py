"""The model: vision encoder, connector, language model (arXiv 2502.01341, section 3).

Shape letters: T tiles of all images, r x c feature grid of a tile, n visual tokens of a tile,
B prompts, L prompt length, V vocabulary, D language-model width.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..connectors import AlignConnector, Connector, build_connector
from ..errors import AlignVLMError, ConfigError
from ..tiling import Grid, page_order
from .config import AlignVLMConfig
from .dropping import Compact, kept_positions
from .losses import VocabLoss, combine, vocab_loss
from .outputs import CACHE, AlignVLMModelOutput, Encoded, Merged, group_images


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

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Connector):
            module.reset_parameters()


class AlignVLMModel(AlignVLMPreTrainedModel):
    """Vision encoder, connector and language model without its head."""

    def __init__(self, config: AlignVLMConfig) -> None:
        super().__init__(config)
        self.vision_model = AutoModel.from_config(config.vision_config)
        self.connector = build_connector(
            config.connector,
            config.vision_hidden_size,
            config.text_config.hidden_size,
            config.connector_vocab_size,
            config.feature_grid,
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def text_embedding(self) -> Float[Tensor, "vocab d_text"]:
        """E_text: the language model's input embedding table."""
        return self.get_input_embeddings().weight  # type: ignore[return-value]

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
        self,
        pixel_values: Float[Tensor, "tiles 3 height width"],
        image_grids: Int[Tensor, "images 3"] | None = None,
    ) -> tuple[Float[Tensor, "tiles rows cols d_vision"], list[Any] | None]:
        """:meth:`encode_tiles`, and what an encoder that reads found on each page."""
        rows, cols = self.config.feature_grid
        height, width = self.config.tile_height, self.config.tile_width
        if tuple(pixel_values.shape[1:]) != (3, height, width):
            raise AlignVLMError(
                f"pixel_values is {tuple(pixel_values.shape)}, expected [tiles, 3, {height}, "
                f"{width}]; use the model's own processor"
            )
        kwargs: dict[str, Any] = {}
        size = getattr(self.config.vision_config, "image_size", None)
        trained = (size, size) if isinstance(size, int) else size
        if hasattr(self.vision_model, "embeddings") and hasattr(
            self.vision_model.embeddings, "interpolate_pos_encoding"
        ):
            kwargs["interpolate_pos_encoding"] = tuple(pixel_values.shape[-2:]) != tuple(trained)
        layer = self.config.vision_feature_layer
        if layer != -1:
            kwargs["output_hidden_states"] = True
        if self.reads_pages:
            kwargs |= self._for_reader(image_grids)
        dtype = next(self.vision_model.parameters()).dtype
        output = self.vision_model(pixel_values.to(dtype), **kwargs)
        features = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        if features.ndim == 4:  # convolutional encoder: [T, d, r, c]
            features = features.permute(0, 2, 3, 1)
        else:
            features = features[:, features.shape[1] - rows * cols :]
            if features.shape[1] == rows * cols:
                features = features.unflatten(1, (rows, cols))
        if features.ndim != 4 or tuple(features.shape[1:3]) != (rows, cols):
            raise ConfigError(
                f"the vision encoder gave {tuple(features.shape)}, expected a {rows}x{cols} grid "
                f"for tiles of {height}x{width} px"
            )
        return features, getattr(output, "pages", None)

    @property
    def reads_pages(self) -> bool:
        """Whether the encoder reads a page's tiles together and says tokens, not features alone
        (:mod:`alignvlm.reader`)."""
        return getattr(self.vision_model, "reads_pages", False)

    def _for_reader(self, image_grids: Tensor | None) -> dict[str, Any]:
        """What an encoder that reads needs to know of connector and language model."""
        table = self.text_embedding()
        if self.config.connector.type == "align":
            self.vision_model.keep(self.connector.token_ids)  # type: ignore[union-attr]
        blank = torch.tensor([[self.config.blank_token_id]], device=table.device)

        def feature_of(ids: Tensor, q: Tensor) -> Tensor:
            return self.connector.features_of(ids, q, table)

        return {
            "image_grids": image_grids,
            "feature_of": feature_of,
            "blank": feature_of(blank, torch.ones_like(blank, dtype=table.dtype))[0],
        }

    def assemble(
        self, tokens: Float[Tensor, "tiles n d"], image_grids: Int[Tensor, "images 3"]
    ) -> list[Tensor]:
        """Visual tokens of each image in the order the language model reads them.

        Args:
            tokens: of all tiles, image after image.
            image_grids: tile rows, tile columns, and 1 if a thumbnail tile follows.
        """
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
        if start != len(tokens):
            raise AlignVLMError(
                f"image_grids ask for {start} tiles, pixel_values has {len(tokens)}"
            )
        return images

    def get_image_features(
        self,
        pixel_values: Float[Tensor, "tiles 3 height width"],
        image_grids: Int[Tensor, "images 3"],
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode images: ``last_hidden_state`` holds the vision features ``[T, r, c, d_vision]``,
        ``pooler_output`` the list of each image's visual tokens ``[n_i, D]`` in reading order."""
        features = self.encode_tiles(pixel_values, image_grids)
        tokens = self._scaled(self.connector(features, self.text_embedding()))
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=self.assemble(tokens, image_grids),  # type: ignore[arg-type]
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
        features, pages = self.see(pixel_values, image_grids)
        tokens, loss, blank = self._tokens(features, vocab_targets)
        order = None
        if pages is not None and self.config.tile_token_grid == self.config.feature_grid:
            order = [_rows_read(page) for page in _of_images(pages, image_grids)]
        return Encoded(
            features=features,
            image_grids=image_grids,
            tokens=self.assemble(self._scaled(tokens), image_grids),
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
            self._align(),
            self.encode_tiles(pixel_values, image_grids),
            vocab_targets,
            self.config.blank_token_id,
            self.config.blank_loss_weight,
        )

    def _align(self) -> AlignConnector:
        # by the config, not the class: peft wraps the connector and passes calls through
        if self.config.connector.type != "align":
            raise ConfigError(
                f"a loss on P_vocab needs the 'align' connector, this model has "
                f"{self.config.connector.type!r}"
            )
        return self.connector

    def prune_vocabulary(self, token_ids: Int[Tensor, " kept"]) -> None:
        """Keep only these ids in P_vocab, in place; the config follows, so the model can be saved.

        See :meth:`AlignConnector.prune`.
        """
        align = self._align()
        align.prune(token_ids)
        self.config.connector_config = align.config.model_dump()

    def merge(
        self,
        input_ids: Int[Tensor, "batch length"],
        pixel_values: Float[Tensor, "tiles 3 height width"] | None = None,
        image_grids: Int[Tensor, "images 3"] | None = None,
        attention_mask: Int[Tensor, "batch length"] | None = None,
        vocab_targets: Int[Tensor, "tiles n"] | None = None,
        encoded: Encoded | None = None,
    ) -> Merged:
        """Prompt embeddings with visual tokens written over the placeholders.

        Args:
            encoded: the images' pages, as :meth:`encode` gave them, in place of pixels.

        Raises:
            AlignVLMError: placeholders and visual tokens do not match; the sample is named.
        """
        embedding = self.get_input_embeddings()
        if hasattr(embedding, "set_reshard_after_forward"):
            # FSDP2 made it a group of its own, and would take the table away after the lookup;
            # the connector reads the table too
            embedding.set_reshard_after_forward(False)
        embeds = embedding(input_ids)
        if encoded is None:
            if pixel_values is None:
                return Merged(self._touch_image_path(embeds))
            if image_grids is None:
                raise AlignVLMError(
                    "pixel_values needs image_grids; use AlignVLMProcessor for both"
                )
            encoded = self.encode(pixel_values, image_grids, vocab_targets)
        mask = input_ids == self.config.image_token_id
        lengths = [len(image) for image in encoded.tokens]
        groups = group_images(mask.sum(-1).tolist(), lengths)
        visual = torch.cat(encoded.tokens).to(embeds.device, embeds.dtype)
        embeds = embeds.masked_scatter(mask[..., None], visual)
        if encoded.blank is None:
            return Merged(embeds, visual, encoded.vocab_loss)
        blank = torch.cat(encoded.blank)[:, 0]
        dropped = torch.zeros_like(mask).masked_scatter(mask, blank.to(mask.device))
        order = encoded.order
        kept = kept_positions(
            input_ids,
            attention_mask,
            dropped,
            self.config.image_token_id,
            self.config.row_end,
            order and [[(lengths[i], order[i]) for i in group] for group in groups],
        )
        return Merged(embeds, visual, encoded.vocab_loss, kept)

    def _tokens(
        self, features: Tensor, targets: Tensor | None
    ) -> tuple[Tensor, VocabLoss | None, Tensor | None]:
        """Visual tokens ``[T, n, D]``, the loss on P_vocab if there are targets, and which tokens
        are blank ``[T, n]`` if those are dropped."""
        config = self.config
        if targets is None and config.blank_threshold is None:
            return self.connector(features, self.text_embedding()), None, None
        drops = config.blank_threshold is not None
        read = self._align().read(
            features, self.text_embedding(), targets, config.blank_token_id if drops else None
        )
        loss, blank = None, None
        if targets is not None:
            assert read.target_log_p is not None
            nll = -read.target_log_p.flatten()
            loss = combine(nll, targets.flatten(), config.blank_token_id, config.blank_loss_weight)
        if read.blank_log_p is not None and config.blank_threshold is not None:
            blank = read.blank_log_p.detach().exp() > config.blank_threshold
        return read.tokens, loss, blank

    def _touch_image_path(self, embeds: Tensor) -> Tensor:
        # a rank whose batch has no image must still take part in the others' gradient collectives
        # (ZeRO-3, FSDP), so it encodes one blank tile and adds nothing of it
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed and torch.distributed.get_world_size() > 1):
            return embeds
        size = (1, 3, self.config.tile_height, self.config.tile_width)
        features = self.encode_tiles(embeds.new_zeros(size))
        return embeds + 0 * self.connector(features, self.text_embedding()).sum()

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
        vocab_targets: Tensor | None = None,
        **kwargs: Any,
    ) -> AlignVLMModelOutput:
        """Run the language model over text and images.

        Args:
            input_ids: int64 ``[B, L]`` with one placeholder per visual token, or ``inputs_embeds``.
            pixel_values: float ``[T, 3, height, width]``, all images' tiles.
            image_grids: int64 ``[images, 3]``, see :meth:`assemble`.
            inputs_embeds: ``[B, L, D]``, as :meth:`merge` returns them; then no ``pixel_values``.
            vocab_targets: int64 ``[T, n]``, the id under each visual token in tile order, negative
                where not scored: adds the loss on P_vocab.
            cache: the name transformers 5.24 gave to ``past_key_values``.

        With ``config.blank_threshold`` the language model sees only what remains (see
        :mod:`alignvlm.model.dropping`); ``last_hidden_state`` has the prompt's full length, zero
        where nothing remained, and there is no cache.

        Raises:
            AlignVLMError: both or neither of input_ids and inputs_embeds, images with
                inputs_embeds, or placeholders that do not match the images.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise AlignVLMError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is not None and pixel_values is not None:
            raise AlignVLMError(
                "pixel_values needs input_ids; with inputs_embeds merge the images before (merge())"
            )
        merged, compact = Merged(inputs_embeds), None
        if inputs_embeds is None:
            merged = self.merge(input_ids, pixel_values, image_grids, attention_mask, vocab_targets)
        if merged.kept is not None:
            # a cache of the shortened prompt would not fit the caller's positions; generate()
            # shortens the prompt itself and keeps its cache
            compact, kwargs["use_cache"] = Compact.of(merged.kept), False
            merged = merged._replace(inputs_embeds=compact.gather(merged.inputs_embeds))
            attention_mask, position_ids = compact.mask, compact.positions()
        output = self.language_model(
            inputs_embeds=merged.inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache if past_key_values is None else past_key_values},
            **kwargs,
        )
        hidden, loss = output.last_hidden_state, merged.vocab_loss
        if compact is not None:
            hidden = compact.scatter(hidden, input_ids.shape[1])
        return AlignVLMModelOutput(
            last_hidden_state=hidden,
            **{CACHE: output.get(CACHE)},
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=merged.visual_tokens,
            vocab_loss=None if loss is None else loss.loss,
            vocab_text_loss=None if loss is None else loss.text,
            vocab_blank_loss=None if loss is None else loss.blank,
        )


def _of_images(pages: list[Any], image_grids: Tensor) -> list[Any]:
    """The page of each image; its thumbnail, where there is one, is a page of its own."""
    thumbnails = image_grids[:, 2].tolist()
    firsts = [image + sum(thumbnails[:image]) for image in range(len(thumbnails))]
    return [pages[first] for first in firsts]


def _rows_read(page: Any) -> list[Tensor]:
    """The cells of each row of a page's text, in reading order."""
    cells, row = torch.from_numpy(page.cells), torch.from_numpy(page.row)
    counts = torch.bincount(row, minlength=len(page.rows)) if len(row) else row
    return list(cells.split(counts.tolist()))
