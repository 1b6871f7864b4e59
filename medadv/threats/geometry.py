"""Threats that move anatomy, smooth deformations and affine maps: the reference moves with the image."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medadv.intensities import Budget, Intensity
from medadv.names import unknown_name
from medadv.threats.parametric import ParametricThreat, limit_reader, rounded_down

INTERPOLATIONS = ("bspline", "linear")

# Greatest sum over the axes of the absolute derivatives that control displacements of at most 1, a spacing of 1 apart,
# can give. At the reciprocal the Jacobian may reach zero, so the bounds are sharp. For the cubic B-spline these are the
# constants of Choi and Lee (doi:10.1006/gmod.2000.0531).
_STEEPEST = {"linear": {2: 4.0, 3: 6.0}, "bspline": {2: 2.0463926743, 3: 2.4794723333}}


class Warp(ParametricThreat):
    """Images looked up at displaced places: ``x'(p) = x(p + u(p))``, ``u`` in voxels, linear between voxels.

    Outside the image its border goes on. The reference is looked up at the same places, at the nearest voxel; what
    comes from outside the image is not valid. With a region mask image and reference move inside it alone; a voxel of
    which only some channels may move is not valid. References of whole images stay as they are.
    """

    @abstractmethod
    def displacement(self, theta: Tensor) -> Tensor:
        """``u`` in voxels, ``(N, d, *S)``, one component per spatial axis, differentiable in theta."""

    @property
    def spatial(self) -> tuple[int, ...]:
        """Spatial shape of the images."""
        return tuple(self.x.shape[2:])

    def transform(self, theta: Tensor) -> Tensor:
        return sample(self.x, self.displacement(theta))

    def apply_target(self, theta: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        if target.ndim <= len(self.spatial):
            return target, valid
        with torch.no_grad():
            found, inside = nearest_voxel(self.displacement(theta))
        moved_target, moved_valid = (_take(values, found) for values in (target, valid))
        channels = [1] * (target.ndim - 1 - len(self.spatial))
        moved_valid = moved_valid & inside.view(len(target), *channels, *self.spatial)
        if self.mask is None:
            return moved_target, moved_valid
        every, some = (
            seen.view(len(target), *channels, *self.spatial) for seen in (self.mask.all(1), self.mask.any(1))
        )
        return torch.where(every, moved_target, target), torch.where(every, moved_valid, valid & ~some)


class Deformation(Warp):
    """A smooth displacement field from control points; ``theta`` is their displacement in voxels, ``(N, d, *K)``.

    Between the control points the field is a convex combination of them (linear, or the uniform cubic B-spline), so no
    voxel is displaced by more than the budget along any axis. Control points lie evenly, from border to border; the
    B-spline has one row more on each side outside the image. Budgets at which a field could fold are refused: below
    ``h / c``, with ``h`` the least spacing and ``c`` the constants of Choi and Lee (2000) for the B-spline and twice
    the number of axes for linear fields, every field is one-to-one.

    Args:
        x, budget, intensity, mask: as in :class:`~medadv.threats.parametric.ParametricThreat`; the budget is the
            greatest displacement along each axis, in voxels.
        control_points: number K along each axis; one number, or one per axis.
        interpolation: ``"bspline"`` (at least 4 control points per axis) or ``"linear"`` (at least 2).

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
    ) -> None:
        if interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", interpolation, INTERPOLATIONS)
        self.interpolation = interpolation
        self.control_points = _counts(control_points, x.ndim - 2, 4 if interpolation == "bspline" else 2)
        self._refuse_folds(budget.eps, tuple(x.shape[2:]))
        self.weights = [
            _spline_weights(size, count, interpolation, x)
            for size, count in zip(x.shape[2:], self.control_points, strict=True)
        ]
        super().__init__(x, budget, intensity, mask)

    def _refuse_folds(self, eps: float, spatial: tuple[int, ...]) -> None:
        outside = 2 if self.interpolation == "bspline" else 0
        spacing = min((s - 1) / (k - 1 - outside) for s, k in zip(spatial, self.control_points, strict=True))
        limit = spacing / _STEEPEST[self.interpolation][len(spatial)]
        if eps and eps >= limit:
            raise ValueError(
                f"a displacement of {eps:g} voxels can fold images of {' x '.join(map(str, spatial))} with "
                f"{' x '.join(map(str, self.control_points))} control points ({self.interpolation}); give eps below "
                f"{math.floor(limit * 1e4) / 1e4:g} voxels or fewer control points."
            )

    def box(self) -> tuple[Tensor, Tensor]:
        shape = (len(self.x), len(self.spatial), *self.control_points)
        most = self.x.new_full(shape, rounded_down(self.radius, self.x.dtype))
        return -most, most

    def displacement(self, theta: Tensor) -> Tensor:
        field = theta
        for axis, weights in enumerate(self.weights):
            field = (field.movedim(2 + axis, -1) @ weights.T).movedim(-1, 2 + axis)
        return field


class Affine(Warp):
    """Rotation, scaling, translation and shear about the centre of the image.

    ``theta`` ``(N, P)`` holds shares of the limits, in this order: the angles (one in 2D; in 3D about each axis,
    applied one after the other), the scales, translations and shears of the axes. The budget is the share of the limits
    that may be used: at 1 those of AdvChain (arXiv 2108.03429), 30 degrees, a fifth in scale and a tenth of the side.
    Places are ``A (p - centre) + centre + t`` with ``A = rotation @ shear @ diag(scale)`` in voxels, so voxels are
    taken to be as long as wide. The map can't fold: its determinant is the product of the scales.

    Args:
        x, budget, intensity, mask: as in :class:`~medadv.threats.parametric.ParametricThreat`.
        rotation: greatest angle in degrees.
        scale: greatest relative change of size along an axis, below 1.
        translation: greatest shift as a share of the side, per axis.
        shear: greatest shear, as the tangent of the angle.

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
    ) -> None:
        dims = x.ndim - 2
        self.pairs = [(i, j) for i in range(dims) for j in range(i + 1, dims)]
        angle = math.radians(_limit("rotation", rotation, 180.0, "degrees"))
        _limit("scale", scale, 1.0, "as a share of the size")
        _limit("translation", translation, 1.0, "as a share of the side")
        _limit("shear", shear, math.inf, "as a tangent")
        shifts = [translation * side for side in x.shape[2:]]
        limits = [*[angle] * len(self.pairs), *[scale] * dims, *shifts, *[shear] * len(self.pairs)]
        self.limits = torch.tensor(limits, dtype=x.dtype, device=x.device)
        self.places = _centred_places(x)
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
        return moved.view(len(theta), dims, *self.spatial)


def _rotation(eye: Tensor, i: int, j: int, angle: Tensor) -> Tensor:
    """Rotations by ``angle`` ``(N,)`` in the plane of the axes i and j, ``(N, d, d)``."""
    plane = torch.outer(eye[i], eye[i]) + torch.outer(eye[j], eye[j])
    turn = torch.outer(eye[j], eye[i]) - torch.outer(eye[i], eye[j])
    return eye + (angle.cos() - 1)[:, None, None] * plane + angle.sin()[:, None, None] * turn


def sample(x: Tensor, displacement: Tensor) -> Tensor:
    """Images at displaced places, linear between voxels; outside, the border goes on.

    Args:
        x: images ``(N, C, *S)``.
        displacement: in voxels, ``(N, d, *S)``.

    Returns:
        ``(N, C, *S)``, differentiable in both.

    Example:
        >>> import torch
        >>> x = torch.arange(3.0).expand(1, 1, 2, 3)
        >>> u = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
        >>> sample(x, u)[0, 0, 0]
        tensor([0.5000, 1.5000, 2.0000])
    """
    places = displacement + _places(displacement)
    spans = displacement.new_tensor([max(size - 1, 1) for size in x.shape[2:]])
    grid = (2 / spans * places.movedim(1, -1) - 1).flip(-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def nearest_voxel(displacement: Tensor) -> tuple[Tensor, Tensor]:
    """The voxels nearest to displaced places.

    Args:
        displacement: in voxels, ``(N, d, *S)``.

    Returns:
        Position in the flattened image ``(N, *S)`` int64 (of the nearest voxel of the border where the place is
        outside), and where the place is inside the image, that is within a voxel of it, ``(N, *S)`` bool.
    """
    found = (displacement + _places(displacement)).round().to(torch.int64)
    position = torch.zeros_like(found[:, 0])
    inside = torch.ones_like(position, dtype=torch.bool)
    for axis, size in enumerate(displacement.shape[2:]):
        inside &= (found[:, axis] >= 0) & (found[:, axis] < size)
        position = position * size + found[:, axis].clamp(0, size - 1)
    return position, inside


def _take(values: Tensor, position: Tensor) -> Tensor:
    """``values`` ``(N, ..., *S)`` at the positions ``(N, *S)`` of its flattened spatial axes."""
    dims = position.ndim - 1
    flat = values.reshape(len(values), -1, position[0].numel())
    index = position.reshape(len(values), 1, -1).expand_as(flat)
    return flat.gather(2, index).reshape(*values.shape[: values.ndim - dims], *position.shape[1:])


def _places(like: Tensor) -> Tensor:
    """The place of each voxel, ``(d, *S)``, for ``like`` ``(N, d, *S)``."""
    axes = [torch.arange(size, dtype=like.dtype, device=like.device) for size in like.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _centred_places(x: Tensor) -> Tensor:
    places = _places(x)
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


def _limit(name: str, given: Any, below: float, how: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < below:
        bound = f" and below {below:g}" if math.isfinite(below) else ""
        raise ValueError(f"{name}={given!r} is no limit; give a number of at least 0{bound}, {how}.")
    return float(given)


# no share of anything: tables get NaN as the fraction
displacement_budget = limit_reader("the displacement of a voxel in voxels", unit="voxel", whole=math.nan)


def affine_budget(eps: float | str, intensity: Intensity) -> Budget:
    """Reads the share of the limits that may be used, 0 to 1."""
    budget = limit_reader("the share of the limits of rotation, scale, translation and shear")(eps, intensity)
    if budget.eps > 1:
        raise ValueError(f"eps={eps!r} is more than all of the limits; give 0 to 1, or raise rotation= and the others.")
    return budget
