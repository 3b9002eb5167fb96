"""Questions about the same pages in one sample: each question sees the pages alone.

A page costs a language model far more tokens than a question about it, so a page with ten labelled
fields costs a tenth of ten samples. :func:`together` makes one record of several,
:func:`joined` one sample of their samples; :mod:`alignvlm.model.branches` keeps the questions from
seeing one another.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..errors import DataError
from ..model.branches import common_length
from ..model.losses import IGNORE
from .records import Record
from .sources import Source, check_index

MOST = 16
"""Questions of a sample; a page of a hundred fields is several, none of them too long for it."""


class Together:
    """Records of a source with the same key as one record, or as few; the others as they are.

    Args:
        source: of single questions.
        keys: of each record; equal ones are about the same images. ``None``: it stands alone.
    """

    def __init__(self, source: Source, keys: Sequence[Hashable | None]) -> None:
        if len(keys) != len(source):
            raise DataError(f"{source.name}: {len(source)} records but {len(keys)} keys")
        self.source, self.name = source, source.name
        groups: dict[Hashable, list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault((index,) if key is None else ("same", key), []).append(index)
        self.groups = [
            group[start : start + MOST]
            for group in groups.values()
            for start in range(0, len(group), MOST)
        ]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Record:
        """Return the record of the group at place ``index``."""
        return together(self.records(index))

    def records(self, index: int) -> list[Record]:
        """The records that are one at place ``index``."""
        group = self.groups[check_index(index, len(self), self.name)]
        return [self.source[i] for i in group]


def can_join(record: Record) -> bool:
    """Whether the record is one question about images that all stand before it, and no more: its
    words would have to be those of all that it is joined with."""
    if [message["role"] for message in record.messages] != ["user", "assistant"]:
        return False
    kinds = [part["type"] for part in record.messages[0]["content"]]
    # "image" before "text"
    return bool(record.images) and kinds == sorted(kinds) and record.words is None


def together(records: Sequence[Record]) -> Record:
    """One record of several for which :func:`can_join` holds, all about the same images."""
    if len(records) == 1:
        return records[0]
    messages = [message for record in records for message in record.messages]
    return records[0].model_copy(update={"messages": messages, "independent_turns": True})


def apart(record: Record) -> list[Record]:
    """The records that :func:`together` made one of."""
    turns = zip(record.messages[::2], record.messages[1::2], strict=True)
    return [
        record.model_copy(update={"messages": [*turn], "independent_turns": False})
        for turn in turns
    ]


def joined(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One sample of samples about the same images: what all start with once, then each one's rest.

    Args:
        samples: as :func:`alignvlm.data.encode.encode` gives them, without images but perhaps
            those of the first.

    Returns:
        The first one's keys, and ``turn_ids`` int64 ``[L]``: 0 where all start, then 1, 2, ...
    """
    shared = common_length([sample["input_ids"] for sample in samples])
    # each part starts with a token that nobody has to predict from the part before it
    supervised = [int((sample["labels"] != IGNORE).nonzero()[0]) for sample in samples]
    shared = min(shared, min(supervised) - 1)
    result = dict(samples[0])
    for key in ("input_ids", "attention_mask", "labels"):
        parts = [sample[key][shared:] for sample in samples]
        result[key] = torch.cat([samples[0][key][:shared], *parts])
    lengths = [len(sample["input_ids"]) - shared for sample in samples]
    counts = torch.tensor([shared, *lengths])
    result["turn_ids"] = torch.arange(len(counts)).repeat_interleave(counts)
    return result
