"""Training: recipes, stages, and running them on transformers' Trainer."""

from .recipe import Recipe, load_recipe
from .training import train

__all__ = ["Recipe", "load_recipe", "train"]
