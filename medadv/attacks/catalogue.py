"""The catalogue: every attack by name, what it is made of and what it is for."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

import pandas as pd

from medadv.attacks import (
    appearance,
    ensembles,
    goals,
    gradient,
    minimum_norm,
    multi_targeted,
    physical,
    score_based,
    stealth,
    transfer,
    universal,
)
from medadv.attacks.base import CatalogueAttack
from medadv.attacks.framework import FrameworkAttack
from medadv.attacks.recipes import TASKS, Recipe
from medadv.names import unknown_name

ENTRY_POINTS = "medadv.attacks"
FAMILIES = (
    gradient, multi_targeted, score_based, minimum_norm, ensembles, goals, appearance, physical, stealth, transfer,
    universal,
)  # fmt: skip
CATALOGUE: dict[str, Recipe] = {row.name: row for family in FAMILIES for row in family.ROWS}


@cache
def recipes() -> dict[str, Recipe]:
    """Medadv's own rows and those that adapters and third parties add through the entry-point group."""
    found = dict(CATALOGUE)
    for entry in entry_points(group=ENTRY_POINTS):
        for row in entry.load()():
            if row.name in found:
                raise ValueError(f"entry point {entry.name!r} brings a second attack {row.name!r}; rename it.")
            found[row.name] = row
    return found


def recipe_of(name: str) -> Recipe:
    """A row by name; the nearest names where there is none."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    if name not in recipes():
        raise unknown_name("attack", name, recipes())
    return recipes()[name]


def create(name: str, estimator: Any, *, eps: float | str | None = None, **options: Any) -> CatalogueAttack:
    """An attack by name, as an ART ``EvasionAttack``.

    Args:
        name: a name of :func:`catalogue`.
        estimator: a medadv estimator, or a stock ART ``PyTorchClassifier`` without numpy defences.
        eps: budget: ``"8/255"``, ``"10 HU"`` or a number in data units; threats that are no balls and attacks that look
            for the smallest perturbation can do without.
        **options: see :class:`~medadv.attacks.base.CatalogueAttack`; the catalogue lists what each attack accepts.

    Raises:
        ValueError: an unknown name (the nearest are given), a budget that can't be read, an attack that is not right
            for the model.
        TypeError: an option the attack does not have, a budget that is missing, or an estimator that can't be attacked.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> create("apgd-ce", estimator, eps="4/255", max_iter=10).name
        'apgd-ce'
    """
    recipe = recipe_of(name)
    return (recipe.attack or FrameworkAttack)(estimator, recipe, eps=eps, **options)


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
            "threat": ", ".join(kind.name for kind in row.threats),
            "search": row.search_name,
            "access": row.access,
            "tasks": ", ".join(task for task in TASKS if task in row.tasks),
            "decisions": ", ".join(row.decisions),
            "ranks": ", ".join(f"{rank}D" for rank in row.ranks),
            "options": ", ".join(f"{option}={value}" for option, value in row.all_options.items()),
            "reference": row.reference,
        }
        for row in recipes().values()
    )
