"""Objectives by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from medadv.decisions import Decision
from medadv.names import unknown_name
from medadv.objectives.base import Objective
from medadv.objectives.evasion import Evasive, plain_of
from medadv.objectives.library import LossObjective
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

OBJECTIVES: dict[str, type[Objective]] = {
    "ce": CrossEntropy,
    "margin": Margin,
    "dice": SoftDice,
    "dicece": DiceCE,
    "segpgd": SegPGD,
    "cospgd": CosPGD,
    "masked-ce": MaskedCrossEntropy,
    "dlr": DLR,
    "js": JensenShannon,
    "mask-norm": MaskedSpherical,
}

AUTO = "auto"


def by_task(given: Any, segments: bool) -> Any:
    """What ``"auto"`` stands for: soft Dice where there is one diagnosis per voxel, else cross-entropy.

    Example:
        >>> by_task("auto", segments=True), by_task("margin", segments=True)
        ('dice', 'margin')
    """
    if isinstance(given, str) and given == AUTO:
        return "dice" if segments else "ce"
    return given


def make_objective(given: str | Objective | Callable[..., Tensor], decision: Decision, *, targeted: bool) -> Objective:
    """An objective from its name, a ready :class:`Objective`, or any MONAI or torch loss.

    Raises:
        ValueError: an unknown name, or an objective that is not for this decision or direction.
    """
    if getattr(decision, "guarded", False) and not isinstance(given, Evasive):
        return Evasive(decision, make_objective(given, plain_of(decision), targeted=targeted))
    if isinstance(given, str):
        if given not in OBJECTIVES:
            raise unknown_name("objective", given, OBJECTIVES)
        return OBJECTIVES[given](decision, targeted=targeted)
    if isinstance(given, Objective):
        if given.decision != decision or given.targeted != targeted:
            raise ValueError(
                f"the objective was made for {given.decision}, targeted={given.targeted}, the attack is on {decision}, "
                f"targeted={targeted}; make it for the same or pass its name."
            )
        return given
    return LossObjective(decision, given, targeted=targeted)


def monitor_of(objective: Objective, segments: bool) -> Objective:
    """A fixed objective that ranks iterates: itself; where it is scheduled, soft Dice (voxels) or cross-entropy.

    Args:
        objective: what the attack maximises.
        segments: True for one diagnosis per voxel.
    """
    if not objective.scheduled:
        return objective
    if isinstance(objective, Evasive):
        inner = monitor_of(objective.inner, segments)
        if inner.views:  # a monitor sees the image alone
            inner = CrossEntropy(inner.decision, targeted=inner.targeted)
        return Evasive(objective.decision, inner, rising=False)
    return OBJECTIVES[by_task(AUTO, segments)](objective.decision, targeted=objective.targeted)
