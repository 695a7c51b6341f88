"""The trainer, recipes, phases and the seam to W&B."""

from .recipe import Recipe, list_recipes, load_recipe
from .trainer import Trained, Trainer

__all__ = ["Recipe", "Trained", "Trainer", "list_recipes", "load_recipe"]
