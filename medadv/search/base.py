"""What every search shares: runs from a clean or random start, with draws per case."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from medadv.problem import Problem
from medadv.threats import CaseRandom


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

    @property
    def looks(self) -> int:
        """How often it looks at the model, about: each step of each run, and each end point."""
        return (self.steps + 1) * max(1, self.restarts)

    def run(self, problem: Problem, ids: Sequence[object]) -> None:
        """Solves the problem; what it found is ``problem.best``."""
        for restart in range(max(1, self.restarts)):
            random = CaseRandom(self.seed, ids, restart)
            self.run_once(problem, problem.threat.start(random if self.restarts else None), random)

    @abstractmethod
    def run_once(self, problem: Problem, theta: Tensor, random: CaseRandom) -> None:
        """One run from ``theta``; the problem keeps the best image, ``random`` gives the draws of each case."""


@dataclass(frozen=True)
class RandomDraws(Search):
    """Looks at random points of the threat set and nowhere else: the baseline every attack must beat."""

    def run_once(self, problem: Problem, theta: Tensor, random: CaseRandom) -> None:
        problem.finish(theta)
