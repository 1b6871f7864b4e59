"""The Square attack: random search over windows of the image, in two and three dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.numbers import is_finite
from medadv.search.random_search import RandomSearch, Walk
from medadv.search.windows import Region, Windows, alike, twin_pyramids
from medadv.threats import CaseRandom, L2Ball, LpBall, Threat, case_norm, chosen, per_case

CHUNK = 64  # steps whose random numbers are drawn at once
# queries, of a budget of 10000, after which the windows shrink by half
SHRINKS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Square(RandomSearch):
    """The Square attack (arXiv 1912.00049): recolours one square, or cube, of the image per query.

    What the paper does in squares is done in cubes of a volume: a window has the share ``p`` of the voxels, so its
    side is the d-th root of ``p`` times their number, cut off where an axis is shorter. ``p`` starts at ``p_init``
    and is halved after the paper's shares of the queries. Windows lie anywhere inside the image, the last row
    included; with a mask, inside its bounding box, which takes the image's place.

    - L-inf: a window gets ``+eps`` or ``-eps`` in each channel, by lot; a colour that would change nothing is turned
      round in all channels. Starts with stripes one voxel wide: one sign per channel and position along the last axis,
      the same along all others; in 2D these are the paper's vertical stripes, in 3D slices.
    - L2: the change of one window is wiped out and given, with what is left of the budget, to another, as its own
      change plus a pyramid of either sign in its halves, channel by channel. Starts with such bumps on a grid of
      five windows along the shortest axis.

    Attributes:
        p_init: share of the voxels in the first windows, in (0, 1].

    Example:
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4, 4), decision=Multiclass(2))
        >>> attack = create("square", estimator, eps="8/255", max_iter=20, keep="loss")
        >>> x = torch.full((2, 1, 4, 4, 4), 0.5)
        >>> bool((attack.perturb(x, [0, 1]) - x).abs().max() <= 8 / 255), attack.queries, attack.passes
        (True, array([20, 20]), Passes(forward=20, backward=0))
    """

    p_init: float = 0.8

    def __post_init__(self) -> None:
        if not (is_finite(self.p_init) and 0 < self.p_init <= 1):
            raise ValueError(f"p_init={self.p_init!r} is no share of the voxels; give a number in (0, 1], such as 0.8.")

    def first(self, threat: Threat, random: CaseRandom | None) -> Tensor:
        if random is None:
            return threat.start(None)
        assert isinstance(threat, LpBall)
        return bumps(threat, random) if isinstance(threat, L2Ball) else stripes(threat, random)

    def walk(self, threat: LpBall, theta: Tensor, random: CaseRandom) -> Walk:
        kind = SquareL2Walk if isinstance(threat, L2Ball) else SquareLInfWalk
        return kind(threat, theta, random, self.p_init, self.steps)


def window_share(p_init: float, step: int, steps: int) -> float:
    """Share of the voxels in the window of a step, counted from 0, of a search of ``steps`` queries.

    Example:
        >>> [window_share(0.8, step, 10000) for step in (0, 10, 11, 201, 9999)]
        [0.8, 0.8, 0.4, 0.1, 0.0015625]
    """
    return p_init / 2 ** sum(step * 10000 // steps > shrink for shrink in SHRINKS)


class SquareWalk(Walk):
    """What both norms share: the size of the windows, and random numbers for many steps at once."""

    draws_per_step: int
    _of_cases = (*Walk._of_cases, "_draws")

    def __init__(self, threat: LpBall, theta: Tensor, random: CaseRandom, p_init: float, steps: int) -> None:
        super().__init__(threat, theta, random)
        self.region = Region.of(threat)
        self.p_init, self.steps = p_init, steps
        self.channels, self.dims = theta.shape[1], theta.ndim - 2
        self._draws = torch.empty(len(theta), 0)

    def share(self, step: int) -> float:
        """Share of the voxels in the window of a step."""
        return window_share(self.p_init, step - 1, self.steps)

    def draws(self, step: int, count: int) -> Tensor:
        """Uniform draws ``(N, count)`` float64 for a step; the same number in every step of a walk."""
        place = (step - 1) % CHUNK
        if not place:
            steps = min(CHUNK, self.steps - step)
            self._draws = self.random.uniform(torch.empty(len(self.theta), steps, count, dtype=torch.float64))
        return self._draws[:, place]

    def subset(self, rows: Tensor, threat: LpBall) -> SquareWalk:
        some = super().subset(rows, threat)
        some.region = self.region.subset(rows)
        return some


class SquareLInfWalk(SquareWalk):
    """Windows of constant colour at the bounds of the box; ``theta`` is changed and, if need be, restored in place."""

    def __init__(self, threat: LpBall, theta: Tensor, random: CaseRandom, p_init: float, steps: int) -> None:
        super().__init__(threat, theta.clone(), random, p_init, steps)
        self._pending: list[tuple[Tensor, Windows, Tensor, Tensor]] = []

    def propose(self, step: int) -> Tensor:
        draws = self.draws(step, self.dims + self.channels)
        sides = self.region.sides(self.share(step))
        corners = self.region.corners(draws[:, : self.dims], sides)
        brighter = (draws[:, self.dims :] >= 0.5).to(self.theta.device)
        self._pending = []
        for rows, size in alike(sides):
            windows = Windows(rows, corners[rows], size, self.theta)
            old, least, most = (windows.take(image) for image in (self.theta, self.threat.least, self.threat.most))
            up = brighter[rows].view(len(rows), -1, *[1] * self.dims)
            new = torch.where(up, most, least)
            idle = (new == old).flatten(1).all(1)
            new = torch.where(up ^ per_case(idle, old), most, least)
            windows.put(self.theta, new)
            self._pending.append((rows, windows, old, new))
        return self.theta

    def settle(self, better: Tensor) -> None:
        if not bool(better.all()):
            for rows, windows, old, new in self._pending:
                windows.put(self.theta, torch.where(per_case(better[rows], new), new, old))
        self._pending = []


class SquareL2Walk(SquareWalk):
    """Moves change from window to window; ``theta`` stays on the sphere but for what the box takes."""

    def propose(self, step: int) -> Tensor:
        dims = self.dims
        draws = self.draws(step, 2 * dims + 1 + self.channels)
        sides = self.region.sides(self.share(step), least=3, odd=True)
        place, source = (self.region.corners(draws[:, a : a + dims], sides) for a in (0, dims))
        axes = (draws[:, 2 * dims] * dims).to(torch.int64)
        signs = (2.0 * (draws[:, 2 * dims + 1 :] >= 0.5) - 1).to(self.theta)
        moved = self.theta / self.threat.weights if isinstance(self.threat.weights, Tensor) else self.theta.clone()
        spare = (self.threat.radius**2 - case_norm(moved, dtype=torch.float64) ** 2).clamp(min=0).to(moved.dtype)
        for rows, size in alike(sides):
            windows, emptied = (Windows(rows, corner[rows], size, moved) for corner in (place, source))
            own = windows.take(moved)
            windows.put(moved, 0.0)
            mass = _norms(own) ** 2 + _norms(emptied.take(moved)) ** 2
            emptied.put(moved, 0.0)
            shapes = torch.stack([twin_pyramids(size, axis) for axis in range(dims)]).to(moved)[axes[rows]]
            new = _unit(own) + shapes[:, None] * signs[rows].view(len(rows), -1, *[1] * dims)
            windows.put(moved, _unit(new) * (mass + per_case(spare[rows] / self.channels, mass)).sqrt())
        self._proposal = on_sphere(self.threat, moved)
        return self._proposal

    def settle(self, better: Tensor) -> None:
        self.theta = chosen(better, self._proposal, self.theta)


def _norms(windows: Tensor) -> Tensor:
    """Norm of each case and channel, ``(n, C, 1, ...)``."""
    return torch.linalg.vector_norm(windows, dim=tuple(range(2, windows.ndim)), keepdim=True)


def _unit(windows: Tensor) -> Tensor:
    return windows / _norms(windows).clamp(min=torch.finfo(windows.dtype).tiny)


def on_sphere(threat: LpBall, moved: Tensor) -> Tensor:
    """``theta`` of a change ``(N, C, *S)`` in units of the channels' width: as long as the radius, then cut to the box.

    The box holds the image, so cutting only shortens. A hair is left for rounding.
    """
    length = case_norm(moved, dtype=torch.float64).clamp(min=torch.finfo(moved.dtype).tiny)
    reached = threat.radius * (1 - 8 * torch.finfo(moved.dtype).eps)
    theta = moved * per_case(reached / length, moved).to(moved.dtype)
    if isinstance(threat.weights, Tensor):
        theta = theta * threat.weights
    return theta.clamp(threat.least, threat.most)


def stripes(threat: LpBall, random: CaseRandom) -> Tensor:
    """A sign per channel and position along the last axis, as far as the box goes: Square's start in L-inf."""
    shape = threat.x.shape
    draws = random.uniform(torch.empty(shape[0], shape[1], shape[-1], dtype=torch.float64))
    up = (draws >= 0.5).view(shape[0], shape[1], *[1] * (len(shape) - 3), -1).to(threat.x.device)
    return torch.where(up, threat.most, threat.least)


def bumps(threat: LpBall, random: CaseRandom) -> Tensor:
    """Twin pyramids on a grid of five windows along the shortest axis, halved along any axis: the start in L2."""
    region = Region.of(threat)
    moved = torch.zeros_like(threat.x)
    channels, dims = moved.shape[1], moved.ndim - 2
    for case, (origin, extent) in enumerate(zip(region.origin.tolist(), region.extent.tolist(), strict=True)):
        side = max(min(extent) // 5, 1)
        counts = [size // side for size in extent]
        draws = random.subset(torch.tensor([case])).uniform(
            torch.empty(1, 1 + channels, *counts, dtype=torch.float64, device="cpu")
        )[0]
        axes, signs = (draws[0] * dims).to(torch.int64), 2.0 * (draws[1:] >= 0.5) - 1
        grid = sum(
            torch.kron(signs.to(torch.float64) * (axes == axis), twin_pyramids((side,) * dims, axis)[None])
            for axis in range(dims)
        )
        assert isinstance(grid, Tensor)
        place: list[slice] = [slice(None)]
        for first, size, count in zip(origin, extent, counts, strict=True):
            start = first + (size - count * side) // 2
            place.append(slice(start, start + count * side))
        moved[case][tuple(place)] = grid.to(moved)
    return on_sphere(threat, moved)
