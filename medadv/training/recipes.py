"""Training recipes by name."""

from __future__ import annotations

from medadv.training.adversarial import AdversarialTraining, FastTraining, MultiPerturbation, Natural
from medadv.training.attacked import VAFT, AttackTraining, BiasFieldTraining
from medadv.training.base import Recipe
from medadv.training.consistency import HAT, MAADVT, MART, TRADES
from medadv.training.free import FreeTraining

NATURAL = Natural()

RECIPES: dict[str, type[Recipe]] = {
    "natural": Natural,
    "pgd-at": AdversarialTraining,
    "fast": FastTraining,
    "free": FreeTraining,
    "trades": TRADES,
    "mart": MART,
    "hat": HAT,
    "mpadvt": MultiPerturbation,
    "maadvt": MAADVT,
    "vaft": VAFT,
    "bias-field": BiasFieldTraining,
    "attack": AttackTraining,
}
