"""Random search with the model's scores alone: proposals that are kept if they help."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from medadv.problem import Evaluation, Problem
from medadv.search.base import Search
from medadv.threats import CaseRandom, LpBall, Threat

SomeWalk = TypeVar("SomeWalk", bound="Walk")


class Walk(ABC):
    """Where a random search stands, case by case: ``propose``, ask the model, ``observe``.

    A proposal is taken if the hard diagnosis gets worse, or stays and the loss grows: hard scores such as Dice change
    in jumps, so alone they would give no direction.

    Args:
        threat: a ball around the images.
        theta: where to start.
        random: the draws of each case.
    """

    _of_cases: tuple[str, ...] = ("theta", "loss", "badness")

    def __init__(self, threat: LpBall, theta: Tensor, random: CaseRandom) -> None:
        self.threat = threat
        self.theta = theta
        self.random = random
        self.loss = torch.full((len(theta),), -torch.inf, dtype=torch.float64, device=theta.device)
        self.badness = self.loss.clone()

    @abstractmethod
    def propose(self, step: int) -> Tensor:
        """The point to try, ``theta`` for all cases, at step 1, 2, ..."""

    @abstractmethod
    def settle(self, better: Tensor) -> None:
        """Takes the proposal of the cases ``better`` ``(N,)`` and forgets those of the others."""

    def observe(self, seen: Evaluation) -> Tensor:
        """Which cases got better, ``(N,)`` bool."""
        better = (seen.badness > self.badness) | ((seen.badness == self.badness) & (seen.loss > self.loss))
        self.loss = torch.where(better, seen.loss.to(self.loss.dtype), self.loss)
        self.badness = torch.where(better, seen.badness.to(self.loss.dtype), self.badness)
        return better

    def subset(self: SomeWalk, rows: Tensor, threat: LpBall) -> SomeWalk:
        """The walk of some cases, in ``threat``, the ball around these."""
        some = copy.copy(self)
        some.threat, some.random = threat, self.random.subset(rows)
        for name in self._of_cases:
            setattr(some, name, getattr(self, name)[rows])
        return some


@dataclass(frozen=True)
class RandomSearch(Search, ABC):
    """A search that only asks for scores: ``steps`` queries per case and start.

    The start is the first query. With ``keep="score"`` a case that is at the floor of the hard score asks no more, in
    this and in later starts; the others go on in a smaller batch. Nothing a case does depends on the others.
    """

    def run(self, problem: Problem, ids: Sequence[object]) -> None:
        for restart in range(max(1, self.restarts)):
            rows = problem.unfinished
            if not len(rows):
                return
            part = problem if len(rows) == len(ids) else problem.subset(rows)
            random = CaseRandom(self.seed, [ids[i] for i in rows.tolist()], restart)
            self.run_once(part, self.first(part.threat, random if self.restarts else None), random)
            if part is not problem:
                problem.merge(rows, part)

    def first(self, threat: Threat, random: CaseRandom | None) -> Tensor:
        """Where a run starts; at the image itself without draws."""
        return threat.start(random)

    @abstractmethod
    def walk(self, threat: LpBall, theta: Tensor, random: CaseRandom) -> Walk:
        """The rule by which one run proceeds."""

    def run_once(self, problem: Problem, theta: Tensor, random: CaseRandom) -> None:
        assert isinstance(problem.threat, LpBall)
        walk = self.walk(problem.threat, theta, random)
        part, rows = problem, torch.arange(len(theta))
        for step in range(self.steps):
            proposal = walk.propose(step) if step else theta
            better = walk.observe(part.evaluate(proposal, progress=step / self.steps, grad=False))
            if step:
                walk.settle(better)
            left = part.unfinished
            if len(left) == len(rows):
                continue
            if part is not problem:
                problem.merge(rows, part)
            rows = rows[left]
            if not len(rows):
                return
            part = problem.subset(rows)
            assert isinstance(part.threat, LpBall)
            walk = walk.subset(left, part.threat)
        if part is not problem:
            problem.merge(rows, part)
        if problem.keep == "last":
            problem.finish(walk.theta)
