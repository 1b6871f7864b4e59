"""Threats that look the image up at displaced places: the reference moves with it."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from medadv.threats.parametric import ParametricThreat


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
        moved_target, moved_valid = (take(values, found) for values in (target, valid))
        channels = [1] * (target.ndim - 1 - len(self.spatial))
        moved_valid = moved_valid & inside.view(len(target), *channels, *self.spatial)
        if self.mask is None:
            return moved_target, moved_valid
        every, some = (
            seen.view(len(target), *channels, *self.spatial) for seen in (self.mask.all(1), self.mask.any(1))
        )
        return torch.where(every, moved_target, target), torch.where(every, moved_valid, valid & ~some)


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
    places = displacement + places_of(displacement)
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
    found = (displacement + places_of(displacement)).round().to(torch.int64)
    position = torch.zeros_like(found[:, 0])
    inside = torch.ones_like(position, dtype=torch.bool)
    for axis, size in enumerate(displacement.shape[2:]):
        inside &= (found[:, axis] >= 0) & (found[:, axis] < size)
        position = position * size + found[:, axis].clamp(0, size - 1)
    return position, inside


def take(values: Tensor, position: Tensor) -> Tensor:
    """``values`` ``(N, ..., *S)`` at the positions ``(N, *S)`` of its flattened spatial axes."""
    dims = position.ndim - 1
    flat = values.reshape(len(values), -1, position[0].numel())
    index = position.reshape(len(values), 1, -1).expand_as(flat)
    return flat.gather(2, index).reshape(*values.shape[: values.ndim - dims], *position.shape[1:])


def places_of(like: Tensor) -> Tensor:
    """The place of each voxel, ``(d, *S)``, for ``like`` ``(N, d, *S)``."""
    axes = [torch.arange(size, dtype=like.dtype, device=like.device) for size in like.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))
