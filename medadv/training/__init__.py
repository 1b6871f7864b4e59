"""Training of robust models: recipes and the loop that runs them."""

from medadv.training.loop import train
from medadv.training.recipes import NATURAL, RECIPES, AdversarialTraining, Recipe

__all__ = ["NATURAL", "RECIPES", "AdversarialTraining", "Recipe", "train"]
