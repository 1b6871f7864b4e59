"""Goals of a clinic's enemy: a volume changed, a decision on it flipped, a lesion missed or invented.

Each takes the reference as y and states its own goal, so none is targeted. Score and selection follow the goal: images
are ranked by a hard number of the goal, ties by the soft one, and a search may stop only where nothing is left to gain.
The region is one class or label, or the union of all that count. With the margin of a voxel, ``m = max_{k in region}
z_k - max_{k not in region} z_k`` (labels: ``max_k z_k - logit(threshold_k)``), it is hard where ``m > 0``, and
``q = sigmoid(m)`` is its soft form: the probability where there are two classes, and beyond one half exactly where the
hard region is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from medadv.decisions import Decision, Multilabel, select_channels
from medadv.objectives.base import Objective, mean_over_valid
from medadv.objectives.labels import one_channel, weight_of

DIRECTIONS = ("up", "down")


class RegionObjective(Objective):
    """A goal about one region of voxels.

    Args:
        decision: how the logits become a diagnosis.
        targeted: must be False: the goal is stated by the objective, y is the reference.
        label: class or label of the region; None: the union of all foreground classes.

    Raises:
        ValueError: no such label, no background to tell the region from, or ``targeted=True``.
    """

    voxels_only = True

    def __init__(self, decision: Decision, *, targeted: bool = False, label: int | None = None) -> None:
        if targeted:
            raise ValueError(
                f"{type(self).__name__} states its own goal and takes the reference as y; leave targeted=False."
            )
        super().__init__(decision)
        self.channels = decision.foreground if label is None else (one_channel(decision, label),)
        if decision.exclusive and len(self.channels) == decision.channels:
            raise ValueError(
                f"{type(self).__name__} of all classes of a decision without background is always the whole image; "
                "give a label, or the decision a background."
            )
        self._prepared: tuple[Tensor, Tensor, Any] | None = None

    def margin(self, output: Tensor, valid: Tensor) -> Tensor:
        """How far each voxel is inside the region, ``(N, *S)``; minus infinity where it does not count."""
        inside = select_channels(output, self.channels)
        if isinstance(self.decision, Multilabel):
            inside = inside - select_channels(self.decision.logit_threshold(output), self.channels)
            return inside.masked_fill(~select_channels(valid, self.channels), -torch.inf).amax(1)
        outside = output[:, [c for c in range(self.decision.channels) if c not in self.channels]]
        return (inside.amax(1) - outside.amax(1)).masked_fill(~valid, -torch.inf)

    def region(self, target: Tensor, valid: Tensor) -> Tensor:
        """The region of a canonical mask, ``(N, *S)`` bool."""
        mask = select_channels(self.decision.voxelwise(valid), self.channels)
        return (self.decision.one_hot(target, self.channels) & mask).any(1)

    def counts(self, valid: Tensor) -> Tensor:
        """Voxels that count, ``(N, *S)`` bool."""
        return select_channels(self.decision.voxelwise(valid), self.channels).any(1)

    def once(self, target: Tensor, valid: Tensor, prepare: Callable[[Tensor], Any]) -> Any:
        """``prepare(reference region)``, kept as long as the same reference is asked about."""
        kept = self._prepared
        if kept is None or kept[0] is not target or kept[1] is not valid:
            kept = self._prepared = (target, valid, prepare(self.region(target, valid)))
        return kept[2]

    def badness(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        found = self.region(self.decision.harden(output), valid)
        return self.reached(found, target, valid).to(output.dtype)

    @abstractmethod
    def reached(self, found: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """The hard number of the goal, ``(N,)``, of a predicted region ``(N, *S)``."""


def _volume(region: Tensor) -> Tensor:
    return region.flatten(1).sum(1)


class VolumeChange(RegionObjective):
    """The region larger or smaller: its soft volume ``sum_v q_v`` over the reference volume, signed.

    Images are ranked by the hard volume's change relative to the reference, (V - V_ref) / max(V_ref, 1 voxel), signed.

    Args:
        direction: ``"up"`` or ``"down"``.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> objective = VolumeChange(Multiclass(2, background=0), direction="down")
        >>> target = torch.tensor([[[1, 1, 0, 0]]])
        >>> logits = torch.tensor([[[[0., 9., 9., 9.]], [[9., 0., 0., 0.]]]])
        >>> objective.badness(logits, target, target >= 0)
        tensor([0.5000])
    """

    def __init__(
        self, decision: Decision, *, targeted: bool = False, label: int | None = None, direction: str = "up"
    ) -> None:
        super().__init__(decision, targeted=targeted, label=label)
        if direction not in DIRECTIONS:
            raise ValueError(f"direction={direction!r} is unknown; choose 'up' or 'down'.")
        self.way = 1 if direction == "up" else -1

    @property
    def floor(self) -> float:
        return torch.inf if self.way > 0 else 1.0

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        before = self.once(target, valid, _volume)
        soft = self.margin(output, valid).sigmoid().flatten(1).sum(1)
        return self.way * (soft - before) / before.clamp(min=1)

    def reached(self, found: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        before = self.once(target, valid, _volume)
        return self.way * (_volume(found) - before) / before.clamp(min=1)


class VolumeUp(VolumeChange):
    """:class:`VolumeChange` upwards."""

    def __init__(self, decision: Decision, *, targeted: bool = False, label: int | None = None) -> None:
        super().__init__(decision, targeted=targeted, label=label, direction="up")


class VolumeDown(VolumeChange):
    """:class:`VolumeChange` downwards."""

    def __init__(self, decision: Decision, *, targeted: bool = False, label: int | None = None) -> None:
        super().__init__(decision, targeted=targeted, label=label, direction="down")


class ThresholdCrossed(RegionObjective):
    """A decision on a volume flipped: "positive if the region holds more than the threshold".

    The soft volume's distance to the threshold, signed towards the other side, relative to the threshold. Images are
    ranked by the hard voxels still missing to the flip, and once flipped nothing is left to gain.

    Args:
        threshold_voxels: threshold as a number of voxels.
        threshold_ml: threshold in ml, with the ``spacing`` of the voxels.
        spacing: size of a voxel in mm, three numbers (of a slice: its thickness last).
        direction: ``"up"`` (to positive), ``"down"`` (to negative); None: away from the side of the reference.

    Example:
        >>> from medadv.decisions import Multiclass
        >>> objective = ThresholdCrossed(Multiclass(2, background=0), threshold_ml=1.0, spacing=(1, 1, 2.5))
        >>> objective.threshold
        400.0
    """

    def __init__(
        self,
        decision: Decision,
        *,
        targeted: bool = False,
        label: int | None = None,
        threshold_voxels: float | None = None,
        threshold_ml: float | None = None,
        spacing: Sequence[float] | None = None,
        direction: str | None = None,
    ) -> None:
        super().__init__(decision, targeted=targeted, label=label)
        self.threshold = _threshold(threshold_voxels, threshold_ml, spacing)
        if direction not in (None, *DIRECTIONS):
            raise ValueError(f"direction={direction!r} is unknown; choose 'up', 'down' or None.")
        self.direction = direction

    @property
    def floor(self) -> float:
        return 0.0

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        soft = self.margin(output, valid).sigmoid().flatten(1).sum(1)
        return self._way(target, valid) * (soft - self.threshold) / max(self.threshold, 1)

    def reached(self, found: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        way, whole = self._way(target, valid), int(self.threshold)
        # positive needs one voxel more than the threshold, negative the threshold itself
        wanted = torch.where(way > 0, whole + 1, whole)
        return (way * (_volume(found) - wanted)).clamp(max=0) / max(self.threshold, 1)

    def _way(self, target: Tensor, valid: Tensor) -> Tensor:
        before = self.once(target, valid, _volume)
        up = before <= self.threshold if self.direction is None else torch.full_like(before > 0, self.direction == "up")
        return torch.where(up, 1, -1)


def _threshold(voxels: Any, millilitres: Any, spacing: Sequence[float] | None) -> float:
    if (voxels is None) == (millilitres is None):
        raise ValueError("give one of threshold_voxels and threshold_ml (with spacing).")
    given, name = (voxels, "threshold_voxels") if millilitres is None else (millilitres, "threshold_ml")
    threshold = weight_of(name, given)
    if millilitres is None:
        if spacing is not None:
            raise ValueError("spacing goes with threshold_ml; with threshold_voxels leave it out.")
        return threshold
    sizes = () if spacing is None else tuple(spacing)
    if len(sizes) != 3 or not all(0 < s < float("inf") for s in sizes):
        raise ValueError(f"threshold_ml needs spacing, three lengths of a voxel in mm; got {spacing}.")
    return threshold * 1000 / float(np.prod(sizes))


class LesionMissed(RegionObjective):
    """Lesions overlooked: over the lesions the mean of ``mean_v log(1 - q_v)`` of their voxels.

    Lesions are the connected components of the reference (voxels that share a corner touch). A voxel that is missed
    already hardly counts, so the last ones found keep their weight; every lesion counts the same, however large. Images
    are ranked by the lesion sensitivity, where one voxel is a hit, with its sign turned; at 0 all are missed.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> objective = LesionMissed(Multiclass(2, background=0))
        >>> target = torch.tensor([[[1, 0, 1, 1]]])
        >>> logits = torch.tensor([[[[9., 9., 9., 0.]], [[0., 0., 0., 9.]]]])
        >>> objective.badness(logits, target, target >= 0)
        tensor([-0.5000])
    """

    @property
    def floor(self) -> float:
        return 0.0

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        lesions, count = self.once(target, valid, _lesions)
        missed = F.logsigmoid(-self.margin(output, valid))
        # minus infinity as a margin gives log 1 = 0, so voxels that do not count add nothing
        total = _sums(missed, lesions)
        size = _sums(torch.ones_like(missed), lesions)
        return (total / size.clamp(min=1)).sum(1) / count.clamp(min=1)

    def reached(self, found: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        lesions, count = self.once(target, valid, _lesions)
        hit = (_sums(found.to(torch.float32), lesions) > 0).sum(1)
        return torch.where(count > 0, -hit / count.clamp(min=1), -1.0)


def _lesions(region: Tensor) -> tuple[Tensor, Tensor]:
    """Numbered connected components ``(N, *S)`` (0: none) and how many each case has ``(N,)``."""
    numbered, counts = zip(*(ndimage.label(case, np.ones((3,) * case.ndim)) for case in region.cpu().numpy()))
    lesions = torch.from_numpy(np.stack(numbered).astype(np.int64)).to(region.device)
    return lesions, torch.tensor(counts, device=region.device)


def _sums(values: Tensor, lesions: Tensor) -> Tensor:
    """Sum over each lesion ``(N, *S) -> (N, largest number of lesions)``."""
    flat = lesions.flatten(1)
    sums = values.new_zeros(len(flat), int(flat.max()) + 1).scatter_add(1, flat, values.flatten(1))
    return sums[:, 1:]


class LesionInvented(RegionObjective):
    """Lesions where there are none: the mean of ``q_v`` over the voxels away from the reference.

    Away are the voxels that neither belong to the reference's region nor touch it. Images are ranked by the number of
    predicted components without a voxel in the reference.

    Args:
        min_voxels: smaller components do not count as lesions.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> objective = LesionInvented(Multiclass(2, background=0))
        >>> target = torch.tensor([[[1, 0, 0, 0, 0, 0]]])
        >>> logits = torch.tensor([[[[0., 0., 9., 0., 9., 0.]], [[9., 9., 0., 9., 0., 9.]]]])
        >>> objective.badness(logits, target, target >= 0)
        tensor([2.])
    """

    def __init__(
        self, decision: Decision, *, targeted: bool = False, label: int | None = None, min_voxels: int = 1
    ) -> None:
        super().__init__(decision, targeted=targeted, label=label)
        if isinstance(min_voxels, bool) or not isinstance(min_voxels, int) or min_voxels < 1:
            raise ValueError(f"min_voxels={min_voxels!r} must be a whole number of at least 1.")
        self.min_voxels = min_voxels

    @property
    def floor(self) -> float:
        return torch.inf

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        near = self.once(target, valid, _grown)
        return mean_over_valid(self.margin(output, valid).sigmoid(), self.counts(valid) & ~near)

    def reached(self, found: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        reference = self.region(target, valid)
        lesions, _ = _lesions(found)
        size, shared = _sums(torch.ones(lesions.shape), lesions.cpu()), _sums(reference.float().cpu(), lesions.cpu())
        return ((size >= self.min_voxels) & (shared == 0)).sum(1).to(found.device)


def _grown(region: Tensor) -> Tensor:
    """The region and every voxel that touches it, also at a corner."""
    pool = F.max_pool2d if region.ndim == 3 else F.max_pool3d
    return pool(region[:, None].to(torch.float32), 3, stride=1, padding=1)[:, 0] > 0
