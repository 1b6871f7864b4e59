"""The catalogue: every attack by name, what it is made of and what it is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from medadv.attacks.base import FrameworkAttack
from medadv.attacks.recipes import TASKS, Recipe
from medadv.names import unknown_name
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


_ROWS = (
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

CATALOGUE: dict[str, Recipe] = {row.name: row for row in _ROWS}


def create(name: str, estimator: Any, *, eps: float | str, **options: Any) -> FrameworkAttack:
    """An attack by name, as an ART ``EvasionAttack``.

    Args:
        name: a name of :func:`catalogue`.
        estimator: a medadv estimator, or a stock ART ``PyTorchClassifier`` without numpy defences.
        eps: budget: ``"8/255"``, ``"10 HU"`` or a number in data units.
        **options: see :class:`FrameworkAttack`; the catalogue lists what each attack accepts.

    Raises:
        ValueError: an unknown name (the nearest are given), a budget that can't be read, an attack that is not right
            for the model.
        TypeError: an option the attack does not have, or an estimator that can't be attacked.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> create("apgd-ce", estimator, eps="4/255", max_iter=10).name
        'apgd-ce'
    """
    if name not in CATALOGUE:
        raise unknown_name("attack", name, CATALOGUE)
    return FrameworkAttack(estimator, CATALOGUE[name], eps=eps, **options)


def catalogue() -> pd.DataFrame:
    """All attacks as a table, a row each.

    Example:
        >>> catalogue().set_index("name").loc["pgd-dice", "objective"]
        'dice'
    """
    return pd.DataFrame(
        {
            "name": row.name,
            "summary": row.summary,
            "objective": row.objective,
            "threat": ", ".join("linf" if norm == np.inf else f"l{norm:g}" for norm in row.norms),
            "search": row.search_name,
            "access": row.access,
            "tasks": ", ".join(task for task in TASKS if task in row.tasks),
            "ranks": ", ".join(f"{rank}D" for rank in row.ranks),
            "options": ", ".join(f"{option}={value}" for option, value in row.options.items()),
            "reference": row.reference,
        }
        for row in CATALOGUE.values()
    )
