"""Universal perturbations: one for a whole data set, also for images it was not made on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from medadv.attacks.base import Batch, CatalogueAttack, Solution, joined
from medadv.attacks.recipes import LINF_L2, Recipe
from medadv.decisions import as_plain_tensor
from medadv.intensities import Budget
from medadv.objectives import Objective, make_objective, monitor_of
from medadv.threats import Threat, per_case


class UniversalAttack(CatalogueAttack):
    """One perturbation for all images, by projected minibatch ascent on the summed objective (arXiv 1811.11304).

    Each step takes the gradient of the objective at ``x_i + delta``, summed over a minibatch, moves ``delta`` along its
    sign (L-inf) or direction (L2), and projects it onto the ball. On application an image is ``x_i + delta`` brought
    into its own range, grid and mask. After every epoch all cases are looked at once, and the perturbation with the
    best mean over the cases is kept: by hard score, ties by loss (``keep="score"``), by loss, or the last one.

    :meth:`fit` makes the perturbation, :meth:`apply` adds it to images, also unseen ones; ``generate`` fits on the
    given cases and applies. Cases share the perturbation, so the order and choice of cases matter (flagged in the
    catalogue as not independent).

    Args:
        estimator, recipe, eps, norm, targeted, batch_size, verbose, keep, seed: see
            :class:`~medadv.attacks.base.CatalogueAttack`; ``seed`` shuffles the cases of each epoch, ``batch_size`` is
            the size of the minibatches.
        options: ``max_iter`` (epochs), ``eps_step`` (default: a quarter of ``eps``), ``objective``.

    Attributes:
        perturbation: ``(C, *S)``, in the units of the images; None before :meth:`fit`.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> seen, unseen = np.random.default_rng(0).random((2, 8, 1, 4, 4), dtype=np.float32)
        >>> attack = create("universal", estimator, eps="8/255", max_iter=3).fit(seen, np.zeros(8, dtype=int))
        >>> attack.perturbation.shape, bool(np.abs(attack.apply(unseen) - unseen).max() <= 8 / 255)
        ((1, 4, 4), True)
    """

    budget: Budget
    objective: Any
    eps_step: float | str | None
    max_iter: int
    _delta: Tensor | None = None

    def _prepare(self) -> None:
        self._objective: Objective = make_objective(self.objective, self.victim.decision, targeted=self.targeted)
        if self._objective.voxels_only and not self.victim.segments:
            raise ValueError(
                f"objective {self.objective!r} compares voxels, but this model gives one per image; use 'ce'."
            )
        if self._objective.views:
            raise ValueError(f"objective {self.objective!r} needs views of each image; use 'ce' or 'margin'.")
        assert self.threat_kind is not None
        given = self.eps_step
        self._step = self.budget.eps / 4 if given is None else self.threat_kind.budget(given, self.victim.intensity).eps

    @property
    def perturbation(self) -> np.ndarray | None:
        """The perturbation ``(C, *S)``, before an image's own range, grid and mask limit it."""
        return None if self._delta is None else self._delta[0].cpu().numpy()

    def fit(self, x: Any, y: Any = None, mask: Any = None) -> UniversalAttack:
        """Makes the perturbation.

        Args:
            x: images ``(N, C, *S)``, array or tensor.
            y: reference in any usual form (targeted: the diagnosis wanted); None: the model's own diagnosis.
            mask: where images may change, as for ``generate``.

        Returns:
            The attack itself.
        """
        self.perturb(self._as_images(x), y, mask)
        return self

    def apply(self, x: Any, mask: Any = None) -> Any:
        """Adds the perturbation to images ``(N, C, *S)``, seen or not; the type is kept, the model is not asked.

        Raises:
            ValueError: no perturbation yet, or images of another shape.
        """
        if self._delta is None:
            raise ValueError("there is no perturbation yet; call fit(x, y) first.")
        images = self._as_images(x)
        plain = as_plain_tensor(images)
        self._check_images(plain)
        batches = self._with_any_reference(plain, mask)
        found = torch.cat([self._applied(batch, self._delta.to(plain.dtype)).x for batch in batches])
        if not isinstance(x, Tensor):
            return found.cpu().numpy()
        kept = x.detach().clone()
        kept.copy_(found)
        return kept

    def _with_any_reference(self, x: Tensor, mask: Any) -> list[Batch]:
        """Batches of images whose diagnosis does not matter."""
        shape = tuple(x.shape[2:]) if self.victim.segments else ()
        channels = () if self.victim.decision.exclusive else (self.victim.decision.channels,)
        return self._batches(x, torch.zeros((len(x), *channels, *shape), dtype=torch.int64), mask, None)

    def _as_images(self, x: Any) -> Tensor:
        return x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x)).to(self.victim.device)

    def _threat(self, batch: Batch) -> Threat:
        assert self.threat_kind is not None
        return self.threat_kind.threat(batch.x, self.budget, self.victim.intensity, batch.mask, vars(self))

    def _applied(self, batch: Batch, delta: Tensor) -> Solution:
        if delta.shape[1:] != batch.x.shape[1:]:
            raise ValueError(
                f"images have shape {tuple(batch.x.shape[1:])}, the perturbation {tuple(delta.shape[1:])}; a universal "
                "perturbation is for images of one shape."
            )
        threat = self._threat(batch)
        x_adv = threat.apply(delta.expand_as(batch.x))
        return Solution(x_adv, threat.contains(x_adv))

    def _solve(self, batch: Batch) -> Solution:
        return next(iter(self._solve_all([batch])))

    def _solve_all(self, batches: Sequence[Batch]) -> Iterable[Solution]:
        whole = joined(batches)
        lost = torch.zeros(len(whole), dtype=torch.bool)
        delta = torch.zeros_like(whole.x[:1])
        ball = self._free_ball(whole)
        best: tuple[tuple[float, float], Tensor] | None = None
        generator = torch.Generator().manual_seed(self.seed)
        for epoch in tqdm(range(self.max_iter), desc=self.name, disable=not (self.verbose and sys.stderr.isatty())):
            for rows in torch.randperm(len(whole), generator=generator).split(self.batch_size):
                part = whole.subset(rows)
                grad, bad = self._summed_gradient(part, delta, epoch / self.max_iter)
                lost[rows] |= bad
                delta = ball.project(ball.ascend(delta, grad, self._step))
            rank = (0.0, 0.0) if self.keep == "last" else self._rank(batches, delta)
            if best is None or self.keep == "last" or rank > best[0]:
                best = rank, delta
        assert best is not None
        self._delta = delta = best[1]
        looks = torch.full((len(whole),), self.max_iter * (1 if self.keep == "last" else 2))
        start = 0
        for batch in batches:
            solution = self._applied(batch, delta)
            solution.queries = looks[start : start + len(batch)]
            solution.undirected = lost[start : start + len(batch)]
            start += len(batch)
            yield solution

    def _free_ball(self, whole: Batch) -> Any:
        """The ball that the perturbation itself lives in: only its radius counts, each image's range comes later."""
        ball: Any = self._threat(whole.subset(torch.tensor([0])))
        ball.mask = None
        reach = torch.as_tensor(ball.reach, dtype=ball.x.dtype, device=ball.x.device).expand_as(ball.x)
        ball.least, ball.most = -reach, reach
        return ball

    def _summed_gradient(self, part: Batch, delta: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Gradient of the objective, summed over the cases whose gradient is finite, and which are not."""
        threat = self._threat(part)
        theta = delta.expand_as(part.x)
        _, _, grad = self.victim.differentiate(
            threat.apply(theta), lambda z: self._objective(z, part.target, valid=part.valid, progress=progress)
        )
        grad = threat.pullback(theta, grad)
        lost = ~grad.flatten(1).sum(1).isfinite()
        grad = torch.where(per_case(lost, grad), torch.zeros_like(grad), grad)
        return grad.sum(0, keepdim=True), lost.cpu()

    def _rank(self, batches: Sequence[Batch], delta: Tensor) -> tuple[float, float]:
        """(mean badness, mean loss) over all cases: what is compared between epochs."""
        badness, loss = [], []
        monitor = monitor_of(self._objective, self.victim.segments)
        for batch in batches:
            output = self.victim.logits(self._applied(batch, delta).x)
            loss.append(monitor(output, batch.target, valid=batch.valid).to(torch.float64))
            badness.append(self._objective.badness(output, batch.target, batch.valid).to(torch.float64))
        return float(torch.cat(badness).mean()) if self.keep == "score" else 0.0, float(torch.cat(loss).mean())


ROWS = (
    Recipe("universal", "one perturbation for a whole data set", "ce", None, "minibatch ascent over epochs",
           "1811.11304", {"max_iter": 15, "eps_step": None}, attack=UniversalAttack, norms=LINF_L2,
           fixed_objective=False, independent=False),
)  # fmt: skip
