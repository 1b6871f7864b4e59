"""What attacks share that look for the smallest perturbation: the outside, and how they meet a budget."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch

from medadv.attacks.base import Batch, CatalogueAttack, Solution
from medadv.attacks.pursuit import Goal, Pursuit
from medadv.threats import LpBall


class MinimumNormAttack(CatalogueAttack):
    """An attack that looks for the smallest perturbation which changes the diagnosis.

    Without ``eps`` it returns the smallest adversarial image of each case, and the image itself where it found none.
    With ``eps`` it returns that image where it is within the budget; else the worst for the clinic of what it saw
    within the budget, of the projection of its image on the ball, and of the image itself. Cases that are wrong
    already (targeted: as wanted already) are returned as they are. After each call ``details`` holds per case

    - ``norm``: norm of the smallest adversarial image (with per-channel ranges in each channel's own width); 0 for
      cases that were wrong already, infinite where none was found,
    - ``reached``: whether there is one,
    - ``share``: the largest share of valid voxels (or labels) that any image seen had changed (targeted: as wanted).

    A subclass says in :meth:`_search` how it looks; its ``threshold``, if it has one, is the share of the valid voxels
    that must change for success.

    Args:
        estimator, recipe, eps, norm, targeted, batch_size, verbose, keep, seed, options: see
            :class:`~medadv.attacks.base.CatalogueAttack`; ``keep`` must stay ``"score"``.
    """

    knows_detectors = False

    threshold: float
    max_iter: int

    def _prepare(self) -> None:
        if self.keep != "score":
            raise ValueError(
                f"keep={self.keep!r} is not for {self.name}, which keeps the smallest adversarial image; leave it out."
            )
        if getattr(self.victim, "approximate", False):
            # it ends at the boundary of the diagnosis, which gradients in lower precision would misplace
            self.victim = self.victim.exact  # type: ignore[attr-defined]
        if hasattr(self, "threshold"):
            number("threshold", self.threshold, above=0, most=1)

    @abstractmethod
    def _search(self, pursuit: Pursuit) -> None:
        """Takes looks at cases that are not adversarial yet; the pursuit remembers what they show."""

    @property
    def goal(self) -> Goal:
        """When an image is adversarial."""
        return Goal(self.victim.decision, self.victim.segments, self.targeted, getattr(self, "threshold", 1.0))

    def _solve(self, batch: Batch) -> Solution:
        ball = self._ball_around(batch)
        pursuit = Pursuit(self.victim, self.goal, batch, self.norm, ball)
        rows = pursuit.open
        if len(rows):
            part = pursuit.subset(rows)
            self._search(part)
            pursuit.merge(rows, part)
        x_adv = pursuit.found if ball is None else pursuit.within_budget()
        inside = pursuit.domain.contains(x_adv) if ball is None else ball.contains(x_adv)
        details = {"norm": pursuit.size, "reached": pursuit.size.isfinite(), "share": pursuit.share}
        return Solution(x_adv, inside, pursuit.undirected, pursuit.queries, details=details)

    def _ball_around(self, batch: Batch) -> LpBall | None:
        if self.budget is None:
            return None
        assert self.threat_kind is not None
        ball = self.threat_kind.threat(batch.x, self.budget, self.victim.intensity, batch.mask, {})
        assert isinstance(ball, LpBall)
        return ball


def number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> None:
    """Refuses an option that is no finite number, or outside its bounds.

    Args:
        name: of the option.
        value: as given.
        above: it must be larger than this.
        least: it must be at least this.
        most: it must be at most this.
    """
    right = not isinstance(value, bool | str) and isinstance(value, int | float) and math.isfinite(value)
    right = right and (above is None or value > above) and (least is None or value >= least)
    if not (right and (most is None or value <= most)):
        bounds = [("above", above), ("at least", least), ("at most", most)]
        accepted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        raise ValueError(f"{name}={value!r} must be a number{' ' + accepted if accepted else ''}.")


def full(pursuit: Pursuit, value: float) -> torch.Tensor:
    """One number per case, ``(N,)`` in the images' float type."""
    return torch.full((len(pursuit),), value, dtype=pursuit.x.dtype, device=pursuit.x.device)
