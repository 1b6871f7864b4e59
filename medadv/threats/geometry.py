"""Threats that move anatomy: smooth deformations that can't fold, and affine maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medadv.intensities import Budget, Intensity
from medadv.names import unknown_name
from medadv.numbers import is_finite
from medadv.threats.parametric import limit_reader, rounded_down
from medadv.threats.warps import Warp, places_of

INTERPOLATIONS = ("bspline", "linear")

# Greatest sum over the axes of the absolute derivatives that control displacements of at most 1, a spacing of 1 apart,
# can give. At the reciprocal the Jacobian may reach zero, so the bounds are sharp. For the cubic B-spline these are the
# constants of Choi and Lee (doi:10.1006/gmod.2000.0531).
_STEEPEST = {"linear": {2: 4.0, 3: 6.0}, "bspline": {2: 2.0463926743, 3: 2.4794723333}}


class Deformation(Warp):
    """A smooth displacement field from control points; ``theta`` is their displacement, ``(N, d, *K)``.

    Between the control points the field is a convex combination of them (linear, or the uniform cubic B-spline), so no
    voxel is displaced by more than the budget along any axis. Control points lie evenly, from border to border; the
    B-spline has one row more on each side outside the image. Budgets at which a field could fold are refused: below
    ``h / c``, with ``h`` the least spacing and ``c`` the constants of Choi and Lee (2000) for the B-spline and twice
    the number of axes for linear fields, every field is one-to-one.

    Args:
        x, budget, intensity, mask: as in :class:`~medadv.threats.parametric.ParametricThreat`; the budget is the
            greatest displacement along each axis, in voxels or, where its unit is ``"mm"``, in mm.
        control_points: number K along each axis; one number, or one per axis.
        interpolation: ``"bspline"`` (at least 4 control points per axis) or ``"linear"`` (at least 2).
        spacing: length of a voxel along each axis in mm, for a budget in mm.

    Raises:
        ValueError: options that can't be right, or a budget at which the field may fold.
    """

    def __init__(
        self,
        x: Tensor,
        budget: Budget,
        intensity: Intensity,
        mask: Tensor | None = None,
        *,
        control_points: int | Sequence[int] = 5,
        interpolation: str = "bspline",
        spacing: Sequence[float] | None = None,
    ) -> None:
        if interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        self.interpolation = interpolation
        self.control_points = _counts(control_points, x.ndim - 2, 4 if interpolation == "bspline" else 2)
        if (budget.unit == "mm") != (spacing is not None):
            raise ValueError(
                f"eps is in {budget.unit} and spacing={spacing!r}; give eps as a number of voxels, or both eps such as "
                "'2 mm' and spacing, the length of a voxel along each axis in mm."
            )
        self.spacing = _spacing(spacing, x)
        self._refuse_folds(budget, x.shape[2:])
        self.weights = [
            _spline_weights(size, count, interpolation, x)
            for size, count in zip(x.shape[2:], self.control_points, strict=True)
        ]
        super().__init__(x, budget, intensity, mask)

    def _refuse_folds(self, budget: Budget, spatial: Sequence[int]) -> None:
        outside = 2 if self.interpolation == "bspline" else 0
        lengths = [(side - 1) * length for side, length in zip(spatial, self.spacing.tolist(), strict=True)]
        spacing = min(a / (k - 1 - outside) for a, k in zip(lengths, self.control_points, strict=True))
        limit = spacing / _STEEPEST[self.interpolation][len(spatial)]
        if budget.eps and budget.eps >= limit:
            shape, points = (" x ".join(map(str, numbers)) for numbers in (spatial, self.control_points))
            raise ValueError(
                f"a displacement of {budget.eps:g} {budget.unit} can fold images of {shape} with {points} control "
                f"points ({self.interpolation}); give eps below {math.floor(limit * 1e4) / 1e4:g} {budget.unit} or "
                "fewer control points."
            )

    def box(self) -> tuple[Tensor, Tensor]:
        shape = (len(self.x), len(self.spatial), *self.control_points)
        most = self.x.new_full(shape, rounded_down(self.radius, self.x.dtype))
        return -most, most

    def displacement(self, theta: Tensor) -> Tensor:
        field = theta
        for axis, weights in enumerate(self.weights):
            field = (field.movedim(2 + axis, -1) @ weights.T).movedim(-1, 2 + axis)
        return field / self.spacing.view(-1, *[1] * len(self.spatial))


class Affine(Warp):
    """Rotation, scaling, translation and shear about the centre of the image.

    ``theta`` ``(N, P)`` holds shares of the limits, in this order: the angles (one in 2D; in 3D about each axis,
    applied one after the other), the scales, translations and shears of the axes. The budget is the share of the limits
    that may be used: at 1 those of AdvChain (arXiv 2108.03429), 30 degrees, a fifth in scale and a tenth of the side.
    Places are ``A (p - centre) + centre + t`` with ``A = rotation @ shear @ diag(scale)``, in mm where the spacing is
    given, else in voxels. The map can't fold: its determinant is the product of the scales.

    Args:
        x, budget, intensity, mask: as in :class:`~medadv.threats.parametric.ParametricThreat`.
        rotation: greatest angle in degrees.
        scale: greatest relative change of size along an axis, below 1.
        translation: greatest shift as a share of the side, per axis.
        shear: greatest shear, as the tangent of the angle.
        spacing: length of a voxel along each axis; None: all axes alike.

    Raises:
        ValueError: limits that can't be right.
    """

    def __init__(
        self,
        x: Tensor,
        budget: Budget,
        intensity: Intensity,
        mask: Tensor | None = None,
        *,
        rotation: float = 30.0,
        scale: float = 0.2,
        translation: float = 0.1,
        shear: float = 0.0,
        spacing: Sequence[float] | None = None,
    ) -> None:
        dims = x.ndim - 2
        self.pairs = [(i, j) for i in range(dims) for j in range(i + 1, dims)]
        angle = math.radians(_limit("rotation", rotation, 180.0, "degrees"))
        _limit("scale", scale, 1.0, "as a share of the size")
        _limit("translation", translation, 1.0, "as a share of the side")
        _limit("shear", shear, math.inf, "as a tangent")
        self.spacing = _spacing(spacing, x)
        shifts = [translation * side * length for side, length in zip(x.shape[2:], self.spacing.tolist(), strict=True)]
        limits = [*[angle] * len(self.pairs), *[scale] * dims, *shifts, *[shear] * len(self.pairs)]
        self.limits = torch.tensor(limits, dtype=x.dtype, device=x.device)
        self.places = _centred_places(x) * self.spacing.view(-1, *[1] * dims)
        super().__init__(x, budget, intensity, mask)

    def box(self) -> tuple[Tensor, Tensor]:
        most = self.x.new_full((len(self.x), len(self.limits)), rounded_down(self.radius, self.x.dtype))
        return -most, most

    def displacement(self, theta: Tensor) -> Tensor:
        dims, pairs = len(self.spatial), len(self.pairs)
        angles, scales, shifts, shears = (theta * self.limits).split([pairs, dims, dims, pairs], dim=1)
        eye = torch.eye(dims, dtype=theta.dtype, device=theta.device)
        turned = eye.expand(len(theta), dims, dims)
        sheared = turned
        for number, (i, j) in enumerate(self.pairs):
            turned = turned @ _rotation(eye, i, j, angles[:, number])
            sheared = sheared + shears[:, number, None, None] * torch.outer(eye[i], eye[j])
        matrix = turned @ (sheared * (1 + scales)[:, None, :])
        moved = (matrix - eye) @ self.places.flatten(1) + shifts[:, :, None]
        return (moved / self.spacing[:, None]).view(len(theta), dims, *self.spatial)


def _rotation(eye: Tensor, i: int, j: int, angle: Tensor) -> Tensor:
    """Rotations by ``angle`` ``(N,)`` in the plane of the axes i and j, ``(N, d, d)``."""
    plane = torch.outer(eye[i], eye[i]) + torch.outer(eye[j], eye[j])
    turn = torch.outer(eye[j], eye[i]) - torch.outer(eye[i], eye[j])
    return eye + (angle.cos() - 1)[:, None, None] * plane + angle.sin()[:, None, None] * turn


def _centred_places(x: Tensor) -> Tensor:
    places = places_of(x)
    centre = places.new_tensor([(size - 1) / 2 for size in x.shape[2:]])
    return places - centre.view(-1, *[1] * len(centre))


def _spline_weights(size: int, count: int, interpolation: str, like: Tensor) -> Tensor:
    """How much each of ``count`` control points counts at each of ``size`` voxels, ``(size, count)``; rows sum to 1."""
    intervals = count - (3 if interpolation == "bspline" else 1)
    place = torch.arange(size, dtype=torch.float64) * (intervals / max(size - 1, 1))
    first = place.floor().clamp(max=intervals - 1)
    t = place - first
    if interpolation == "linear":
        parts = [1 - t, t]
    else:
        parts = [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6]
    weights = torch.zeros(size, count, dtype=torch.float64)
    for offset, part in enumerate(parts):
        weights[torch.arange(size), first.to(torch.int64) + offset] = part
    return weights.to(like.device, like.dtype)


def _counts(given: Any, dims: int, least: int) -> tuple[int, ...]:
    counts = (given,) * dims if isinstance(given, int) else tuple(given) if isinstance(given, list | tuple) else ()
    if len(counts) != dims or not all(type(count) is int and count >= least for count in counts):
        raise ValueError(
            f"control_points={given!r} does not fit; give a whole number of at least {least}, or one for each of the "
            f"{dims} axes."
        )
    return counts


def _spacing(given: Any, x: Tensor) -> Tensor:
    """Length of a voxel along each axis, ``(d,)``; 1 where it is not given."""
    dims = x.ndim - 2
    if given is None:
        return x.new_ones(dims)
    lengths = tuple(given) if isinstance(given, list | tuple) else ()
    numbers = all(is_finite(a) and a > 0 for a in lengths)
    if len(lengths) != dims or not numbers:
        raise ValueError(f"spacing={given!r} does not fit; give the length of a voxel along each of the {dims} axes.")
    return x.new_tensor(lengths)


def _limit(name: str, given: Any, below: float, how: str) -> float:
    if not (is_finite(given) and 0 <= given < below):
        bound = f" and below {below:g}" if math.isfinite(below) else ""
        raise ValueError(f"{name}={given!r} is no limit; give a number of at least 0{bound}, {how}.")
    return float(given)


def displacement_budget(eps: float | str, intensity: Intensity) -> Budget:
    """Reads how far a place may be displaced: a number of voxels, or a string such as ``"2 mm"``."""
    in_mm = isinstance(eps, str) and eps.strip().endswith("mm")
    number = str(eps).strip().removesuffix("mm") if in_mm else eps
    what = "the displacement in voxels (in mm: a string such as '2 mm')"
    # no share of anything: tables get NaN as the fraction
    return limit_reader(what, unit="mm" if in_mm else "voxel", whole=math.nan)(number, intensity)


def affine_budget(eps: float | str, intensity: Intensity) -> Budget:
    """Reads the share of the limits that may be used, 0 to 1."""
    budget = limit_reader("the share of the limits of rotation, scale, translation and shear")(eps, intensity)
    if budget.eps > 1:
        raise ValueError(f"eps={eps!r} is more than all of the limits; give 0 to 1, or raise rotation= and the others.")
    return budget
