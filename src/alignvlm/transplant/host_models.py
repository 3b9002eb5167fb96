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
    """The host's model without a head; ALIGN, after a pixel shuffle, in place of its connector."""

    connector_name = "connector"
    """Where the connector is: the attribute's name in the host."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        connector = self.make_connector(config)
        setattr(self, self.connector_name, connector)
        self.post_init()  # type: ignore[attr-defined]

    def make_connector(self, config: Any) -> TransplantedConnector:
        """ALIGN for the host's features; what it replaces is still there."""
        width = config.vision_config.hidden_size
        return TransplantedConnector(config, width, config.scale_factor)

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
    """The host's model with its language-model head, around a :class:`ConvertedCore`."""

    core_class: Any
    """The class of ``model``."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.model = self.core_class(config)
        self.post_init()  # type: ignore[attr-defined]

    def top_tokens(self, k: int = 5, **images: Any) -> tuple[Tensor, Tensor]:
        """See :meth:`ConvertedCore.top_tokens`."""
        return self.model.top_tokens(k, **images)


class _LlavaCore(ConvertedCore):
    connector_name = "multi_modal_projector"

    def make_connector(self, config: Any) -> TransplantedConnector:
        projector: Any = self.multi_modal_projector  # type: ignore[attr-defined]
        return TransplantedConnector(config, projector.linear_1.in_features)


class _Ovis2Core(ConvertedCore):
    """ALIGN takes over from Ovis2's visual head and visual table.

    Of the visual table the rows that are not vocabulary remain: ``visual_indicators``, the
    embeddings of the tokens that mark an image's beginning, end and rows.
    """

    def make_connector(self, config: Any) -> TransplantedConnector:
        host: Any = self
        width = host.vision_tower.head_linear.in_features
        without_visual_head(host.vision_tower)
        table = host.visual_embeddings_table
        del host.visual_embeddings_table
        indicators = host.vision_tower.num_visual_indicator_tokens
        host.visual_indicators = nn.Embedding(indicators, table.embedding_dim)
        return TransplantedConnector(config, width)

    @functools.wraps(Ovis2Model.get_image_features)
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        host: Any = self
        as_tuple = not kwargs.pop("return_dict", True)
        outputs = host.vision_tower(pixel_values, return_dict=True, **kwargs)
        with lent(host.get_input_embeddings()):
            outputs.pooler_output = host.connector(outputs.last_hidden_state)
        outputs.visual_indicator_features = host.visual_indicators.weight
        return outputs.to_tuple() if as_tuple else outputs


def without_visual_head(tower: nn.Module) -> None:
    """Take Ovis2's visual head out of its vision tower, in place.

    The tower's softmax then runs over the features, and nobody reads its result.
    """
    tower.head_linear = nn.Identity()
    tower.head_norm = nn.Identity()


CONVERTED: list[tuple[Any, Any, Any]] = []
"""Config, model and model with head of each converted host."""


def _converted(config: Any, core: Any, head: Any, added: Any = ConvertedCore) -> tuple[Any, Any]:
    """The host's two classes with ``added`` and :class:`ConvertedHead` before them."""
    body = {"config_class": config, "__module__": __name__}
    core_class: Any = type(f"AlignVLM{core.__name__}", (added, core), body)
    if added is not _Ovis2Core:
        core_class.get_image_features = lends_table(core.get_image_features)
    body["core_class"] = core_class
    head_class = type(f"AlignVLM{head.__name__}", (ConvertedHead, head), body)
    CONVERTED.append((config, core_class, head_class))
    return core_class, head_class


AlignVLMLlavaModel, AlignVLMLlavaForConditionalGeneration = _converted(
    AlignVLMLlavaConfig, LlavaModel, LlavaForConditionalGeneration, _LlavaCore
)
AlignVLMIdefics3Model, AlignVLMIdefics3ForConditionalGeneration = _converted(
    AlignVLMIdefics3Config, Idefics3Model, Idefics3ForConditionalGeneration
)
AlignVLMSmolVLMModel, AlignVLMSmolVLMForConditionalGeneration = _converted(
    AlignVLMSmolVLMConfig, SmolVLMModel, SmolVLMForConditionalGeneration
)
AlignVLMOvis2Model, AlignVLMOvis2ForConditionalGeneration = _converted(
    AlignVLMOvis2Config, Ovis2Model, Ovis2ForConditionalGeneration, _Ovis2Core
)
