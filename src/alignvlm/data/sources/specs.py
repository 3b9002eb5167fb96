"""The data sources that a recipe can name, and how each is built.

Another one is a subclass of :class:`SourceBase` here, and a member of ``SourceSpec``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..benchmarks.tables import BENCHMARKS
from ..synthetic.render import RenderSpec
from .hub_source import HubSource
from .jsonl_source import JsonlSource
from .mixed_source import limit
from .render_source import RenderSource
from .source import Source
from .vcr_source import VCRSource


class SourceBase(BaseModel, ABC):
    """What every entry has: a share of the mix, an optional cap, and the source it builds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, gt=0)
    limit: int | None = Field(None, ge=1)

    @abstractmethod
    def build(self, seed: int) -> Source:
        """The source without its cap; ``seed`` is the run's."""


class RenderSourceSpec(SourceBase):
    """Pages the project renders itself, with words and boxes."""

    type: Literal["render"]
    page: RenderSpec
    task: Literal["qa", "transcribe", "both"] = "qa"
    size: int = Field(100_000, ge=1, description="pages in the source")
    seed: int = 0

    def build(self, seed: int) -> Source:
        return RenderSource(self.page, self.size, seed=seed + self.seed, task=self.task)


class JsonlSourceSpec(SourceBase):
    """A JSONL file of records."""

    type: Literal["jsonl"]
    path: str

    def build(self, seed: int) -> Source:
        return JsonlSource(self.path)


class HubSourceSpec(SourceBase):
    """A dataset from the hub or from disk, read by ``datasets`` (memory-mapped, not loaded).

    ``columns`` maps record roles (``image``, ``question``, ``answer``, or ``messages``) to columns;
    those of the sets in :mod:`alignvlm.data.hub.catalogue` are known.
    """

    type: Literal["hub"]
    path: str = Field(description="hub id, or a copy; one below $ALIGNVLM_DATA is taken first")
    split: str = "train"
    config: str | None = Field(None, description="one of the set's configurations")
    data_files: str | list[str] = Field(
        default_factory=list, description="files of the set, by name or glob; default: all"
    )
    images: str | None = Field(
        None, description="folder or archive of the images that the rows name"
    )
    columns: dict[str, str] = Field(default_factory=dict)
    question: str | None = Field(None, description="asked of every image, for sets of captions")

    def options(self) -> dict[str, Any]:
        """What :class:`alignvlm.data.sources.hub_source.HubSet` takes."""
        files = [self.data_files] if isinstance(self.data_files, str) else self.data_files
        return {
            "reference": self.path, "split": self.split, "columns": self.columns or None,
            "config": self.config, "data_files": files, "images": self.images,
            "question": self.question,
        }  # fmt: skip

    def build(self, seed: int) -> Source:
        return HubSource(**self.options())


class VCRSourceSpec(SourceBase):
    """Pages with covered text, made from plain text (:class:`.vcr_source.VCRSource`).

    The published pages are a ``hub`` source: ``vcr-org/VCR-wiki-en-easy`` and ``-hard``.
    """

    type: Literal["vcr"]
    path: str | None = Field(None, description="a text file; default: text of installed packages")
    setting: Literal["easy", "hard"] = "easy"
    size: int = Field(100_000, ge=1, description="pages in the source")
    seed: int = 0

    def build(self, seed: int) -> Source:
        return VCRSource(self.path, self.setting, self.size, seed + self.seed)


class BenchmarkSourceSpec(SourceBase):
    """A benchmark's official files in a local folder."""

    type: Literal["wtq", "tabfact", "chartqa", "sroie", "deepform"]
    path: str
    split: str = "train"

    def build(self, seed: int) -> Source:
        return BENCHMARKS[self.type](self.path, self.split)


SourceSpec = Annotated[
    RenderSourceSpec | JsonlSourceSpec | HubSourceSpec | VCRSourceSpec | BenchmarkSourceSpec,
    Field(discriminator="type"),
]


def build_source(spec: SourceSpec, seed: int) -> Source:
    """The source a recipe entry describes."""
    return limit(spec.build(seed), spec.limit)
