"""How the attacker looks for the best theta of a :class:`~medadv.problem.Problem`.

A search of K steps costs K + 1 forward and K backward passes per start (K and K with ``keep="last"``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.problem import Problem
from medadv.threats import CaseRandom, Threat, per_case


@dataclass(frozen=True)
class Search(ABC):
    """One or more runs from a clean or random start.

    Attributes:
        steps: number of steps K of one run.
        restarts: number of random starts; 0: one run from the clean image.
        seed: of the random draws.
    """

    steps: int
    restarts: int = 1
    seed: int = 0

    def run(self, problem: Problem, ids: Sequence[object]) -> Tensor:
        """Solves the problem and returns the image kept for each case, ``(N, C, *S)``."""
        for restart in range(max(1, self.restarts)):
            random = CaseRandom(self.seed, ids, restart) if self.restarts else None
            self.run_once(problem, problem.threat.start(random))
        assert problem.best is not None
        return problem.best.x

    @abstractmethod
    def run_once(self, problem: Problem, theta: Tensor) -> None:
        """One run from ``theta``; the problem keeps the best image."""


@dataclass(frozen=True)
class RandomDraws(Search):
    """Looks at random points of the threat set and nowhere else: the baseline every attack must beat."""

    def run_once(self, problem: Problem, theta: Tensor) -> None:
        problem.finish(theta)


@dataclass(frozen=True)
class SteepestAscent(Search):
    """Projected steps along the gradient: its sign (L-inf) or direction (L2); with momentum if ``decay`` > 0.

    One step from the clean image is FGSM (arXiv 1412.6572), several from a random start are PGD (1706.06083); with
    momentum over gradients scaled to mean absolute value 1 per case it is MI-FGSM (1710.06081).

    Attributes:
        step_size: length of a step in the unit of the threat's distance.
        decay: weight of the accumulated gradient.
    """

    step_size: float = 0.0
    decay: float = 0.0

    def run_once(self, problem: Problem, theta: Tensor) -> None:
        momentum: Tensor | None = None
        for step in range(self.steps):
            grad = problem.evaluate(theta, progress=step / self.steps).grad
            assert grad is not None
            if self.decay:
                # a case with zero gradient keeps its momentum instead of turning into NaN
                size = grad.abs().flatten(1).mean(1).clamp(min=torch.finfo(grad.dtype).tiny)
                scaled = grad / per_case(size, grad)
                momentum = scaled if momentum is None else self.decay * momentum + scaled
                grad = momentum
            theta = problem.threat.project(problem.threat.ascend(theta, grad, self.step_size))
        problem.finish(theta)


@dataclass(frozen=True)
class AutoPGD(Search):
    """Auto-PGD (arXiv 2003.01690): momentum steps whose size each case halves when it stops making progress.

    Starts with steps of twice the radius. At checkpoints a case halves its step and returns to its best point if fewer
    than 75 % of the steps since the last checkpoint raised the loss, or if step and best loss have not changed since.
    Nothing is reduced over the batch, and the rank of the images does not matter. Where the objective is scheduled,
    progress is read off its fixed monitor.
    """

    def run_once(self, problem: Problem, theta: Tensor) -> None:
        threat = problem.threat
        first = problem.evaluate(theta, progress=0.0)
        assert first.grad is not None
        state = _AutoPGDState(theta, first.loss, first.grad, 2 * threat.radius, checkpoints(self.steps))
        for step in range(1, self.steps + 1):
            theta = state.propose(threat)
            if step == self.steps:
                problem.finish(theta)
                return
            seen = problem.evaluate(theta, progress=step / self.steps)
            assert seen.grad is not None
            state.observe(step, theta, seen.loss, seen.grad)


def checkpoints(steps: int) -> list[int]:
    """Steps at which Auto-PGD looks back: gaps of 22 %, then each 3 % shorter but at least 6 % of all steps.

    Example:
        >>> checkpoints(100)[:4]
        [22, 41, 57, 70]
    """
    gap, least, shorter = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    marks = []
    at = gap
    while at < steps:
        marks.append(at)
        gap = max(gap - shorter, least)
        at += gap
    return marks


class _AutoPGDState:
    """Iterate, best point and step size of each case."""

    inertia = 0.75
    success_share = 0.75

    def __init__(self, theta: Tensor, loss: Tensor, grad: Tensor, step_size: float, marks: list[int]) -> None:
        self.theta, self.previous, self.grad = theta, theta, grad
        self.loss = loss
        self.best_theta, self.best_grad, self.best_loss = theta, grad, loss
        self.step_size = torch.full_like(loss, step_size)
        self.marks = marks
        self.last_mark = 0
        self.increases = torch.zeros_like(loss)
        self.step_at_mark, self.best_at_mark = self.step_size, loss
        self.moves = 0

    def propose(self, threat: Threat) -> Tensor:
        """The next point: a gradient step averaged with the last movement."""
        inertia = self.inertia if self.moves else 1.0
        stepped = threat.project(threat.ascend(self.theta, self.grad, self.step_size))
        movement = self.theta - self.previous
        proposal = threat.project(self.theta + inertia * (stepped - self.theta) + (1 - inertia) * movement)
        self.previous = self.theta
        self.moves += 1
        return proposal

    def observe(self, step: int, theta: Tensor, loss: Tensor, grad: Tensor) -> None:
        """Takes in what the model said about the proposal."""
        self.increases = self.increases + (loss > self.loss)
        self.theta, self.loss, self.grad = theta, loss, grad
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best_theta = torch.where(per_case(better, theta), theta, self.best_theta)
        self.best_grad = torch.where(per_case(better, grad), grad, self.best_grad)
        if step in self.marks:
            self._look_back(step)

    def _look_back(self, step: int) -> None:
        stalled = self.increases < self.success_share * (step - self.last_mark)
        stuck = (self.step_size == self.step_at_mark) & (self.best_loss <= self.best_at_mark) & (self.last_mark > 0)
        halve = stalled | stuck
        self.step_at_mark, self.best_at_mark = self.step_size, self.best_loss
        self.step_size = torch.where(halve, self.step_size / 2, self.step_size)
        self.theta = torch.where(per_case(halve, self.theta), self.best_theta, self.theta)
        self.grad = torch.where(per_case(halve, self.grad), self.best_grad, self.grad)
        self.increases = torch.zeros_like(self.increases)
        self.last_mark = step
