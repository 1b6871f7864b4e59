"""Gradient attacks in Lp balls: projected steps, momentum, Auto-PGD, on the objectives of images and voxels."""

from __future__ import annotations

from typing import Any

from medadv.attacks.framework import FrameworkAttack
from medadv.attacks.recipes import Recipe
from medadv.search import AutoPGD, RandomDraws, Search, SteepestAscent

_VOXELS = ("segmentation",)
_PGD = {"max_iter": 20, "eps_step": None, "num_random_init": 1}
_APGD = {"max_iter": 100, "num_random_init": 1}


def _noise(attack: FrameworkAttack) -> Search:
    return RandomDraws(steps=0, restarts=max(1, attack.num_random_init), seed=attack.seed)


def _single_step(attack: FrameworkAttack) -> Search:
    return SteepestAscent(steps=1, restarts=0, seed=attack.seed, step_size=attack.budget.eps)


def _projected(attack: FrameworkAttack) -> Search:
    return SteepestAscent(
        attack.max_iter, attack.num_random_init, attack.seed, attack.step_size, getattr(attack, "decay", 0.0)
    )


def _auto(attack: FrameworkAttack) -> Search:
    return AutoPGD(attack.max_iter, attack.num_random_init, attack.seed)


def _pgd(name: str, summary: str, objective: str, reference: str, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"search_name": "projected steps", "options": _PGD, **changes}
    return Recipe(name, summary, objective, _projected, reference=reference, **settings)


def _apgd(name: str, summary: str, objective: str, reference: str = "2003.01690", **changes: Any) -> Recipe:
    return Recipe(name, summary, objective, _auto, "auto-pgd", reference, options=_APGD, **changes)


ROWS = (
    Recipe("noise", "uniform noise in the ball, the baseline every attack must beat", "ce", _noise, "random draw",
           "baseline", {"num_random_init": 1}, keep="last", access="none", directed=False),
    Recipe("fgsm", "one step along the gradient", "ce", _single_step, "single step", "1412.6572",
           fixed_objective=False),
    _pgd("pgd", "projected gradient steps on any objective", "ce", "1706.06083", fixed_objective=False),
    _pgd("mi-fgsm", "projected steps with momentum", "ce", "1710.06081", search_name="momentum steps",
         options={**_PGD, "max_iter": 10, "num_random_init": 0, "decay": 1.0}, fixed_objective=False),
    _apgd("apgd-ce", "auto-pgd on cross-entropy", "ce"),
    _apgd("apgd-margin", "auto-pgd on the margin", "margin"),
    _pgd("pgd-ce", "projected steps on cross-entropy", "ce", "1706.06083", tasks=_VOXELS),
    _pgd("pgd-dice", "projected steps on the soft foreground Dice", "dice", "2307.07269", tasks=_VOXELS),
    _pgd("pgd-dicece", "projected steps on Dice plus cross-entropy", "dicece", "2406.08486", tasks=_VOXELS),
    _pgd("segpgd", "cross-entropy, first of voxels still right", "segpgd", "2207.12391", tasks=_VOXELS),
    _pgd("cospgd", "cross-entropy weighted by alignment", "cospgd", "2302.02213", tasks=_VOXELS),
    _apgd("apgd-dice", "auto-pgd on the soft foreground Dice", "dice", tasks=_VOXELS),
)  # fmt: skip
