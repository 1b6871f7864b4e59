"""What threats share whose parameter is not the perturbation itself: fields, curves, spectra, deformations."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medadv.intensities import Budget, Intensity
from medadv.threats.base import CaseRandom, Threat, per_case


class ParametricThreat(Threat):
    """A set of images ``transform(theta)`` for theta in a box; theta zero is the clean image, bit for bit.

    A subclass gives :meth:`box` and :meth:`transform`. What is shown is the transformed image on the storage grid,
    inside the intensity range, and ``x`` itself outside the region mask; gradients pass range and grid straight
    through. Steps go along the sign of the gradient.

    Args:
        x: images ``(N, C, *S)``, float32 or float64, inside the intensity range.
        budget: size of the set; its unit is that of the threat.
        intensity: range and storage grid.
        mask: bool like ``x``: where the image may change; None: everywhere.

    Attributes:
        least: lower corner of the box, ``(N, ...)`` like theta.
        most: upper corner.
        unit: how much of theta one unit of the budget is; a number, or a tensor that broadcasts to theta.
    """

    parametric = True
    unit: Tensor | float = 1.0
    _of_cases: tuple[str, ...] = ("x", "mask", "least", "most")

    def __init__(self, x: Tensor, budget: Budget, intensity: Intensity, mask: Tensor | None = None) -> None:
        self.x = x
        self.budget = budget
        self.intensity = intensity
        self.radius = budget.eps
        self.mask = mask
        self.least, self.most = self.box()

    @abstractmethod
    def box(self) -> tuple[Tensor, Tensor]:
        """Least and greatest theta, each ``(N, ...)`` in the float type of ``x``; zero lies between them."""

    @abstractmethod
    def transform(self, theta: Tensor) -> Tensor:
        """Theta ``(N, ...)`` -> images ``(N, C, *S)``, differentiable, each case on its own, not yet restricted."""

    def start(self, random: CaseRandom | None) -> Tensor:
        if random is None:
            return torch.zeros_like(self.least)
        return self.project(self.least + random.uniform(self.least) * (self.most - self.least))

    def apply(self, theta: Tensor) -> Tensor:
        low, high = self.intensity.bounds(self.x)
        with torch.no_grad():
            shown = self.intensity.snap(self.transform(theta).to(self.x.dtype))
        shown = shown.clamp(self.intensity.snap(low, "up"), self.intensity.snap(high, "down"))
        # the clean image by definition, so that no rounding of the transform can change a case that was not attacked
        moved = per_case((theta != 0).flatten(1).any(1), shown)
        if self.mask is None and bool(moved.all()):
            return shown
        return torch.where(moved if self.mask is None else moved & self.mask, shown, self.x)

    def pullback(self, theta: Tensor, grad: Tensor) -> Tensor:
        if self.mask is not None:
            grad = grad * self.mask
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.transform(leaf), leaf, grad)[0]

    def ascend(self, theta: Tensor, grad: Tensor, step: Tensor | float) -> Tensor:
        return theta + per_case(step, theta) * self.unit * grad.sign()

    def project(self, theta: Tensor) -> Tensor:
        return theta.clamp(self.least, self.most)

    def distance(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        return (_known(theta).to(torch.float64) / self.unit).abs().flatten(1).amax(1)

    def contains(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        theta = _known(theta)
        inside = ((theta >= self.least) & (theta <= self.most)).flatten(1).all(1)
        # the same theta in a batch of another size may differ by the order of sums, and so by a step of the grid
        slack = 64 * torch.finfo(x_adv.dtype).eps * max(map(abs, (*self.intensity.lows, *self.intensity.highs)))
        if self.intensity.grid is not None:
            slack += self.intensity.grid[0]
        shown = self.apply(theta)
        return inside & ((x_adv - shown).abs() <= slack).flatten(1).all(1)


def rounded_down(limit: float, dtype: torch.dtype) -> float:
    """The greatest number of a float type that is not above ``limit``, so that a box never reaches past its budget.

    Example:
        >>> rounded_down(0.3, torch.float32) <= 0.3
        True
    """
    nearest = torch.tensor(limit, dtype=torch.float64).to(dtype)
    if float(nearest) <= limit:
        return float(nearest)
    return float(torch.nextafter(nearest, torch.tensor(-torch.inf, dtype=dtype)))


def limit_reader(
    what: str, *, below: float = math.inf, unit: str = "", whole: float = 1.0
) -> Callable[[float | str, Intensity], Budget]:
    """Reads the budget of a threat whose size is a plain number and no grey value.

    Args:
        what: what the number limits, for messages.
        below: numbers from here on are refused.
        unit: unit of the number, for tables.
        whole: the number that counts as a fraction of 1 in tables.

    Returns:
        ``(eps, intensity) -> Budget``.
    """

    def read(eps: float | str, intensity: Intensity) -> Budget:
        accepted = f"a number from 0 to below {below:g}" if math.isfinite(below) else "a number that is not negative"
        message = f"eps={eps!r} is no limit for {what}; give {accepted}."
        if isinstance(eps, bool) or not isinstance(eps, int | float | np.number | str):
            raise TypeError(message)
        try:
            value = float(eps)
        except ValueError:
            raise ValueError(message) from None
        if not 0 <= value < below:
            raise ValueError(message)
        return Budget(value, unit, value / whole)

    return read


def _known(theta: Tensor | None) -> Tensor:
    if theta is None:
        raise ValueError("this threat reads its distance off theta, not off the image; give theta.")
    return theta
