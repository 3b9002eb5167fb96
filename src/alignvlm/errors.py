"""Errors a person can act on.

Everything the package refuses raises :class:`AlignVLMError` (or a subclass) with one line that
says what is wrong, where, and what to do. The command line prints that line and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class AlignVLMError(ValueError):
    """Input, configuration or data that cannot be used; the message is one actionable line."""


class ConfigError(AlignVLMError):
    """A recipe or model configuration is wrong (unknown key, impossible combination)."""


class DataError(AlignVLMError):
    """A file, record or image cannot be used; the message names the file and the row."""


class WeightsError(AlignVLMError):
    """Weights are missing, corrupt or do not fit the model."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or ``""`` if none is close."""
    spelled = {str(k).lower(): str(k) for k in known}
    match = difflib.get_close_matches(str(name).lower(), spelled, n=1)
    return f" (did you mean {spelled[match[0]]!r}?)" if match else ""


def describe_validation_error(error: ValidationError, known: Iterable[str] = ()) -> str:
    """The first problem of a pydantic error as one line: ``where: what``.

    Args:
        known: keys to suggest in place of an unknown one.
    """
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}{nearest(str(first['loc'][-1]), known)}"
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text
