"""Sources: a data set as numbered records.

A map-style source is deterministic: ``source[i]`` is the same record in every process and on every
day, so a run resumes by remembering one number. :class:`MixedSource` mixes several by weight under
the same promise. Which ones a recipe can name is in :mod:`alignvlm.data.sources.specs`.
"""

from .hub_source import HubSource, HubStream
from .jsonl_source import JsonlSource
from .mixed_source import MixedSource, Subset, limit
from .render_source import TRANSCRIBE_QUESTION, RenderSource, draw
from .source import Source, check_index
from .vcr_source import VCRSource

__all__ = [
    "TRANSCRIBE_QUESTION",
    "HubSource",
    "HubStream",
    "JsonlSource",
    "MixedSource",
    "RenderSource",
    "Source",
    "Subset",
    "VCRSource",
    "check_index",
    "draw",
    "limit",
]
