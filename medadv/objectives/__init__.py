"""What the attacker maximises, one number per case."""

from medadv.objectives.base import Objective, agrees, mean_over_valid, per_voxel_cross_entropy
from medadv.objectives.catalogue import OBJECTIVES, arguments_of, make_objective, monitor_of
from medadv.objectives.labels import AllLabels, AnyLabel, LabelShare, OneLabel
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
    "DLR",
    "OBJECTIVES",
    "AllLabels",
    "AnyLabel",
    "CosPGD",
    "CrossEntropy",
    "DiceCE",
    "JensenShannon",
    "LabelShare",
    "LossObjective",
    "Margin",
    "MaskedCrossEntropy",
    "MaskedSpherical",
    "Objective",
    "OneLabel",
    "SegPGD",
    "SoftDice",
    "agrees",
    "arguments_of",
    "make_objective",
    "mean_over_valid",
    "monitor_of",
    "per_voxel_cross_entropy",
    "reference_for",
]
