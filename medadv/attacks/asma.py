"""The adaptive segmentation mask attack: steps towards a given mask that grow with the agreement."""

from __future__ import annotations

import torch
from torch import Tensor

from medadv.attacks.pursuit import Pursuit
from medadv.attacks.smallest import MinimumNormAttack, number
from medadv.decisions import Decision, Multiclass
from medadv.objectives import agrees
from medadv.threats import per_case


class ASMA(MinimumNormAttack):
    """Adaptive segmentation mask attack (arXiv 1907.13124): towards a target mask, on voxels of any rank.

    Ascends ``sum_{prediction != t} z_t - |delta|_2^2`` (Multilabel: ``(2 t - 1) z`` per label) by plain gradient steps
    of size ``tau + beta IoU``, where IoU is the mean overlap of prediction and target over the classes that either
    shows; the first step is ``tau``. ``delta`` is in units of the intensity range, so that the numbers mean the same in
    HU; they are the original's, and suit networks with steep logits on many voxels. Only targeted: it draws a mask.

    Options: ``tau``, ``beta``, ``max_iter`` steps, ``threshold``: share of the valid voxels that must agree.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiSegmenter
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Conv2d(1, 2, 1)
        >>> net.weight.data, net.bias.data = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0.0, -0.5])
        >>> estimator = MonaiSegmenter(net, (1, 4, 4), decision=Multiclass(2, background=0))
        >>> attack = create("asma", estimator, targeted=True, tau=1e-3, beta=1e-3)
        >>> x = np.full((1, 1, 4, 4), 0.49, dtype=np.float32)
        >>> x_adv = attack.generate(x, y=np.ones((1, 4, 4), dtype=int))
        >>> bool((x_adv > 0.5).all()), bool(attack.details["norm"][0] < 0.05)
        (True, True)
    """

    tau: float
    beta: float

    def _prepare(self) -> None:
        super()._prepare()
        if not self.targeted:
            raise ValueError(
                "attack 'asma' draws a given mask; set targeted=True and give that mask as y, or use 'dag' or "
                "'alma-prox' to leave the reference."
            )
        number("tau", self.tau, above=0)
        number("beta", self.beta, least=0)

    def _search(self, pursuit: Pursuit) -> None:
        u = torch.zeros_like(pursuit.x)
        low, high = pursuit.domain.least / pursuit.unit, pursuit.domain.most / pursuit.unit
        for step in range(self.max_iter):
            look = pursuit.differentiate(u * pursuit.unit, lambda logits: self._missing(logits, pursuit))
            assert look.grad is not None
            agreement = overlap(self.victim.decision, look.logits, pursuit.batch.target, pursuit.batch.valid)
            size = self.tau + self.beta * agreement * (step > 0)
            u = u + per_case(size.to(u.dtype), u) * (look.grad * pursuit.unit - 2 * u)
            u = torch.minimum(torch.maximum(u, low), high)
        pursuit.look(u * pursuit.unit)

    def _missing(self, logits: Tensor, pursuit: Pursuit) -> Tensor:
        """Sum of the target's logits over the voxels that are not as wanted yet, ``(N,)``."""
        target, decision = pursuit.batch.target, self.victim.decision
        missing = ~agrees(decision, logits, target) & pursuit.batch.valid
        one_class = isinstance(decision, Multiclass)
        own = logits.gather(1, target[:, None])[:, 0] if one_class else (2 * target - 1) * logits
        return (own * missing).flatten(1).sum(1)


def overlap(decision: Decision, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean intersection over union of diagnosis and target over the classes that either shows, ``(N,)``."""
    counted = decision.voxelwise(valid)
    hard, wanted = (decision.one_hot(t) & counted for t in (decision.harden(logits), target))
    both, either = (part.flatten(2).sum(2) for part in (hard & wanted, hard | wanted))
    shown = either > 0
    return (both / either.clamp(min=1) * shown).sum(1) / shown.sum(1).clamp(min=1)
