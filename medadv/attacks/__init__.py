"""Attacks by name, each an ART ``EvasionAttack``."""

from medadv.attacks.auc import AttackedAUC, auc_under_attack
from medadv.attacks.base import CatalogueAttack
from medadv.attacks.catalogue import CATALOGUE, catalogue, create, recipe_of, recipes
from medadv.attacks.framework import FrameworkAttack
from medadv.attacks.recipes import Recipe

__all__ = [
    "CATALOGUE",
    "AttackedAUC",
    "CatalogueAttack",
    "FrameworkAttack",
    "Recipe",
    "auc_under_attack",
    "catalogue",
    "create",
    "recipe_of",
    "recipes",
]
