"""Threats in the frequency domain: which frequencies of each block are quantised, and how coarsely."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from medadv.dct import dct, idct
from medadv.intensities import Budget, Intensity
from medadv.threats.base import CaseRandom
from medadv.threats.intensity_fields import window_of
from medadv.threats.parametric import ParametricThreat, rounded_down

GREY = 255.0
CENTRE = 128.0
SMOOTHNESS = 0.1
STEEPNESS = math.log(2 / SMOOTHNESS - 1)
# below this many grey values a coefficient is not quantised at all: the limit of q -> 0
IDENTITY = 1e-6


class DCTQuantisation(ParametricThreat):
    """Quantised frequencies of blocks, as in VAFA (arXiv 2307.07269): ``x' = IDCT(q round(DCT(x) / q))``.

    The window (else the range) is scaled to 0..255 and centred at 128 as in JPEG; the orthonormal DCT runs over blocks.
    Theta holds one quantisation step q for each coefficient of each block and channel, laid out like the (padded)
    image, from 0 to eps grey values. Where q is 0 the coefficient stays as it is, which is the limit of q -> 0, so
    sets of different eps are nested; the released code keeps q at 5 or above. Random starts lie in the upper half of
    the steps, as the released code starts at the greatest: a search from fine steps stays at fine steps. A block is not
    longer than the image; where the image is no multiple of it the border voxels are repeated and cut off again.

    Images are really quantised. The gradient is that of the paper's smooth rounding :func:`soft_round`, as rounding
    itself has none; where q is below 1, and it oscillates without limit, it is taken at q = 1. All is computed in
    float64, so that the order of sums can't round a coefficient to its other neighbour. The slices of the result are
    not rescaled to their own minimum and maximum as in the released code, which would change an image that is not
    quantised at all.

    Args:
        x, budget, intensity, mask: as for every threat; the budget in grey values of 0..255.
        block: side of a block in voxels, at least 2.

    Example:
        >>> import torch
        >>> from medadv.intensities import Budget, Intensity
        >>> x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> threat = DCTQuantisation(x, Budget(20.0, "grey/255", 20 / 255), Intensity(0, 1))
        >>> bool((threat.apply(threat.most) - x).abs().max() > 0.03), torch.equal(threat.apply(threat.least), x)
        (True, True)
    """

    _of_cases = (*ParametricThreat._of_cases, "_coefficients")

    def __init__(
        self, x: Tensor, budget: Budget, intensity: Intensity, mask: Tensor | None = None, *, block: int = 32
    ) -> None:
        if block < 2:
            raise ValueError(f"block={block!r} holds a single frequency; give a side of at least 2 voxels.")
        self._sides = [min(block, size) for size in x.shape[2:]]
        self._counts = [math.ceil(size / side) for size, side in zip(x.shape[2:], self._sides, strict=True)]
        self._axes = [3 + 2 * axis for axis in range(len(self._sides))]
        start, width = window_of(intensity, x.to(torch.float64))
        grey = (x.to(torch.float64) - start) / width * GREY - CENTRE
        self._coefficients = dct(self._blocks(self._filled(grey, "replicate")), self._axes)
        super().__init__(x, budget, intensity, mask)

    def box(self) -> tuple[Tensor, Tensor]:
        padded = [count * side for count, side in zip(self._counts, self._sides, strict=True)]
        most = self.x.new_full((*self.x.shape[:2], *padded), rounded_down(self.radius, self.x.dtype))
        return torch.zeros_like(most), most

    def transform(self, theta: Tensor) -> Tensor:
        return self._quantised(theta, torch.round)

    def start(self, random: CaseRandom | None) -> Tensor:
        if random is None:
            return torch.zeros_like(self.most)
        return self.project(self.most * (1 + random.uniform(self.most)) / 2)

    def pullback(self, theta: Tensor, grad: Tensor) -> Tensor:
        if self.mask is not None:
            grad = grad * self.mask
        q = self._blocks(theta.to(torch.float64).clamp(min=max(min(1.0, self.radius), IDENTITY)))
        _, width = window_of(self.intensity, grad)
        frequencies = dct(self._blocks(self._filled(grad.to(torch.float64) * width / GREY, "constant")), self._axes)
        u = self._coefficients / q
        rounded, slope = soft_round(u)
        return (frequencies * (rounded - u * slope)).reshape(theta.shape).to(theta.dtype)

    def _quantised(self, theta: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        q = self._blocks(theta.to(torch.float64))
        quantised = q * rounding(self._coefficients / q.clamp(min=IDENTITY))
        coarse = q > IDENTITY
        kept = quantised if bool(coarse.all()) else torch.where(coarse, quantised, self._coefficients)
        joined = idct(kept, self._axes).reshape(theta.shape)
        cropped = joined
        for axis, size in enumerate(self.x.shape[2:], start=2):
            cropped = cropped.narrow(axis, 0, size)
        start, width = window_of(self.intensity, cropped)
        return (start + (cropped + CENTRE) / GREY * width).to(self.x.dtype)

    def _filled(self, image: Tensor, mode: str) -> Tensor:
        """An image made a multiple of the block at its far ends, with ``"replicate"``d voxels or a ``"constant"`` 0."""
        missing = [n * s - size for n, s, size in zip(self._counts, self._sides, image.shape[2:], strict=True)]
        return F.pad(image, [pad for m in reversed(missing) for pad in (0, m)], mode=mode)

    def _blocks(self, padded: Tensor) -> Tensor:
        """``(N, C, *padded)`` -> ``(N, C, count, side, count, side, ...)``."""
        parts = [part for pair in zip(self._counts, self._sides, strict=True) for part in pair]
        return padded.reshape(*padded.shape[:2], *parts)


def soft_round(u: Tensor) -> tuple[Tensor, Tensor]:
    """The smooth rounding of AdvDrop (arXiv 2108.09034) and VAFA: a tanh from each whole number to the next.

    With f the fraction of u above its floor, ``floor(u) + 1/2 + tanh(k (f - 1/2)) / (2 (1 - a))`` where
    ``k = log(2 / a - 1)``: continuous, and equal to u at the whole numbers and half-way between them. The smaller a,
    the steeper the step; here a = 0.1, at which the released code starts.

    Returns:
        The values, and the derivative to u.

    Example:
        >>> import torch
        >>> value, slope = soft_round(torch.tensor([2.0, 2.4, 2.5]))
        >>> value.round(decimals=2), slope.round(decimals=2)
        (tensor([2.0000, 2.3400, 2.5000]), tensor([0.3100, 1.5000, 1.6400]))
    """
    whole = u.floor()
    height = torch.tanh(STEEPNESS * (u - whole - 0.5))
    value = whole + 0.5 + height / (2 * (1 - SMOOTHNESS))
    return value, STEEPNESS * (1 - height**2) / (2 * (1 - SMOOTHNESS))
