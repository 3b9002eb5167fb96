"""The vision encoder's call: tiles to a grid of features, whichever encoder it is.

The one that comes with the project and reads is :mod:`alignvlm.reader.reader_model`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from ..connectors import Connector
from ..errors import AlignVLMError, ConfigError
from .config import AlignVLMConfig


def check_tiles(image_grids: Int[Tensor, "images 3"], tiles: int) -> None:
    """Whether there are as many tiles as the images' grids say.

    Raises:
        AlignVLMError: there are not.
    """
    rows, cols, thumbnail = image_grids.unbind(-1)
    wanted = int((rows * cols + thumbnail).sum())
    if wanted != tiles:
        raise AlignVLMError(f"image_grids ask for {wanted} tiles, pixel_values has {tiles}")


def encode_tiles(
    vision_model: nn.Module,
    config: AlignVLMConfig,
    pixel_values: Float[Tensor, "tiles 3 height width"],
    **asked: Any,
) -> ModelOutput:
    """What the encoder gives, with ``last_hidden_state`` ``[tiles, rows, cols, d_vision]``: the
    features of the configured layer as a grid, without class tokens.

    Raises:
        AlignVLMError: the tiles have another size than the config's.
        ConfigError: the encoder's output does not have the configured grid.
    """
    rows, cols = config.feature_grid
    height, width = config.tile_height, config.tile_width
    if tuple(pixel_values.shape[1:]) != (3, height, width):
        raise AlignVLMError(
            f"pixel_values is {tuple(pixel_values.shape)}, expected [tiles, 3, {height}, "
            f"{width}]; use the model's own processor"
        )
    size = getattr(config.vision_config, "image_size", None)
    trained = (size, size) if isinstance(size, int) else size
    if hasattr(getattr(vision_model, "embeddings", None), "interpolate_pos_encoding"):
        asked["interpolate_pos_encoding"] = (height, width) != tuple(trained)  # type: ignore[arg-type]
    layer = config.vision_feature_layer
    if layer != -1:
        asked["output_hidden_states"] = True
    dtype = next(vision_model.parameters()).dtype
    output = vision_model(pixel_values.to(dtype), return_dict=True, **asked)
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
    output.last_hidden_state = features
    return output


def for_reader(
    image_grids: Int[Tensor, "images 3"] | None,
    connector: Connector,
    text_embedding: Float[Tensor, "vocab d_text"],
    blank_id: int,
) -> dict[str, Any]:
    """What an encoder that reads is called with: it takes a page's tiles together, and says tokens,
    of which the connector makes features."""

    def feature_of(ids: Tensor, q: Tensor) -> Tensor:
        return connector.features_of(ids, q, text_embedding)

    blank = torch.tensor([[blank_id]], device=text_embedding.device)
    return {
        "image_grids": image_grids,
        "feature_of": feature_of,
        "blank": feature_of(blank, torch.ones_like(blank, dtype=text_embedding.dtype))[0],
    }


def rows_read(pages: list[Any], image_grids: Int[Tensor, "images 3"]) -> list[list[Tensor]]:
    """The cells of each row of each image's text, in reading order, as an encoder that reads said.

    An image's thumbnail, where there is one, is a page of its own and left out.
    """
    thumbnails = image_grids[:, 2].tolist()
    firsts = [image + sum(thumbnails[:image]) for image in range(len(thumbnails))]
    result = []
    for page in (pages[first] for first in firsts):
        cells, row = torch.from_numpy(page.cells), torch.from_numpy(page.row)
        counts = torch.bincount(row, minlength=len(page.rows)) if len(row) else row
        result.append(list(cells.split(counts.tolist())))
    return result
