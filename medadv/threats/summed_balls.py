"""L2 and L1 balls, whose norm sums over the voxels of a case: exact projections on ball and box together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medadv.threats.balls import LpBall
from medadv.threats.base import CaseRandom, case_norm, per_case
from medadv.threats.exact import largest_share


class SummedBall(LpBall):
    """A ball whose norm sums over the voxels of a case, so that range and radius have to be met together."""

    @property
    def _reached(self) -> float:
        """The radius less a hair: room for adding the image, and for the order in which a norm is summed."""
        return self.radius * (1 - 1e-12)

    @abstractmethod
    def _shortened(self, v: Tensor, share: Tensor) -> Tensor:
        """Voxels brought towards zero; the larger the share ``(N,)``, the more is left."""

    @abstractmethod
    def _slope(self, shortened: Tensor, point: Tensor, size: Tensor, share: Tensor) -> Tensor:
        """How fast the norm grows with the share, ``(N,)``.

        Args:
            shortened: perturbations.
            point: the same, cut off at the box.
            size: norm of ``point``, ``(N,)`` float64.
            share: ``(N,)`` float64.
        """

    @abstractmethod
    def _bracket(self, v: Tensor, inside: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A share that is short enough, the one that shortens nothing, and where to begin, ``(N,)`` float64.

        Args:
            v: perturbations.
            inside: the same, cut off at the box.
            size: norm of ``inside``, ``(N,)`` float64.
        """

    @abstractmethod
    def _rough_size(self, v: Tensor) -> Tensor:
        """Norm of ``(N, M)`` in its own precision, ``(N,)``.

        By ``sum``, which loses no precision however many voxels there are; torch's float32 norm is 2 % off in 512^3.
        """

    def _size(self, v: Tensor) -> Tensor:
        """Norm ``(N,)`` float64; to a thousandth only where it differs from the radius by more, which is faster."""
        rough = self._rough_size(v.flatten(1)).to(torch.float64)
        near = (rough - self._reached).abs() <= 1e-3 * self._reached
        return torch.where(near, case_norm(v, self.norm, torch.float64), rough) if bool(near.any()) else rough

    def project(self, theta: Tensor) -> Tensor:
        """The nearest point of ball and box, exactly: voxels brought towards zero and then cut off at the box.

        Clipping after scaling would give a point of both that is not the nearest.
        """
        low, high, v = self._weighed(self.least, self.most, theta)
        inside = v.clamp(low, high)
        size = self._size(inside)
        far = size > self._reached
        if bool(far.all()):
            inside = self._nearest(v, inside, size, low, high)
        elif bool(far.any()):
            rows = far.nonzero()[:, 0]
            nearest = self._nearest(*(of_all[rows] for of_all in (v, inside, size, low, high)))
            inside = inside.index_copy(0, rows, nearest)
        return inside if isinstance(self.weights, float) else inside * self.weights

    def _nearest(self, v: Tensor, inside: Tensor, size: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """:meth:`project` where every case exceeds the radius."""
        short, long, begin = self._bracket(v, inside, size)
        last_share, point = long, inside

        def measure(share: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
            nonlocal last_share, point
            shortened = self._shortened(v, share.to(v.dtype))
            last_share, point = share, shortened.clamp(low, high)
            size = self._size(point)
            return size - self._reached, lambda: self._slope(shortened, point, size, share)

        precision = torch.finfo(v.dtype).eps
        tolerance = 4 * precision * self._reached
        share = largest_share(measure, short, long, begin, tolerance=tolerance, resolution=precision)
        if torch.equal(share, last_share):
            return point
        return self._shortened(v, share.to(v.dtype)).clamp(low, high)

    def apply(self, theta: Tensor) -> Tensor:
        """As for every ball; a step of rounding that left the ball is taken back by shrinking the perturbation."""
        x_adv = super().apply(theta)
        if self._surely_inside(x_adv):
            return x_adv
        less = 8 * torch.finfo(theta.dtype).eps if self.intensity.grid is None else 0.05
        while not bool((fits := self.distance(x_adv) <= self._allowed).all()):
            shrunk = super().apply(theta * (1 - less)) if less < 1 else self.x
            x_adv = torch.where(per_case(fits, x_adv), x_adv, shrunk)
            less *= 2
        return x_adv

    @property
    def _allowed(self) -> float:
        """The radius less a hair: the last digits of a norm depend on the order of its sum."""
        return self.radius * (1 - 1e-13)

    def _surely_inside(self, x_adv: Tensor) -> bool:
        """Whether no image can have left the ball, whatever was rounded; mostly True, and cheaper than a distance."""
        (moved,) = self._weighed(x_adv - self.x)
        # difference and quotient are each rounded by half of this at most
        return bool((self._size(moved) * (1 + 1.01 * torch.finfo(moved.dtype).eps) <= self._allowed).all())

    def _in_ball(self, x_adv: Tensor) -> Tensor:
        return self.distance(x_adv) <= self.radius

    def _length(self, random: CaseRandom) -> Tensor:
        """Random distance from the image, ``(N,)``: uniform in the volume of the ball."""
        dimension = self.x[0].numel() if self.mask is None else self.mask.flatten(1).sum(1).clamp(min=1)
        return self.radius * random.uniform(self.x[:, :1].flatten(1)[:, 0:1])[:, 0] ** (1 / dimension)

    def _at_length(self, direction: Tensor, length: Tensor) -> Tensor:
        """A start in a direction, at a distance per case, inside range and mask."""
        if self.mask is not None:
            direction = direction * self.mask
        size = case_norm(direction, self.norm).clamp(min=torch.finfo(self.x.dtype).tiny)
        return self.project(per_case(length, direction) * (direction / per_case(size, direction)) * self.weights)


class L2Ball(SummedBall):
    """The root of the summed squared change of all voxels is at most eps."""

    norm = 2.0

    def _rough_size(self, v: Tensor) -> Tensor:
        return v.square().sum(1).sqrt()

    def _shortened(self, v: Tensor, share: Tensor) -> Tensor:
        return v * per_case(share, v)

    def _slope(self, shortened: Tensor, point: Tensor, size: Tensor, share: Tensor) -> Tensor:
        return case_norm(_where_free(point, shortened, point)).square() / (share * size)

    def _bracket(self, v: Tensor, inside: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # a hair shorter: rounded to the type of v it must not be too long
        short = self._reached / self._size(v) * (1 - torch.finfo(v.dtype).eps)
        return short, torch.ones_like(short), short

    def start(self, random: CaseRandom | None) -> Tensor:
        if random is None:
            return torch.zeros_like(self.x)
        direction = random.normal(self.x)
        return self._at_length(direction, self._length(random))

    def ascend(self, theta: Tensor, grad: Tensor, step: Tensor | float) -> Tensor:
        scaled = grad if isinstance(self.weights, float) else grad * self.weights
        length = case_norm(scaled).clamp(min=torch.finfo(grad.dtype).tiny)
        # divided first: with a zero gradient step / length may be infinite
        direction = scaled / per_case(length, scaled)
        if isinstance(self.weights, Tensor):
            direction = direction * self.weights
        return theta.addcmul(per_case(step, theta).to(theta), direction)


class L1Ball(SummedBall):
    """The summed absolute change of all voxels is at most eps.

    The nearest point of ball and box is ``clip(sign(v) max(|v| - t, 0), l - x, u - x)`` (arXiv 2103.01208).
    """

    norm = 1.0

    def _rough_size(self, v: Tensor) -> Tensor:
        return v.abs().sum(1)

    def _shortened(self, v: Tensor, share: Tensor) -> Tensor:
        # the share is minus the threshold that every voxel loses
        threshold = per_case(-share, v)
        return v - torch.minimum(torch.maximum(v, -threshold), threshold)  # faster than clamp on a CPU

    def _slope(self, shortened: Tensor, point: Tensor, size: Tensor, share: Tensor) -> Tensor:
        # the number of voxels that are neither zero nor cut off
        return case_norm(_where_free(point.sign(), shortened, point)).square()

    def _bracket(self, v: Tensor, inside: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        short = -case_norm(v, torch.inf, torch.float64)
        unchanged = torch.zeros_like(short)
        # Newton's first step: what nothing was taken from is measured already
        begin = (self._reached - size) / self._slope(v, inside, size, unchanged).clamp(min=1)
        return short, unchanged, begin.maximum(short)

    def start(self, random: CaseRandom | None) -> Tensor:
        if random is None:
            return torch.zeros_like(self.x)
        # exponential sizes with random signs are uniform in direction for this norm
        draw = 2 * random.uniform(self.x) - 1
        direction = draw.sign() * -torch.log1p(-draw.abs())
        return self._at_length(direction, self._length(random))

    def ascend(self, theta: Tensor, grad: Tensor, step: Tensor | float, moved: Tensor | None = None) -> Tensor:
        """A step of size ``step`` shared by the voxels with the largest gradients.

        Args:
            theta: perturbation.
            grad: gradient to it.
            step: size of the step in this norm, ``(N,)`` or one.
            moved: how many voxels move, ``(N,)`` int64 (more where gradients are equal); default: one, which is
                steepest ascent.
        """
        scaled = (grad if isinstance(self.weights, float) else grad * self.weights).flatten(1)
        sizes = scaled.abs()
        least = _largest(sizes, [1] * len(grad) if moved is None else moved.tolist())
        direction = scaled.sign() * (sizes >= least[:, None])
        direction = (direction / case_norm(direction, 1)[:, None].clamp(min=1)).view_as(grad)
        if isinstance(self.weights, Tensor):
            direction = direction * self.weights
        return theta.addcmul(per_case(step, theta).to(theta), direction)


def _where_free(values: Tensor, shortened: Tensor, point: Tensor) -> Tensor:
    """Values of the voxels that the box did not cut off, else zero; without a mask, which is slow on a CPU."""
    return values.addcmul(values, (shortened - point).sign_().square_(), value=-1)


def _largest(sizes: Tensor, counts: list[int]) -> Tensor:
    """The ``count``-th largest number of each row ``(N, M)``, ``(N,)``.

    By numpy's selection: sorting, or torch's, would take a good part of a pass through a network.
    """
    places = [sizes.shape[1] - count for count in counts]
    rows = sizes.cpu().numpy()
    return torch.from_numpy(np.stack([np.partition(row, at)[at] for row, at in zip(rows, places)])).to(sizes.device)
