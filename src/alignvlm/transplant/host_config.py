"""Configs of converted models: the host's, and the connector's keys."""

from __future__ import annotations

from typing import Any

from transformers.models.idefics3.configuration_idefics3 import Idefics3Config
from transformers.models.llava.configuration_llava import LlavaConfig
from transformers.models.ovis2.configuration_ovis2 import Ovis2Config
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig

from ..connectors.configs import AlignConfig, connector_config
from ..errors import ConfigError


class ConvertedConfig:
    """What the configs of converted models add to the host's.

    ``connector_config``: the dict form of an :class:`AlignConfig`. ``connector_vocab_size``: rows
    of the language model's table that P_vocab covers.
    """

    connector_config: dict[str, Any] | None
    connector_vocab_size: int | None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.connector_config = self.connector.model_dump()
        if self.connector_vocab_size is None:
            self.connector_vocab_size = text_rows(self)

    @property
    def connector(self) -> AlignConfig:
        """The connector's frozen config.

        Raises:
            ConfigError: unknown keys, or another connector than ``align``.
        """
        config = connector_config(self.connector_config or "align")
        if not isinstance(config, AlignConfig):
            raise ConfigError(f"only 'align' can be transplanted, not {config.type!r}")
        return config


def text_rows(config: Any) -> int:
    """Rows of the table that hold text, from a host's config alone.

    The hosts add their image placeholders after the text vocabulary, so it ends at the first of
    them. A placeholder in the vocabulary's lower half is one the tokenizer had reserved; then all
    rows count.
    """
    rows = config.text_config.vocab_size
    first = min([config.image_token_id, *getattr(config, "visual_indicator_token_ids", ())])
    return min(first, rows) if 2 * first >= rows else rows


def _converted(host: Any) -> Any:
    """The host's config class with :class:`ConvertedConfig`'s keys."""

    class Converted(ConvertedConfig, host):
        model_type = f"alignvlm_{host.model_type}"
        connector_config: dict | None = None
        connector_vocab_size: int | None = None

    Converted.__name__ = Converted.__qualname__ = f"AlignVLM{host.__name__}"
    return Converted


AlignVLMLlavaConfig = _converted(LlavaConfig)
AlignVLMIdefics3Config = _converted(Idefics3Config)
AlignVLMSmolVLMConfig = _converted(SmolVLMConfig)
AlignVLMOvis2Config = _converted(Ovis2Config)
