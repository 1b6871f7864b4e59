"""The objective of the hierarchical feature constraint: a wrong class whose activations look like clean ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medadv.decisions import Decision, Multiclass
from medadv.numbers import is_finite
from medadv.objectives.base import Objective, mean_over_valid, per_voxel_cross_entropy


class HierarchicalFeatures(Objective):
    """Nears a class in its logits and in its activations, to pass detectors (HFC, arXiv 2012.09501).

    ``-CE(f(x'), t) - weight * sum_l mean_j [((h_l - mu_k) P_k)_j]^2`` with the clean statistics of class t. Untargeted,
    t is the likeliest wrong class of each case at each look, without a gradient through its choice.

    Args:
        decision: ``Multiclass``.
        targeted: True: towards the given class.
        statistics: :class:`~medadv.features.GaussianStatistics` of clean images.
        weight: lambda of the paper.

    Raises:
        ValueError: another decision, statistics of another number of classes, or a weight that is negative.
    """

    def __init__(self, decision: Decision, *, targeted: bool = False, statistics: Any, weight: float = 1.0) -> None:
        super().__init__(decision, targeted=targeted)
        if not isinstance(decision, Multiclass) or statistics.classes != decision.num_classes:
            raise ValueError(
                f"the statistics are of {statistics.classes} exclusive classes, the model decides {decision}."
            )
        if not (is_finite(weight) and weight >= 0):
            raise ValueError(f"lam={weight!r} must be a finite weight of at least 0.")
        self.statistics = statistics
        self.weight = float(weight)

    def __call__(self, output: Any, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        logits = output.logits
        wanted = target if self.targeted else self._likeliest_wrong(logits.detach(), target)
        loss = per_voxel_cross_entropy(self.decision, logits, wanted)
        return -mean_over_valid(loss + self.weight * self.statistics.distance(output.features, wanted), valid)

    def _likeliest_wrong(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.masked_fill(self.decision.one_hot(target), -torch.inf).argmax(1)
