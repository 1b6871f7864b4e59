"""Honest two-class views, so that ART's classifier attacks can be run on segmenters and multi-label models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medadv.decisions import Decision, Multilabel
from medadv.objectives import SoftDice


class MarginView(nn.Module):
    """Two logits ``[m, -m]``: class 0 while the diagnosis still holds, class 1 once it is broken.

    The sign of m is the hard verdict, its size and its gradient are those of a smooth margin, so that score-based and
    gradient attacks have something to follow and no attack can claim success that the hard diagnosis does not show.

    Args:
        model: the deployed model.
        decision: its decision.
        scale: what the margin is multiplied with, so that its softmax is neither flat nor saturated.
    """

    def __init__(
        self, model: nn.Module, decision: Decision, *, scale: float = 10.0, probabilities: bool = False
    ) -> None:
        super().__init__()
        self.deployed = model
        self.decision = decision
        self.scale = scale
        self.probabilities = probabilities

    @property
    def network(self) -> nn.Module:
        """The user's network."""
        return self.deployed.network  # type: ignore[return-value]

    def margin(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth margin ``(N,)`` and hard verdict ``(N,)`` bool (True while the diagnosis holds)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        smooth, holds = self.margin(self.deployed(x))
        least = 1e-3  # where the two disagree: just on the side of the hard verdict
        honest = torch.where(holds, smooth.detach().clamp(min=least), smooth.detach().clamp(max=-least))
        margin = self.scale * (smooth + (honest - smooth).detach())
        logits = torch.stack([margin, -margin], 1)
        return logits.softmax(1) if self.probabilities else logits


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
        probabilities: bool = False,
    ) -> None:
        super().__init__(model, decision, probabilities=probabilities)
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
    """Holds while every label is as in the reference; the smooth margin is that of the weakest label."""

    reference: Tensor

    def __init__(
        self, model: nn.Module, decision: Multilabel, reference: Tensor, *, probabilities: bool = False
    ) -> None:
        super().__init__(model, decision, scale=1.0, probabilities=probabilities)
        self.register_buffer("reference", reference)

    def margin(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        decision = self.decision
        assert isinstance(decision, Multilabel)
        smooth = ((2 * self.reference - 1) * (logits - decision.logit_threshold(logits))).amin(1)
        return smooth, (decision.harden(logits) == self.reference).all(1)


class OneLabelView(nn.Module):
    """One label of a multi-label model as two classes ``[0, z - logit(threshold)]``: 0 absent, 1 present."""

    def __init__(self, model: nn.Module, decision: Multilabel, label: int, *, probabilities: bool = False) -> None:
        super().__init__()
        self.deployed = model
        self.decision = decision
        self.label = label
        self.probabilities = probabilities

    @property
    def network(self) -> nn.Module:
        """The user's network."""
        return self.deployed.network  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        output = self.deployed(x)
        logit = (output - self.decision.logit_threshold(output))[:, self.label]
        logits = torch.stack([torch.zeros_like(logit), logit], 1)
        return logits.softmax(1) if self.probabilities else logits
