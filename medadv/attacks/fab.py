"""FAB: the smallest perturbation by projections on linearised decision boundaries."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from medadv.attacks.pursuit import Pursuit
from medadv.attacks.smallest import MinimumNormAttack, full
from medadv.decisions import Multilabel
from medadv.numbers import whole_number
from medadv.objectives import margins
from medadv.threats import case_norm, per_case


class FAB(MinimumNormAttack):
    """Fast adaptive boundary attack (arXiv 1907.02044) for L-inf, L2 and L1.

    At each step the model is linearised and the nearest boundary is taken: of the reference's class with each rival
    class, or of each label (Multilabel). The present and the original point are projected on that hyperplane within
    the intensity range, exactly, and the next point is a mean of both, overshot by 5 %, that leans towards the
    original. An adversarial point is remembered and left a tenth of the way back. In the end the line from the image
    to the best point is searched for the boundary.

    Options: ``max_iter`` steps; ``n_target_classes``, the rivals that are looked at: the classes with the largest
    logits (labels: the smallest margins) of the image. A step costs a forward and a backward pass for each rival, and
    a forward pass.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> _ = torch.nn.init.constant_(net[1].weight[0], -1.0), torch.nn.init.constant_(net[1].weight[1], 1.0)
        >>> net[1].bias.data = torch.tensor([18.0, 0.0])
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> attack = create("fab", estimator, norm="inf", max_iter=5)
        >>> x_adv = attack.generate(np.full((1, 1, 4, 4), 0.5, dtype=np.float32))
        >>> attack.details["norm"].round(4)  # 18 = 2 sum(x): every voxel from .5 to .5625
        array([0.0625])
    """

    n_target_classes: int

    largest_share = 0.1  # alpha_max: the most that the original point's projection counts
    overshoot = 1.05  # eta
    way_back = 0.9  # beta
    line_steps = 8

    def _prepare(self) -> None:
        super()._prepare()
        whole_number("n_target_classes", self.n_target_classes, 1)

    def _search(self, pursuit: Pursuit) -> None:
        rivals = self._rivals(pursuit)
        low, high = pursuit.domain.least / pursuit.unit, pursuit.domain.most / pursuit.unit
        u = torch.zeros_like(pursuit.x)
        for _ in range(self.max_iter):
            gap, slope = self._nearest_boundary(pursuit, u, rivals, low, high)
            at_origin = gap + (slope * u).flatten(1).sum(1)
            from_here = nearest_on_plane(slope, gap, low - u, high - u, self.norm)
            from_origin = nearest_on_plane(slope, at_origin, low, high, self.norm)
            here, origin = (case_norm(d, self.norm) for d in (from_here, from_origin))
            lean = (here / (here + origin).clamp(min=torch.finfo(u.dtype).tiny)).clamp(max=self.largest_share)
            lean = per_case(lean, u)
            u = (1 - lean) * (u + self.overshoot * from_here) + lean * self.overshoot * from_origin
            u = torch.minimum(torch.maximum(u, low), high)
            reached = pursuit.look(u * pursuit.unit).reached
            u = torch.where(per_case(reached, u), self.way_back * u, u)
        self._search_line(pursuit)

    def _rivals(self, pursuit: Pursuit) -> Tensor:
        """Classes or labels whose boundaries are looked at, ``(N, R)``, the nearest by the image's logits first."""
        logits, target = pursuit.clean, pursuit.batch.target
        if isinstance(self.victim.decision, Multilabel):
            away = -margins(self.victim.decision, logits, target).masked_fill(~pursuit.batch.valid, torch.inf)
            return away.topk(min(self.n_target_classes, away.shape[1]), dim=1).indices
        others = logits.masked_fill(self.victim.decision.one_hot(target), -torch.inf)
        return others.topk(min(self.n_target_classes, others.shape[1] - 1), dim=1).indices

    def _nearest_boundary(
        self, pursuit: Pursuit, u: Tensor, rivals: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The margin to the nearest boundary in the box and the direction in which it shrinks: ``(N,)``, like ``u``."""
        beyond = case_norm(high - low, self.norm)
        gap, nearest, slope = full(pursuit, 0.0), full(pursuit, torch.inf), torch.zeros_like(u)
        for rival in rivals.unbind(1):
            look = pursuit.differentiate(u * pursuit.unit, partial(self._gap, pursuit, rival))
            assert look.loss is not None and look.grad is not None
            grad, value = look.grad * pursuit.unit, look.loss.to(u.dtype)
            # in the box, where a boundary that is nearer without it may be farther or out of reach
            step = nearest_on_plane(-grad, value, low - u, high - u, self.norm)
            met = ((-grad * step).flatten(1).sum(1) - value).abs() <= 1e-3 * value.abs()
            steps = case_norm(step, self.norm)
            # what is out of reach comes after all that is not
            distance = torch.where(met, steps, steps + beyond)
            distance = torch.where(self._counts(pursuit, rival), distance, torch.inf)
            closer = distance < nearest
            nearest = torch.where(closer, distance, nearest)
            gap = torch.where(closer, value, gap)
            slope = torch.where(per_case(closer, u), -grad, slope)
        return gap, slope

    def _gap(self, pursuit: Pursuit, rival: Tensor, logits: Tensor) -> Tensor:
        """Margin over one rival class, or of one label, ``(N,)``."""
        target = pursuit.batch.target
        if isinstance(self.victim.decision, Multilabel):
            return margins(self.victim.decision, logits, target).gather(1, rival[:, None])[:, 0]
        return (logits.gather(1, target[:, None]) - logits.gather(1, rival[:, None]))[:, 0]

    def _counts(self, pursuit: Pursuit, rival: Tensor) -> Tensor:
        """Which cases have this rival: a label that is not to be scored is none."""
        if isinstance(self.victim.decision, Multilabel):
            return pursuit.batch.valid.gather(1, rival[:, None])[:, 0]
        return torch.ones_like(rival, dtype=torch.bool)

    def _search_line(self, pursuit: Pursuit) -> None:
        """Looks for the boundary between the image and the best point: by turns at the chord's zero and halfway."""
        theta = pursuit.found - pursuit.x
        margin, batch = pursuit.goal.margin, pursuit.batch
        near_value = margin(pursuit.clean, batch.target, valid=batch.valid).to(theta.dtype)
        near, far, far_value = full(pursuit, 0.0), full(pursuit, 1.0), None
        for step in range(self.line_steps):
            share = torch.full_like(near, 0.5)
            if far_value is not None and step % 2:
                chord = near_value / (near_value - far_value)
                share = torch.where(chord.isfinite(), chord + 0.01 * (1 - chord), share).clamp(0.01, 0.99)
            at = far if far_value is None else near + share * (far - near)
            look = pursuit.look(per_case(at, theta) * theta)
            value = margin(look.logits, batch.target, valid=batch.valid).to(theta.dtype)
            far_value = value if far_value is None else torch.where(look.reached, value, far_value)
            near_value = torch.where(look.reached, near_value, value)
            far, near = torch.where(look.reached, at, far), torch.where(look.reached, near, at)


def nearest_on_plane(slope: Tensor, gap: Tensor, low: Tensor, high: Tensor, norm: float) -> Tensor:
    """The shortest step ``d`` with ``<slope, d> = gap`` and ``low <= d <= high``, exactly.

    With ``a`` the slopes' sizes and ``r`` the room in their direction, L-inf takes ``min(t, r)`` and L2
    ``min(t a, r)`` of every voxel, with ``t`` from the sorted points at which voxels reach their bounds; L1 uses up
    the room of the voxels with the steepest slopes first. Where the box ends before the plane, the step goes to the
    box's corner nearest to it.

    Args:
        slope: ``(N, ...)``.
        gap: ``(N,)``, of either sign.
        low: lower bounds like ``slope``, not positive.
        high: upper bounds, not negative.
        norm: infinity, 2 or 1.

    Returns:
        Like ``slope``.

    Example:
        >>> import torch
        >>> nearest_on_plane(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]), -torch.ones(1, 2), torch.ones(1, 2), 2)
        tensor([[1., 1.]])
    """
    direction = slope.sign() * per_case(gap.sign(), slope)
    steep = slope.abs().flatten(1).to(torch.float64)
    room = torch.where(direction > 0, high, -low).clamp(min=0).flatten(1).to(torch.float64)
    room = torch.where(direction.flatten(1) == 0, 0.0, room)
    needed = gap.abs().to(torch.float64)[:, None]
    size = _steepest_first(steep, room, needed) if norm == 1 else _all_at_once(steep, room, needed, norm)
    return (direction * size.view_as(slope).to(slope.dtype)).clamp(low, high)


def _all_at_once(steep: Tensor, room: Tensor, needed: Tensor, norm: float) -> Tensor:
    """``min(t pace, room)`` with ``sum(steep * ...) = needed``, where pace is 1 (L-inf) or the slope (L2)."""
    pace = torch.ones_like(steep) if norm == torch.inf else steep
    full_at = torch.where(room > 0, room / pace.clamp(min=1e-300), 0.0)
    order = full_at.argsort(1)
    full_at, gained, rate = (values.gather(1, order) for values in (full_at, steep * room, steep * pace))
    rate = torch.where(full_at > 0, rate, 0.0)
    before = gained.cumsum(1) - gained
    remaining = rate.flip(1).cumsum(1).flip(1)
    total = before + full_at * remaining  # gained at the moment when each voxel is full
    at = (total < needed).sum(1, keepdim=True)
    reachable = at < steep.shape[1]
    at = at.clamp(max=steep.shape[1] - 1)
    t = (needed - before.gather(1, at)) / remaining.gather(1, at).clamp(min=1e-300)
    return torch.where(reachable, torch.minimum(t * pace, room), room)


def _steepest_first(steep: Tensor, room: Tensor, needed: Tensor) -> Tensor:
    """The room of the steepest voxels, one after the other, until ``needed`` is gained."""
    order = steep.argsort(1, descending=True)
    slope, space = steep.gather(1, order), room.gather(1, order)
    before = (slope * space).cumsum(1) - slope * space
    used = torch.minimum((needed - before).clamp(min=0) / slope.clamp(min=1e-300), space)
    return torch.zeros_like(steep).scatter(1, order, used)
