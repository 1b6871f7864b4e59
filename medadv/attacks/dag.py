"""Dense adversary generation: steps along the margins of the voxels that are still right."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from medadv.attacks.pursuit import Pursuit
from medadv.attacks.smallest import MinimumNormAttack
from medadv.intensities import Budget
from medadv.objectives import margins
from medadv.threats import case_norm, per_case


class DAG(MinimumNormAttack):
    """Dense adversary generation (arXiv 1703.08603) on voxels of any rank.

    Each step ascends ``sum_{still right} max_{k != y} z_k - z_y`` (targeted: ``sum_{not yet} z_t - max_{k != t} z_k``;
    Multilabel: per label) by a gradient scaled to a largest change of ``gamma``, and a case stops as soon as
    ``threshold`` of its valid voxels are as the attacker wants. Whatever the norm that is reported, the step is that
    of the paper; the norm grows with the steps, so the first success is what is kept.

    Options: ``gamma``: step as a budget (``"0.5/255"``, ``"1 HU"``, a number in data units). Default: 0.5/255 of the
    window or range; the paper's .5 is on grey values of 0 to 255. (On images in [0, 1] a step of .5 would be half of
    the range; ``"127.5/255"`` gives it.) ``max_iter`` steps; ``threshold``.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiSegmenter
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Conv2d(1, 2, 1)
        >>> net.weight.data, net.bias.data = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0.0, -0.5])
        >>> estimator = MonaiSegmenter(net, (1, 4, 4), decision=Multiclass(2, background=0))
        >>> attack = create("dag", estimator, gamma="1/255")
        >>> x_adv = attack.generate(np.full((1, 1, 4, 4), 0.51, dtype=np.float32))
        >>> bool(attack.details["reached"]), float(attack.details["norm"][0].round(4))  # 3 steps of 1/255
        (True, 0.0118)
    """

    gamma: float | str | None

    def _prepare(self) -> None:
        super()._prepare()
        self.step_budget: Budget | None = None
        if self.gamma is not None:
            self.step_budget = self.victim.intensity.budget(self.gamma)
            if not self.step_budget.eps:
                raise ValueError(f"gamma={self.gamma!r} must be more than 0.")

    def _step_size(self, pursuit: Pursuit) -> Tensor:
        """The largest change of a step in data units, broadcastable to the images."""
        if self.step_budget is None:
            return 0.5 / 255 * pursuit.unit
        weights: Any = 1.0 if self.step_budget.weights is None else self.step_budget.weights
        given = torch.as_tensor(weights, dtype=pursuit.x.dtype, device=pursuit.x.device) * self.step_budget.eps
        return given.view(1, -1, *[1] * (pursuit.x.ndim - 2))

    def _search(self, pursuit: Pursuit) -> None:
        domain, step_size = pursuit.domain, self._step_size(pursuit)
        theta = torch.zeros_like(pursuit.x)
        rows, part = torch.arange(len(pursuit), device=theta.device), pursuit
        for step in range(self.max_iter + 1):
            if step == self.max_iter:
                part.look(theta[rows])
                break
            look = part.differentiate(theta[rows], partial(self._still_right, part))
            assert look.grad is not None
            scaled = look.grad * step_size
            largest = case_norm(scaled, torch.inf).clamp(min=torch.finfo(theta.dtype).tiny)
            theta[rows] += scaled / per_case(largest, scaled) * step_size
            theta = theta.clamp(domain.least, domain.most)
            if bool(look.reached.any()):
                if part is not pursuit:
                    pursuit.merge(rows, part)
                rows = pursuit.open
                if not len(rows):
                    return
                part = pursuit.subset(rows)
        if part is not pursuit:
            pursuit.merge(rows, part)

    def _still_right(self, part: Pursuit, logits: Tensor) -> Tensor:
        batch = part.batch
        margin = margins(self.victim.decision, logits, batch.target)
        unfinished = margin.clamp(max=0) if self.targeted else -margin.clamp(min=0)
        return (unfinished * batch.valid).flatten(1).sum(1)
