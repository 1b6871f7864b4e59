"""Gradient attacks in Lp balls: projected steps, momentum, Auto-PGD, on the objectives of images and voxels."""

from __future__ import annotations

from typing import Any

import numpy as np

from medadv.attacks.framework import FrameworkAttack, auto_pgd
from medadv.attacks.recipes import Recipe
from medadv.numbers import is_finite
from medadv.search import AutoPGD, AutoPGDL1, RandomDraws, Search, SteepestAscent

_VOXELS = ("segmentation",)
_PGD = {"max_iter": 20, "eps_step": None, "num_random_init": 1}
_APGD = {"max_iter": 100, "num_random_init": 1}
_MOMENTUM = {**_PGD, "max_iter": 10, "num_random_init": 0, "decay": 1.0}
_DIVERSE = {**_MOMENTUM, "resize_rate": 0.9, "diversity_prob": 0.5}


def _noise(attack: FrameworkAttack) -> Search:
    return RandomDraws(steps=0, restarts=max(1, attack.num_random_init), seed=attack.seed)


def _single_step(attack: FrameworkAttack) -> Search:
    return SteepestAscent(steps=1, restarts=0, seed=attack.seed, step_size=attack.budget.eps)


def _projected(attack: FrameworkAttack) -> Search:
    diversity = None
    if hasattr(attack, "resize_rate"):
        diversity = _share("resize_rate", attack.resize_rate), _share("diversity_prob", attack.diversity_prob)
    return SteepestAscent(
        attack.max_iter,
        attack.num_random_init,
        attack.seed,
        attack.step_size,
        decay=getattr(attack, "decay", 0.0),
        look_ahead=attack.name == "ni-fgsm",
        diversity=diversity,
    )


def _share(name: str, value: Any) -> float:
    if not (is_finite(value) and 0 < value <= 1):
        raise ValueError(f"{name}={value!r} must be a share above 0 and at most 1.")
    return float(value)


def _auto_l1(attack: FrameworkAttack) -> Search:
    return AutoPGDL1(attack.max_iter, attack.num_random_init, attack.seed)


def _auto_from_outside(attack: FrameworkAttack) -> Search:
    # 30 % of the steps in twice the radius, 30 % in 1.5 times, the rest inside: arXiv 2306.12941
    return AutoPGD(attack.max_iter, attack.num_random_init, attack.seed, ((2.0, 0.3), (1.5, 0.3), (1.0, 0.4)))


def _pgd(name: str, summary: str, objective: str, reference: str, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"search_name": "projected steps", "options": _PGD, **changes}
    return Recipe(name, summary, objective, _projected, reference=reference, **settings)


def _apgd(name: str, summary: str, objective: str, reference: str = "2003.01690", **changes: Any) -> Recipe:
    return Recipe(name, summary, objective, auto_pgd, "auto-pgd", reference, options=_APGD, **changes)


ROWS = (
    Recipe("noise", "uniform noise in the ball, the baseline every attack must beat", "ce", _noise, "random draw",
           "baseline", {"num_random_init": 1}, keep="last", access="none", directed=False,
           norms=(np.inf, 2.0, 1.0)),
    Recipe("fgsm", "one step along the gradient", "ce", _single_step, "single step", "1412.6572",
           fixed_objective=False),
    _pgd("pgd", "projected gradient steps on any objective", "ce", "1706.06083", fixed_objective=False),
    _pgd("bim", "projected steps from the image itself", "ce", "1607.02533",
         options={**_PGD, "max_iter": 10, "num_random_init": 0}, fixed_objective=False),
    _pgd("mi-fgsm", "projected steps with momentum", "ce", "1710.06081", search_name="momentum steps",
         options=_MOMENTUM, fixed_objective=False),
    _pgd("ni-fgsm", "momentum steps, the gradient taken where the momentum leads", "ce", "1908.06281",
         search_name="momentum steps, looking ahead", options=_MOMENTUM, fixed_objective=False),
    _pgd("di-fgsm", "momentum steps, the gradient taken through a random resizing, made to transfer", "ce",
         "1803.06978", search_name="momentum steps, diverse input", options=_DIVERSE, fixed_objective=False),
    _apgd("apgd-ce", "auto-pgd on cross-entropy", "ce"),
    _apgd("apgd-margin", "auto-pgd on the margin", "margin"),
    _apgd("apgd-dlr", "auto-pgd on the difference of logits ratio; the margin where there are too few classes", "dlr",
          decisions=("multiclass",), alternatives=("apgd-margin",)),
    Recipe("apgd-l1", "auto-pgd with sparse steps", "ce", _auto_l1, "auto-pgd, sparse", "2103.01208", _APGD,
           norms=(1.0,), fixed_objective=False),
    _pgd("pgd-ce", "projected steps on cross-entropy", "ce", "1706.06083", tasks=_VOXELS),
    _pgd("pgd-dice", "projected steps on the soft foreground Dice", "dice", "2307.07269", tasks=_VOXELS),
    _pgd("pgd-dicece", "projected steps on Dice plus cross-entropy", "dicece", "2406.08486", tasks=_VOXELS),
    _pgd("segpgd", "cross-entropy, first of voxels still right", "segpgd", "2207.12391", tasks=_VOXELS),
    _pgd("cospgd", "cross-entropy weighted by alignment", "cospgd", "2302.02213", tasks=_VOXELS),
    _apgd("apgd-dice", "auto-pgd on the soft foreground Dice", "dice", tasks=_VOXELS),
    Recipe("apgd-sea", "auto-pgd from wider balls on a loss of the SEA ensemble", "masked-ce", _auto_from_outside,
           "auto-pgd, shrinking ball", "2306.12941", {**_APGD, "max_iter": 300}, tasks=_VOXELS, fixed_objective=False),
)  # fmt: skip
