"""Objectives by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from medadv.decisions import Decision
from medadv.names import unknown_name
from medadv.objectives.base import Objective
from medadv.objectives.clinical import (
    LesionInvented,
    LesionMissed,
    ThresholdCrossed,
    VolumeDown,
    VolumeUp,
)
from medadv.objectives.evasion import Evasive, plain_of
from medadv.objectives.labels import AllLabels, AnyLabel, LabelMargin, LabelShare, OneLabel
from medadv.objectives.library import LossObjective
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
)
from medadv.objectives.structures import OneOrgan, TowardsMask

OBJECTIVES: dict[str, type[Objective]] = {
    "ce": CrossEntropy,
    "margin": Margin,
    "cw": CarliniWagner,
    "dice": SoftDice,
    "dicece": DiceCE,
    "segpgd": SegPGD,
    "cospgd": CosPGD,
    "masked-ce": MaskedCrossEntropy,
    "dlr": DLR,
    "js": JensenShannon,
    "mask-norm": MaskedSpherical,
    "any-label": AnyLabel,
    "all-labels": AllLabels,
    "label-share": LabelShare,
    "one-label": OneLabel,
    "label-margin": LabelMargin,
    "one-organ": OneOrgan,
    "towards-mask": TowardsMask,
    "volume-up": VolumeUp,
    "volume-down": VolumeDown,
    "threshold-crossed": ThresholdCrossed,
    "lesion-missed": LesionMissed,
    "lesion-invented": LesionInvented,
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


def make_objective(
    given: str | Mapping[str, Any] | Objective | Callable[..., Tensor], decision: Decision, *, targeted: bool
) -> Objective:
    """An objective from its name, a name with arguments, a ready :class:`Objective`, or any MONAI or torch loss.

    Args:
        given: such as ``"dice"``, ``{"name": "one-label", "label": 2, "goal": "add"}``, or an object.
        decision: how the logits become a diagnosis.
        targeted: whether y is the diagnosis wanted.

    Raises:
        ValueError: an unknown name or argument, or an objective that is not for this decision or direction.

    Example:
        >>> from medadv.decisions import Multilabel
        >>> make_objective({"name": "one-label", "label": 2, "goal": "add"}, Multilabel(3), targeted=False).label
        2
    """
    if getattr(decision, "guarded", False) and not isinstance(given, Evasive):
        return Evasive(decision, make_objective(given, plain_of(decision), targeted=targeted))
    if isinstance(given, str):
        return _by_name(given, {}, decision, targeted)
    if isinstance(given, Mapping):
        arguments = dict(given)
        if "name" not in arguments:
            raise ValueError(f"objective {arguments} has no name; give it as {{'name': ..., other arguments}}.")
        return _by_name(arguments.pop("name"), arguments, decision, targeted)
    if isinstance(given, Objective):
        if given.decision != decision or given.targeted != targeted:
            raise ValueError(
                f"the objective was made for {given.decision}, targeted={given.targeted}, the attack is on {decision}, "
                f"targeted={targeted}; make it for the same or pass its name."
            )
        return given
    return LossObjective(decision, given, targeted=targeted)


def arguments_of(name: str) -> tuple[str, ...]:
    """What an objective accepts besides the decision and the direction.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> arguments_of("one-label")
        ('label', 'goal', 'keep_weight')
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    return tuple(argument for argument in inspect.signature(OBJECTIVES[name]).parameters if argument not in _SHARED)


_SHARED = ("decision", "targeted")


def _by_name(name: str, arguments: Mapping[str, Any], decision: Decision, targeted: bool) -> Objective:
    accepted = arguments_of(name)
    for argument in arguments:
        if argument not in accepted:
            known = f"it accepts {', '.join(accepted)}" if accepted else "it accepts none"
            raise ValueError(f"objective {name!r} has no argument {argument!r}; {known}.")
    return OBJECTIVES[name](decision, targeted=targeted, **arguments)


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
