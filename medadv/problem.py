"""Victim + objective + threat + cases: evaluates, differentiates, and keeps the best image of each case."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.objectives import Objective
from medadv.threats import Threat, per_case
from medadv.victims import Victim

KEEP = ("score", "loss", "last")


@dataclass(frozen=True)
class Evaluation:
    """One look at the model.

    Attributes:
        loss: what ranks iterates, ``(N,)``: the objective, or its fixed monitor where the objective is scheduled.
        grad: gradient of the objective to theta, or None if not asked for.
    """

    loss: Tensor
    grad: Tensor | None


@dataclass
class Best:
    """The image kept for each case, with the values that made it the best."""

    x: Tensor
    score: Tensor
    loss: Tensor


class Problem:
    """What a search has to solve, for one batch of cases.

    Args:
        victim: the model.
        objective: what to maximise.
        threat: what may change; holds the images.
        target: canonical reference (or, for a targeted objective, the diagnosis wanted).
        valid: where the target counts.
        keep: ``"score"``: the image with the worst hard score (targeted: the best agreement with the target), ties by
            the larger loss; ``"loss"``: the largest loss; ``"last"``: the end point of the search.

    Attributes:
        best: the images kept so far.
        undirected: cases whose gradient was not finite at some step, ``(N,)`` bool.
    """

    def __init__(
        self,
        victim: Victim,
        objective: Objective,
        threat: Threat,
        target: Tensor,
        valid: Tensor,
        *,
        keep: str = "score",
    ) -> None:
        self.victim = victim
        self.objective = objective
        self.monitor = objective.monitor(victim.segments)
        self.threat = threat
        self.target = target
        self.valid = valid
        self.keep = keep
        self.best: Best | None = None
        self.undirected = torch.zeros(len(target), dtype=torch.bool, device=target.device)

    def evaluate(self, theta: Tensor, *, progress: float = 0.0, grad: bool = True) -> Evaluation:
        """Applies theta, runs the model, and remembers the image if it is the best so far.

        Args:
            theta: parameter of the threat.
            progress: share of the search that is over, for scheduled objectives.
            grad: whether to differentiate; without, one forward pass less a backward.

        Returns:
            Loss and gradient.
        """
        x_adv = self.threat.apply(theta)
        gradient = None
        if grad:
            output, loss, image_grad = self.victim.differentiate(
                x_adv, lambda z: self.objective(z, self.target, valid=self.valid, progress=progress)
            )
            gradient = self.threat.pullback(theta, self._usable(image_grad))
        else:
            output = self.victim.logits(x_adv)
            loss = self.objective(output, self.target, valid=self.valid, progress=progress)
        if self.monitor is not self.objective:
            loss = self.monitor(output, self.target, valid=self.valid)
        if self.keep != "last":
            self._keep(x_adv, output, loss)
        return Evaluation(loss, gradient)

    def _usable(self, grad: Tensor) -> Tensor:
        """A gradient with NaN or infinite parts is no direction: such a case stands still, and is remembered."""
        lost = ~grad.flatten(1).sum(1).isfinite()
        if not bool(lost.any()):
            return grad
        self.undirected |= lost
        return torch.where(per_case(lost, grad), torch.zeros_like(grad), grad)

    def finish(self, theta: Tensor) -> None:
        """Ends one run of a search at theta: looks at it once more, or with ``keep="last"`` just takes it."""
        if self.keep == "last":
            nothing = torch.full((len(theta),), torch.nan, device=theta.device)
            self.best = Best(self.threat.apply(theta), nothing, nothing)
        else:
            self.evaluate(theta, progress=1.0, grad=False)

    def _keep(self, x_adv: Tensor, output: Tensor, loss: Tensor) -> None:
        score = self._badness(output)
        if self.best is None:
            self.best = Best(x_adv.clone(), score, loss)
            return
        best = self.best
        better = (score > best.score) | ((score == best.score) & (loss > best.loss))
        rows = better.nonzero()[:, 0]
        if len(rows):
            best.x.index_copy_(0, rows, x_adv[rows])
            best.score, best.loss = torch.where(better, score, best.score), torch.where(better, loss, best.loss)

    def _badness(self, output: Tensor) -> Tensor:
        """What ranks first, large is what the attacker wants; equal for all cases that have no score."""
        if self.keep == "loss":
            return torch.zeros(len(output), device=output.device)
        score = self.victim.decision.score(output, self.target, self.valid).nan_to_num(0.0)
        return score if self.objective.targeted else -score
