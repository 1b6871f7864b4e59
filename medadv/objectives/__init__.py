"""What the attacker maximises, one number per case."""

from medadv.objectives.base import Objective, agrees, kullback_leibler, mean_over_valid, per_voxel_cross_entropy
from medadv.objectives.catalogue import AUTO, OBJECTIVES, arguments_of, by_task, make_objective, monitor_of
from medadv.objectives.clinical import (
    LesionInvented,
    LesionMissed,
    ThresholdCrossed,
    VolumeChange,
    VolumeDown,
    VolumeUp,
)
from medadv.objectives.labels import AllLabels, AnyLabel, LabelMargin, LabelShare, OneLabel
from medadv.objectives.library import LossObjective, reference_for
from medadv.objectives.losses import (
    DLR,
    CarliniWagner,
    CosPGD,
    CrossEntropy,
    DiceCE,
    JensenShannon,
    Margin,
    MaskedCrossEntropy,
    MaskedSpherical,
    SegPGD,
    SoftDice,
    margins,
)
from medadv.objectives.structures import OneOrgan, TowardsMask

__all__ = [
    "AUTO",
    "AllLabels",
    "AnyLabel",
    "CarliniWagner",
    "CosPGD",
    "CrossEntropy",
    "DLR",
    "DiceCE",
    "JensenShannon",
    "LabelMargin",
    "LabelShare",
    "LesionInvented",
    "LesionMissed",
    "LossObjective",
    "Margin",
    "MaskedCrossEntropy",
    "MaskedSpherical",
    "OBJECTIVES",
    "Objective",
    "OneLabel",
    "OneOrgan",
    "SegPGD",
    "SoftDice",
    "ThresholdCrossed",
    "TowardsMask",
    "VolumeChange",
    "VolumeDown",
    "VolumeUp",
    "agrees",
    "arguments_of",
    "by_task",
    "make_objective",
    "margins",
    "kullback_leibler",
    "mean_over_valid",
    "monitor_of",
    "per_voxel_cross_entropy",
    "reference_for",
]
