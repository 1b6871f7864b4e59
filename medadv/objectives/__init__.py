"""What the attacker maximises, one number per case."""

from medadv.objectives.base import Objective, agrees, mean_over_valid, per_voxel_cross_entropy
from medadv.objectives.catalogue import OBJECTIVES, make_objective, monitor_of
from medadv.objectives.library import LossObjective, reference_for
from medadv.objectives.losses import (
    CarliniWagner,
    CosPGD,
    CrossEntropy,
    DiceCE,
    Margin,
    MaskedCrossEntropy,
    SegPGD,
    SoftDice,
    margins,
)

__all__ = [
    "OBJECTIVES",
    "CarliniWagner",
    "CosPGD",
    "CrossEntropy",
    "DiceCE",
    "LossObjective",
    "Margin",
    "MaskedCrossEntropy",
    "Objective",
    "SegPGD",
    "SoftDice",
    "agrees",
    "make_objective",
    "margins",
    "mean_over_valid",
    "monitor_of",
    "per_voxel_cross_entropy",
    "reference_for",
]
