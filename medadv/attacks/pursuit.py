"""What a minimum-norm search has of a batch: the images it may show, what it has seen, the smallest it found."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.attacks.base import Batch
from medadv.decisions import Decision, Multiclass
from medadv.intensities import Budget, Intensity
from medadv.objectives import Margin, agrees
from medadv.problem import Best
from medadv.threats import LInfBall, LpBall, case_norm, per_case
from medadv.victims import Loss, Victim, logits_in


@dataclass(frozen=True)
class Goal:
    """When an image is adversarial.

    Images: the diagnosis differs from the reference, or equals the target; Multilabel: any label is wrong, or all are
    as wanted. Voxels: ``threshold`` of the valid voxels (Multilabel: of voxels and labels) differ, or agree.

    Args:
        decision: how logits become a diagnosis.
        segments: True for one diagnosis per voxel.
        targeted: whether the canonical target is what the attacker wants.
        threshold: share of the valid voxels.
        confidence: margin in logits that images must have besides.
    """

    decision: Decision
    segments: bool
    targeted: bool
    threshold: float
    confidence: float = 0.0

    @property
    def margin(self) -> Margin:
        """What is positive beyond the boundary of an image's diagnosis, and grows with what voxels give away."""
        if self.segments or isinstance(self.decision, Multiclass):
            return Margin(self.decision, targeted=self.targeted)
        return Margin(self.decision, targeted=self.targeted, over="all" if self.targeted else "any")

    def share(self, logits: Tensor, batch: Batch) -> Tensor:
        """Share of the valid voxels or labels that are as the attacker wants, ``(N,)`` float64; 0 without any."""
        right = agrees(self.decision, logits, batch.target)
        wanted = (right == self.targeted) & batch.valid
        count = batch.valid.reshape(len(batch), -1).sum(1)
        return wanted.reshape(len(batch), -1).sum(1).to(torch.float64) / count.clamp(min=1)

    def reached(self, logits: Tensor, batch: Batch) -> Tensor:
        """Which images are adversarial, ``(N,)`` bool."""
        share = self.share(logits, batch)
        if self.segments:
            return share >= self.threshold - 1e-12
        done = share >= 1 if self.targeted else share > 0
        if self.confidence:
            done = done & (self.margin(logits, batch.target, valid=batch.valid) >= self.confidence)
        return done


@dataclass(frozen=True)
class Look:
    """One look at the model.

    Attributes:
        logits: ``(N, C, *S)``.
        reached: which images were adversarial, ``(N,)``.
        loss: value of the loss that was differentiated, ``(N,)``; None if none was.
        grad: its gradient to the perturbation, like the images; zero where it is not finite.
    """

    logits: Tensor
    reached: Tensor
    loss: Tensor | None = None
    grad: Tensor | None = None


class Pursuit:
    """The cases of a minimum-norm search; every look it takes is remembered if it is the smallest adversarial.

    A search holds a perturbation ``theta``; what the model is shown is ``theta`` added to the images, within range,
    region and storage grid, so what is found needs no further check.

    Args:
        victim: the model.
        goal: when an image is adversarial.
        batch: the cases.
        norm: order of the norm that is minimised.
        ball: the budget that images are to be returned within; None: no budget.

    Attributes:
        unit: width of the intensity range (of the window, where there is one), per channel where these differ:
            ``theta / unit`` is the perturbation of an image in [0, 1].
        found: the smallest adversarial images; the images themselves where none was found.
        size: their norms, ``(N,)`` float64; infinite where none was found.
        share: largest share of voxels or labels that were as the attacker wants, ``(N,)``.
        clean: logits of the images themselves.
    """

    def __init__(self, victim: Victim, goal: Goal, batch: Batch, norm: float, ball: LpBall | None) -> None:
        self.victim = victim
        self.goal = goal
        self.batch = batch
        self.norm = norm
        self.ball = ball
        intensity = victim.intensity
        self.domain = LInfBall(batch.x, _whole_range(intensity, ball), intensity, batch.mask)
        self.weights = self.domain.weights
        self.unit = torch.as_tensor(self.weights * max(intensity.widths), dtype=batch.x.dtype, device=batch.x.device)
        self.found = batch.x.clone()
        self.size = torch.full((len(batch),), torch.inf, dtype=torch.float64, device=batch.x.device)
        self.share = torch.zeros_like(self.size)
        self.undirected = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
        self.queries = torch.zeros(len(batch), dtype=torch.int64)
        self.worst: Best | None = None
        self.worst_inside: Best | None = None
        self.clean = self.look(torch.zeros_like(batch.x)).logits

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def x(self) -> Tensor:
        """The images."""
        return self.batch.x

    def look(self, theta: Tensor) -> Look:
        """Shows the model the images changed by ``theta``."""
        x_adv = self.domain.apply(theta)
        logits = self.victim.logits(x_adv)
        return Look(logits, self._remember(x_adv, logits))

    def differentiate(self, theta: Tensor, loss: Loss) -> Look:
        """The same with the gradient of ``loss(logits) -> (N,)`` to ``theta``."""
        x_adv = self.domain.apply(theta)
        output, values, grad = self.victim.differentiate(x_adv, lambda output: loss(logits_in(output)))
        lost = ~grad.flatten(1).sum(1).isfinite()
        self.undirected |= lost
        grad = self.domain.pullback(theta, torch.where(per_case(lost, grad), torch.zeros_like(grad), grad))
        logits = logits_in(output)
        return Look(logits, self._remember(x_adv, logits), values, grad)

    def _remember(self, x_adv: Tensor, logits: Tensor) -> Tensor:
        self.queries += 1
        reached = self.goal.reached(logits, self.batch)
        size = self.distance(x_adv)
        better = reached & (size < self.size)
        self.size = torch.where(better, size, self.size)
        self.found = torch.where(per_case(better, x_adv), x_adv, self.found)
        self.share = torch.maximum(self.share, self.goal.share(logits, self.batch))
        if self.ball is not None:
            self._remember_worst(x_adv, logits)
        return reached

    def _remember_worst(self, x_adv: Tensor, logits: Tensor) -> None:
        """Keeps what is worst for the clinic, among all images and among those within the budget."""
        assert self.ball is not None
        margin = self.goal.margin
        badness = margin.badness(logits, self.batch.target, self.batch.valid)
        loss = margin(logits, self.batch.target, valid=self.batch.valid)
        outside = ~self.ball.contains(x_adv)
        within = (x.masked_fill(outside, -torch.inf) for x in (badness, loss))
        if self.worst is None or self.worst_inside is None:  # the first image is the clean one, within any budget
            self.worst = Best(x_adv.clone(), badness.clone(), loss.clone())
            self.worst_inside = Best(x_adv.clone(), badness.clone(), loss.clone())
            return
        self.worst.update(Best(x_adv, badness, loss))
        self.worst_inside.update(Best(x_adv, *within))

    def distance(self, x_adv: Tensor) -> Tensor:
        """The norm that is minimised, ``(N,)`` float64, with per-channel ranges in each channel's own width."""
        return case_norm((x_adv.to(torch.float64) - self.x.to(torch.float64)) / self.weights, self.norm)

    @property
    def open(self) -> Tensor:
        """Rows of the cases that have a diagnosis to change and no adversarial image yet."""
        scored = self.batch.valid.reshape(len(self), -1).any(1)
        return (scored & self.size.isinf()).nonzero()[:, 0]

    def subset(self, rows: Tensor) -> Pursuit:
        """The pursuit of some of the cases; :meth:`merge` brings back what it finds."""
        some = copy.copy(self)
        some.batch = self.batch.subset(rows)
        some.domain = self.domain.subset(rows)
        some.ball = None if self.ball is None else self.ball.subset(rows)
        for name in ("found", "size", "share", "undirected", "clean"):
            setattr(some, name, getattr(self, name)[rows])
        some.queries = torch.zeros(len(rows), dtype=torch.int64)
        for name in ("worst", "worst_inside"):
            best = getattr(self, name)
            setattr(some, name, best and Best(best.x[rows], best.badness[rows], best.loss[rows]))
        return some

    def merge(self, rows: Tensor, part: Pursuit) -> None:
        """Takes over what a :meth:`subset` found."""
        for name in ("found", "size", "share", "undirected"):
            getattr(self, name)[rows] = getattr(part, name)
        self.queries[rows.cpu()] += part.queries
        for name in ("worst", "worst_inside"):
            best, other = getattr(self, name), getattr(part, name)
            if best is not None:
                best.update(other, rows)

    def within_budget(self) -> Tensor:
        """What to return within the budget: what was found, where it fits.

        Else the worst for the clinic of: the images seen that fit, and the projection on the ball of what was found
        or, where nothing was, of the worst image seen; so it is never better for the clinic than the clean image.
        """
        assert self.ball is not None and self.worst is not None and self.worst_inside is not None
        fits = self.size.isfinite() & self.ball.contains(self.found)
        if not bool(fits.all()):
            far = torch.where(per_case(self.size.isfinite(), self.x), self.found, self.worst.x)
            projected = self.ball.apply(self.ball.project(far - self.x))
            logits = self.victim.logits(projected)
            self.queries += 1
            self._remember_worst(projected, logits)
        return torch.where(per_case(fits, self.x), self.found, self.worst_inside.x)


def _whole_range(intensity: Intensity, ball: LpBall | None) -> Budget:
    """A budget that leaves only the intensity range to bound an image; channels weigh as in the ball."""
    if ball is not None:
        weights = ball.budget.weights
    else:
        widest = max(intensity.widths)
        weights = tuple(w / widest for w in intensity.widths) if len(intensity.widths) > 1 else None
    span = max(high - low for low, high in zip(intensity.lows, intensity.highs, strict=True))
    return Budget(2 * span / min(weights or (1.0,)), intensity.unit, 1.0, weights)
