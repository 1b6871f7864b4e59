"""Input diversity: the gradient is taken through a random resizing of the image, so that attacks transfer better."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medadv.threats import CaseRandom

_LINEAR = {2: "bilinear", 3: "trilinear"}


class Resizing:
    """A random resizing of each case, padded to the old shape (DI-FGSM, arXiv 1803.06978), of any rank.

    With probability ``share`` a case is shrunk to a random share of its sides, between ``least`` and 1 and the same for
    all axes, and put at a random place; what is left over is filled with ``fill``. References of voxels are resized
    with the image, and what lies outside it does not count; the reference of an image stays.

    Args:
        random: the draws of each case.
        shape: spatial shape of the images.
        least: smallest share of the sides, in (0, 1).
        share: probability that a case is resized.
        fill: grey value outside, ``(1, C, 1, ...)``.
        segments: True if references have voxels.
    """

    def __init__(
        self, random: CaseRandom, shape: tuple[int, ...], *, least: float, share: float, fill: Tensor, segments: bool
    ) -> None:
        draws = random.uniform(torch.empty(len(random.generators), 2 + len(shape), dtype=torch.float64))
        self.shape = shape
        self.fill = fill
        self.segments = segments
        self.boxes: list[tuple[tuple[int, ...], tuple[int, ...]] | None] = []
        for coin, size, *place in draws.tolist():
            sides = tuple(max(1, round(side * (least + size * (1 - least)))) for side in shape)
            starts = tuple(int(p * (side - new + 1)) for p, side, new in zip(place, shape, sides, strict=True))
            self.boxes.append((sides, starts) if coin < share else None)

    def image(self, x: Tensor) -> Tensor:
        """The resized images, differentiable in ``x``."""
        fill = self.fill.to(x.device, x.dtype)
        return torch.stack([self._resized(case, box, fill[0]) for case, box in zip(x, self.boxes, strict=True)])

    def target(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The resized reference and where it counts."""
        if not self.segments:
            return target, valid
        nothing = torch.zeros((), dtype=target.dtype, device=target.device)
        moved = [self._resized(t, box, nothing, nearest=True) for t, box in zip(target, self.boxes, strict=True)]
        counts = [self._resized(v, box, nothing.bool(), nearest=True) for v, box in zip(valid, self.boxes, strict=True)]
        return torch.stack(moved), torch.stack(counts)

    def _resized(
        self, case: Tensor, box: tuple[tuple[int, ...], tuple[int, ...]] | None, fill: Tensor, *, nearest: bool = False
    ) -> Tensor:
        if box is None:
            return case
        sides, starts = box
        # interpolate wants (N, C, *S); a reference of exclusive classes has no channels
        flat = case.reshape(1, -1, *self.shape)
        if nearest:
            small = F.interpolate(flat.to(torch.float64), sides, mode="nearest-exact").to(case.dtype)
        else:
            small = F.interpolate(flat, sides, mode=_LINEAR[len(sides)], align_corners=False)
        canvas = fill.expand(case.shape).clone().reshape(flat.shape)
        inside = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        everywhere = (slice(None), slice(None))
        canvas[everywhere + inside] = small
        return canvas.reshape(case.shape)
