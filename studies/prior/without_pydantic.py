"""Connector configs where pydantic is not installed.

The connectors themselves need torch alone; their configs are pydantic models. On a machine that
only trains cells this stands in: keyword arguments over the defaults, nothing checked (the values
come from ``settings.py``, which the tests build with pydantic itself).
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


class BaseModel:
    """Attributes from keyword arguments, else from the class."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def _field(default: Any = None, **more: Any) -> Any:
    return default


def _ignored(*args: Any, **more: Any) -> Any:
    return None


def _kept(*args: Any, **more: Any) -> Any:
    return lambda function: function


def stand_in() -> bool:
    """Put the stand-in where ``import pydantic`` finds it, if there is none; whether it did."""
    if "pydantic" in sys.modules or importlib.util.find_spec("pydantic") is not None:
        return False
    module = ModuleType("pydantic")
    names: dict[str, Any] = {
        "BaseModel": BaseModel,
        "ConfigDict": dict,
        "Field": _field,
        "TypeAdapter": _ignored,
        "ValidationError": type("ValidationError", (ValueError,), {}),
        "model_validator": _kept,
    }
    vars(module).update(names)
    sys.modules["pydantic"] = module
    return True
