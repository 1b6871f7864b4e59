"""Adversarial images for training: projected steps in inference mode, on tensors, the last iterate taken."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medadv.intensities import Budget
from medadv.numbers import whole_number
from medadv.objectives import Objective
from medadv.problem import Problem
from medadv.search import SteepestAscent
from medadv.threats import BALL_KINDS, CaseRandom, Threat, per_case
from medadv.training.base import TrainingBatch
from medadv.victims import Victim, victim_of


class Crafter:
    """The inner maximisation of robust training: PGD whose last iterate is taken (arXiv 1706.06083).

    It runs on the model in inference mode and leaves the model as it found it; K steps are K forward and K backward
    passes.

    Args:
        estimator: a medadv estimator.
        eps: budget in any form that :meth:`~medadv.intensities.Intensity.budget` reads.
        steps: number of steps.
        eps_step: size of a step in the same forms; None: 2.5 eps / steps.
        norm: ``inf`` or 2.
        seed: of the random starts, which depend on (seed, case id) alone.
    """

    def __init__(
        self,
        estimator: Any,
        *,
        eps: float | str,
        steps: int,
        eps_step: float | str | None = None,
        norm: float = torch.inf,
        seed: int = 0,
    ) -> None:
        if norm not in (torch.inf, 2):
            raise ValueError(f"norm={norm!r} is not supported in training; choose inf or 2.")
        whole_number("steps", steps, 1)
        self.victim: Victim = victim_of(estimator)
        self.budget: Budget = self.victim.intensity.budget(eps)
        self.norm = float(norm)
        self.search = SteepestAscent(steps, step_size=self.length(eps_step, 2.5 * self.budget.eps / steps))
        self.seed = seed

    def length(self, given: float | str | None, default: float) -> float:
        """A distance in any form in the unit of the budget."""
        return default if given is None else self.victim.intensity.budget(given).eps

    def random(self, batch: TrainingBatch) -> CaseRandom:
        """The draws of the batch's cases."""
        return CaseRandom(self.seed, batch.ids)

    def threat(self, x: Tensor) -> Threat:
        """The ball around images."""
        return BALL_KINDS[self.norm].threat(x, self.budget, self.victim.intensity, None, {})

    def from_random_start(self, batch: TrainingBatch, objective: Objective) -> Tensor:
        """From a point drawn uniformly from the ball."""
        random, threat = self.random(batch), self.threat(batch.x)
        return self._ascend(batch, objective, threat, threat.start(random), random)

    def from_nearby(self, batch: TrainingBatch, objective: Objective, deviation: float) -> Tensor:
        """From the image plus normal noise of ``deviation`` windows."""
        random, threat = self.random(batch), self.threat(batch.x)
        widths = torch.tensor(self.victim.intensity.widths, dtype=batch.x.dtype, device=batch.x.device)
        noise = deviation * random.normal(batch.x) * widths.view(1, -1, *[1] * (batch.x.ndim - 2))
        return self._ascend(batch, objective, threat, threat.project(noise), random)

    def _ascend(
        self, batch: TrainingBatch, objective: Objective, threat: Threat, start: Tensor, random: CaseRandom
    ) -> Tensor:
        with self.victim.attacked():
            problem = Problem(self.victim, objective, threat, batch.target, batch.valid, keep="last")
            self.search.run_once(problem, start, random)
        assert problem.best is not None
        return problem.best.x

    def each_with_its_own(self, batch: TrainingBatch, objective: Objective, eps: Tensor, steps: Tensor) -> Tensor:
        """L-inf steps with a budget and a number of steps per case.

        Args:
            batch: the cases.
            objective: what is maximised.
            eps: ``(N,)``, at most the crafter's budget.
            steps: ``(N,)`` int64; a case stands still once it has made them.
        """
        random, threat = self.random(batch), self.threat(batch.x)
        reach = per_case(eps.to(batch.x), batch.x) * getattr(threat, "weights", 1.0)
        theta = threat.project((2 * random.uniform(batch.x) - 1) * reach)
        with self.victim.attacked():
            problem = Problem(self.victim, objective, threat, batch.target, batch.valid, keep="last")
            for done in range(int(steps.max())):
                rows = (steps > done).nonzero()[:, 0]
                part = problem.subset(rows)
                grad = part.evaluate(theta[rows], progress=done / int(steps.max())).grad
                assert grad is not None
                moved = part.threat.project(part.threat.ascend(theta[rows], grad, self.search.step_size))
                theta = theta.index_copy(0, rows, torch.minimum(torch.maximum(moved, -reach[rows]), reach[rows]))
        return threat.apply(theta)
