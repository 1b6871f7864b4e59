"""Attacks that only see the model's scores: Square and SimBA, on the objectives of images and voxels."""

from __future__ import annotations

from typing import Any

from medadv.attacks.framework import FrameworkAttack
from medadv.attacks.recipes import Recipe
from medadv.search import Search, SimBA, Square

_VOXELS = ("segmentation",)
_SQUARE = {"max_iter": 5000, "p_init": 0.8, "num_random_init": 1}
_SIMBA = {"max_iter": 5000, "eps_step": None, "freq_dims": 0.125, "num_random_init": 0}


def _windows(attack: Any) -> Search:
    return Square(attack.max_iter, attack.num_random_init, attack.seed, attack.p_init)


def _cosines(attack: FrameworkAttack | Any) -> Search:
    return SimBA(attack.max_iter, attack.num_random_init, attack.seed, attack.step_size, attack.freq_dims)


ROWS = (
    Recipe("square", "recolours windows of the image; max_iter queries per case and start", "margin", _windows,
           "random windows", "1912.00049", _SQUARE, access="score", fixed_objective=False),
    Recipe("square-dice", "recolours windows of the image to lower the foreground Dice", "dice", _windows,
           "random windows", "1912.00049", {**_SQUARE, "max_iter": 1000}, access="score", tasks=_VOXELS),
    Recipe("simba-dct", "steps along the cosines of the DCT, low frequencies first", "ce", _cosines,
           "random cosines", "1905.07121", _SIMBA, access="score", fixed_objective=False),
    Recipe("simba-dct-dice", "steps along the cosines of the DCT to lower the foreground Dice", "dice", _cosines,
           "random cosines", "1905.07121", {**_SIMBA, "max_iter": 1000}, access="score", tasks=_VOXELS),
)  # fmt: skip
