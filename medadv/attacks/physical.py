"""Attacks a scanner, a patient or an object could make: deformations, affine maps, patches, changes of k-space."""

from __future__ import annotations

from typing import Any

from medadv.attacks.framework import FrameworkAttack
from medadv.attacks.recipes import Recipe
from medadv.search import AutoPGD, Search


def _auto(attack: FrameworkAttack) -> Search:
    return AutoPGD(attack.max_iter, attack.num_random_init, attack.seed)


def _physical(name: str, summary: str, reference: str, *, max_iter: int = 40, restarts: int = 1) -> Recipe:
    options: dict[str, Any] = {"max_iter": max_iter, "num_random_init": restarts}
    return Recipe(name, summary, "auto", _auto, "auto-pgd", reference, options, norms=(), threat=name,
                  fixed_objective=False)  # fmt: skip


ROWS = (
    _physical("deformation", "a smooth field moves image and reference", "2108.03429"),
    _physical("affine", "image and reference turn, scale and shift", "2108.03429", restarts=3),
    _physical("patch", "a painted box, in 2D and 3D", "1712.09665", max_iter=100),
    _physical("kspace", "a small change of the measured k-space of MR images", "2208.03161"),
)
