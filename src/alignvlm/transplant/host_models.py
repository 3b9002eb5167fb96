"""The hosts' classes with one module replaced, and what they add."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.idefics3.modeling_idefics3 import (
    Idefics3ForConditionalGeneration,
    Idefics3Model,
)
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration, LlavaModel
from transformers.models.ovis2.modeling_ovis2 import Ovis2ForConditionalGeneration, Ovis2Model
from transformers.models.smolvlm.modeling_smolvlm import (
    SmolVLMForConditionalGeneration,
    SmolVLMModel,
)

from ..connectors import Connector
from .host_config import (
    AlignVLMIdefics3Config,
    AlignVLMLlavaConfig,
    AlignVLMOvis2Config,
    AlignVLMSmolVLMConfig,
)
from .host_connector import TransplantedConnector, lends_table, lent


class _Initialises:
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, Connector):
            module.reset_parameters()


class ConvertedCore(_Initialises):
    """What the converted models without a head share."""

    connector_name: str
    """Where the connector is: the attribute's name in the host."""

    @torch.no_grad()
    def connector_features(self, **images: Any) -> Tensor:
        """What the connector is given for the images: ``[tiles, patches, d_vision]``.

        Args:
            images: the image inputs of ``get_image_features`` (``pixel_values``, ...).
        """
        seen: list[Tensor] = []
        connector = getattr(self, self.connector_name)
        hook = connector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.get_image_features(**images)  # type: ignore[attr-defined]
        finally:
            hook.remove()
        return seen[0]

    def top_tokens(self, k: int = 5, **images: Any) -> tuple[Tensor, Tensor]:
        """What the visual tokens say: probabilities and ids of the ``k`` most probable tokens.

        Args:
            k: how many.
            images: the image inputs of ``get_image_features`` (``pixel_values``, ...).

        Returns:
            ``[tiles, tokens, k]`` each, best first.
        """
        features = self.connector_features(**images)
        return getattr(self, self.connector_name).top_tokens(features, k)


class ConvertedHead(_Initialises):
    """What the converted models with a language-model head share."""

    def top_tokens(self, k: int = 5, **images: Any) -> tuple[Tensor, Tensor]:
        """See :meth:`ConvertedCore.top_tokens`."""
        return self.model.top_tokens(k, **images)  # type: ignore[attr-defined]


class AlignVLMLlavaModel(ConvertedCore, LlavaModel):
    """LLaVA without a head; ALIGN is its ``multi_modal_projector``."""

    config: AlignVLMLlavaConfig
    config_class = AlignVLMLlavaConfig
    connector_name = "multi_modal_projector"

    def __init__(self, config: AlignVLMLlavaConfig) -> None:
        super().__init__(config)
        width = self.multi_modal_projector.linear_1.in_features
        self.multi_modal_projector = TransplantedConnector(config, width)
        self.post_init()

    get_image_features = lends_table(LlavaModel.get_image_features)


class AlignVLMLlavaForConditionalGeneration(ConvertedHead, LlavaForConditionalGeneration):
    """LLaVA with ALIGN."""

    config: AlignVLMLlavaConfig
    config_class = AlignVLMLlavaConfig

    def __init__(self, config: AlignVLMLlavaConfig) -> None:
        super().__init__(config)
        self.model = AlignVLMLlavaModel(config)
        self.post_init()


class AlignVLMIdefics3Model(ConvertedCore, Idefics3Model):
    """Idefics3 without a head; ALIGN, after the pixel shuffle, is its ``connector``."""

    config: AlignVLMIdefics3Config
    config_class = AlignVLMIdefics3Config
    connector_name = "connector"

    def __init__(self, config: AlignVLMIdefics3Config) -> None:
        super().__init__(config)
        width = config.vision_config.hidden_size  # type: ignore[union-attr]
        self.connector = TransplantedConnector(config, width, config.scale_factor)
        self.post_init()

    get_image_features = lends_table(Idefics3Model.get_image_features)


class AlignVLMIdefics3ForConditionalGeneration(ConvertedHead, Idefics3ForConditionalGeneration):
    """Idefics3 with ALIGN."""

    config: AlignVLMIdefics3Config
    config_class = AlignVLMIdefics3Config

    def __init__(self, config: AlignVLMIdefics3Config) -> None:
        super().__init__(config)
        self.model = AlignVLMIdefics3Model(config)
        self.post_init()


class AlignVLMSmolVLMModel(ConvertedCore, SmolVLMModel):
    """SmolVLM without a head; ALIGN, after the pixel shuffle, is its ``connector``."""

    config: AlignVLMSmolVLMConfig
    config_class = AlignVLMSmolVLMConfig
    connector_name = "connector"

    def __init__(self, config: AlignVLMSmolVLMConfig) -> None:
        super().__init__(config)
        width = config.vision_config.hidden_size  # type: ignore[union-attr]
        self.connector = TransplantedConnector(config, width, config.scale_factor)
        self.post_init()

    get_image_features = lends_table(SmolVLMModel.get_image_features)


class AlignVLMSmolVLMForConditionalGeneration(ConvertedHead, SmolVLMForConditionalGeneration):
    """SmolVLM with ALIGN."""

    config: AlignVLMSmolVLMConfig
    config_class = AlignVLMSmolVLMConfig

    def __init__(self, config: AlignVLMSmolVLMConfig) -> None:
        super().__init__(config)
        self.model = AlignVLMSmolVLMModel(config)
        self.post_init()


class AlignVLMOvis2Model(ConvertedCore, Ovis2Model):
    """Ovis2 without a head; ALIGN takes over from the visual head and the visual table.

    Of the visual table the rows that are not vocabulary remain: ``visual_indicators``, the
    embeddings of the tokens that mark an image's beginning, end and rows.
    """

    config: AlignVLMOvis2Config
    config_class = AlignVLMOvis2Config
    connector_name = "connector"

    def __init__(self, config: AlignVLMOvis2Config) -> None:
        super().__init__(config)
        width = self.vision_tower.head_linear.in_features
        without_visual_head(self.vision_tower)
        table = self.visual_embeddings_table
        del self.visual_embeddings_table
        indicators = self.vision_tower.num_visual_indicator_tokens
        self.visual_indicators = nn.Embedding(indicators, table.embedding_dim)
        self.connector = TransplantedConnector(config, width)
        self.post_init()

    @functools.wraps(Ovis2Model.get_image_features)
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        as_tuple = not kwargs.pop("return_dict", True)
        outputs = self.vision_tower(pixel_values, return_dict=True, **kwargs)
        with lent(self.get_input_embeddings()):
            outputs.pooler_output = self.connector(outputs.last_hidden_state)
        outputs.visual_indicator_features = self.visual_indicators.weight
        return outputs.to_tuple() if as_tuple else outputs


def without_visual_head(tower: nn.Module) -> None:
    """Take Ovis2's visual head out of its vision tower, in place.

    The tower's softmax then runs over the features, and nobody reads its result.
    """
    tower.head_linear = nn.Identity()
    tower.head_norm = nn.Identity()


class AlignVLMOvis2ForConditionalGeneration(ConvertedHead, Ovis2ForConditionalGeneration):
    """Ovis2 with ALIGN."""

    config: AlignVLMOvis2Config
    config_class = AlignVLMOvis2Config

    def __init__(self, config: AlignVLMOvis2Config) -> None:
        super().__init__(config)
        self.model = AlignVLMOvis2Model(config)
        self.post_init()
