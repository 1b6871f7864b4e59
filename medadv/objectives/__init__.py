"""What the attacker maximises, one number per case."""

from medadv.objectives.base import Objective, agrees, mean_over_valid, per_voxel_cross_entropy
from medadv.objectives.catalogue import AUTO, OBJECTIVES, by_task, make_objective, monitor_of
from medadv.objectives.library import LossObjective, reference_for
from medadv.objectives.losses import (
    DLR,
    CosPGD,
    CrossEntropy,
    DiceCE,
    JensenShannon,
    Margin,
    MaskedCrossEntropy,
    MaskedSpherical,
    SegPGD,
    SoftDice,
)

__all__ = [
    "AUTO",
    "DLR",
    "OBJECTIVES",
    "CosPGD",
    "CrossEntropy",
    "DiceCE",
    "JensenShannon",
    "LossObjective",
    "Margin",
    "MaskedCrossEntropy",
    "MaskedSpherical",
    "Objective",
    "SegPGD",
    "SoftDice",
    "agrees",
    "by_task",
    "make_objective",
    "mean_over_valid",
    "monitor_of",
    "per_voxel_cross_entropy",
    "reference_for",
]
