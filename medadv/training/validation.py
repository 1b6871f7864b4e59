"""Which epoch's weights are kept: the best on validation cases, never on test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medadv.training.base import TrainingBatch, batch_of
from medadv.training.crafting import Crafter
from medadv.victims import victim_of


@dataclass(frozen=True)
class Validation:
    """Validation cases and the score that decides which epoch's weights are kept.

    The score is the mean hard score of the cases, clean or under PGD on the natural loss (images: share correct;
    voxels: Dice; unscored cases are left out).

    Attributes:
        x: images ``(N, C, *S)``; no case that is trained or tested on.
        y: reference in any usual form.
        eps: budget of the attack; None: clean images decide.
        steps: of the attack.
        every: epochs between two looks; the last epoch is always looked at.
    """

    x: Tensor
    y: Any
    eps: float | str | None = None
    steps: int = 10
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} epochs must be at least 1.")
        if not len(self.x):
            raise ValueError("there are no validation cases to choose an epoch by; give some, or leave validation out.")

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether the weights are looked at after an epoch, counted from 0."""
        return (epoch + 1) % self.every == 0 or epoch + 1 == epochs

    def score(self, estimator: Any, batch_size: int, seed: int) -> float:
        """Mean hard score of an estimator, in inference mode."""
        victim = victim_of(estimator)
        crafter = None if self.eps is None else Crafter(estimator, eps=self.eps, steps=self.steps, seed=seed)
        whole = batch_of(estimator, self.x, self.y, range(len(self.x)))
        scores = []
        for rows in torch.arange(len(whole)).split(batch_size):
            ids = tuple(whole.ids[i] for i in rows.tolist())
            x = whole.x[rows].to(estimator.device)
            batch = TrainingBatch(x, whole.target[rows].to(x.device), whole.valid[rows].to(x.device), ids)
            shown = batch.x if crafter is None else crafter.from_random_start(batch, estimator.loss_objective)
            with victim.attacked():
                scores.append(victim.decision.score(victim.logits(shown), batch.target, batch.valid))
        found = torch.cat(scores).nanmean().item()
        if math.isnan(found):
            raise ValueError("no validation case can be scored (none has a finding); choose others.")
        return found
