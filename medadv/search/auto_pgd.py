"""Auto-PGD: momentum steps whose size each case controls by its own progress."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.problem import Problem
from medadv.search.base import Search
from medadv.threats import CaseRandom, Threat, chosen


class AutoPGDState:
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
        proposal = threat.project(self.theta.lerp(stepped, inertia).add_(movement, alpha=1 - inertia))
        self.previous = self.theta
        self.moves += 1
        return proposal

    def observe(self, step: int, theta: Tensor, loss: Tensor, grad: Tensor) -> None:
        """Takes in what the model said about the proposal."""
        self.increases = self.increases + (loss > self.loss)
        self.theta, self.loss, self.grad = theta, loss, grad
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best_theta = chosen(better, theta, self.best_theta)
        self.best_grad = chosen(better, grad, self.best_grad)
        if step in self.marks:
            self._look_back(step)

    def _look_back(self, step: int) -> None:
        stalled = self.increases < self.success_share * (step - self.last_mark)
        stuck = (self.step_size == self.step_at_mark) & (self.best_loss <= self.best_at_mark) & (self.last_mark > 0)
        halve = stalled | stuck
        self.step_at_mark, self.best_at_mark = self.step_size, self.best_loss
        self.step_size = torch.where(halve, self.step_size / 2, self.step_size)
        self.theta = chosen(halve, self.best_theta, self.theta)
        self.grad = chosen(halve, self.best_grad, self.grad)
        self.increases = torch.zeros_like(self.increases)
        self.last_mark = step


@dataclass(frozen=True)
class AutoPGD(Search):
    """Auto-PGD (arXiv 2003.01690): momentum steps whose size each case halves when it stops making progress.

    Starts with steps of twice the radius. At checkpoints a case halves its step and returns to its best point if fewer
    than 75 % of the steps since the last checkpoint raised the loss, or if step and best loss have not changed since.
    Nothing is reduced over the batch, and the rank of the images does not matter. Where the objective is scheduled,
    progress is read off its fixed monitor.

    Attributes:
        radii: (factor of the radius, share of the steps) of each phase, the last with factor 1. Wider balls come first
            where the search is to enter the ball from outside; nothing outside the ball is ever kept.
    """

    radii: tuple[tuple[float, float], ...] = ((1.0, 1.0),)

    def run_once(self, problem: Problem, theta: Tensor, random: CaseRandom) -> None:
        done = 0
        for factor, share in self.radii[:-1]:
            steps = min(max(1, round(share * self.steps)), self.steps - done - 1)
            if steps < 1:
                continue
            wider = problem.widened(factor)
            theta = problem.threat.project(self._climb(wider, theta, done, steps).best_theta)
            problem.count(wider)
            done += steps
        state = self._climb(problem, theta, done, self.steps - done)
        problem.finish(state.propose(problem.threat))

    def _climb(self, problem: Problem, theta: Tensor, done: int, steps: int) -> AutoPGDState:
        """All steps of a phase but the last, which is only proposed."""
        first = problem.evaluate(theta, progress=done / self.steps)
        assert first.grad is not None
        state = self._begin(problem.threat, theta, first.loss, first.grad, steps)
        for step in range(1, steps):
            theta = state.propose(problem.threat)
            seen = problem.evaluate(theta, progress=(done + step) / self.steps)
            assert seen.grad is not None
            state.observe(step, theta, seen.loss, seen.grad)
        return state

    def _begin(self, threat: Threat, theta: Tensor, loss: Tensor, grad: Tensor, steps: int) -> AutoPGDState:
        return AutoPGDState(theta, loss, grad, 2 * threat.radius, checkpoints(steps))


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
