"""The benchmarks of the paper as sources: SROIE, DeepForm, KLC, WTQ, TabFact, ChartQA."""

from .forms import DeepFormSource, SROIESource
from .klc import KLCSource
from .tables import BENCHMARKS, ChartQASource, TabFactSource, WTQSource

__all__ = [
    "BENCHMARKS",
    "ChartQASource",
    "DeepFormSource",
    "KLCSource",
    "SROIESource",
    "TabFactSource",
    "WTQSource",
]
