"""Text and images in, model inputs out."""

from typing import Any

from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs, MultiModalData, ProcessingKwargs
from transformers.processing_utils import ProcessorMixin as _ProcessorMixin

from ..errors import ConfigError, DataError
from ..model.config import AlignVLMConfig
from ..tiling import Grid, token_row_lengths
from .chat_templates import apply_template, chat_template_for
from .image_processor import AlignVLMImageProcessor, AlignVLMImagesKwargs

IMAGE_TOKENS = (
    "<image>",
    "<|image|>",
    "<|image_pad|>",
    "<|reserved_special_token_0|>",
    "<|finetune_right_pad_id|>",
    "<empty_output>",
    "<unused0>",
    "[unused0]",
)
"""Tokens that tokenizers reserve and never write; the first one present stands for an image."""


def reserved_image_token(tokenizer: Any) -> str:
    """The token this tokenizer already reserves that will stand for an image.

    Raises:
        ConfigError: it reserves none that is known; pass ``image_token`` by hand.
    """
    vocabulary = tokenizer.get_vocab()
    for token in IMAGE_TOKENS:
        if token in vocabulary:
            return token
    raise ConfigError(
        "the tokenizer reserves no token that could stand for an image; name one of its special "
        "tokens as image_token (adding a new one would change the vocabulary)"
    )


def space_token_id(tokenizer: Any) -> int:
    """Id of the single-space token: "nothing starts here" in P_vocab.

    Raises:
        ConfigError: a space is not one token.
    """
    ids = tokenizer.encode(" ", add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError("a space is not one token of this tokenizer; set blank_token_id by hand")
    return ids[0]


class AlignVLMProcessorKwargs(ProcessingKwargs, total=False):
    """Typed keyword arguments of the processor."""

    images_kwargs: AlignVLMImagesKwargs  # type: ignore[misc]
    # verbose: the tokenizer would warn of every page with more cells than the language model has
    # positions, though blank cells leave before it
    _defaults = {  # pyright: ignore[reportGeneralTypeIssues]
        "text_kwargs": {"padding": False, "verbose": False},
        "images_kwargs": {},
    }


class AlignVLMProcessor(_ProcessorMixin):
    """Tokenizer and image processor behind one call.

    Each image placeholder in the text grows to one placeholder per visual token; in page order
    each page row ends in a newline.

    Args:
        image_processor: :class:`AlignVLMImageProcessor`.
        tokenizer: the language model's, padding on the left.
        chat_template: see :func:`chat_template_for`.
        image_token: a token the tokenizer already has.
        token_rows, token_cols: layout of one tile's visual tokens; rows 1 without a layout.
        token_order, row_end: as in :class:`AlignVLMConfig`.
    """

    valid_processor_kwargs = AlignVLMProcessorKwargs

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        token_rows: int = 1,
        token_cols: int = 1,
        token_order: str = "page",
        row_end: bool = True,
        **kwargs: Any,
    ) -> None:
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or image_token not in tokenizer.get_vocab():
            raise ConfigError(f"image token {image_token!r} is not in the tokenizer's vocabulary")
        self.token_rows = token_rows
        self.token_cols = token_cols
        self.token_order = token_order
        self.row_end = row_end
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def for_config(
        cls,
        config: AlignVLMConfig,
        tokenizer: Any,
        *,
        chat_template: str | None = None,
        **tiling: Any,
    ) -> "AlignVLMProcessor":
        """The processor that fits a model config. ``tiling`` goes to the image processor."""
        image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
        rows, cols = config.tile_token_grid or (1, config.tokens_per_tile)
        size = {"height": config.tile_height, "width": config.tile_width}
        return cls(
            AlignVLMImageProcessor(size=size, enlarge=config.enlarge, **tiling),
            tokenizer,
            chat_template=chat_template or chat_template_for(tokenizer, image_token),
            image_token=image_token,
            token_rows=rows,
            token_cols=cols,
            token_order=config.token_order,
            row_end=config.row_end,
        )

    def __call__(self, images: Any = None, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Tokenize text and cut images; see transformers' ``ProcessorMixin``."""
        first = text if isinstance(text, str) else next(iter(text or []), None)
        bos = self.tokenizer.bos_token
        if isinstance(first, str) and bos is not None and first.startswith(bos):
            # the chat template wrote it; Llama's tokenizer would add a second one
            kwargs.setdefault("add_special_tokens", False)
        return super().__call__(images, text, *args, **kwargs)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it, in bounded time and memory.

        Raises:
            ConfigError: there is no template, or it fails or does too much; it comes with the
                model.
        """
        named = dict(zip(("chat_template", "tools", "documents"), args))
        template = {**kwargs, **named}.get("chat_template") or self.chat_template
        if template is None:
            raise ConfigError("the model has no chat template (chat_template.jinja)")
        apply = super().apply_chat_template
        return apply_template(apply, conversation, template, **kwargs, **named)

    def placeholders(self, grid: Grid, thumbnail: bool) -> str:
        """What an image's placeholder grows to."""
        end = "\n" if self.row_end and self.token_order == "page" else ""
        rows = self._row_lengths(grid, thumbnail)
        return "".join(self.image_token * length + end for length in rows)

    def _row_lengths(self, grid: Grid, thumbnail: bool) -> list[int]:
        rows, cols = self.token_rows, self.token_cols
        return token_row_lengths(grid, thumbnail, rows, cols, self.token_order)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        rows, cols, thumbnail = (int(n) for n in image_inputs["image_grids"][image_idx])
        return self.placeholders(Grid(rows, cols), bool(thumbnail))

    def validate_inputs(
        self, images: Any = None, text: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Check placeholders against images before any work, naming the sample.

        Raises:
            DataError: a text has more or fewer placeholders than images.
        """
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            self._match([sample.count(self.image_token) for sample in texts], images)
        try:
            super().validate_inputs(images, text, *args, **kwargs)
        except ValueError as error:
            raise DataError(str(error)) from None

    def _match(self, found: list[int], images: Any) -> None:
        """Each sample's placeholders against its images: a list a sample, or all in one list."""
        named = f"image placeholders ({self.image_token})"
        if isinstance(images, list | tuple) and images and isinstance(images[0], list | tuple):
            if len(images) != len(found):
                raise DataError(f"{len(images)} lists of images for {len(found)} texts")
            for sample, own in enumerate(images):
                if found[sample] != len(own):
                    raise DataError(
                        f"sample {sample}: its text has {found[sample]} {named} "
                        f"and {len(own)} images"
                    )
            return
        try:
            left = 0 if images is None else len(make_flat_list_of_images(images))
        except ValueError:
            raise DataError(f"images holds no images, it is a {type(images)}") from None
        for sample, wanted in enumerate(found):
            if wanted > left:
                raise DataError(
                    f"sample {sample}: its text has {wanted} {named}, but {left} images are left"
                )
            left -= wanted
        if left:
            raise DataError(f"{left} images have no placeholder ({self.image_token}) in any text")

    def _check_special_mm_tokens(self, text: list[str], text_inputs: Any, modalities: Any) -> None:
        """Truncation must not cut an image.

        Raises:
            DataError: it did; the sample is named.
        """
        input_ids = text_inputs["input_ids"]
        rows = input_ids.tolist() if hasattr(input_ids, "tolist") else input_ids
        for sample, (written, ids) in enumerate(zip(text, rows, strict=True)):
            wanted = written.count(self.image_token)
            kept = ids.count(self.image_token_id)
            if kept != wanted:
                raise DataError(
                    f"sample {sample}: truncation cut its images, {kept} of {wanted} visual tokens "
                    "are left; raise max_length, lower max_tiles or drop the sample"
                )

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Placeholder tokens for images of the given (height, width), as serving engines ask: those
        that ``mm_token_type_ids`` marks, so without the newlines that end rows."""
        if image_sizes is None:
            return MultiModalData()
        settings = ImagesKwargs(**{k: v for k, v in kwargs.items() if v is not None})
        counts, tiles = [], []
        for height, width in image_sizes:
            grid, thumbnail = self.image_processor.grid_for(width, height, **settings)
            counts.append(sum(self._row_lengths(grid, thumbnail)))
            tiles.append(grid.tiles + thumbnail)
        return MultiModalData(num_image_tokens=counts, num_image_patches=tiles)
