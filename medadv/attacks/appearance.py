"""Attacks that change how an image looks, not what it shows: bias field, grey-value curve, spectrum; scanner noise."""

from __future__ import annotations

from typing import Any

from medadv.attacks.framework import FrameworkAttack, auto_pgd
from medadv.attacks.recipes import Recipe
from medadv.image_terms import StructuralSimilarity
from medadv.objectives import AUTO
from medadv.problem import ImageTerm
from medadv.search import RandomDraws, Search, SteepestAscent


def _steps(attack: FrameworkAttack) -> Search:
    return SteepestAscent(attack.max_iter, attack.num_random_init, attack.seed, attack.step_size)


def _draws(attack: FrameworkAttack) -> Search:
    return RandomDraws(steps=0, restarts=max(1, attack.num_random_init), seed=attack.seed)


def _similarity(attack: Any) -> tuple[ImageTerm, ...]:
    term = StructuralSimilarity(attack.victim.intensity, attack.ssim_weight)
    return (term,) if attack.ssim_weight else ()


def _search(name: str, summary: str, reference: str, **changes: Any) -> Recipe:
    # few parameters have a sharp optimum, which steps of one size step over
    settings: dict[str, Any] = {"search": auto_pgd, "search_name": "auto-pgd",
                                "options": {"max_iter": 20, "num_random_init": 1}, **changes}  # fmt: skip
    return Recipe(name, summary, AUTO, reference=reference, norms=(), threat=name, fixed_objective=False, **settings)


def _noise(name: str, summary: str) -> Recipe:
    return Recipe(name, summary, AUTO, _draws, "random draw", "baseline", {"num_random_init": 1}, norms=(), threat=name,
                  keep="last", access="none", directed=False)  # fmt: skip


ROWS = (
    _search("bias-field", "a smooth field that brightens here and darkens there", "2006.13322, 2009.09247"),
    _search("intensity-curve", "gamma, window width and window level", "own"),
    _search("vafa", "frequencies of blocks, quantised as in JPEG", "2307.07269", search=_steps,
            search_name="sign steps", image_terms=_similarity,
            options={"max_iter": 20, "eps_step": 1.0, "num_random_init": 1, "ssim_weight": 1.0}),
    _noise("rician-noise", "noise of MR magnitude images, a baseline"),
    _noise("poisson-noise", "counting noise of X-ray images, a baseline"),
)  # fmt: skip
