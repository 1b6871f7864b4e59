"""Goals for images with several labels: any of them wrong, all of them, as many as possible, or one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medadv.decisions import Decision, Multilabel
from medadv.numbers import is_finite
from medadv.objectives.base import Objective, mean_over_valid, per_voxel_cross_entropy
from medadv.objectives.losses import Margin

GOALS = ("add", "remove")


class LabelShare(Margin):
    """As many labels wrong as possible: the sum over labels still right of ``-m_c``, their signed margins.

    :class:`~medadv.objectives.losses.Margin` for several labels, under a name of its own. Targeted: as many labels as
    possible as wanted. Images are ranked by the share of labels.

    Raises:
        ValueError: a multi-class decision.
    """

    images_only = True
    over_labels = "share"

    def __init__(self, decision: Decision, *, targeted: bool = False) -> None:
        _check_labels(type(self).__name__, decision)
        super().__init__(decision, targeted=targeted, over=self.over_labels)


class AnyLabel(LabelShare):
    """At least one label wrong: ``-min_c m_c``, the weakest label; targeted: at least one as wanted.

    Images are ranked by whether the goal is reached, then by the margin.

    Example:
        >>> import torch
        >>> objective = AnyLabel(Multilabel(3))
        >>> target, valid = objective.decision.canonical([[1, 0, 1]])
        >>> logits = torch.tensor([[2.0, -1.0, 4.0]])
        >>> objective(logits, target, valid=valid), objective.badness(logits, target, valid)
        (tensor([-1.]), tensor([-1.]))
    """

    over_labels = "any"

    def badness(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        as_wanted = (self.decision.harden(output) == target) == self.targeted
        as_wanted = as_wanted & valid
        # a label that does not count must not keep "all" from being reached, nor reach "any"
        reached = as_wanted.any(1) if self.over == "any" else (as_wanted | ~valid).all(1) & valid.any(1)
        return reached.to(output.dtype) + self.floor - 1


class AllLabels(AnyLabel):
    """Every label wrong: ``-max_c m_c``, the strongest label; targeted: every label as wanted."""

    over_labels = "all"


class OneLabel(Objective):
    """Adds one finding or removes it: the signed distance in logits of its label to the decision boundary.

    With ``d = z_c - logit(threshold_c)`` and ``s = 1`` to add the label, -1 to remove it: ``s d``, less ``keep_weight``
    times the mean cross-entropy of the other labels to the reference. Images are ranked by the hard diagnosis: 1 where
    the label is as wanted, less ``keep_weight`` times the share of other labels that differ from the reference (which
    is the model's own diagnosis where none is given); ties by the objective. What the reference says about the label
    itself does not matter.

    Args:
        decision: a :class:`~medadv.decisions.Multilabel`.
        targeted: must be False, as the goal is stated by ``label`` and ``goal``.
        label: number of the label; may be left out where there is only one.
        goal: ``"add"`` or ``"remove"``.
        keep_weight: weight of the other labels; 0: they may change.

    Raises:
        ValueError: a decision, label, goal or weight that can't be right.

    Example:
        >>> import torch
        >>> objective = OneLabel(Multilabel(3), label=2, goal="add")
        >>> target, valid = objective.decision.canonical([[1, 0, 0]])
        >>> objective(torch.tensor([[2.0, -1.0, -4.0]]), target, valid=valid)
        tensor([-4.])
    """

    images_only = True

    def __init__(
        self,
        decision: Decision,
        *,
        targeted: bool = False,
        label: int | None = None,
        goal: str = "add",
        keep_weight: float = 0.0,
    ) -> None:
        _check_labels("OneLabel", decision)
        if targeted:
            raise ValueError("OneLabel states its own goal and takes the reference as y; leave targeted=False.")
        if goal not in GOALS:
            raise ValueError(f"goal={goal!r} is unknown; choose 'add' or 'remove'.")
        super().__init__(decision)
        self.label = one_channel(decision, label)
        self.goal = goal
        self.keep_weight = weight_of("keep_weight", keep_weight)

    @property
    def floor(self) -> float:
        return 1.0

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        assert isinstance(self.decision, Multilabel)
        distance = (output - self.decision.logit_threshold(output))[:, self.label]
        change = mean_over_valid(per_voxel_cross_entropy(self.decision, output, target), self._others(valid))
        return (distance if self.goal == "add" else -distance) - self.keep_weight * change

    def badness(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        hard = self.decision.harden(output)
        reached = hard[:, self.label] == int(self.goal == "add")
        changed = mean_over_valid((hard != target).to(output.dtype), self._others(valid))
        return reached.to(output.dtype) - self.keep_weight * changed

    def _others(self, valid: Tensor) -> Tensor:
        labels = torch.arange(valid.shape[1], device=valid.device)
        return valid & (labels != self.label)


class LabelMargin(Objective):
    """The signed margin of one label or class, as small as it can be made: ``-s d``.

    ``s`` is 1 where the reference has the label, else -1; ``d = z_c - logit(threshold_c)``; of several classes one
    against the rest: the log odds ``d = z_c - log sum_{k != c} exp z_k`` of the class's probability, which ranks cases
    as that does. Images are ranked by the same number and no margin is small enough to stop, as a ranking of cases
    (AUC) suffers beyond the decision boundary too.

    Args:
        decision: of an image.
        targeted: True: the label as y has it, by the largest margin.
        label: number of the label or class; may be left out where there is only one.

    Raises:
        ValueError: no such label.

    Example:
        >>> import torch
        >>> objective = LabelMargin(Multilabel(3), label=1)
        >>> target, valid = objective.decision.canonical([[1, 0, 1], [1, 1, 1]])
        >>> objective(torch.tensor([[2.0, -1.0, 4.0], [2.0, -1.0, 4.0]]), target, valid=valid)
        tensor([-1.,  1.])
    """

    images_only = True

    def __init__(self, decision: Decision, *, targeted: bool = False, label: int | None = None) -> None:
        super().__init__(decision, targeted=targeted)
        self.label = one_channel(decision, label)

    @property
    def floor(self) -> float:
        return torch.inf

    def distance(self, output: Tensor) -> Tensor:
        """``d`` of the class docstring, ``(N,)``: what ranks cases for this label."""
        own = output[:, self.label]
        if isinstance(self.decision, Multilabel):
            return own - self.decision.logit_threshold(output)[:, self.label]
        return own - output[:, [c for c in range(output.shape[1]) if c != self.label]].logsumexp(1)

    def has(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Where the reference has the label, and where it says so, both ``(N,)`` bool."""
        known = valid[:, self.label] if valid.ndim > 1 else valid
        return self.decision.one_hot(target)[:, self.label], known

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        has, known = self.has(target, valid)
        distance = self.distance(output)
        return -self.sign * torch.where(has, distance, -distance) * known

    def badness(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        return self(output, target, valid=valid)


def _check_labels(name: str, decision: Decision) -> None:
    if not isinstance(decision, Multilabel):
        raise ValueError(
            f"{name} is about labels that do not exclude each other, the decision is {decision}; use 'margin', and "
            "targeted=True for a class that is wanted."
        )


def one_channel(decision: Decision, label: Any) -> int:
    """The channel of one label or class that counts; None stands for it where there is just one.

    Raises:
        ValueError: no such label, the background, or None where there are several.
    """
    foreground = tuple(c for c in range(decision.channels) if c != decision.background)
    if label is None:
        if len(foreground) == 1:
            return foreground[0]
        raise ValueError(f"label is needed where there are several; choose one of {', '.join(map(str, foreground))}.")
    if isinstance(label, bool) or not isinstance(label, int) or label not in foreground:
        raise ValueError(f"label={label!r} is no label to attack; choose one of {', '.join(map(str, foreground))}.")
    return label


def weight_of(name: str, value: Any) -> float:
    """A weight of an objective: a number that is not negative.

    Raises:
        ValueError: anything else.
    """
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name}={value!r} must be a number that is not negative.")
    return float(value)
