"""The command line: one verb, one importable function."""

from .app import main

__all__ = ["main"]
