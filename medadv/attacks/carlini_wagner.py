"""The attack of Carlini and Wagner: the smallest L2 perturbation by a penalty on the margin."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medadv.attacks.pursuit import Goal, Pursuit
from medadv.attacks.smallest import MinimumNormAttack, full, number
from medadv.numbers import whole_number

REACH = 0.99  # tanh of the largest |w|: there the derivative is 2 % of that in the middle, not zero


class CarliniWagner(MinimumNormAttack):
    """Carlini-Wagner L2 (arXiv 1608.04644): Adam on ``|delta|^2 + c max(kappa - margin, 0)``, with a search over c.

    ``delta`` is measured in units of the intensity range. With ``margin`` the distance in logits beyond the boundary,
    positive where the image is adversarial (Multilabel: of the label that decides), c grows tenfold until a case is
    adversarial and is then bisected, per case. The box is kept by ``x' = middle + half tanh(w) / .99`` with
    ``|tanh w| <= .99``: other than with the original's open range, voxels at the very ends of the range (the black
    background of most medical images) start exactly where they are and can still move.

    Cases that are not adversarial after this, because ``max_iter`` steps did not come far enough, get a second search
    with ten times the learning rate, falling linearly.

    Options: ``max_iter`` Adam steps for each of ``binary_search_steps`` values of c, from ``initial_const`` on;
    ``learning_rate`` in w; ``kappa`` the margin in logits that counts as adversarial.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> _ = torch.nn.init.constant_(net[1].weight[0], -1.0), torch.nn.init.constant_(net[1].weight[1], 1.0)
        >>> net[1].bias.data = torch.tensor([18.0, 0.0])
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> attack = create("cw", estimator, max_iter=50)
        >>> x_adv = attack.generate(np.full((1, 1, 4, 4), 0.5, dtype=np.float32))
        >>> attack.details["norm"].round(2)  # 18 = 2 sum(x): every voxel from .5 to .5625, 16 of them
        array([0.25])
    """

    binary_search_steps: int
    initial_const: float
    learning_rate: float
    kappa: float

    def _prepare(self) -> None:
        super()._prepare()
        whole_number("binary_search_steps", self.binary_search_steps, 1)
        number("initial_const", self.initial_const, above=0)
        number("learning_rate", self.learning_rate, above=0)
        number("kappa", self.kappa, least=0)

    @property
    def goal(self) -> Goal:
        return replace(super().goal, confidence=self.kappa)

    def _search(self, pursuit: Pursuit) -> None:
        self._search_const(pursuit, wide=False)
        rows = pursuit.open
        if len(rows):
            part = pursuit.subset(rows)
            self._search_const(part, wide=True)
            pursuit.merge(rows, part)

    def _search_const(self, pursuit: Pursuit, *, wide: bool) -> None:
        const, low, high = full(pursuit, self.initial_const), full(pursuit, 0.0), full(pursuit, torch.inf)
        for _ in range(self.binary_search_steps):
            won = self._descend(pursuit, const, wide)
            high = torch.where(won, torch.minimum(high, const), high)
            low = torch.where(won, low, torch.maximum(low, const))
            const = torch.where(high.isfinite(), (low + high) / 2, 10 * const)

    def _descend(self, pursuit: Pursuit, const: Tensor, wide: bool) -> Tensor:
        """One run of Adam with c = ``const`` ``(N,)``; which cases were adversarial at some step."""
        domain, batch, margin = pursuit.domain, pursuit.batch, pursuit.goal.margin
        middle, half = (domain.lower + domain.upper) / 2, (domain.upper - domain.lower) / 2
        ratio = (pursuit.x - middle) / half.clamp(min=torch.finfo(half.dtype).tiny)
        w = (REACH * ratio.clamp(-1, 1)).atanh()
        furthest = torch.tensor(REACH, dtype=w.dtype).atanh().item()
        adam = Adam(w)
        won = torch.zeros_like(const, dtype=torch.bool)

        def penalty(logits: Tensor) -> Tensor:
            return const * (self.kappa - margin(logits, batch.target, valid=batch.valid)).clamp(min=0)

        for step in range(self.max_iter):
            theta = middle + half * (w.tanh() / REACH) - pursuit.x if step else torch.zeros_like(w)
            look = pursuit.differentiate(theta, penalty)
            assert look.grad is not None
            won |= look.reached
            slope = half * (1 - w.tanh().square()) / REACH
            grad = (look.grad + 2 * theta / pursuit.unit**2) * slope
            rate = 10 * self.learning_rate * (1 - step / self.max_iter) if wide else self.learning_rate
            w = adam.step(w, grad, rate).clamp(-furthest, furthest)
        return won


class Adam:
    """Adam (arXiv 1412.6980) on a tensor, descending; a voxel without any gradient stands still.

    Args:
        like: tensor of the shape that is moved.
    """

    def __init__(self, like: Tensor) -> None:
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)
        self.steps = 0

    def step(self, value: Tensor, grad: Tensor, rate: float) -> Tensor:
        """The value moved at a learning rate."""
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * grad
        self.square = 0.999 * self.square + 0.001 * grad.square()
        mean, square = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.999**self.steps)
        return value - rate * mean / (square.sqrt() + 1e-8)
