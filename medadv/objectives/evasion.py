"""The objective against a model with a detector: wrong and accepted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medadv.decisions import Decision
from medadv.objectives.base import Objective


class Evasive(Objective):
    """Any objective less a penalty while the detector rejects: ``L(f(x')) - w(t) max(score - threshold, 0)``.

    Per case. The weight rises with the share t of the search that is over, ``w(t) = weight * 10^(2 t - 1)``, as in the
    penalty method for a constrained maximum: first the diagnosis is turned, with those voxels taking the detector along
    that cost the diagnosis nothing; in the end acceptance is enforced. Step control and ties watch the fixed weight.
    Selection is by success: a rejected image counts as correctly diagnosed (targeted: as not at its target).

    Args:
        decision: of a victim made by :func:`medadv.detectors.guarded`; holds ``weight``.
        inner: objective of the diagnosis, made for ``decision.plain``.
        rising: False: ``w = weight`` all the time.
    """

    sees_detector = True

    def __init__(self, decision: Any, inner: Objective, *, rising: bool = True) -> None:
        super().__init__(decision, targeted=inner.targeted)
        self.inner = inner
        self.weight = float(decision.weight)
        self.scheduled = rising or inner.scheduled
        self.rising = rising
        self.voxels_only = inner.voxels_only
        self.views = inner.views

    def __call__(
        self,
        output: Tensor,
        target: Tensor,
        *,
        valid: Tensor,
        progress: float = 0.0,
        others: Sequence[Tensor] = (),
    ) -> Tensor:
        logits, excess = split(output)
        seen: dict[str, Any] = {"others": tuple(split(other)[0] for other in others)} if self.views else {}
        diagnosis = self.inner(logits, target, valid=valid, progress=progress, **seen)
        counts = valid.reshape(len(valid), -1).any(1)
        weight = self.weight * (10 ** (2 * progress - 1) if self.rising else 1.0)
        return diagnosis - weight * excess.clamp(min=0) * counts

    def badness(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        logits, excess = split(output)
        found = self.inner.badness(logits, target, valid)
        return torch.where(rejected(excess), torch.full_like(found, 0.0 if self.targeted else -1.0), found)

    @property
    def floor(self) -> float:
        return self.inner.floor


def split(output: Tensor) -> tuple[Tensor, Tensor]:
    """A guarded victim's output ``(N, C + 1)`` -> logits ``(N, C)`` and the detector's score over its threshold."""
    return output[:, :-1], output[:, -1]


def rejected(excess: Tensor) -> Tensor:
    """Where the detector rejects; a score that is no number is not accepted."""
    return ~(excess <= 0)


def plain_of(decision: Decision) -> Decision:
    """The decision without its detector."""
    return getattr(decision, "plain", decision)
