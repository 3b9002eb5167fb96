"""``alignvlm train RECIPE --check-data``: is the data of every stage here, and can it be read?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from ..data.records import Record, load_images
from ..data.sources import HubStream
from ..data.sources.specs import (
    HubSourceSpec,
    RenderSourceSpec,
    SourceSpec,
    VCRSourceSpec,
    build_source,
)
from ..errors import AlignVLMError
from .recipe import Recipe

RECORDS = 3
"""Read of each source, images decoded."""
SHOWN = 40
"""Characters of a question or answer in a line."""


@dataclass
class CheckedSource:
    """What was found of one source.

    Attributes:
        stage, source: which one.
        records: how many were read.
        images: width and height of the first record's images.
        question, answer: of the first record.
        error: why it cannot be read; ``None`` where it can.
    """

    stage: str
    source: str
    records: int = 0
    images: list[list[int]] = field(default_factory=list)
    question: str = ""
    answer: str = ""
    error: str | None = None

    def to_text(self) -> str:
        """One line."""
        if self.error is not None:
            return f"  cannot read  {self.source}: {self.error}"
        sizes = ", ".join(f"{width}x{height}" for width, height in self.images[:4]) or "no image"
        said = f"{shortened(self.question)} -> {shortened(self.answer)}"
        return f"  ok           {self.source}: {self.records} records; {sizes}: {said}"


@dataclass
class CheckedData:
    """What was found of all sources of a recipe."""

    recipe: str
    sources: list[CheckedSource]

    @property
    def missing(self) -> int:
        """How many sources cannot be read."""
        return sum(source.error is not None for source in self.sources)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """For people: a line for each source, below its stage."""
        lines: list[str] = []
        for source in self.sources:
            if f"stage {source.stage}" not in lines:
                lines.append(f"stage {source.stage}")
            lines.append(source.to_text())
        return "\n".join(lines)


def shortened(text: str) -> str:
    """The beginning of a text, on one line and in quotes."""
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def check_data(recipe: Recipe) -> CheckedData:
    """Open every source of a recipe and read :data:`RECORDS` records of it, images too.

    Nothing is unpacked, and of sets on the hub no more is downloaded than is read.
    """
    checked = [
        _checked(stage.name, spec, recipe.seed) for stage in recipe.stages for spec in stage.sources
    ]
    return CheckedData(recipe.name, checked)


def _checked(stage: str, spec: SourceSpec, seed: int) -> CheckedSource:
    found = CheckedSource(stage, source_title(spec))
    try:
        for record in islice(_records(spec, seed), RECORDS):
            images = load_images(record)
            if not found.records:
                found.images = [list(image.size) for image in images]
                found.question, found.answer = record.question, record.answer or ""
            found.records += 1
        if not found.records:
            found.error = "it has no rows"
    except AlignVLMError as error:
        found.error = without_name(" ".join(str(error).split()), spec, found.source)
    return found


def without_name(message: str, spec: SourceSpec, title: str) -> str:
    """An error without the name of the source, which its line begins with."""
    for name in (f"{title}[{getattr(spec, 'split', '')}]", title, getattr(spec, "path", title)):
        message = message.removeprefix(f"{name}: ")
    return message


def _records(spec: SourceSpec, seed: int) -> Iterable[Record]:
    if isinstance(spec, HubSourceSpec):
        return HubStream(**spec.options())
    source = build_source(spec, seed)
    return (source[index] for index in range(min(RECORDS, len(source))))


def source_title(spec: SourceSpec) -> str:
    """How a source is called in a line: its path and configuration, or its layout."""
    if isinstance(spec, RenderSourceSpec):
        return f"render {spec.page.layout}"
    if isinstance(spec, VCRSourceSpec):
        return f"vcr {spec.setting} {spec.path or ''}".rstrip()
    config = f" {spec.config}" if isinstance(spec, HubSourceSpec) and spec.config else ""
    return f"{spec.path}{config}"
