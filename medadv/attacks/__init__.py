"""Attacks by name, each an ART ``EvasionAttack``."""

from medadv.attacks.base import FrameworkAttack
from medadv.attacks.catalogue import CATALOGUE, catalogue, create
from medadv.attacks.recipes import Recipe

__all__ = ["CATALOGUE", "FrameworkAttack", "Recipe", "catalogue", "create"]
