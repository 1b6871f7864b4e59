"""An adversarial patch: a rectangle or a box of voxels that the attacker paints, and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medadv.intensities import Budget, Intensity
from medadv.threats.balls import LInfBall
from medadv.threats.base import CaseRandom, per_case
from medadv.threats.parametric import limit_reader

PLACES = ("random", "center")


class Patch(LInfBall):
    """A box in which every intensity of the range is allowed (arXiv 1712.09665); ``theta`` is the perturbation.

    The patch has the rank and the proportions of the image: along every axis ``floor(side * eps ** (1 / d))`` voxels,
    at most the share ``eps`` of all voxels. It is never more than a box: unlike a 2D patch drawn through a stack it
    takes no whole column. Distances are measured in the width of the intensity range, so that the radius is 1; steps
    in the width of the window (of the range where there is none), along the sign of the gradient.

    Voxels below the patch do not count (:meth:`apply_target` marks them as not valid), unless ``score_patch`` says so:
    covering a structure shows nothing about the model. References of whole images stay as they are.

    Args:
        x, intensity, mask: as in :class:`~medadv.threats.balls.LpBall`.
        budget: share of the voxels that the patch may take, 0 to 1.
        location: ``"random"`` (drawn for each case among the places where the mask holds the whole patch; the same for
            all restarts), ``"center"``, or the index of the patch's first voxel along each axis.
        score_patch: whether voxels below the patch count.
        random: draws of each case; needed where the location is random.

    Raises:
        ValueError: a patch without a voxel, beyond the image or beyond the mask, or a location that can't be read.
    """

    _of_cases = (*LInfBall._of_cases, "region")

    def __init__(
        self,
        x: Tensor,
        budget: Budget,
        intensity: Intensity,
        mask: Tensor | None = None,
        *,
        location: str | Sequence[int] = "random",
        score_patch: bool = False,
        random: CaseRandom | None = None,
    ) -> None:
        if not isinstance(score_patch, bool):
            raise ValueError(f"score_patch={score_patch!r} must be True or False.")
        self.score_patch = score_patch
        self.share = budget.eps
        self.region = _region(x, patch_sides(budget.eps, x.shape[2:]), location, mask, random)
        widths = [high - low for low, high in zip(intensity.lows, intensity.highs, strict=True)]
        whole = Budget(max(widths), intensity.unit, 1.0, tuple(width / max(widths) for width in widths))
        super().__init__(x, whole, intensity, self.region if mask is None else self.region & mask)
        self.radius = 1.0
        shape = (1, -1, *[1] * (x.ndim - 2))
        self.width = torch.tensor(intensity.widths, dtype=x.dtype, device=x.device).view(shape)

    def start(self, random: CaseRandom | None) -> Tensor:
        """The clean image, or intensities drawn evenly from the window (from the range where there is none)."""
        if random is None:
            return torch.zeros_like(self.x)
        low, high = self.intensity.bounds(self.x)
        if self.intensity.window is not None:
            low, high = (bound.clamp(*self.intensity.window) for bound in (low, high))
        return self.project(low + random.uniform(self.x) * (high - low) - self.x)

    def ascend(self, theta: Tensor, grad: Tensor, step: Tensor | float) -> Tensor:
        return theta + per_case(step, theta) * self.width * grad.sign()

    def apply_target(self, theta: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        dims = self.x.ndim - 2
        if self.score_patch or target.ndim <= dims:
            return target, valid
        covered = self.region if target.ndim == self.region.ndim else self.region[:, 0]
        return target, valid & ~covered

    def distance(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        return super().distance(x_adv) / self.budget.eps

    def scaled(self, factor: float) -> Patch:
        """Refused: a patch has a place and a size, and no radius."""
        raise TypeError("a patch has no radius that could be scaled; make one of another size.")


def patch_sides(share: float, spatial: Sequence[int]) -> tuple[int, ...]:
    """Voxels of a patch along each axis: the proportions of the image, at most ``share`` of its voxels.

    Raises:
        ValueError: a share above zero that is less than a voxel along some axis.

    Example:
        >>> patch_sides(0.05, (224, 224)), patch_sides(0.05, (64, 64, 32))
        ((50, 50), (23, 23, 11))
    """
    part = share ** (1 / len(spatial))
    sides = tuple(math.floor(side * part + 1e-9) for side in spatial)
    if share and not all(sides):
        least = max(1 / side for side in spatial) ** len(spatial)
        raise ValueError(
            f"a patch of {share:g} of the voxels of {' x '.join(map(str, spatial))} has less than a voxel along an "
            f"axis; give eps of at least {math.ceil(least * 1e4) / 1e4:g}."
        )
    return sides


def patch_budget(eps: float | str, intensity: Intensity) -> Budget:
    """Reads the share of the voxels a patch may take, 0 to 1."""
    budget = limit_reader("the share of voxels of a patch")(eps, intensity)
    if budget.eps > 1:
        raise ValueError(f"eps={eps!r} is more than the whole image; give the share of voxels of the patch, 0 to 1.")
    return budget


def _region(x: Tensor, sides: tuple[int, ...], location: Any, mask: Tensor | None, random: CaseRandom | None) -> Tensor:
    """Where the patch of each case lies, bool ``(N, 1, *S)``."""
    region = torch.zeros_like(x[:, :1], dtype=torch.bool)
    if not all(sides):
        return region
    allowed = torch.ones_like(region) if mask is None else mask.any(1, keepdim=True)
    fits = _places_that_fit(allowed, sides)
    if location == "random":
        starts = _drawn(fits, sides, random)
    else:
        starts = [_fixed(location, tuple(x.shape[2:]), sides)] * len(x)
    for case, start in enumerate(starts):
        if start is None or not bool(fits[case][start]):
            raise ValueError(
                f"the mask of case {case} of the batch does not hold a patch of {' x '.join(map(str, sides))} voxels "
                f"at location={location!r}; give a smaller eps, another location or a larger mask."
            )
        box = tuple(slice(first, first + side) for first, side in zip(start, sides, strict=True))
        region[case, 0][box] = True
    return region


def _places_that_fit(allowed: Tensor, sides: tuple[int, ...]) -> Tensor:
    """First voxels ``(N, *S')`` from which a box of the sides lies wholly in ``allowed`` ``(N, 1, *S)``."""
    pool = F.max_pool2d if len(sides) == 2 else F.max_pool3d
    return pool((~allowed).to(torch.float32), sides, stride=1)[:, 0] == 0


def _drawn(fits: Tensor, sides: tuple[int, ...], random: CaseRandom | None) -> list[tuple[int, ...] | None]:
    """One of the places that fit for each case, evenly; None where there is none."""
    if random is None:
        raise ValueError("location='random' needs the draws of each case; give random=CaseRandom(seed, ids).")
    lots = random.uniform(torch.zeros(len(fits), 1, dtype=torch.float64))[:, 0].tolist()
    starts: list[tuple[int, ...] | None] = []
    for places, lot in zip(fits, lots, strict=True):
        open_places = places.nonzero()
        starts.append(tuple(open_places[int(lot * len(open_places))].tolist()) if len(open_places) else None)
    return starts


def _fixed(location: Any, spatial: tuple[int, ...], sides: tuple[int, ...]) -> tuple[int, ...]:
    """The same place for all cases."""
    if location == "center":
        return tuple((size - side) // 2 for size, side in zip(spatial, sides, strict=True))
    last = [size - side for size, side in zip(spatial, sides, strict=True)]
    given = tuple(location) if isinstance(location, list | tuple) else ()
    right = len(given) == len(spatial) and all(type(first) is int for first in given)
    if not right or not all(0 <= first <= end for first, end in zip(given, last, strict=True)):
        raise ValueError(
            f"location={location!r} does not fit; give {' or '.join(map(repr, PLACES))}, or the first index of the "
            f"patch along each axis, at most {tuple(last)}."
        )
    return given
