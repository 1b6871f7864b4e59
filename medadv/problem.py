"""Victim + objective + threat + cases: evaluates, differentiates, and keeps the best image of each case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from medadv.objectives import Objective, monitor_of
from medadv.threats import LpBall, Threat, per_case
from medadv.victims import Victim, logits_in

KEEP = ("score", "loss", "last")
ImageTerm = Callable[[Tensor, Tensor], Tensor]


class Through(Protocol):
    """A change of the image that the gradient is taken through, such as input diversity."""

    def image(self, x: Tensor) -> Tensor:
        """The images the model sees, differentiable in ``x``."""
        ...

    def target(self, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The reference that belongs to them."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """One look at the model.

    Attributes:
        loss: what ranks iterates, ``(N,)``: the objective, or its fixed monitor where the objective is scheduled, plus
            the image terms.
        grad: gradient of the objective and the image terms to theta, or None if not asked for.
        badness: hard score as the attacker sees it, ``(N,)``; equal for all images where ``keep`` is not ``"score"``.
    """

    loss: Tensor
    grad: Tensor | None
    badness: Tensor


@dataclass
class Best:
    """The image kept for each case, with the values that made it the best; its theta where the threat needs it."""

    x: Tensor
    badness: Tensor
    loss: Tensor
    theta: Tensor | None = None

    def update(self, other: Best, rows: Tensor | None = None) -> None:
        """Takes over those images of ``other`` that are better: of the same cases, or of the cases ``rows``."""
        badness, loss = (self.badness, self.loss) if rows is None else (self.badness[rows], self.loss[rows])
        better = ((other.badness > badness) | ((other.badness == badness) & (other.loss > loss))).nonzero()[:, 0]
        if not len(better):
            return
        every = rows is None and len(better) == len(badness)
        place = better if rows is None else rows[better]
        for name in ("x", "badness", "loss", "theta"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None:
                if every:
                    mine.copy_(theirs)
                else:
                    mine.index_copy_(0, place, theirs[better])


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
        image_terms: functions ``(x_adv, x) -> (N,)`` of the image alone that are added to the objective.

    A victim may be ``approximate``: what comes with its gradients (in half precision, say) is no verdict. Then the
    first image and those looked at without gradient, such as the last of every run, are judged by its logits; of all
    others only the one that seems best, for each case, and only once :attr:`best` is asked for. So at least two
    forward passes are added to a search, and nothing that is kept, or told of it, is approximate.

    Attributes:
        undirected: cases whose gradient was not finite at some step, ``(N,)`` bool.
        queries: how often the model was asked about each case, ``(N,)`` int64.
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
        image_terms: Sequence[ImageTerm] = (),
    ) -> None:
        self.victim = victim
        self.objective = objective
        self.monitor = monitor_of(objective, victim.segments)
        self.threat = threat
        self.target = target
        self.valid = valid
        self.keep = keep
        self.image_terms = tuple(image_terms)
        self._best: Best | None = None
        self._unjudged: Best | None = None
        self._approximate = getattr(victim, "approximate", False)
        self.undirected = torch.zeros(len(target), dtype=torch.bool, device=target.device)
        self.queries = torch.zeros(len(target), dtype=torch.int64)
        self._runs = getattr(victim, "runs", 1)  # of the deployed model per look

    def evaluate(
        self, theta: Tensor, *, progress: float = 0.0, grad: bool = True, through: Through | None = None
    ) -> Evaluation:
        """Applies theta, runs the model, and remembers the image if it is the best so far.

        Args:
            theta: parameter of the threat.
            progress: share of the search that is over, for scheduled objectives.
            grad: whether to differentiate; without, one forward pass less a backward.
            through: the gradient is taken through this change of the image; the image itself is then looked at once
                more, unless only the last one is kept.

        Returns:
            Loss, gradient and hard score.
        """
        x_adv = self.threat.apply(theta)
        target, valid = self.threat.apply_target(theta, self.target, self.valid)
        gradient = output = loss = None
        term, term_grad = self._image_term(x_adv, grad)
        if grad:
            output, loss, image_grad = self._differentiate(x_adv, target, valid, progress, through)
            image_grad = image_grad if term_grad is None else image_grad + term_grad
            gradient = self.threat.pullback(theta, self._usable(image_grad))
        first = self._approximate and self._best is None
        judged = not grad or (self.keep != "last" and (through is not None or first))
        if judged:
            output, loss = self._look(x_adv, target, valid, progress)
        assert output is not None and loss is not None
        seen = self._ranked(x_adv, theta, output, loss, term, target, valid)
        if self.keep != "last":
            if judged or not self._approximate:
                self._best = _better(self._best, seen)
            else:
                self._unjudged = _better(self._unjudged, seen)
        return Evaluation(seen.loss, gradient, seen.badness)

    def _look(self, x_adv: Tensor, target: Tensor, valid: Tensor, progress: float) -> tuple[Any, Tensor]:
        """Output and objective without a gradient."""
        output = self.victim.logits(x_adv)
        self.queries += self._runs
        return output, self.objective(output, target, valid=valid, progress=progress, **self._others(x_adv))

    def _ranked(
        self,
        x_adv: Tensor,
        theta: Tensor,
        output: Any,
        loss: Tensor,
        term: Tensor | None,
        target: Tensor,
        valid: Tensor,
    ) -> Best:
        """Images with the values that they are ranked by."""
        logits = logits_in(output)
        if self.monitor is not self.objective:
            loss = self.monitor(logits, target, valid=valid)
        loss = loss if term is None else loss + term
        badness = torch.zeros_like(loss)
        if self.keep == "score":
            badness = self.objective.badness(logits, target, valid)
        return Best(x_adv, badness, loss, theta if self.threat.parametric else None)

    @property
    def best(self) -> Best | None:
        """The images kept so far."""
        if self._unjudged is not None:
            seen, self._unjudged = self._unjudged, None
            theta = seen.x - self.threat.x if seen.theta is None else seen.theta
            target, valid = self.threat.apply_target(theta, self.target, self.valid)
            output, loss = self._look(seen.x, target, valid, 1.0)
            term, _ = self._image_term(seen.x, False)
            self._best = _better(self._best, self._ranked(seen.x, theta, output, loss, term, target, valid))
        return self._best

    @best.setter
    def best(self, best: Best | None) -> None:
        self._best = best

    @property
    def kept(self) -> Best | None:
        """The images kept so far, without a further look at the model."""
        return self._best

    def _differentiate(
        self, x_adv: Tensor, target: Tensor, valid: Tensor, progress: float, through: Through | None
    ) -> tuple[Any, Tensor, Tensor]:
        """Output, objective and its gradient to the image."""
        shown = x_adv
        if through is not None:
            shown = through.image(x_adv)
            target, valid = through.target(target, valid)
        others = self._others(shown)
        output, loss, grad = self.victim.differentiate(
            shown, lambda z: self.objective(z, target, valid=valid, progress=progress, **others)
        )
        self.queries += self._runs
        if through is not None:
            grad = chain(through.image, x_adv, grad)
        return output, loss, grad

    def _image_term(self, x_adv: Tensor, grad: bool) -> tuple[Tensor | None, Tensor | None]:
        """The image terms together and, if asked for, their gradient to the image; None where there are none."""
        if not self.image_terms:
            return None, None
        leaf = x_adv.detach().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            value = torch.stack([term(leaf, self.threat.x) for term in self.image_terms]).sum(0)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0] if grad else None

    def _others(self, x_adv: Tensor) -> dict[str, Any]:
        """Logits of the views that the objective asks for."""
        if not self.objective.views:
            return {}
        self.queries += self._runs * len(self.objective.views)
        return {"others": tuple(self.victim.logits(view(x_adv)) for view in self.objective.views)}

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
            self.best = Best(self.threat.apply(theta), nothing, nothing, theta if self.threat.parametric else None)
        else:
            self.evaluate(theta, progress=1.0, grad=False)

    @property
    def unfinished(self) -> Tensor:
        """Rows of the cases whose best image is not at the floor of the hard score yet."""
        best = self.best
        if best is None or self.keep != "score":
            return torch.arange(len(self.target))
        return (best.badness < self.objective.floor).nonzero()[:, 0].cpu()

    def subset(self, rows: Tensor) -> Problem:
        """The same problem for some of the cases; :meth:`merge` brings back what it finds."""
        return Problem(
            self.victim, self.objective, self.threat.subset(rows), self.target[rows], self.valid[rows],
            keep=self.keep, image_terms=self.image_terms,
        )  # fmt: skip

    def merge(self, rows: Tensor, part: Problem) -> None:
        """Takes over the better images, and the counts, of a :meth:`subset`."""
        best, found = self.best, part.best
        if best is not None and found is not None:
            best.update(found, rows.to(self.target.device))
        self.queries[rows] += part.queries
        self.undirected[rows] |= part.undirected

    def widened(self, factor: float) -> Problem:
        """The same problem in a ball of ``factor`` times the radius; none of its images counts, only its thetas."""
        if not isinstance(self.threat, LpBall):
            raise ValueError(f"{type(self.threat).__name__} is no ball and can't be widened; search it as it is.")
        wider = self.threat.scaled(factor)
        return Problem(
            self.victim, self.objective, wider, self.target, self.valid, keep="last", image_terms=self.image_terms
        )

    def count(self, other: Problem) -> None:
        """Adds what another problem of the same cases asked of the model."""
        self.queries += other.queries
        self.undirected |= other.undirected


def _better(best: Best | None, seen: Best) -> Best:
    """``best`` after taking over what is better of ``seen``; a copy of ``seen`` where there is none."""
    if best is None:
        kept = (seen.x, seen.badness, seen.loss, seen.theta)
        return Best(*[None if value is None else value.clone() for value in kept])  # type: ignore[arg-type]
    best.update(seen)
    return best


def chain(function: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    """The chain rule: gradient of ``(function(x) * grad).sum()`` to ``x``."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(leaf), leaf, grad)[0]
