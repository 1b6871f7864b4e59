"""ALMA prox: the smallest L-inf perturbation under one constraint per voxel, by a proximal augmented Lagrangian."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from medadv.attacks.pursuit import Pursuit
from medadv.attacks.smallest import MinimumNormAttack, full, number
from medadv.decisions import Multiclass
from medadv.objectives import agrees, margins
from medadv.threats import per_case

SLACK = 1e-4  # constraints ask for a little more than equality, where the arg max would be a matter of rounding


class ALMAProx(MinimumNormAttack):
    """ALMA prox (arXiv 2206.07179): ``min |delta|_inf`` such that the constraint of ``threshold`` of the voxels holds.

    A voxel's constraint is that its normalised margin is negative. With 3 classes or more the margin
    ``z_y - max_{k != y} z_k`` (targeted: ``max_{k != t} z_k - z_t``) is divided by ``z_(1) - z_(3)`` of the voxel, as
    in the paper, but that divisor is held fixed in the gradient: where classes meet the ratio is constant and has
    none. With 2 classes or Multilabel there is no such divisor, and the margin is divided by the case's mean absolute
    margin on the clean image. Either way the scale of the logits does not matter. Violations cost
    ``P(c; rho, mu) = mu c + mu rho c^2 + rho^2 c^3 / 6`` and slack gives ``mu c / (1 - max(rho, 1) c)``; the
    multipliers mu follow the derivative of P, and rho doubles every 10 steps for voxels that make no progress. A
    share of the largest constraints that grows to 1 - ``threshold`` is left out; all are scaled by a weight in
    [.1, 1] that falls by 2 % a step while a case is adversarial and rises while it is not. A step divides the gradient
    by its root mean square ``H`` and then applies the proximal operator of the L-inf norm and the range in the metric
    ``H``. Perturbations are in units of the intensity range.

    Options: ``max_iter`` steps (the paper's 500), ``threshold``, ``learning_rate``: size of a voxel's first steps in
    units of the range, .5 / ``max_iter`` by default (the paper's .001 at its 500 steps); it falls to a tenth from the
    first success on. A norm of more than about .5 of the range needs more.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiSegmenter
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Conv2d(1, 2, 1)
        >>> net.weight.data, net.bias.data = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0.0, -0.5])
        >>> estimator = MonaiSegmenter(net, (1, 4, 4), decision=Multiclass(2, background=0))
        >>> attack = create("alma-prox", estimator, max_iter=200)
        >>> x_adv = attack.generate(np.full((1, 1, 4, 4), 0.51, dtype=np.float32))
        >>> bool(0.01 <= attack.details["norm"][0] < 0.0105)
        True
    """

    learning_rate: float | None

    rate_reduction = 0.1
    average = 0.8  # alpha: weight of the past in the multipliers and in H

    def _prepare(self) -> None:
        super()._prepare()
        if self.learning_rate is not None:
            number("learning_rate", self.learning_rate, above=0)

    def _search(self, pursuit: Pursuit) -> None:
        u, square = torch.zeros_like(pursuit.x), torch.zeros_like(pursuit.x)
        low, high = pursuit.domain.least / pursuit.unit, pursuit.domain.most / pursuit.unit
        constraints = _Constraints(self, pursuit)
        found_at = full(pursuit, self.max_iter // 2)
        for step in range(self.max_iter):
            before = pursuit.size.isfinite()
            look = pursuit.differentiate(u * pursuit.unit, partial(constraints.cost, step))
            assert look.grad is not None
            if step < self.max_iter // 2:
                found_at = torch.where(look.reached & ~before, float(step), found_at)
            grad = look.grad * pursuit.unit
            square = self.average * square + (1 - self.average) * grad.square()
            metric = (square / (1 - self.average ** (step + 1))).sqrt().clamp(min=1e-8)
            rate = self._rate(step, found_at)
            u = prox_linf(u - per_case(rate, u) * grad / metric, rate, metric, low, high)
        pursuit.look(u * pursuit.unit)

    def _rate(self, step: int, found_at: Tensor) -> Tensor:
        """The learning rate of each case: constant until its first success, then falling to a tenth at the end."""
        tangent = self.rate_reduction / (1 - self.rate_reduction) * (self.max_iter - found_at).clamp(min=1)
        first = 0.5 / self.max_iter if self.learning_rate is None else self.learning_rate
        return first * tangent / ((step - found_at).clamp(min=0) + tangent)


class _Constraints:
    """One constraint per valid voxel (or label), with its multiplier and penalty parameter."""

    check_steps = 10
    progress = 0.95  # tau
    growth = 2.0  # gamma
    weight_change = 0.02
    least_weight = 0.1

    def __init__(self, attack: ALMAProx, pursuit: Pursuit) -> None:
        self.attack = attack
        self.pursuit = pursuit
        batch, decision = pursuit.batch, attack.victim.decision
        self.valid = batch.valid.flatten(1)
        self.count = self.valid.sum(1)
        own = margins(decision, pursuit.clean, batch.target).flatten(1).abs().to(torch.float64)
        mean = (own * self.valid).sum(1, keepdim=True) / self.count[:, None].clamp(min=1)
        self.scale = mean.clamp(min=torch.finfo(pursuit.clean.dtype).tiny)
        self.mu = torch.ones_like(own)
        self.rho = torch.full_like(own, 0.01)
        self.weight = torch.ones_like(self.scale)
        self.previous: Tensor | None = None
        self.was_reached = torch.zeros_like(self.valid)

    def cost(self, step: int, logits: Tensor) -> Tensor:
        """The penalty of each case ``(N,)``, after the parameters were adapted to what the logits show."""
        batch, attack = self.pursuit.batch, self.attack
        right = agrees(attack.victim.decision, logits, batch.target).flatten(1)
        self.was_reached |= right == attack.targeted
        done = attack.goal.reached(logits.detach(), batch)[:, None]
        change = torch.where(done, 1 + self.weight_change, 1 - self.weight_change)
        self.weight = (self.weight / change).clamp(self.least_weight, 1.0)
        values = self.weight * self._normalised(logits)
        counted = self._counted(values.detach(), step)
        self._adapt(values.detach(), counted, step)
        return (penalty(values, self.rho, self.mu) * counted).sum(1)

    def _normalised(self, logits: Tensor) -> Tensor:
        """The constraints ``(N, voxels)`` in float64: negative where a voxel is as the attacker wants."""
        decision = self.attack.victim.decision
        margin = margins(decision, logits, self.pursuit.batch.target).flatten(1).to(torch.float64)
        if isinstance(decision, Multiclass) and decision.num_classes >= 3:
            top = logits.detach().topk(3, dim=1).values
            # classes that meet in a point would otherwise give a voxel a weight without bound
            scale = (top[:, 0] - top[:, 2]).flatten(1).to(torch.float64).clamp(min=1e-3 * self.scale)
        else:
            scale = self.scale
        return (-margin if self.attack.targeted else margin) / scale + SLACK

    def _counted(self, values: Tensor, step: int) -> Tensor:
        """Which constraints count: of the valid ones all but a growing share of the largest."""
        part = step / max(self.attack.max_iter - 1, 1) * (1 - self.attack.threshold)
        left_out = (part * self.count + 1e-9).long()
        most = int(left_out.max())
        if not most:
            return self.valid
        largest = values.masked_fill(~self.valid, -torch.inf).topk(most, dim=1).values
        bound = largest.gather(1, (left_out - 1).clamp(min=0)[:, None])
        return self.valid & ((values < bound) | (left_out == 0)[:, None])

    def _adapt(self, values: Tensor, counted: Tensor, step: int) -> None:
        if self.previous is None:
            self.previous = values
            return
        if (step + 1) % self.check_steps == 0:
            better = values * counted <= self.progress * self.previous
            self.rho = torch.where(self.was_reached | better, self.rho, self.growth * self.rho).clamp(max=1e12)
            self.previous = values
            self.was_reached = torch.zeros_like(self.was_reached)
        wanted = penalty_slope(values, self.rho, self.mu) * counted
        self.mu = self.mu.lerp(wanted, 1 - self.attack.average).clamp(1e-12, 1.0)


def penalty(c: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """Cost of constraints ``c <= 0`` with penalty parameters ``rho`` and multipliers ``mu``, element by element.

    Example:
        >>> import torch
        >>> one = torch.ones(2)
        >>> penalty(torch.tensor([1.0, -1.0]), one, one)
        tensor([ 2.1667, -0.5000])
    """
    over, under = c.clamp(min=0), c.clamp(max=0)
    violated = mu * over + mu * rho * over**2 + rho**2 * over**3 / 6
    return violated + mu * under / (1 - rho.clamp(min=1) * under)


def penalty_slope(c: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """Derivative of :func:`penalty` to ``c``."""
    over, under = c.clamp(min=0), c.clamp(max=0)
    violated = mu + 2 * mu * rho * over + rho**2 * over**2 / 2
    return torch.where(c >= 0, violated, mu / (1 - rho.clamp(min=1) * under) ** 2)


def prox_linf(v: Tensor, rate: Tensor, metric: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``argmin_p rate |p|_inf + sum(metric (p - v)^2) / 2`` with ``low <= p <= high``, exactly.

    The minimiser is v put into the range and then into ``[-t, t]``, with the one t at which what is cut off,
    ``sum(metric (|v| - t))`` over the voxels beyond t, falls to ``rate``; t is read off the sorted sizes.

    Args:
        v: ``(N, ...)``.
        rate: ``(N,)``.
        metric: positive, like ``v``.
        low: lower bounds like ``v``, not positive.
        high: upper bounds, not negative.

    Returns:
        Like ``v``.

    Example:
        >>> import torch
        >>> v = torch.tensor([[3.0, -2.0, 0.5]])
        >>> prox_linf(v, torch.tensor([2.0]), torch.ones_like(v), v - 9, v + 9)
        tensor([[ 1.5000, -1.5000,  0.5000]])
    """
    inside = torch.minimum(torch.maximum(v, low), high)
    size = inside.flatten(1).abs().to(torch.float64)
    order = size.argsort(1, descending=True)
    size, heft = size.gather(1, order), metric.flatten(1).to(torch.float64).gather(1, order)
    pull = (heft * v.flatten(1).abs().to(torch.float64).gather(1, order)).cumsum(1)
    heft = heft.cumsum(1)
    smaller = torch.cat([size[:, 1:], torch.zeros_like(size[:, :1])], 1)
    wanted = rate.to(torch.float64)[:, None]
    # cut off by a t just above the next smaller size; grows along the row
    enough = pull - heft * smaller >= wanted
    at = enough.to(torch.int8).argmax(1, keepdim=True)
    t = torch.minimum((pull.gather(1, at) - wanted) / heft.gather(1, at), size.gather(1, at))
    t = torch.where(enough.any(1, keepdim=True), t.clamp(min=0), 0.0).to(v.dtype)
    bound = per_case(t[:, 0], v)
    return torch.minimum(torch.maximum(inside, -bound), bound)
