"""Where the random searches work: the region of each case that may change, and windows in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from medadv.threats import LpBall


@dataclass(frozen=True)
class Region:
    """Bounding box of what may change in each case: the mask's, or the whole image.

    Attributes:
        origin: first voxel of the box along each of the d axes, ``(N, d)`` int64.
        extent: its size, ``(N, d)`` int64.
    """

    origin: Tensor
    extent: Tensor

    @classmethod
    def of(cls, threat: LpBall) -> Region:
        """The region of each case; the whole image for a case without any voxel that may change."""
        shape = threat.x.shape[2:]
        sizes = torch.tensor(shape).expand(len(threat.x), -1)
        if threat.mask is None:
            return cls(torch.zeros_like(sizes), sizes)
        changes = threat.mask.any(1).cpu()
        bounds = []
        for axis, size in enumerate(shape):
            others = [other + 1 for other in range(len(shape)) if other != axis]
            along = changes.sum(dim=others) > 0
            first, last = along.int().argmax(1), size - 1 - along.flip(1).int().argmax(1)
            bounds.append(
                torch.where(along.any(1), torch.stack([first, last + 1 - first]), torch.tensor([[0], [size]]))
            )
        origin, extent = torch.stack(bounds, dim=2)
        return cls(origin, extent)

    def sides(self, share: float, *, least: int = 1, odd: bool = False) -> Tensor:
        """Sides ``(N, d)`` of cubes that hold this share of each region's voxels, cut off at the region's extent."""
        dims = self.extent.shape[1]
        volumes = self.extent.prod(1).tolist()
        edges = torch.tensor([max(round((share * volume) ** (1 / dims)), least) for volume in volumes])
        if odd:
            edges = edges + (edges % 2 == 0)
        return torch.minimum(edges[:, None], self.extent)

    def corners(self, uniform: Tensor, sides: Tensor) -> Tensor:
        """First voxels of windows that lie in the regions, from draws ``(N, d)`` in [0, 1)."""
        return self.origin + (uniform * (self.extent - sides + 1)).to(torch.int64)

    def subset(self, rows: Tensor) -> Region:
        """The regions of some cases."""
        return Region(self.origin[rows], self.extent[rows])


class Windows:
    """Equally large windows of some cases, read and written without a loop over cases.

    Args:
        rows: the cases, ``(n,)``.
        corners: first voxel of each window, ``(n, d)``.
        sides: their common size.
        like: images ``(N, C, *S)``.
    """

    def __init__(self, rows: Tensor, corners: Tensor, sides: tuple[int, ...], like: Tensor) -> None:
        dims = like.ndim
        place: list[Tensor] = [
            rows.view(-1, *[1] * (dims - 1)),
            torch.arange(like.shape[1]).view(1, -1, *[1] * (dims - 2)),
        ]
        for axis, side in enumerate(sides):
            along = corners[:, axis, None] + torch.arange(side)
            place.append(along.view(len(rows), *[1] * (axis + 1), -1, *[1] * (dims - 3 - axis)))
        self._place = tuple(index.to(like.device) for index in place)

    def take(self, images: Tensor) -> Tensor:
        """What is in the windows, ``(n, C, *sides)``."""
        return images[self._place]

    def put(self, images: Tensor, values: Tensor | float) -> None:
        """Writes into the windows, in place."""
        if isinstance(values, Tensor):
            images[self._place] = values
        else:
            images.index_put_(self._place, torch.tensor(values, dtype=images.dtype, device=images.device))


def alike(sizes: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Cases grouped by the rows of ``sizes`` ``(N, d)``: their numbers, and the size they share.

    Example:
        >>> [(rows.tolist(), size) for rows, size in alike(torch.tensor([[2, 3], [4, 4], [2, 3]]))]
        [([0, 2], (2, 3)), ([1], (4, 4))]
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, size in enumerate(sizes.tolist()):
        groups.setdefault(tuple(size), []).append(row)
    for size, rows in groups.items():
        yield torch.tensor(rows), size


@lru_cache(maxsize=64)  # a search asks for a dozen of them, thousands of times
def twin_pyramids(sides: tuple[int, ...], axis: int) -> Tensor:
    """A centred pyramid of either sign in each half of a window, norm 1: the bump of Square's L2 attack.

    The window is halved along ``axis``. At Chebyshev distance r from its centre a half has the height
    ``sum_{k >= r} 1 / (k + 1)^2`` up to half its longest side (arXiv 1912.00049, section 3.4), in any number of
    dimensions; each half has the same norm.

    Args:
        sides: size of the window.
        axis: axis along which it is halved.

    Returns:
        Float64 tensor of shape ``sides``; it is shared, don't change it.
    """
    first = sides[axis] // 2
    halves = []
    for sign, length in ((1, first), (-1, sides[axis] - first)):
        half = _pyramid((*sides[:axis], length, *sides[axis + 1 :]))
        halves.append(sign * half / half.norm().clamp(min=1e-300))
    bump = torch.cat(halves, axis)
    return bump / bump.norm()


def _pyramid(sides: tuple[int, ...]) -> Tensor:
    distance = torch.zeros((), dtype=torch.int64)
    for axis, side in enumerate(sides):
        along = (torch.arange(side) - side // 2).abs()
        distance = torch.maximum(distance, along.view(*[1] * axis, -1, *[1] * (len(sides) - 1 - axis)))
    layers = 1 / torch.arange(1, max(sides) // 2 + 2, dtype=torch.float64) ** 2
    return layers.flip(0).cumsum(0).flip(0)[distance.expand(sides)]


def low_frequencies_first(extent: tuple[int, ...], channels: int, share: float) -> Iterator[Tensor]:
    """Frequencies of an image's DCT in bands, the lowest first: each ``(n, 1 + d)``, channel and number per axis.

    A band is ``share`` of an axis wide, at least one frequency; a basis vector belongs to the band of its highest
    relative frequency. Only the bands that are asked for are made.
    """
    widths = [max(math.ceil(share * size), 1) for size in extent]
    last = max((size - 1) // width for size, width in zip(extent, widths, strict=True))
    for band in range(last + 1):
        inner = [min(band * width, size) for width, size in zip(widths, extent, strict=True)]
        outer = [min((band + 1) * width, size) for width, size in zip(widths, extent, strict=True)]
        block = torch.ones(outer, dtype=torch.bool)
        block[tuple(slice(0, size) for size in inner)] = not band
        numbers = block.nonzero()
        channel = torch.arange(channels).repeat_interleave(len(numbers))
        yield torch.cat([channel[:, None], numbers.repeat(channels, 1)], dim=1)
