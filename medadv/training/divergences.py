"""Losses of robust training beside the natural one: how far two predictions are apart, and MART's boosted term."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medadv.decisions import Decision, Multiclass
from medadv.objectives import Objective, kullback_leibler, mean_over_valid


def prediction_gap(
    decision: Decision, first: Tensor, second: Tensor, valid: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Kullback-Leibler divergence of two predictions of each case, ``(N,)``.

    Summed over classes, or over the labels' Bernoulli divergences (Multilabel), and averaged over the valid voxels, so
    that its weight does not depend on the size of the image.

    Args:
        decision: how logits become a diagnosis.
        first: logits ``(N, C, *S)`` of p.
        second: logits ``(N, C, *S)`` of q; the result is ``KL(p || q)``.
        valid: where the reference counts.
        weight: factor per voxel (or label), like the canonical target.

    Example:
        >>> import torch
        >>> valid = torch.ones(1, dtype=torch.bool)
        >>> prediction_gap(Multiclass(2), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]), valid)
        tensor([0.1201])
    """
    values = kullback_leibler(decision, first, second)
    mean = mean_over_valid(values if weight is None else values * weight, valid)
    return mean if isinstance(decision, Multiclass) else mean * decision.channels


def rival_term(decision: Decision, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """MART's margin term ``-log(1 - max_{k != y} p_k)`` of each case, ``(N,)``; per label for ``Multilabel``.

    With two classes, and for labels, this is the cross-entropy itself, so that MART's first term is twice that.

    Example:
        >>> import torch
        >>> valid = torch.ones(1, dtype=torch.bool)
        >>> rival_term(Multiclass(3), torch.zeros(1, 3), torch.tensor([0]), valid)
        tensor([0.4055])
    """
    if not isinstance(decision, Multiclass):
        loss = F.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none")
        return mean_over_valid(loss, valid)
    own = decision.one_hot(target)
    rival = output.detach().masked_fill(own, -torch.inf).max(1, keepdim=True).indices
    others = output.scatter(1, rival, -torch.inf)
    return mean_over_valid(output.logsumexp(1) - others.logsumexp(1), valid)


def confidence(decision: Decision, output: Tensor, target: Tensor) -> Tensor:
    """Probability given to the reference, like ``target``."""
    p = decision.probabilities(output)
    if isinstance(decision, Multiclass):
        return p.gather(1, target[:, None])[:, 0]
    return torch.where(target == 1, p, 1 - p)


class Departure(Objective):
    """How far a prediction has gone from a given one: what TRADES, MART's relatives and HAT maximise.

    Args:
        decision: how logits become a diagnosis.
        reference: logits ``(N, C, *S)`` of the clean images; no gradient flows into them.
    """

    def __init__(self, decision: Decision, reference: Tensor) -> None:
        super().__init__(decision)
        self.reference = reference.detach()

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        return prediction_gap(self.decision, self.reference, output, valid)
