"""Lp balls around each image, intersected with the intensity range, the storage grid and the region mask."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from medadv.intensities import Budget, Intensity
from medadv.threats.base import CaseRandom, Threat, case_norm, per_case
from medadv.threats.exact import not_further


class LpBall(Threat):
    """A ball around each image, intersected with the intensity range, the storage grid and the region mask.

    ``theta`` is the perturbation. With per-channel ranges the distance is measured in each channel's own width.

    Args:
        x: images ``(N, C, *S)``, float32 or float64, inside the intensity range.
        budget: radius, from :meth:`Intensity.budget`.
        intensity: range and storage grid.
        mask: bool like ``x``: where the image may change; None: everywhere.
    """

    norm: float
    _of_cases: tuple[str, ...] = ("x", "mask", "lower", "upper", "least", "most")

    def __init__(self, x: Tensor, budget: Budget, intensity: Intensity, mask: Tensor | None = None) -> None:
        self.x = x
        self.budget = budget
        self.intensity = intensity
        self.radius = budget.eps
        self.mask = mask
        self.weights: Tensor | float = 1.0
        self.reach = torch.full((), budget.eps, dtype=torch.float64, device=x.device)
        if budget.weights is not None:
            weights = torch.tensor(budget.weights, dtype=torch.float64, device=x.device)
            weights = weights.view(1, -1, *[1] * (x.ndim - 2))
            self.weights, self.reach = weights.to(x.dtype), budget.eps * weights
        self.lower, self.upper = self._box()
        self.least, self.most = self.lower - x, self.upper - x

    def _box(self) -> tuple[Tensor, Tensor]:
        """Bounds of the image: what the range, the grid and the mask leave of the ball's bounding box."""
        low, high = self.intensity.bounds(self.x)
        lower = self.intensity.snap(low, "up").minimum(self.x)
        upper = self.intensity.snap(high, "down").maximum(self.x)
        width = high.to(torch.float64) - low.to(torch.float64)
        if bool((self.reach <= 1.01 * width).any()):  # else no voxel can reach the ball's own bounds
            lower, upper = lower.maximum(self._furthest(-1)), upper.minimum(self._furthest(1))
        if self.mask is None:
            return lower, upper
        return torch.where(self.mask, lower, self.x), torch.where(self.mask, upper, self.x)

    def _furthest(self, sign: int) -> Tensor:
        """The image moved by the radius everywhere: never by more, and on a grid by whole steps."""
        if self.intensity.grid is None:
            return not_further(self.x, self.reach, sign)
        step = self.intensity.grid[0]
        whole = (self.reach / step + 1e-6).floor() * step
        return self.intensity.snap(self.x.to(torch.float64) + sign * whole).to(self.x.dtype)

    def apply(self, theta: Tensor) -> Tensor:
        return self.intensity.snap(self.x + theta).clamp(self.lower, self.upper)

    def pullback(self, theta: Tensor, grad: Tensor) -> Tensor:
        return grad if self.mask is None else grad * self.mask

    def scaled(self, factor: float) -> LpBall:
        """The ball with ``factor`` times the radius around the same images."""
        return type(self)(self.x, replace(self.budget, eps=self.budget.eps * factor), self.intensity, self.mask)

    def _weighed(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors in the unit of the distance."""
        return tensors if isinstance(self.weights, float) else tuple(tensor / self.weights for tensor in tensors)

    def distance(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        (moved,) = self._weighed(x_adv.to(torch.float64) - self.x.to(torch.float64))
        return case_norm(moved, self.norm)

    def contains(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        slack = torch.minimum(x_adv - self.lower, self.upper - x_adv)
        return (slack.flatten(1).amin(1) >= 0) & self._in_ball(x_adv)

    @abstractmethod
    def _in_ball(self, x_adv: Tensor) -> Tensor:
        """Which images are within the radius, ``(N,)`` bool, computed in the images' own float type."""


class LInfBall(LpBall):
    """Every voxel moves by at most eps (arXiv 1412.6572)."""

    norm = torch.inf

    def start(self, random: CaseRandom | None) -> Tensor:
        if random is None:
            return torch.zeros_like(self.x)
        return self.project((2 * random.uniform(self.x) - 1) * self.radius * self.weights)

    def ascend(self, theta: Tensor, grad: Tensor, step: Tensor | float) -> Tensor:
        direction = grad.sign() if isinstance(self.weights, float) else grad.sign() * self.weights
        return theta.addcmul(per_case(step, theta).to(theta), direction)

    def project(self, theta: Tensor) -> Tensor:
        return theta.clamp(self.least, self.most)

    def _in_ball(self, x_adv: Tensor) -> Tensor:
        return torch.ones(len(x_adv), dtype=torch.bool, device=x_adv.device)  # the box is the ball
