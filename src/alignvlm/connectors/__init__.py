"""Six connectors behind one contract, chosen by the config's ``type``."""

from __future__ import annotations

from .align import AlignConnector
from .c_abstractor import CAbstractorConnector
from .configs import ConnectorConfigBase
from .connector import Connector, VisualTokens, loaded
from .h_reducer import HReducerConnector
from .inspection import VocabTelemetry
from .mlp import MLPConnector
from .ovis import OvisConnector
from .perceiver import PerceiverConnector

CONNECTORS: dict[str, type[Connector]] = {
    "align": AlignConnector,
    "mlp": MLPConnector,
    "perceiver": PerceiverConnector,
    "ovis": OvisConnector,
    "h_reducer": HReducerConnector,
    "c_abstractor": CAbstractorConnector,
}
"""Every connector by its config's ``type``: another one is added here, and its config, in the same
order, to :mod:`.configs`."""

__all__ = [
    "CONNECTORS",
    "AlignConnector",
    "Connector",
    "VisualTokens",
    "VocabTelemetry",
    "build_connector",
    "loaded",
]


def build_connector(
    config: ConnectorConfigBase,
    d_vision: int,
    d_text: int,
    vocab_size: int,
    feature_grid: tuple[int, int],
) -> Connector:
    """Build the connector that ``config.type`` names.

    Args:
        config: a connector config.
        d_vision: channels of the vision features.
        d_text: the language model's width.
        vocab_size: rows of the language model's vocabulary.
        feature_grid: rows and columns of one tile's features (for learned positions).
    """
    return CONNECTORS[config.type](config, d_vision, d_text, vocab_size, feature_grid)
