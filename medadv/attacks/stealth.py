"""Stabilised medical attacks and the hierarchical feature constraint: attacks made to hold, and to pass for clean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medadv.attacks.base import Batch, Solution
from medadv.attacks.framework import FrameworkAttack
from medadv.attacks.recipes import LINF_L2, Recipe
from medadv.features import FeatureVictim, GaussianStatistics, feature_victim_in, fit_statistics
from medadv.objectives.evasion import plain_of
from medadv.objectives.features import HierarchicalFeatures
from medadv.objectives.stability import Stabilised
from medadv.search import Search, SteepestAscent
from medadv.victims import victim_of


class StabilisedAttack(FrameworkAttack):
    """Stabilised medical attack: leaves the reference, but not the prediction of the blurred image (arXiv 2103.05232).

    Each look runs the model on the image and on its blurred copy, so a search of K steps costs 2 K + 2 forward and K
    backward passes.

    Args:
        options: ``a`` and ``sigma`` of :class:`~medadv.objectives.stability.Stabilised`, ``max_iter``, ``eps_step``,
            ``num_random_init``; the rest as for every attack.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> attack = create("sma", estimator, eps="8/255", max_iter=3, sigma=0.7)
        >>> x_adv = attack.perturb(torch.rand(2, 1, 4, 4), [0, 1])
        >>> attack.passes
        Passes(forward=8, backward=3)
    """

    a: float
    sigma: float | Sequence[float]

    def _prepare(self) -> None:
        decision = plain_of(self.victim.decision)
        self.objective = Stabilised(decision, targeted=self.targeted, a=self.a, sigma=self.sigma)
        super()._prepare()


class FeatureAttack(FrameworkAttack):
    """Hierarchical feature constraint: a wrong class whose activations pass for clean ones (arXiv 2012.09501).

    Needs the statistics of clean images: :meth:`fit` them, or hand over ``statistics=``. Untargeted, each case is
    pushed to its likeliest wrong class. Steps are ``2 eps / max_iter`` long unless ``eps_step`` says otherwise, as in
    the released code.

    Args:
        options: ``layers`` (names of submodules of the network), ``statistics`` (from
            :func:`~medadv.features.fit_statistics`), ``lam`` (weight of the constraint), ``max_iter``, ``eps_step``,
            ``num_random_init``; the rest as for every attack.

    Raises:
        TypeError: neither ``layers`` nor ``statistics``.
        ValueError: layers that the network does not have or that the statistics are not of; no statistics yet.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> x = np.random.default_rng(0).random((20, 1, 4, 4), dtype=np.float32)
        >>> y = np.arange(20) % 2
        >>> attack = create("hfc", estimator, eps="4/255", layers=["0"], max_iter=3).fit(x, y)
        >>> attack.generate(x[:2], y[:2]).shape
        (2, 1, 4, 4)
    """

    layers: Sequence[str] | None
    statistics: GaussianStatistics | None
    lam: float

    def _prepare(self) -> None:
        layers = self.layers if self.statistics is None else self.statistics.layers
        if layers is None:
            raise TypeError(f"attack {self.name!r} needs layers=, names of submodules of the network, or statistics=.")
        if self.layers is not None and set(self.layers) != set(layers):
            raise ValueError(
                f"layers={self.layers!r}, but the statistics are of {', '.join(layers)}; leave layers out."
            )
        given: Any = victim_of(self.estimator)
        core = feature_victim_in(given)
        if core is not None and not set(layers) <= set(core.layers):
            raise ValueError(
                f"the feature victim shows {', '.join(core.layers)}, the attack needs {', '.join(layers)}."
            )
        shown: Any = FeatureVictim(self.estimator, layers) if core is None else given
        self.victim = shown
        self.objective = "ce"
        if self.statistics is not None:
            self.objective = HierarchicalFeatures(
                self.victim.decision, targeted=self.targeted, statistics=self.statistics, weight=self.lam
            )
        super()._prepare()

    def fit(self, x: Any, y: Any, **options: Any) -> FeatureAttack:
        """Fits the statistics of clean images.

        Args:
            x: clean images ``(N, C, *S)``.
            y: their classes.
            **options: ``components``, ``regularisation``, ``batch_size``, ``seed`` of
                :func:`~medadv.features.fit_statistics`.

        Returns:
            The attack itself.
        """
        core = feature_victim_in(self.victim)
        assert core is not None
        self.statistics = fit_statistics(core, x, y, layers=core.layers, **options)
        self._prepare()
        return self

    @property
    def step_size(self) -> float:
        """``eps_step`` in the unit of the budget; ``2 eps / max_iter`` where it was not given."""
        return 2 * self.budget.eps / self.max_iter if self.eps_step is None else super().step_size

    def _solve(self, batch: Batch) -> Solution:
        if self.statistics is None:
            raise ValueError(f"attack {self.name!r} knows no clean images yet; call fit(x_clean, y_clean) first.")
        return super()._solve(batch)


def _projected(attack: FrameworkAttack) -> Search:
    return SteepestAscent(
        steps=attack.max_iter, restarts=attack.num_random_init, seed=attack.seed, step_size=attack.step_size
    )


ROWS = (
    Recipe("sma", "leaves the reference, stays with the blurred image", "ce - a KL(blurred)", _projected,
           "projected steps", "2103.05232",
           {"max_iter": 20, "eps_step": None, "num_random_init": 0, "a": 1.0, "sigma": 1.0},
           attack=StabilisedAttack, norms=(np.inf,)),
    Recipe("hfc", "a wrong class whose activations look clean", "ce(target) + lam Mahalanobis", _projected,
           "projected steps", "2012.09501",
           {"max_iter": 80, "eps_step": None, "num_random_init": 0, "layers": None, "statistics": None, "lam": 1.0},
           attack=FeatureAttack, tasks=("classification",), decisions=("multiclass",), norms=LINF_L2),
)  # fmt: skip
