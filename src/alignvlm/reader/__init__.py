"""The page encoder that reads; see :mod:`alignvlm.reader.reader_model`."""

from .characters import Characters
from .page import PageTokens, Row
from .reader_config import ReaderConfig
from .reader_model import ReaderModel, ReaderOutput
from .spelling import Spelled, Speller

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
