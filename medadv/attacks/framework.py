"""Attacks that factor: objective x threat x search."""

from __future__ import annotations

from typing import Any

from medadv.attacks.base import Batch, CatalogueAttack, Solution
from medadv.intensities import Budget
from medadv.objectives import Objective, by_task, make_objective
from medadv.problem import Problem
from medadv.search import AutoPGD, Search
from medadv.threats import CaseRandom, Threat


class FrameworkAttack(CatalogueAttack):
    """An attack made of an objective, a threat and a search, as the row of the catalogue says.

    Args:
        estimator, recipe, eps, norm, targeted, batch_size, verbose, keep, seed, options: see
            :class:`~medadv.attacks.base.CatalogueAttack`; options are those of the recipe and of its threat, such as
            ``max_iter``, ``eps_step``, ``num_random_init``, ``decay``, ``objective``.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> attack = create("pgd", estimator, eps="8/255", max_iter=5)
        >>> x = np.full((2, 1, 4, 4), 0.5, dtype=np.float32)
        >>> x_adv = attack.generate(x, y=np.array([0, 1]))
        >>> bool(np.abs(x_adv - x).max() <= 8 / 255), attack.passes
        (True, Passes(forward=6, backward=5))
    """

    budget: Budget
    objective: Any
    eps_step: float | str | None
    max_iter: int
    num_random_init: int
    decay: float

    def _prepare(self) -> None:
        self._objective: Objective = self._make_objective()
        if self._objective.voxels_only and not self.victim.segments:
            raise ValueError(
                f"objective {self.objective!r} compares voxels, but this model gives one diagnosis per image; "
                "use 'ce' or 'margin'."
            )
        if self._objective.images_only and self.victim.segments:
            raise ValueError(
                f"objective {self.objective!r} is about one diagnosis per image, but this model gives one per voxel; "
                "use 'dice' or 'margin'."
            )
        if self.keep == "last" and getattr(self, "num_random_init", 0) > 1:
            raise ValueError(
                "keep='last' has one end point and can't use several random starts; set num_random_init=1 or "
                "keep='score'."
            )
        if getattr(self, "decay", 0.0) < 0:
            raise ValueError(f"decay={self.decay!r} must not be negative.")
        self._image_terms = () if self.recipe.image_terms is None else tuple(self.recipe.image_terms(self))
        assert self.recipe.search is not None
        self._search: Search = self.recipe.search(self)

    def _make_objective(self) -> Objective:
        """What is maximised; goals with parameters of their own build it from those."""
        given = by_task(self.objective, self.victim.segments)
        return make_objective(given, self.victim.decision, targeted=self.targeted)

    @property
    def step_size(self) -> float:
        """``eps_step`` in the unit of the budget; a quarter of ``eps`` where it was not given."""
        given = getattr(self, "eps_step", None)
        assert self.threat_kind is not None
        return self.budget.eps / 4 if given is None else self.threat_kind.budget(given, self.victim.intensity).eps

    def threat_around(self, batch: Batch) -> Threat:
        """The threat set of a batch."""
        kind = self.threat_kind
        assert kind is not None
        # draws of their own: restarts search the same set
        random = CaseRandom(self.seed, batch.ids, restart=-1)
        return kind.threat(batch.x, self.budget, self.victim.intensity, batch.mask, vars(self), random)

    def problem_of(self, batch: Batch, objective: Objective | None = None) -> Problem:
        """What the search has to solve for a batch."""
        return Problem(
            self.victim, objective or self._objective, self.threat_around(batch), batch.target, batch.valid,
            keep=self.keep, image_terms=self._image_terms,
        )  # fmt: skip

    def solved(self, batch: Batch) -> Problem:
        """The problem of a batch after the search; its ``best`` is what :meth:`perturb` returns, not yet verified."""
        self.running = problem = self.problem_of(batch)
        self._search.run(problem, batch.ids)
        return problem

    @property
    def looks(self) -> int:
        """How often a batch is looked at, at most."""
        return self._search.looks

    def _solve(self, batch: Batch) -> Solution:
        return solution_of(self.solved(batch))


def solution_of(problem: Problem) -> Solution:
    """What a problem's search found, with the threat's own judgement whether it is allowed."""
    best = problem.best
    assert best is not None
    inside = problem.threat.contains(best.x, best.theta)
    theta = best.x - problem.threat.x if best.theta is None else best.theta
    reference = problem.threat.apply_target(theta, problem.target, problem.valid)
    return Solution(best.x, inside, problem.undirected, problem.queries, reference=reference)


def auto_pgd(attack: FrameworkAttack) -> Search:
    """Auto-PGD with the steps, starts and seed of an attack: what most rows of the catalogue search with."""
    return AutoPGD(attack.max_iter, attack.num_random_init, attack.seed)
