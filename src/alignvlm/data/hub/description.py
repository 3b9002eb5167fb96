"""``alignvlm data show SET``: what is known of a published data set, and whether it is here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .catalogue import PublishedSet
from .place import how_to_get, local_copy
from .rows import TableName, configurations


@dataclass(frozen=True)
class SetDescription:
    """What is known of a set.

    Attributes:
        set: its hub id.
        licence, size: as its page says.
        here: its copy on this machine; ``None``: there is none.
        configs: its configurations, as far as they are known.
        columns: record roles and columns.
        files: the files with its rows and with its images; empty where ``datasets`` finds them.
        images_elsewhere: where the images of a configuration come from that has none.
    """

    set: str
    licence: str
    size: str
    here: str | None
    configs: list[str]
    columns: dict[str, str]
    files: list[str]
    images_elsewhere: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """For people."""
        lines = {
            "licence": self.licence,
            "size": self.size,
            "here": self.here or f"no; {how_to_get(self.set)}",
            "configurations": ", ".join(self.configs),
            "columns": ", ".join(f"{role} {column}" for role, column in self.columns.items()),
            "files": ", ".join(self.files),
        }
        shown = [f"  {name:<15}{text}" for name, text in lines.items() if text]
        elsewhere = [
            f"  {'images':<15}of {config} from {origin}"
            for config, origin in self.images_elsewhere.items()
        ]
        return "\n".join([self.set, *shown, *elsewhere])


def describe(known: PublishedSet, reference: str) -> SetDescription:
    """What is known of a set, without the network.

    Args:
        reference: its hub id, or the folder of a copy.

    Raises:
        DataError: ``$ALIGNVLM_DATA`` names no folder.
    """
    place = local_copy(reference)
    configs = known.configs
    if place is not None and not configs and not known.data_files:
        configs = configurations(TableName(reference, known=known, place=place))
    return SetDescription(
        known.id,
        known.licence,
        known.size,
        None if place is None else str(place),
        [config for config in configs if config != "default"],
        dict(known.columns),
        [*known.data_files.values(), *known.archives],
        dict(known.images_elsewhere),
    )
