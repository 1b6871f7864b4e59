"""The rows of the catalogue as the tests see them: which model a row is for, and how it is run in a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from builders import KINDS, Setting

from medadv.attacks import CATALOGUE, CatalogueAttack, FrameworkAttack, Recipe, create
from medadv.attacks.recipes import DECISIONS, TASKS
from medadv.features import GaussianStatistics, fit_statistics
from medadv.search import AutoPGD, SteepestAscent

STEPS = 4
BUDGETS = {np.inf: "8/255", 2.0: 0.5, 1.0: 3.0}
# what a row needs to be told about the tiny models, and what makes it fast where fewer steps alone don't
FAST: dict[str, dict[str, Any]] = {
    "cw": {"binary_search_steps": 2},
    "asma": {"targeted": True},
    "one-label": {"label": 1},
    "label-margin": {"label": 1},
    "one-organ": {"label": 1},
    "erase": {"label": 1},
    "threshold-crossed": {"threshold_voxels": 20},
    "deformation": {"eps": 0.5},
    "apgd-t": {"max_iter": 2},
    "sea": {"max_iter": 2},
}
# rows that start at the image and draw nothing
FIXED_START = ("fgsm", "bim", "mi-fgsm", "ni-fgsm", "sma", "hfc")


def fits(row: Recipe, kind: str) -> bool:
    """Whether a row is for a kind of model (see ``builders.KINDS``)."""
    return TASKS[kind.startswith("voxel")] in row.tasks and DECISIONS["labels" in kind] in row.decisions


def rows(where: Callable[[Recipe], bool] = lambda row: True) -> list[tuple[str, str]]:
    """(name, kind) of every row and every kind of model it is for."""
    return [(name, kind) for name, row in CATALOGUE.items() if where(row) for kind in KINDS if fits(row, kind)]


def with_norms(pairs: list[tuple[str, str]]) -> list[tuple[str, str, float | None]]:
    """(name, kind, norm) for every norm of the row; None where its threat is no ball."""
    return [(name, kind, norm) for name, kind in pairs for norm in CATALOGUE[name].norms or (None,)]


def steps_along_gradients(row: Recipe) -> bool:
    """A row that factors and follows gradients in a ball, so that its passes are known in advance."""
    return row.attack is None and row.access == "white-box" and row.threat is None


def attack_on(case: Setting, name: str, **options: Any) -> CatalogueAttack:
    """A row on a tiny model, with few steps and a budget that fits its norm."""
    row = CATALOGUE[name]
    fast = {**({"max_iter": STEPS} if "max_iter" in row.options else {}), **FAST.get(name, {})}
    if name == "transfer":
        fast["surrogate"] = case.estimator
    if name == "hfc":
        fast["statistics"] = clean_statistics(case)
    norm = options.get("norm") or (row.norms[0] if row.norms else None)
    options = {key: value for key, value in options.items() if key != "norm" or value is not None}
    attack = create(name, case.estimator, **{"eps": BUDGETS.get(norm), **fast, **options})
    for _, member in getattr(attack, "_members", ()):
        if hasattr(member, "max_iter"):
            member.set_params(max_iter=2)
    return attack


def clean_statistics(case: Setting) -> GaussianStatistics:
    """Statistics of random images in the place of clean ones, for attacks that need some."""
    low, high = case.estimator.intensity.bounds(torch.zeros(case.x.shape[1:])[None])
    draws = torch.rand((30, *case.x.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = (low + draws * (high - low)).to(torch.from_numpy(case.x).dtype)
    return fit_statistics(case.estimator, images, torch.arange(30) % 3, layers=["first", "norm"])


def search_of(attack: CatalogueAttack) -> str:
    """What kind of search an attack runs."""
    if isinstance(attack, FrameworkAttack):
        for kind in (SteepestAscent, AutoPGD):
            if isinstance(attack._search, kind):
                return kind.__name__
    return "other"
