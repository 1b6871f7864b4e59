"""What the attacker maximises: one number per case.

Every objective is ``objective(output, target, valid=..., progress=...) -> (N,)`` on logits ``(N, C, *S)`` and a
canonical target. Untargeted, it grows as the diagnosis leaves the reference; targeted, as it nears the target. Means
run over the valid voxels (or labels) of each case, never over a batch. Weights that depend on the prediction are
detached.
``progress`` in [0, 1) is the share of the search that is over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medadv.decisions import Decision, Multiclass, Multilabel, select_channels
from medadv.names import unknown_name


class Objective(ABC):
    """One number per case that the attacker makes large.

    Args:
        decision: how the logits become a diagnosis.
        targeted: False: away from the reference; True: towards the given target.

    Attributes:
        scheduled: True if the value changes with ``progress`` or with the prediction's own weights, so that values of
            different steps can't be compared; step control then watches :meth:`monitor`.
        voxels_only: True if it compares regions and has no meaning for one diagnosis per image.
    """

    scheduled = False
    voxels_only = False

    def __init__(self, decision: Decision, *, targeted: bool = False) -> None:
        self.decision = decision
        self.targeted = targeted

    @abstractmethod
    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        """Logits ``(N, C, *S)``, canonical target and validity -> ``(N,)``."""

    def monitor(self, segments: bool) -> Objective:
        """A fixed objective that ranks iterates: itself; where it is scheduled, soft Dice (voxels) or cross-entropy."""
        if not self.scheduled:
            return self
        fixed = SoftDice if segments else CrossEntropy
        return fixed(self.decision, targeted=self.targeted)

    @property
    def sign(self) -> float:
        """+1 to leave the reference, -1 to approach the target: the sign of a loss that measures disagreement."""
        return -1.0 if self.targeted else 1.0


def per_voxel_cross_entropy(decision: Decision, output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy like ``target``: softmax over classes, or binary per label."""
    if isinstance(decision, Multiclass):
        return F.cross_entropy(output, target, reduction="none")
    return F.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none")


def mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``values`` over the valid entries of each case ``(N, ...) -> (N,)``; 0 for a case without any."""
    if values.ndim == 1:
        return values * valid
    return (values * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)


def agrees(decision: Decision, output: Tensor, target: Tensor) -> Tensor:
    """Where the hard diagnosis equals the target, like ``target``."""
    return decision.harden(output.detach()) == target


class CrossEntropy(Objective):
    """Mean cross-entropy (arXiv 1412.6572, 1706.06083); binary per label for ``Multilabel``.

    Example:
        >>> import torch
        >>> objective = CrossEntropy(Multiclass(2))
        >>> objective(torch.zeros(1, 2), torch.tensor([0]), valid=torch.tensor([True]))
        tensor([0.6931])
    """

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        return self.sign * mean_over_valid(per_voxel_cross_entropy(self.decision, output, target), valid)


class Margin(Objective):
    """Signed distance in logits to the decision boundary; on images the raw margin, on voxels hinged at the boundary.

    Multiclass, untargeted: ``max_{k != y} z_k - z_y``; targeted: ``z_t - max_{k != t} z_k``. Multilabel: with
    ``m_c = (2 y_c - 1)(z_c - logit(threshold_c))`` the sum over labels still right of ``-m_c``, per label. A voxel or
    label that already is as wanted has no more to give, so its hinge is flat; an image's margin is not hinged, so the
    search keeps a direction after success.

    Args:
        over: for ``Multilabel`` images which labels count: ``"share"`` (each label on its own), ``"any"`` (the weakest
            one: ``-min_c m_c``), ``"all"`` (the strongest one: ``-max_c m_c``).
    """

    def __init__(self, decision: Decision, *, targeted: bool = False, over: str = "share") -> None:
        super().__init__(decision, targeted=targeted)
        if over not in ("share", "any", "all"):
            raise ValueError(f"over={over!r} is unknown; choose 'share', 'any' or 'all' labels.")
        if over != "share" and isinstance(decision, Multiclass):
            raise ValueError(f"over={over!r} is about several labels; a multi-class decision has one, leave it out.")
        self.over = over

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        margin = self._margin(output, target)
        if margin.ndim == 1:
            return -self.sign * margin * valid
        if self.over != "share":
            return self._extreme_label(margin, valid)
        unfinished = margin.clamp(max=0) if self.targeted else margin.clamp(min=0)
        return -self.sign * mean_over_valid(unfinished, valid)

    def _margin(self, output: Tensor, target: Tensor) -> Tensor:
        """Positive where the diagnosis equals the target, like ``target``."""
        if isinstance(self.decision, Multilabel):
            return (2 * target - 1) * (output - self.decision.logit_threshold(output))
        own = output.gather(1, target[:, None])[:, 0]
        others = output.masked_fill(self.decision.one_hot(target), -torch.inf)
        return own - others.amax(1)

    def _extreme_label(self, margin: Tensor, valid: Tensor) -> Tensor:
        # untargeted "any": one label wrong suffices, so push the weakest; targeted "all": the weakest must be right
        weakest = (self.over == "any") != self.targeted
        flat = margin.masked_fill(~valid, torch.inf if weakest else -torch.inf).flatten(1)
        extreme = flat.amin(1) if weakest else flat.amax(1)
        return -self.sign * torch.where(extreme.isfinite(), extreme, torch.zeros_like(extreme))


class SoftDice(Objective):
    """One minus the soft foreground Dice of each case, with a false-positive term for absent classes.

    With p the probabilities, over the foreground classes present in the reference ``1 - 2 sum(p y) / sum(p + y)``, in
    the mean; plus for the absent ones the mean share of voxels that p claims. Without the second term a case would give
    the attacker nothing for inventing a lesion; without leaving absent classes out of the first, Dice has no gradient
    on them. No smoothing constant is needed as a present class has a voxel. Targeted: its negative, against the target.

    Example:
        >>> import torch
        >>> objective = SoftDice(Multiclass(2, background=0))
        >>> target = torch.tensor([[[0, 1]]])
        >>> objective(torch.tensor([[[[9., -9.]], [[-9., 9.]]]]), target, valid=target >= 0).round(decimals=4)
        tensor([0.])
    """

    voxels_only = True

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        channels = self.decision.foreground
        mask = select_channels(self.decision.voxelwise(valid), channels)
        p = (select_channels(self.decision.probabilities(output), channels) * mask).flatten(2)
        y = (self.decision.one_hot(target, channels) & mask).flatten(2)
        size, mass = y.sum(2), p.sum(2)
        present = size > 0
        dice = 2 * (p * y).sum(2) / (mass + size).clamp(min=torch.finfo(p.dtype).tiny)
        claimed = mass / mask.flatten(2).sum(2).clamp(min=1)
        missed = ((1 - dice) * present).sum(1) / present.sum(1).clamp(min=1)
        invented = (claimed * ~present).sum(1) / (~present).sum(1).clamp(min=1)
        return self.sign * (missed + invented)


class DiceCE(Objective):
    """:class:`SoftDice` plus :class:`CrossEntropy`."""

    voxels_only = True

    def __init__(self, decision: Decision, *, targeted: bool = False) -> None:
        super().__init__(decision, targeted=targeted)
        self.parts = (SoftDice(decision, targeted=targeted), CrossEntropy(decision, targeted=targeted))

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        dice, cross_entropy = (part(output, target, valid=valid, progress=progress) for part in self.parts)
        return dice + cross_entropy


class SegPGD(Objective):
    """Cross-entropy that first counts voxels still right, later also those already wrong (arXiv 2207.12391).

    Untargeted: ``(1 - w) sum_right CE + w sum_wrong CE`` with ``w = progress / 2``, over the number of valid voxels.
    Targeted, as a loss to descend: ``(1 - w) sum_{not yet target} CE(t) + w sum_{already target} CE(t)``.
    """

    scheduled = True

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        late = progress / 2
        unfinished = agrees(self.decision, output, target) != self.targeted
        weight = late + (1 - 2 * late) * unfinished.to(output.dtype)
        return self.sign * mean_over_valid(weight * per_voxel_cross_entropy(self.decision, output, target), valid)


class CosPGD(Objective):
    """Cross-entropy weighted by how well each voxel's probabilities align with the reference (arXiv 2302.02213).

    The weight is ``cos(p, onehot(y))``, detached; targeted ``1 - cos``, descending. Multilabel: per label, the cosine
    of ``(p, 1 - p)`` with ``(y, 1 - y)``.
    """

    scheduled = True

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        p = self.decision.probabilities(output.detach())
        if isinstance(self.decision, Multiclass):
            cosine = p.gather(1, target[:, None])[:, 0] / p.norm(dim=1)
        else:
            cosine = torch.where(target == 1, p, 1 - p) / (p.square() + (1 - p).square()).sqrt()
        weight = 1 - cosine if self.targeted else cosine
        return self.sign * mean_over_valid(weight * per_voxel_cross_entropy(self.decision, output, target), valid)


class MaskedCrossEntropy(Objective):
    """Cross-entropy over the voxels still right (targeted: not yet as wanted), a loss of SEA (arXiv 2306.12941)."""

    scheduled = True

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        unfinished = agrees(self.decision, output, target) != self.targeted
        return self.sign * mean_over_valid(unfinished * per_voxel_cross_entropy(self.decision, output, target), valid)


class LossObjective(Objective):
    """Any loss of MONAI or torch, called on one case at a time so that no case influences another.

    The reference is handed over as the loss expects it: class numbers ``(1, *S)`` for torch's cross-entropy, a
    one-channel label map ``(1, 1, *S)`` where the loss has ``to_onehot_y=True``, else one-hot ``(1, C, *S)`` float.

    Args:
        decision: how the logits become a diagnosis.
        loss: a callable ``(output, target) -> scalar``, low where they agree.
        targeted: as in :class:`Objective`.

    Raises:
        ValueError: a MONAI loss built without ``softmax``, ``sigmoid`` or ``other_act`` (it would take logits for
            probabilities), or ``batch=True``.

    Example:
        >>> import torch
        >>> from monai.losses import DiceLoss
        >>> objective = LossObjective(Multiclass(2), DiceLoss(to_onehot_y=True, softmax=True))
        >>> target = torch.zeros(2, 4, 4, dtype=torch.int64)
        >>> objective(torch.randn(2, 2, 4, 4), target, valid=target == 0).shape
        torch.Size([2])
    """

    def __init__(self, decision: Decision, loss: Callable[[Tensor, Tensor], Tensor], *, targeted: bool = False) -> None:
        super().__init__(decision, targeted=targeted)
        self.loss = loss
        for part in _monai_parts(loss):
            if not (part.softmax or part.sigmoid or getattr(part, "other_act", None)):
                raise ValueError(
                    f"{type(loss).__name__} applies no activation and would take logits for probabilities; build it "
                    "with softmax=True or sigmoid=True."
                )
            if getattr(part, "batch", False):
                raise ValueError(f"{type(loss).__name__} has batch=True, which mixes cases; build it with batch=False.")

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        if not bool(valid.all()):
            raise ValueError(
                f"{type(self.loss).__name__} can't leave out ignored voxels; use one of medadv's objectives "
                f"({', '.join(sorted(OBJECTIVES))}) where the reference has ignore_index."
            )
        reference = reference_for(self.loss, self.decision, target, output.dtype)
        cases = [self.loss(output[i : i + 1], reference[i : i + 1]) for i in range(len(output))]
        if any(case.numel() != 1 for case in cases):
            raise ValueError(
                f"{type(self.loss).__name__} must return one number per case; build it with reduction='mean'."
            )
        return self.sign * torch.stack([case.reshape(()) for case in cases])


def _monai_parts(loss: Any) -> list[Any]:
    """The loss, or the parts of a compound loss, that take ``softmax`` and ``sigmoid`` like MONAI's."""
    return [part for part in _parts(loss) if hasattr(part, "softmax") and hasattr(part, "sigmoid")]


def _parts(loss: Any) -> list[Any]:
    return list(loss.modules()) if isinstance(loss, torch.nn.Module) else [loss]


def reference_for(loss: Any, decision: Decision, target: Tensor, dtype: torch.dtype) -> Tensor:
    """A canonical target in the form that ``loss`` expects beside logits ``(N, C, *S)``.

    Args:
        loss: a MONAI or torch loss.
        decision: the decision the target is canonical for.
        target: canonical target.
        dtype: of the logits; one-hot references get it.
    """
    if isinstance(decision, Multilabel):
        return target.to(dtype)
    if isinstance(loss, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss):
        return target
    if any(getattr(part, "to_onehot_y", False) for part in _parts(loss)):
        return target[:, None]
    return decision.one_hot(target).to(dtype)


OBJECTIVES: dict[str, type[Objective]] = {
    "ce": CrossEntropy,
    "margin": Margin,
    "dice": SoftDice,
    "dicece": DiceCE,
    "segpgd": SegPGD,
    "cospgd": CosPGD,
    "masked-ce": MaskedCrossEntropy,
}


def make_objective(given: str | Objective | Callable[..., Tensor], decision: Decision, *, targeted: bool) -> Objective:
    """An objective from its name, a ready :class:`Objective`, or any MONAI or torch loss.

    Raises:
        ValueError: an unknown name, or an objective that is not for this decision or direction.
    """
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
