"""Training of robust models: recipes by name, and the loop that runs them."""

from medadv.training.adversarial import AdversarialTraining, FastTraining, MultiPerturbation, Natural
from medadv.training.attacked import VAFT, AttackTraining, BiasFieldTraining
from medadv.training.base import Recipe, Step, TrainingBatch
from medadv.training.consistency import HAT, MAADVT, MART, TRADES
from medadv.training.free import FreeTraining
from medadv.training.loop import History, train
from medadv.training.recipes import NATURAL, RECIPES
from medadv.training.validation import Validation
from medadv.training.weights import WeightPerturbation

__all__ = [
    "AdversarialTraining",
    "AttackTraining",
    "BiasFieldTraining",
    "FastTraining",
    "FreeTraining",
    "HAT",
    "History",
    "MAADVT",
    "MART",
    "MultiPerturbation",
    "NATURAL",
    "Natural",
    "RECIPES",
    "Recipe",
    "Step",
    "TRADES",
    "TrainingBatch",
    "VAFT",
    "Validation",
    "WeightPerturbation",
    "train",
]
