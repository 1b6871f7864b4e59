"""Per case the worst image that any attack has found so far, and which one that was."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medadv.benchmarks.evaluate import NO_ATTACK, Evaluator
from medadv.benchmarks.outcomes import Outcome

_VALUES = ("scores", "linf", "l2_rms", "ssim", "band_shares", "images")
_DIAGNOSED = ("hard", "scores", "brier", "probabilities")


@dataclass(frozen=True)
class Origin:
    """Where an image comes from.

    Attributes:
        attack: how the tables call it.
        eps: budget of the attack; NaN: none.
        step: which search of the attack.
    """

    attack: str
    eps: float
    step: str = ""


CLEAN = Origin(NO_ATTACK, 0.0)


class WorstSoFar:
    """What is known of the worst image of each case.

    Args:
        evaluator: of the model.

    Attributes:
        access: what an attacker needed to get here.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.access = "none"
        count = len(evaluator.x)
        self._rank = np.full(count, np.inf)
        self._origin = [CLEAN] * count
        self._held: Outcome | None = None
        self._reference: tuple[Tensor, Tensor] = evaluator.target.clone(), evaluator.valid.clone()

    @classmethod
    def of_clean(cls, evaluator: Evaluator) -> WorstSoFar:
        """The images themselves, which every ball holds."""
        worst = cls(evaluator)
        clean = replace(evaluator.clean, images=evaluator.x.numpy(), reference=None)
        if evaluator.bands is not None:
            clean.band_shares = np.zeros((len(evaluator.x), evaluator.bands))
        worst.offer(np.arange(len(evaluator.x)), clean, CLEAN, evaluator.ranking(clean))
        return worst

    @property
    def images(self) -> np.ndarray:
        """The worst images, like the cases'."""
        assert self._held is not None and self._held.images is not None
        return self._held.images

    @property
    def unfinished(self) -> np.ndarray:
        """Rows of the cases that are not at the floor of the score."""
        if self._held is None:
            return np.arange(len(self._rank))
        return np.flatnonzero(self._held.scores != 0)  # what has no score has no floor

    def offer(self, rows: np.ndarray, outcome: Outcome, origin: Origin, rank: np.ndarray) -> None:
        """Takes over those images of the cases ``rows`` that are worse than what is held; the first must be of all.

        Args:
            rows: numbers of the cases, ``(n,)``.
            outcome: of these, with its images.
            origin: where they come from.
            rank: what makes an image worse, the lower the worse, ``(n,)``.
        """
        if self._held is None:
            assert len(rows) == len(self._rank)
            held = replace(outcome, measures={}, endpoints=self.evaluator.clean.endpoints.iloc[:0])
            for name in (*_VALUES, "diagnosis"):
                setattr(held, name, deepcopy(getattr(outcome, name)))
            self._held = held
        worse = rank < self._rank[rows]
        self._copy(rows[worse], outcome, outcome.reference, np.flatnonzero(worse))
        self._rank[rows[worse]] = rank[worse]
        for row in rows[worse]:
            self._origin[row] = origin

    def take_over(self, other: WorstSoFar, rows: np.ndarray) -> None:
        """Forgets the images of the cases ``rows`` (bool) for those of ``other``."""
        if rows.any():
            assert other._held is not None
            places = np.flatnonzero(rows)
            self._copy(places, other._held, other._reference, places)
            self._rank[places] = other._rank[places]
            for row in places:
                self._origin[row] = other._origin[row]

    def _copy(
        self, places: np.ndarray, source: Outcome, reference: tuple[Tensor, Tensor] | None, taken: np.ndarray
    ) -> None:
        held = self._held
        assert held is not None
        pairs = [(getattr(held, name), getattr(source, name)) for name in _VALUES]
        pairs += [(getattr(held.diagnosis, name), getattr(source.diagnosis, name)) for name in _DIAGNOSED]
        if reference is not None:
            pairs += zip(self._reference, reference, strict=True)
        for mine, theirs in pairs:
            if isinstance(mine, Tensor):
                mine[torch.from_numpy(places)] = theirs[torch.from_numpy(taken)]
            elif mine is not None:
                mine[places] = theirs[taken]

    def reused(self, eps: float, steps: set[str]) -> dict[str, int]:
        """How many images are of a smaller budget (or clean), and of searches other than ``steps`` at this one."""
        carried = [origin.eps < eps for origin in self._origin]
        earlier = [not old and origin.step not in steps for old, origin in zip(carried, self._origin, strict=True)]
        return {"carried": sum(carried), "earlier": sum(earlier)}

    def found_by(self, eps: float) -> list[str]:
        """The attack that found each image, with the budget where that is a smaller one."""
        return [
            f"{origin.attack} at {origin.eps:.4g}" if 0 < origin.eps < eps else origin.attack for origin in self._origin
        ]

    def outcome(self, **facts: Any) -> Outcome:
        """What is held as the outcome of an attack, with the facts about it; without endpoints and images."""
        held = self._held
        assert held is not None
        values = {name: deepcopy(getattr(held, name)) for name in (*_VALUES[:-1], "diagnosis")}
        reference = tuple(part.clone() for part in self._reference)
        return Outcome(**values, endpoints=held.endpoints, reference=reference, **facts)  # type: ignore[arg-type]
