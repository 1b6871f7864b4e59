"""A model and a few cases as the checks look at them: every pass repeatable, losses that do not saturate."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medadv.adaptive import rescaled
from medadv.attacks import create
from medadv.decisions import Decision
from medadv.intensities import Intensity
from medadv.objectives import AUTO, Objective, by_task, make_objective
from medadv.objectives.evasion import split
from medadv.victims import Victim, logits_in


class Refused(Exception):
    """An attack that a check runs is not for the model that is looked at."""


class Probe:
    """A model with a few cases.

    Args:
        victim: what is differentiated.
        x: images ``(N, C, *S)`` on its device.
        target: canonical reference.
        valid: where it counts.
        eps: budget of the checks that run attacks, as :meth:`~medadv.intensities.Intensity.budget` reads it; None:
            these have nothing to look at.
        deployed: what is judged, where an attacker differentiates something else; default: ``victim``.
        surrogate: a model whose adversarial images are shown to this one.
        batch_size: cases at once.
        seed: of all draws.
    """

    def __init__(
        self,
        victim: Victim,
        x: Tensor,
        target: Tensor,
        valid: Tensor,
        *,
        eps: float | str | None = None,
        deployed: Victim | None = None,
        surrogate: Any = None,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        self.victim, self.deployed = victim, victim if deployed is None else deployed
        self.x, self.target, self.valid = x.detach(), target, valid
        self.eps, self.surrogate = eps, surrogate
        self.batch_size, self.seed = batch_size, seed
        self.decision: Decision = victim.decision
        self.intensity: Intensity = victim.intensity
        guarded = getattr(self.decision, "guarded", False)
        self._rescaler = None if guarded else rescaled(victim)
        # a detector's verdict beside logits of the model alone
        self._with_verdict = getattr(self.deployed.decision, "guarded", False) and not guarded
        self._objective: Objective = make_objective(by_task(AUTO, victim.segments), self.decision, targeted=False)
        self._attacked: dict[str, Tensor] = {}

    @property
    def width(self) -> float:
        """What a budget of 255/255 spans, in data units."""
        return max(self.intensity.widths)

    @cached_property
    def batches(self) -> list[Tensor]:
        """Rows of each batch."""
        return list(torch.arange(len(self.x), device=self.x.device).split(self.batch_size))

    @contextmanager
    def same_draws(self) -> Iterator[None]:
        """The model under attack, with the same random draws every time it is entered; generators are left as found."""
        with self.victim.attacked():
            torch.manual_seed(self.seed)
            np.random.seed(self.seed % 2**32)
            random.seed(self.seed)
            yield

    def _loss(self, output: Any, rows: Tensor) -> Tensor:
        """What gradient attacks climb, per case, on rescaled logits and in float64, so that it neither saturates nor
        drowns small changes in rounding.
        """
        z = logits_in(output).to(torch.float64)
        z = z if self._rescaler is None else self._rescaler.distance(z)
        return self._objective(z, self.target[rows], valid=self.valid[rows])

    def losses(self, x: Tensor) -> Tensor:
        """Loss ``(N,)`` in float64 of images like ``x``."""
        parts = []
        for rows in self.batches:
            with self.same_draws():
                parts.append(self._loss(self.victim.logits(x[rows]), rows))
        return torch.cat(parts)

    @cached_property
    def gradient(self) -> Tensor:
        """Gradient of :meth:`losses` at the images; 0 where it is not finite or where the graph is cut."""
        return torch.nan_to_num(self._gradient(), nan=0.0, posinf=0.0, neginf=0.0)

    def _gradient(self) -> Tensor:
        parts = []
        for rows in self.batches:
            with self.same_draws():
                parts.append(self.differentiated(rows))
        return torch.cat(parts)

    def differentiated(self, rows: Tensor) -> Tensor:
        """The gradient of some cases, with whatever draws come next; the model has to be under attack."""
        x = self.x[rows]
        try:
            return self.victim.differentiate(x, lambda output: self._loss(output, rows))[2]
        except RuntimeError as error:
            if not without_path(error):
                raise
            return torch.zeros_like(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of the deployed model, with whatever draws come next; the model has to be under attack."""
        z = torch.cat([logits_in(self.deployed.logits(part)) for part in x.split(self.batch_size)])
        return split(z)[0] if self._with_verdict else z

    def scores(self, x: Tensor) -> np.ndarray:
        """Score ``(N,)`` of the deployed model on images like ``x``, float64."""
        with self.deployed.attacked():
            logits = self.logits(x)
        return self.decision.score(logits, self.target, self.valid).double().cpu().numpy()

    @property
    def marked(self) -> Tensor:
        """The reference as attacks take it, with what does not count marked."""
        ignored = self.decision.ignore_index
        return self.target if ignored is None else torch.where(self.valid, self.target, ignored)

    def attack(self, name: str, victim: Victim | None = None, **options: Any) -> Tensor:
        """Images of an attack of the catalogue on the victim (or a view of it); each is made once.

        Raises:
            Refused: the attack is not for this model.
        """
        key = repr((name, type(victim).__name__, sorted(options.items())))
        if key not in self._attacked:
            seen = self.victim if victim is None else victim
            try:
                attack = create(name, seen, seed=self.seed, batch_size=self.batch_size, **options)
            except (TypeError, ValueError) as error:
                raise Refused(str(error)) from None
            try:
                self._attacked[key] = attack.perturb(self.x, self.marked)
            except RuntimeError as error:
                if not without_path(error):
                    raise
                self._attacked[key] = self.x  # it has nowhere to go
        return self._attacked[key]

    def random_signs(self, number: int) -> Tensor:
        """A direction of signs like ``x``; ``number`` tells which."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + number)
        draw = torch.randint(0, 2, self.x.shape, generator=generator)
        return (2 * draw - 1).to(self.x.device, self.x.dtype)

    def inside(self, x: Tensor) -> Tensor:
        """Images cut off at the range."""
        low, high = self.intensity.bounds(x)
        return x.maximum(low).minimum(high)


def without_path(error: RuntimeError) -> bool:
    """Whether autograd found no path from the logits to the image."""
    return "does not require grad" in str(error)


def spread(count: int, wanted: int) -> Tensor:
    """Rows of ``wanted`` cases out of ``count``, evenly spread, as data are often sorted by diagnosis.

    Example:
        >>> spread(9, 3).tolist(), spread(2, 8).tolist()
        ([0, 4, 8], [0, 1])
    """
    return torch.linspace(0, count - 1, min(count, wanted), dtype=torch.float64).round().long()


def per_case(values: Tensor) -> Tensor:
    """``(N, ...)`` -> ``(N, M)``."""
    return values.reshape(len(values), -1)
