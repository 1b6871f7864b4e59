"""Goals that compare whole masks: one organ spoiled and the others left alone, a given mask reached."""

from __future__ import annotations

import torch
from torch import Tensor

from medadv.decisions import Decision, select_channels
from medadv.objectives.base import Objective
from medadv.objectives.labels import one_channel, weight_of
from medadv.objectives.losses import DiceCE, dice_disagreement


class OneOrgan(Objective):
    """One organ spoiled, the others left alone: ``(1 - Dice_organ) - keep_weight (1 - Dice_others)``, soft.

    Both terms are those of :class:`~medadv.objectives.losses.SoftDice` against the reference: the mean over present
    classes, and for absent ones the share of voxels claimed. Images are ranked by the same number of the hard masks.

    Args:
        label: the organ; may be left out where there is only one.
        keep_weight: weight of the other foreground classes; 0: they may change.

    Raises:
        ValueError: no such label, a negative weight, or ``targeted=True``.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> objective = OneOrgan(Multiclass(3, background=0), label=1)
        >>> target = torch.tensor([[[0, 1, 2, 2]]])
        >>> spoiled = 9.0 * torch.nn.functional.one_hot(torch.tensor([[[0, 0, 2, 2]]])).movedim(-1, 1)
        >>> objective.badness(spoiled, target, target >= 0)
        tensor([1.])
    """

    voxels_only = True

    def __init__(
        self, decision: Decision, *, targeted: bool = False, label: int | None = None, keep_weight: float = 1.0
    ) -> None:
        if targeted:
            raise ValueError("OneOrgan states its own goal and takes the reference as y; leave targeted=False.")
        super().__init__(decision)
        own = one_channel(decision, label)
        self.label = own
        self.keep_weight = weight_of("keep_weight", keep_weight)
        self.others = tuple(c for c in range(decision.channels) if c not in (own, decision.background))

    @property
    def floor(self) -> float:
        return 1.0

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        return self._balance(self.decision.probabilities(output), target, valid)

    def badness(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        hard = self.decision.one_hot(self.decision.harden(output))
        return self._balance(hard.to(output.dtype), target, valid)

    def _balance(self, p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        own, others = (self._disagreement(p, target, valid, channels) for channels in ((self.label,), self.others))
        return own - self.keep_weight * others

    def _disagreement(self, p: Tensor, target: Tensor, valid: Tensor, channels: tuple[int, ...]) -> Tensor:
        if not channels:
            return p.new_zeros(len(p))
        mask = select_channels(self.decision.voxelwise(valid), channels)
        return dice_disagreement(select_channels(p, channels), self.decision.one_hot(target, channels), mask)


class TowardsMask(DiceCE):
    """A given mask reached, also where it erases a structure: Dice plus cross-entropy towards the target.

    Images are ranked by the mean over all foreground classes of the hard Dice to the target, where a class that the
    target does not have counts ``1 - log(1 + V) / log(1 + V_all)`` of the V voxels it still claims: 1 once it is gone,
    and of use for small structures in large images. Dice of the present classes alone, by which targeted attacks rank
    otherwise, does not see whether something was erased.

    Raises:
        ValueError: ``targeted=False``: y is the mask wanted.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> objective = TowardsMask(Multiclass(3, background=0), targeted=True)
        >>> wanted = torch.tensor([[[0, 1, 1, 0]]])  # class 2 is erased
        >>> reached = 9.0 * torch.nn.functional.one_hot(wanted, 3).movedim(-1, 1)
        >>> objective.badness(reached, wanted, wanted >= 0)
        tensor([1.])
    """

    def __init__(self, decision: Decision, *, targeted: bool = False) -> None:
        if not targeted:
            raise ValueError("objective 'towards-mask' nears the mask given as y; set targeted=True.")
        super().__init__(decision, targeted=targeted)

    def badness(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        channels = self.decision.foreground
        mask = select_channels(self.decision.voxelwise(valid), channels)
        hard, wanted = (
            (self.decision.one_hot(labels, channels) & mask).flatten(2)
            for labels in (self.decision.harden(output), target)
        )
        size, claimed = wanted.sum(2), hard.sum(2)
        dice = 2 * (hard & wanted).sum(2) / (size + claimed).clamp(min=1)
        everything = mask.flatten(2).sum(2).clamp(min=1)
        agreement = torch.where(size > 0, dice, 1 - claimed.log1p() / everything.log1p())
        return agreement.mean(1).to(output.dtype)
