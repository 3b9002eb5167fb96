"""A model from its parts, and the small one that comes with the project."""

from .assemble import compose, load_pretrained

__all__ = ["compose", "load_pretrained"]
