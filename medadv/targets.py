"""Diagnoses an attacker may want of a segmenter: a structure erased, added or moved; and whether it got them.

All functions take hard masks in the decision's canonical form (``(N, *S)`` classes, or ``(N, C, *S)`` of 0 and 1),
such as ``decision.harden(logits)`` of the clean images, and return the same form for ``generate(x, target)`` of an
attack with ``targeted=True``. Lengths are in voxels, or in mm where the ``spacing`` of the voxels is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medadv.decisions import Decision, Multiclass
from medadv.metrics import dice_per_class
from medadv.objectives.labels import one_channel


def erase(prediction: Tensor, decision: Decision, label: int, *, logits: Tensor | None = None) -> Tensor:
    """A structure gone, its voxels given to the class that comes next.

    Args:
        prediction: hard mask, canonical.
        decision: how it is to be read.
        label: class or label to erase.
        logits: of the clean images ``(N, C, *S)``: each voxel gets its most likely class other than ``label``; without,
            the background. Labels that overlap leave nothing to fill.

    Raises:
        ValueError: no such label, or neither logits nor a background.

    Example:
        >>> import torch
        >>> erase(torch.tensor([[[0, 1, 2]]]), Multiclass(3, background=0), 2)
        tensor([[[0, 1, 0]]])
    """
    label = one_channel(decision, label)
    _check_mask(prediction, decision)
    if not isinstance(decision, Multiclass):
        return _with_channel(prediction, label, torch.zeros_like(prediction[:, label]))
    return torch.where(prediction == label, _without(prediction, decision, label, logits), prediction)


def add(
    prediction: Tensor,
    decision: Decision,
    label: int,
    centre: Sequence[float] | Sequence[Sequence[float]] | Tensor,
    radius: float,
    *,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """A ball of a structure more: the voxels whose centres are at most ``radius`` from ``centre``.

    Args:
        prediction: hard mask, canonical.
        decision: how it is to be read.
        label: class or label to add.
        centre: voxel coordinates, one point for all cases or one per case ``(N, D)``.
        radius: in mm with ``spacing``, else in voxels.
        spacing: size of a voxel along each axis in mm.

    Raises:
        ValueError: a centre outside the image, or a ball that holds no voxel.

    Example:
        >>> import torch
        >>> add(torch.zeros(1, 3, 3, dtype=torch.int64), Multiclass(2, background=0), 1, centre=(1, 1), radius=1)
        tensor([[[0, 1, 0],
                 [1, 1, 1],
                 [0, 1, 0]]])
    """
    label = one_channel(decision, label)
    spatial = _check_mask(prediction, decision)
    step = _spacing(spacing, len(spatial))
    centres = _points(centre, len(prediction), len(spatial))
    if not all(0 <= c <= size - 1 for point in centres.tolist() for c, size in zip(point, spatial, strict=True)):
        raise ValueError(f"centre={centre} lies outside the image of {spatial} voxels; give voxel coordinates inside.")
    axes = [torch.arange(size, dtype=torch.float64) for size in spatial]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    offset = (grid[None] - centres.view(-1, len(spatial), *[1] * len(spatial))) * step.view(1, -1, *[1] * len(spatial))
    ball = (offset.square().sum(1) <= float(radius) ** 2).expand(len(prediction), *spatial)
    if not radius > 0 or not bool(ball.flatten(1).any(1).all()):
        raise ValueError(f"radius={radius} holds no voxel; give a larger one (in mm with spacing, else in voxels).")
    return _put(prediction, decision, label, ball.to(prediction.device))


def move(
    prediction: Tensor,
    decision: Decision,
    label: int,
    shift: Sequence[float],
    *,
    spacing: Sequence[float] | None = None,
    logits: Tensor | None = None,
) -> Tensor:
    """A structure shifted by whole voxels; what it leaves is filled as by :func:`erase`.

    Args:
        prediction: hard mask, canonical.
        decision: how it is to be read.
        label: class or label to move.
        shift: along each axis, in mm with ``spacing``, else in voxels; rounded to whole voxels. What leaves the image
            is lost.
        spacing: size of a voxel along each axis in mm.
        logits: as in :func:`erase`.

    Raises:
        ValueError: a shift of less than half a voxel, or one that takes a whole structure out of the image.

    Example:
        >>> import torch
        >>> move(torch.tensor([[[1, 1, 0, 2]]]), Multiclass(3, background=0), 1, shift=(0, 1))
        tensor([[[0, 1, 1, 2]]])
    """
    spatial = _check_mask(prediction, decision)
    label = one_channel(decision, label)
    wanted = _points(shift, 1, len(spatial))[0] / _spacing(spacing, len(spatial))
    voxels = [int(v) for v in wanted.round()]
    if not any(voxels):
        raise ValueError(f"shift={tuple(shift)} is less than half a voxel and moves nothing; give a larger one.")
    region = decision.one_hot(prediction, (label,))[:, 0]
    moved = _shifted(region, voxels)
    if bool((region.flatten(1).any(1) & ~moved.flatten(1).any(1)).any()):
        raise ValueError(f"shift={tuple(shift)} takes label {label} out of the image; give a smaller one.")
    return _put(erase(prediction, decision, label, logits=logits), decision, label, moved)


@dataclass(frozen=True)
class TargetSuccess:
    """Whether a targeted attack got what it wanted, per case.

    Attributes:
        success: agreement at least tau and change at most delta, ``(N,)`` bool.
        agreement: Dice of the label between prediction and target; where the target has none of it, the share of the
            clean structure that is gone, ``(N,)``.
        change: of the other foreground classes, over the voxels that the target leaves as they were: the largest of
            1 - Dice to the clean prediction (of a class that was not there: the share of voxels it takes), ``(N,)``.
    """

    success: Tensor
    agreement: Tensor
    change: Tensor


def target_success(
    prediction: Tensor,
    target: Tensor,
    clean: Tensor,
    decision: Decision,
    label: int,
    *,
    tau: float = 0.5,
    delta: float = 0.05,
) -> TargetSuccess:
    """Success of an attack towards a target mask: the label as wanted, and the other classes left alone.

    Args:
        prediction: of the adversarial images, hard and canonical as the next two.
        target: the diagnosis wanted.
        clean: the diagnosis of the clean images.
        decision: how they are to be read.
        label: class or label that was erased, added or moved.
        tau: least agreement of the label with the target.
        delta: largest change of another class.

    Raises:
        ValueError: no such label, or tolerances outside 0 to 1.

    Example:
        >>> import torch
        >>> decision = Multiclass(3, background=0)
        >>> clean = torch.tensor([[[0, 1, 1, 2]]])
        >>> wanted = erase(clean, decision, 1)
        >>> target_success(torch.tensor([[[0, 0, 1, 2]]]), wanted, clean, decision, 1)
        TargetSuccess(success=tensor([True]), agreement=tensor([0.5000]), change=tensor([0.]))
    """
    for name, value in (("tau", tau), ("delta", delta)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r} must lie between 0 and 1.")
    label = one_channel(decision, label)
    own, wanted, before = (decision.one_hot(m, (label,)) for m in (prediction, target, clean))
    left, had = (mask.flatten(1).sum(1) for mask in (own, before))
    gone = (1 - left / had.clamp(min=1)).clamp(min=0)
    dice = dice_per_class(own, wanted)[:, 0]
    agreement = torch.where(dice.isnan(), gone, dice)
    change = _change_of_others(prediction, target, clean, decision, label)
    return TargetSuccess((agreement >= tau) & (change <= delta), agreement, change)


def _change_of_others(prediction: Tensor, target: Tensor, clean: Tensor, decision: Decision, label: int) -> Tensor:
    others = [c for c in range(decision.channels) if c not in (label, decision.background)]
    if not others:
        return torch.zeros(len(prediction), device=prediction.device)
    same = decision.one_hot(target) == decision.one_hot(clean)
    kept = same.all(1, keepdim=True) if decision.exclusive else same[:, others]
    now, before = (decision.one_hot(mask, others) & kept for mask in (prediction, clean))
    claimed = now.flatten(2).sum(2) / now[0, 0].numel()
    dice = dice_per_class(now, before)
    return torch.where(dice.isnan(), claimed, 1 - dice).amax(1)


def _check_mask(prediction: Tensor, decision: Decision) -> tuple[int, ...]:
    """The spatial shape of a canonical mask."""
    first = 1 if decision.exclusive else 2
    fits = prediction.ndim in (first + 2, first + 3)
    if not fits or (first == 2 and prediction.shape[1] != decision.channels) or prediction.is_floating_point():
        wanted = "(N, *S)" if first == 1 else f"(N, {decision.channels}, *S)"
        raise ValueError(
            f"prediction is {prediction.dtype} of shape {tuple(prediction.shape)}; give a hard mask {wanted} of whole "
            "numbers, such as decision.harden(logits)."
        )
    return tuple(prediction.shape[first:])


def _without(prediction: Tensor, decision: Multiclass, label: int, logits: Tensor | None) -> Tensor:
    """What each voxel would be if ``label`` did not exist."""
    if logits is not None:
        wanted = (len(prediction), decision.channels, *prediction.shape[1:])
        if tuple(logits.shape) != wanted:
            raise ValueError(f"logits have shape {tuple(logits.shape)}, the prediction needs {wanted}.")
        others = logits.clone()
        others[:, label] = -torch.inf
        return decision.harden(others).to(prediction.dtype)
    if decision.background is None:
        raise ValueError("a decision without background has nothing to fill with; give logits of the clean images.")
    return torch.full_like(prediction, decision.background)


def _with_channel(mask: Tensor, label: int, values: Tensor) -> Tensor:
    changed = mask.clone()
    changed[:, label] = values
    return changed


def _put(mask: Tensor, decision: Decision, label: int, region: Tensor) -> Tensor:
    """``label`` where ``region``, whatever was there."""
    if isinstance(decision, Multiclass):
        return mask.masked_fill(region, label)
    return _with_channel(mask, label, mask[:, label].masked_fill(region, 1))


def _shifted(region: Tensor, voxels: Sequence[int]) -> Tensor:
    """A bool mask ``(N, *S)`` moved by whole voxels, with False coming in."""
    moved = torch.zeros_like(region)
    into: list[Any] = [slice(None)]
    out: list[Any] = [slice(None)]
    for v, size in zip(voxels, region.shape[1:], strict=True):
        into.append(slice(max(v, 0), max(size + min(v, 0), 0)))
        out.append(slice(max(-v, 0), max(size - max(v, 0), 0)))
    moved[tuple(into)] = region[tuple(out)]
    return moved


def _spacing(spacing: Sequence[float] | None, dims: int) -> Tensor:
    values = [1.0] * dims if spacing is None else [float(s) for s in spacing]
    if len(values) != dims or not all(0 < s < float("inf") for s in values):
        raise ValueError(f"spacing={spacing} does not fit; give {dims} lengths in mm, one per axis.")
    return torch.tensor(values, dtype=torch.float64)


def _points(given: Any, cases: int, dims: int) -> Tensor:
    points = torch.as_tensor(given, dtype=torch.float64).reshape(-1, dims) if _size(given) % dims == 0 else None
    if points is None or len(points) not in (1, cases) or not bool(points.isfinite().all()):
        raise ValueError(f"{given} is no point of {dims} axes; give one number per axis (or such a point per case).")
    return points


def _size(given: Any) -> int:
    return torch.as_tensor(given).numel() or 1
