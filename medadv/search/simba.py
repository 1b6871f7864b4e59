"""SimBA along the cosines of the DCT: one frequency up or down per query."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.numbers import is_finite
from medadv.search.random_search import RandomSearch, Walk
from medadv.search.windows import Region, alike, low_frequencies_first
from medadv.threats import CaseRandom, L2Ball, LpBall, case_norm, chosen, per_case


@dataclass(frozen=True)
class SimBA(RandomSearch):
    """SimBA in the basis of the DCT (arXiv 1905.07121), kept in a ball.

    Each step takes a basis vector of one channel, low frequencies first and in random order within a band of them,
    and tries a step up, then, if that did not help, a step down; each try is a query. When all are used up they come
    again in another order.

    Two things are extensions of the paper, which bounds nothing: every point is brought into the ball and the box, by
    clipping in L-inf (as the authors' later code does) and by clipping and then shortening in L2; and a step is
    ``step_size`` long in the norm of the ball, so in L-inf it is the amplitude of the cosine. With a mask the cosines
    are those of its bounding box.

    Attributes:
        step_size: length of a step in the unit of the threat's distance.
        freq_dims: width of a band of frequencies as a share of each axis, in (0, 1]; the first is searched first.

    Example:
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> attack = create("simba-dct", estimator, eps=0.5, norm=2, max_iter=20, keep="loss")
        >>> x = torch.full((2, 1, 4, 4), 0.5)
        >>> bool((attack.perturb(x, [0, 1]) - x).flatten(1).norm(dim=1).max() <= 0.5), attack.queries
        (True, array([20, 20]))
    """

    step_size: float = 0.0
    freq_dims: float = 0.125

    def __post_init__(self) -> None:
        given = self.freq_dims
        if not (is_finite(given) and 0 < given <= 1):
            raise ValueError(
                f"freq_dims={given!r} is no share of the frequencies; give a number in (0, 1], such as 0.125."
            )

    def walk(self, threat: LpBall, theta: Tensor, random: CaseRandom) -> Walk:
        return SimBAWalk(threat, theta, random, self)


class SimBAWalk(Walk):
    """The basis vector each case is at, and whether its step up has failed already."""

    _of_cases = (*Walk._of_cases, "order", "at", "down")

    def __init__(self, threat: LpBall, theta: Tensor, random: CaseRandom, search: SimBA) -> None:
        super().__init__(threat, theta, random)
        self.search = search
        self.region = Region.of(threat)
        self.order = self._order(max(search.steps - 1, 1))
        self.at = torch.zeros(len(theta), dtype=torch.int64)
        self.down = torch.zeros(len(theta), dtype=torch.bool)

    def _order(self, count: int) -> Tensor:
        """The first ``count`` basis vectors of each case: channel and frequency per axis, ``(N, count, 1 + d)``."""
        cases, channels, *shape = self.theta.shape
        order = torch.empty(cases, count, 1 + len(shape), dtype=torch.int64)
        for rows, extent in alike(self.region.extent):
            random, filled = self.random.subset(rows), 0
            while filled < count:
                for band in low_frequencies_first(extent, channels, self.search.freq_dims):
                    taken = band[random.permutation(len(band))[:, : count - filled]]
                    order[rows, filled : filled + taken.shape[1]] = taken
                    filled += taken.shape[1]
                    if filled == count:
                        break
        return order

    def propose(self, step: int) -> Tensor:
        cases = torch.arange(len(self.theta))
        channel, *numbers = self.order[cases, self.at].unbind(1)
        wave: Tensor | float = 1.0
        for axis, number in enumerate(numbers):
            along = self._cosine(axis, number)
            wave = wave * along.view(len(cases), *[1] * axis, -1, *[1] * (len(numbers) - 1 - axis))
        assert isinstance(wave, Tensor)
        signed = self.search.step_size * (1 - 2 * self.down.to(wave))
        if isinstance(self.threat.weights, Tensor):
            signed = signed * self.threat.weights.flatten()[channel].to(wave)
        proposal = self.theta.clone()
        proposal[cases, channel] += wave * per_case(signed, wave)
        self._proposal = brought_in(self.threat, proposal)
        return self._proposal

    def _cosine(self, axis: int, number: Tensor) -> Tensor:
        """Cosine ``number`` of the DCT-II along an axis of each region, ``(N, size)``, norm 1 in the ball's norm."""
        origin, extent = self.region.origin[:, axis, None], self.region.extent[:, axis, None]
        place = torch.arange(self.theta.shape[2 + axis])[None] - origin
        # in float64 throughout: cosines of whole numbers times a float would be float32
        half_turns = number[:, None].to(torch.float64) * (2 * place + 1) / (2 * extent)
        wave = torch.cos(math.pi * half_turns)
        wave = wave * ((place >= 0) & (place < extent))
        return (wave / per_case(case_norm(wave, self.threat.norm), wave)).to(self.theta)

    def settle(self, better: Tensor) -> None:
        self.theta = chosen(better, self._proposal, self.theta)
        onward = better.cpu() | self.down
        self.at = self.at + onward
        self.down = ~onward

    def subset(self, rows: Tensor, threat: LpBall) -> SimBAWalk:
        some = super().subset(rows, threat)
        some.region = self.region.subset(rows)
        return some


def brought_in(threat: LpBall, theta: Tensor) -> Tensor:
    """A point of ball and box near ``theta``: clipped to the box and, in L2, shortened to the radius.

    Not the nearest one, which :meth:`LpBall.project` searches for, but as cheap as a step. Shortening stays
    in the box, which holds the image.
    """
    if not isinstance(threat, L2Ball):
        return threat.project(theta)
    inside = theta.clamp(threat.least, threat.most)
    length = case_norm(inside / threat.weights, dtype=torch.float64).clamp(min=torch.finfo(theta.dtype).tiny)
    reached = threat.radius * (1 - 8 * torch.finfo(theta.dtype).eps)
    return inside * per_case((reached / length).clamp(max=1), inside).to(inside.dtype)
