"""The page encoder that reads; see :mod:`alignvlm.reader.model`."""

from .config import ReaderConfig
from .model import ReaderModel, ReaderOutput
from .page import PageTokens, Row
from .spelling import Characters, Spelled, Speller

__all__ = [
    "Characters",
    "PageTokens",
    "ReaderConfig",
    "ReaderModel",
    "ReaderOutput",
    "Row",
    "Spelled",
    "Speller",
]
