"""Looking at what the model sees."""

from .inspect import CellReading, PageReading, heat_map, read_page

__all__ = ["CellReading", "PageReading", "heat_map", "read_page"]
