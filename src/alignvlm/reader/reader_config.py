"""Config of the page encoder that reads."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from ..errors import ConfigError


class ReaderConfig(PreTrainedConfig):
    """Config of :class:`~alignvlm.reader.ReaderModel`.

    Args:
        detector_config: finds lines of text, ``pp_ocrv6_small_det`` or its dict form.
        recogniser_config: reads a line, ``pp_ocrv6_small_rec`` or its dict form.
        alphabet: the characters that the recogniser tells apart, in its order; its first class,
            CTC's blank, is not among them.
        image_size: ``[height, width]`` of a tile, px.
        patch_size: ``[height, width]`` of a cell, px of the tile: about a character wide and lower
            than the pitch of the lines. Tokens stand in cells.
        hidden_size: channels of the features; the language model's width once composed.
        speller_bytes: length of the stored tokenizer, see :mod:`alignvlm.reader.spelling`; 0
            before a language model is known.

    Raises:
        ConfigError: a tile is not a whole number of cells, or the alphabet does not fit.
    """

    model_type = "alignvlm_reader"
    sub_configs: ClassVar[dict[str, Any]] = {
        "detector_config": AutoConfig,
        "recogniser_config": AutoConfig,
    }

    def __init__(
        self,
        detector_config: PreTrainedConfig | dict[str, Any] | None = None,
        recogniser_config: PreTrainedConfig | dict[str, Any] | None = None,
        alphabet: str = " ",
        image_size: Any = (160, 160),
        patch_size: Any = (20, 10),
        hidden_size: int = 576,
        speller_bytes: int = 0,
        **kwargs: Any,
    ) -> None:
        self.detector_config = _sub_config(detector_config, "pp_ocrv6_small_det")
        self.recogniser_config = _sub_config(
            recogniser_config, "pp_ocrv6_small_rec", head_out_channels=len(alphabet) + 1
        )
        self.alphabet = alphabet
        self.image_size = _pair(image_size)
        self.patch_size = _pair(patch_size)
        self.hidden_size = hidden_size
        self.speller_bytes = speller_bytes
        if any(size % cell for size, cell in zip(self.image_size, self.patch_size, strict=True)):
            raise ConfigError(
                f"reader: a tile of {self.image_size} px is not a whole number of cells of "
                f"{self.patch_size} px"
            )
        classes = self.recogniser_config.head_out_channels
        if " " not in alphabet or len(alphabet) + 1 != classes:
            raise ConfigError(
                f"reader: an alphabet of {len(alphabet)} characters does not fit a recogniser of "
                f"{classes} classes, of which one is CTC's blank, or it lacks the space"
            )
        super().__init__(**kwargs)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(v) for v in value]


def _sub_config(
    value: PreTrainedConfig | dict[str, Any] | None, kind: str, **defaults: Any
) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    data = {**defaults, **(value or {})}
    return AutoConfig.for_model(data.pop("model_type", kind), **data)
