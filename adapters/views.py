"""Honest views of models, so that ART's classifier attacks can be run on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medadv.adapters.deployed import ModelView
from medadv.decisions import Decision, Multilabel
from medadv.intensities import Intensity
from medadv.objectives import SoftDice


class MarginView(ModelView):
    """Two logits ``[m, -m]``: class 0 while the diagnosis still holds, class 1 once it is broken.

    With s a smooth margin and t the ``width``, ``m = scale t softplus(s / t)`` while the diagnosis holds and
    ``-scale t softplus(-s / t)`` once it is broken. So the sign of m is the hard verdict and no attack can claim a
    success that the hard diagnosis does not show; m grows with s also where the two disagree, so score-based attacks
    have something to follow; and a Newton step on m (DeepFool) moves s by at least t, so it can't stall there.

    Args:
        model: the deployed model.
        decision: its decision.
        scale: what the margin is multiplied with, so that its softmax is neither flat nor saturated.
        width: by how much smooth margin and hard verdict may disagree, in units of the margin.
    """

    def __init__(self, model: nn.Module, decision: Decision, *, scale: float, width: float) -> None:
        super().__init__(model)
        self.decision = decision
        self.scale = scale
        self.width = width

    def margin(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth margin ``(N,)`` and hard verdict ``(N,)`` bool (True while the diagnosis holds)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        smooth, holds = self.margin(self.deployed(x))
        side = torch.where(holds, 1.0, -1.0).to(smooth.dtype)
        margin = self.scale * side * functional.softplus(side * smooth, beta=1 / self.width)
        return torch.stack([margin, -margin], 1)


class DiceMarginView(MarginView):
    """Holds while the hard Dice to the reference is at least ``threshold``; the smooth margin is soft Dice minus it."""

    reference: Tensor
    valid: Tensor

    def __init__(
        self,
        model: nn.Module,
        decision: Decision,
        reference: Tensor,
        valid: Tensor,
        *,
        threshold: float,
    ) -> None:
        super().__init__(model, decision, scale=10.0, width=0.1)
        self.threshold = threshold
        self.objective = SoftDice(decision)
        self.register_buffer("reference", reference)
        self.register_buffer("valid", valid)

    def margin(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        target = self.reference.expand(len(logits), *self.reference.shape[1:])
        valid = self.valid.expand(len(logits), *self.valid.shape[1:])
        dice = 1 - self.objective(logits, target, valid=valid)
        return dice - self.threshold, self.decision.score(logits, target, valid) >= self.threshold


class LabelsMarginView(MarginView):
    """Holds while every label is as in the reference; the smooth margin is that of the weakest label.

    Args:
        model: the deployed model.
        decision: its decision.
        reference: labels of one image, ``(1, C)``.
        valid: which of them count, bool ``(1, C)``, at least one; None: all.
    """

    reference: Tensor
    valid: Tensor

    def __init__(self, model: nn.Module, decision: Multilabel, reference: Tensor, valid: Tensor | None = None) -> None:
        super().__init__(model, decision, scale=1.0, width=1e-3)
        self.register_buffer("reference", reference)
        self.register_buffer("valid", torch.ones_like(reference, dtype=torch.bool) if valid is None else valid)

    def margin(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        decision = self.decision
        assert isinstance(decision, Multilabel)
        margins = (2 * self.reference - 1) * (logits - decision.logit_threshold(logits))
        smooth = margins.masked_fill(~self.valid, torch.inf).amin(1)
        return smooth, ((decision.harden(logits) == self.reference) | ~self.valid).all(1)


class QueryView(ModelView):
    """A classifier that answers as some of ART's attacks need it.

    Args:
        model: images -> logits.
        intensity: range of the images.
        probabilities: softmax at the end.
        saturate: values outside the range are read as its ends.
    """

    def __init__(self, model: nn.Module, intensity: Intensity, *, probabilities: bool, saturate: bool) -> None:
        super().__init__(model)
        self.intensity = intensity
        self.probabilities = probabilities
        self.saturate = saturate

    def forward(self, x: Tensor) -> Tensor:
        if self.saturate:
            low, high = self.intensity.bounds(x)
            x = torch.maximum(torch.minimum(x, high), low)
        logits = self.deployed(x)
        return logits.softmax(1) if self.probabilities else logits


def cross_entropy_of_probabilities(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of probabilities ``(N, C)`` to one-hot targets, so that a softmax is not applied twice."""
    return -(target * output.clamp(min=torch.finfo(output.dtype).tiny).log()).sum(1).mean()


class OneLabelView(ModelView):
    """One label of a multi-label model as two classes ``[0, z - logit(threshold)]``: 0 absent, 1 present."""

    def __init__(self, model: nn.Module, decision: Multilabel, label: int) -> None:
        super().__init__(model)
        self.decision = decision
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        output = self.deployed(x)
        logit = (output - self.decision.logit_threshold(output))[:, self.label]
        return torch.stack([torch.zeros_like(logit), logit], 1)
