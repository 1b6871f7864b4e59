"""Lp balls around each image, intersected with the intensity range, the storage grid and the region mask."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from medadv.intensities import Budget, Intensity
from medadv.threats.base import CaseRandom, Threat, case_norm, per_case


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
        lower = torch.maximum(self._furthest(-1), self.intensity.snap(low, "up")).minimum(self.x)
        upper = torch.minimum(self._furthest(1), self.intensity.snap(high, "down")).maximum(self.x)
        if self.mask is None:
            return lower, upper
        return torch.where(self.mask, lower, self.x), torch.where(self.mask, upper, self.x)

    def _furthest(self, sign: int) -> Tensor:
        """The image moved by the radius everywhere: never by more, and on a grid by whole steps."""
        if self.intensity.grid is None:
            return _not_further(self.x, self.reach, sign)
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
        inside = ((x_adv >= self.lower) & (x_adv <= self.upper)).flatten(1).all(1)
        return inside & self._in_ball(x_adv)

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
        return theta + per_case(step, theta) * self.weights * grad.sign()

    def project(self, theta: Tensor) -> Tensor:
        return theta.clamp(self.least, self.most)

    def _in_ball(self, x_adv: Tensor) -> Tensor:
        return torch.ones(len(x_adv), dtype=torch.bool, device=x_adv.device)  # the box is the ball


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
    def _slope(self, point: Tensor, size: Tensor, free: Tensor, share: Tensor) -> Tensor:
        """How fast the norm grows with the share, ``(N,)``.

        Args:
            point: perturbations shortened and cut off at the box.
            size: their norm, ``(N,)``.
            free: the voxels that were not cut off.
            share: ``(N,)`` float64.
        """

    @abstractmethod
    def _bracket(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A share that is short enough, the one that shortens nothing, and where to begin, ``(N,)`` float64."""

    def _size(self, v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v.flatten(1), ord=self.norm, dim=1, dtype=torch.float64)

    def project(self, theta: Tensor) -> Tensor:
        """The nearest point of ball and box, exactly: voxels brought towards zero and then cut off at the box.

        Clipping after scaling would give a point of both that is not the nearest.
        """
        low, high, v = self._weighed(self.least, self.most, theta)
        inside = v.clamp(low, high)
        far = self._size(inside) > self._reached
        if bool(far.all()):
            inside = self._nearest(v, low, high)
        elif bool(far.any()):
            rows = far.nonzero()[:, 0]
            inside = inside.index_copy(0, rows, self._nearest(v[rows], low[rows], high[rows]))
        return inside if isinstance(self.weights, float) else inside * self.weights

    def _nearest(self, v: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """:meth:`project` where every case exceeds the radius."""

        def measure(share: Tensor) -> tuple[Tensor, Tensor]:
            shortened = self._shortened(v, share.to(v.dtype))
            point = shortened.clamp(low, high)
            size = self._size(point)
            return size - self._reached, self._slope(point, size, point == shortened, share)

        precision = torch.finfo(v.dtype).eps
        tolerance = 4 * precision * self._reached
        share = largest_share(measure, *self._bracket(v), tolerance=tolerance, resolution=precision)
        return self._shortened(v, share.to(v.dtype)).clamp(low, high)

    def apply(self, theta: Tensor) -> Tensor:
        """As for every ball; a step of rounding that left the ball is taken back by shrinking the perturbation."""
        x_adv = super().apply(theta)
        less = 8 * torch.finfo(theta.dtype).eps if self.intensity.grid is None else 0.05
        while not bool((fits := self.distance(x_adv) <= self.radius * (1 - 1e-13)).all()):
            shrunk = super().apply(theta * (1 - less)) if less < 1 else self.x
            x_adv = torch.where(per_case(fits, x_adv), x_adv, shrunk)
            less *= 2
        return x_adv

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

    def _shortened(self, v: Tensor, share: Tensor) -> Tensor:
        return v * per_case(share, v)

    def _slope(self, point: Tensor, size: Tensor, free: Tensor, share: Tensor) -> Tensor:
        return case_norm(point * free).square() / (share * size)

    def _bracket(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # a hair shorter: rounded to the type of v it must not be too long
        short = self._reached / self._size(v) * (1 - torch.finfo(v.dtype).eps)
        return short, torch.ones_like(short), short

    def start(self, random: CaseRandom | None) -> Tensor:
        if random is None:
            return torch.zeros_like(self.x)
        direction = random.normal(self.x)
        return self._at_length(direction, self._length(random))

    def ascend(self, theta: Tensor, grad: Tensor, step: Tensor | float) -> Tensor:
        scaled = grad * self.weights
        length = case_norm(scaled).clamp(min=torch.finfo(grad.dtype).tiny)
        # divided first: with a zero gradient step / length may be infinite
        return theta + per_case(step, theta) * (scaled / per_case(length, scaled)) * self.weights


class L1Ball(SummedBall):
    """The summed absolute change of all voxels is at most eps.

    The nearest point of ball and box is ``clip(sign(v) max(|v| - t, 0), l - x, u - x)`` (arXiv 2103.01208).
    """

    norm = 1.0

    def _shortened(self, v: Tensor, share: Tensor) -> Tensor:
        # the share is minus the threshold that every voxel loses
        threshold = per_case(-share, v)
        return v - torch.minimum(torch.maximum(v, -threshold), threshold)  # faster than clamp on a CPU

    def _slope(self, point: Tensor, size: Tensor, free: Tensor, share: Tensor) -> Tensor:
        return (free & (point != 0)).flatten(1).sum(1)

    def _bracket(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        short = -case_norm(v, torch.inf).to(torch.float64)
        unchanged = torch.zeros_like(short)
        return short, unchanged, unchanged

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
        scaled = (grad * self.weights).flatten(1)
        sizes, voxels = scaled.abs(), scaled.shape[1]
        counts = [1] * len(grad) if moved is None else moved.tolist()
        # by selection: sorting all voxels would take a good part of a pass through a network
        least = torch.stack([case.kthvalue(voxels - count + 1).values for case, count in zip(sizes, counts)])
        direction = scaled.sign() * (sizes >= least[:, None])
        direction = (direction / direction.abs().sum(1, keepdim=True).clamp(min=1)).view_as(grad)
        return theta + per_case(step, theta) * direction * self.weights


def largest_share(
    measure: Callable[[Tensor], tuple[Tensor, Tensor]],
    short: Tensor,
    long: Tensor,
    share: Tensor,
    *,
    tolerance: float,
    resolution: float = 2e-16,
    rounds: int = 60,
) -> Tensor:
    """The largest share with no excess, per case: Newton's method, halves where it leaves the bracket.

    Args:
        measure: share ``(N,)`` -> by how much it is too much ``(N,)``, growing, and the slope of that.
        short: shares without excess, ``(N,)`` float64.
        long: shares with one, or at the limit.
        share: where to begin.
        tolerance: a share that falls short of no excess by less is near enough; the middle of this is aimed at.
        resolution: relative difference of shares below which they are the same.
        rounds: at most so many evaluations.

    Returns:
        ``(N,)``; never one with an excess.

    Example:
        >>> import torch
        >>> zero, four = torch.zeros(1, dtype=torch.float64), torch.full((1,), 4.0, dtype=torch.float64)
        >>> largest_share(lambda s: (s.square() - 2, 2 * s), zero, four, four, tolerance=1e-12).round(decimals=6)
        tensor([1.4142], dtype=torch.float64)
    """
    for _ in range(rounds):
        excess, slope = measure(share)
        fits = excess <= 0
        short, long = torch.where(fits, share, short), torch.where(fits, long, share)
        found = (fits & (excess >= -tolerance)) | (long - short <= resolution * short.abs())
        if bool(found.all()):
            break
        newton = share - (excess + tolerance / 2) / slope
        further = torch.where((newton > short) & (newton < long), newton, (short + long) / 2)
        share = torch.where(found, short, further)  # a case that is found waits for the others
    return short


def _not_further(x: Tensor, reach: Tensor, sign: int) -> Tensor:
    """``x + sign * reach`` rounded towards ``x``: in ``x``'s float type the distance to ``x`` is at most ``reach``.

    Args:
        x: images.
        reach: float64, not negative, broadcastable to ``x``.
        sign: +1 or -1.
    """
    limit = reach.to(x.dtype)
    limit = torch.where(limit.to(torch.float64) > reach, torch.nextafter(limit, torch.zeros_like(limit)), limit)
    limit, wide = limit.to(torch.float64), x.to(torch.float64)
    moved = (wide + sign * limit).to(x.dtype)
    exceeds = (moved.to(torch.float64) - wide).abs() > limit
    return torch.where(exceeds, torch.nextafter(moved, x), moved)


BALLS: dict[float, type[LpBall]] = {torch.inf: LInfBall, 2.0: L2Ball, 1.0: L1Ball}
