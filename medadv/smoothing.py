"""Randomised smoothing: the diagnosis that most noisy copies of an image get, and how far it provably holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from medadv.adaptive import ExpectationOverRuns, WrappedVictim, bpda, eot
from medadv.decisions import Multiclass
from medadv.numbers import is_finite, whole_number
from medadv.victims import Loss, logits_in


def certified_radius(votes: Any, n: int, sigma: float, alpha: float = 0.001) -> np.ndarray:
    """L2 radius within which a smoothed classifier keeps its class: ``sigma Phi^-1(p)`` (arXiv 1902.02918, CERTIFY).

    p is the one-sided Clopper-Pearson lower bound, at confidence ``1 - alpha``, of the share of noisy copies that get
    the class; where it is not above 1/2 the classifier abstains and the radius is 0.

    Args:
        votes: how many of ``n`` copies got the class, whole numbers of any shape. The class must have been chosen on
            other copies.
        n: number of copies.
        sigma: standard deviation of the noise; the radius is in its unit.
        alpha: chance that a radius is too large.

    Example:
        >>> certified_radius([990, 500], 1000, sigma=0.5, alpha=0.001).round(4).tolist()
        [0.989, 0.0]
    """
    counts = np.asarray(votes)
    with np.errstate(invalid="ignore"):
        bound = np.where(counts > 0, stats.beta.ppf(alpha, counts, n - counts + 1), 0.0)
    return np.where(bound > 0.5, sigma * stats.norm.ppf(bound), 0.0)


def abstains(votes: Any, second: Any, alpha: float = 0.001) -> np.ndarray:
    """Where the leading class can't be told from the next (arXiv 1902.02918, PREDICT): two-sided binomial test, bool.

    Args:
        votes: of the leading class.
        second: of the next.
        alpha: chance that a class is given which is not the smoothed classifier's.

    Example:
        >>> abstains([60, 80], [40, 20]).tolist()
        [True, False]
    """
    most, rest = np.asarray(votes), np.asarray(second)
    # twice the tail, as both are equally likely where there is no difference
    p = np.minimum(1.0, 2 * stats.binom.sf(most - 1, most + rest, 0.5))
    return p > alpha


@dataclass(frozen=True)
class Votes:
    """What the noisy copies of images said.

    Attributes:
        counts: per class or label how many copies gave it, ``(N, C, *S)`` int64.
        n: number of copies.
    """

    counts: Tensor
    n: int


class Smoothed(WrappedVictim):
    """A model whose diagnosis is the vote of noisy copies: see :func:`smoothed`."""

    def __init__(self, estimator: Any, sigma: float | str, n: int, alpha: float, seed: int) -> None:
        super().__init__(estimator)
        if getattr(self.decision, "guarded", False):
            raise TypeError("smoothed(guarded(...)) would let the detector vote; smooth the model inside.")
        self.sigma = self.intensity.budget(sigma).eps
        if not self.sigma:
            raise ValueError(f"sigma={sigma!r} is no noise; give a standard deviation above 0.")
        whole_number("n", n, 1)
        whole_number("seed", seed, None)
        if not (is_finite(alpha) and 0 < alpha < 1):
            raise ValueError(f"alpha={alpha!r} must be a chance above 0 and below 1.")
        self.n, self.alpha, self.seed = n, float(alpha), seed

    @property
    def runs(self) -> int:
        """How often the deployed model runs per look."""
        return self.n * super().runs

    @property
    def certifies(self) -> bool:
        """Whether there are radii: for one of several classes per image, whose votes are independent."""
        return isinstance(self.decision, Multiclass) and not self.segments

    def votes(self, x: Tensor, n: int | None = None, *, part: int = 0) -> Votes:
        """Runs the model on noisy copies of images ``(N, C, *S)``.

        Args:
            x: images.
            n: copies; None: as many as for a diagnosis.
            part: number of the stream of noise, so that counts of different parts are independent.
        """
        wanted = self.n if n is None else n
        # the same noise for all images of a batch: neither batches nor the other cases matter
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + part) % 2**63)
        total: Tensor | None = None
        for _ in range(wanted):
            noise = torch.randn(x.shape[1:], generator=generator, dtype=x.dtype).to(x.device)
            hard = self.decision.harden(logits_in(self.inner.logits(x + self.sigma * noise)))
            given = self.decision.one_hot(hard).long()
            total = given if total is None else total + given
        assert total is not None
        return Votes(total, wanted)

    def logits(self, x: Tensor) -> Tensor:
        """The votes as logits ``(N, C, *S)``, whose hard diagnosis is that of the majority."""
        return self.as_logits(self.votes(x)).to(x.dtype)

    def as_logits(self, votes: Votes) -> Tensor:
        """Votes as logits ``(N, C, *S)``; a label's is at its threshold where half of the copies have it."""
        counts = votes.counts.float()
        if isinstance(self.decision, Multiclass):
            return ((counts + 0.5) / (votes.n + 0.5 * counts.shape[1])).log()
        odds = ((counts + 0.5) / (votes.n - counts + 0.5)).log()
        return self.decision.logit_threshold(odds) + odds  # type: ignore[attr-defined]

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        raise TypeError("a vote has no gradient; attack noisy copies, as medadv.smoothing.noisy(...) shows them.")

    def abstained(self, votes: Votes) -> np.ndarray:
        """Where the vote on images is too close to call, ``(N,)`` bool; never for voxels or labels that overlap."""
        if not self.certifies:
            return np.zeros(len(votes.counts), dtype=bool)
        leading = votes.counts.topk(2, dim=1).values.cpu().numpy()
        return abstains(leading[:, 0], leading[:, 1], self.alpha)

    def radius(self, x: Tensor, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Certified class and L2 radius of each image, in data units; 0 where it abstains.

        Args:
            x: images ``(N, C, *S)``.
            n: copies on which the share is estimated; the class is chosen on others.

        Raises:
            TypeError: voxels or labels that overlap, whose joint certificate needs other bounds (arXiv 2107.00228).
        """
        if not self.certifies:
            raise TypeError(
                "radii are for one of several classes per image; for voxels and labels only votes are given."
            )
        chosen = self.votes(x, part=1).counts.argmax(1)
        votes = self.votes(x, n, part=2).counts.gather(1, chosen[:, None])[:, 0]
        return chosen.cpu().numpy(), certified_radius(votes.cpu().numpy(), n, self.sigma, self.alpha)


def smoothed(estimator: Any, sigma: float | str, *, n: int = 100, alpha: float = 0.001, seed: int = 0) -> Smoothed:
    """Randomised smoothing as a prediction rule (arXiv 1902.02918): the majority vote of noisy copies.

    The noise is Gaussian and added to the image as it is stored, before the model's own windowing; noisy values may
    leave the intensity range. All images share the noise of a seed, so a diagnosis depends on nothing but its image.
    For voxels, and labels that overlap, each is voted on by itself and nothing is certified. It has no gradient: attack
    :func:`noisy`, then evaluate on this.

    Args:
        estimator: a medadv estimator, a stock ART classifier, or a victim.
        sigma: standard deviation of the noise, as a budget is written: ``"16/255"``, ``"20 HU"`` or a number.
        n: copies per diagnosis.
        alpha: chance of a wrong statement, for abstention and certificate.
        seed: of the noise.

    Raises:
        ValueError: a number that can't be right.
        TypeError: a model with a detector.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> rule = smoothed(MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2)), "32/255", n=20)
        >>> rule.logits(torch.rand(3, 1, 4, 4)).shape
        torch.Size([3, 2])
    """
    return Smoothed(estimator, sigma, n, alpha, seed)


def noisy(rule: Smoothed, n: int = 8, seed: int = 1) -> ExpectationOverRuns:
    """What an attacker who knows the smoothing looks at: the expectation over noisy copies (arXiv 1906.04584).

    Args:
        rule: the prediction rule.
        n: copies per look, each run forward and back.
        seed: of the attacker's noise, which is not that of the rule.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> rule = smoothed(MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2)), "32/255", n=20)
        >>> x_adv = create("pgd", noisy(rule, n=4), eps="8/255", max_iter=2).perturb(torch.rand(3, 1, 4, 4), [0, 1, 0])
        >>> rule.logits(x_adv).argmax(1).shape
        torch.Size([3])
    """
    return eot(bpda(rule.inner, transform=lambda x: x + rule.sigma * torch.randn_like(x)), n, seed)
