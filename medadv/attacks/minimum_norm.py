"""Attacks that look for the smallest perturbation, and the L-inf steps on their margin."""

from __future__ import annotations

import numpy as np

from medadv.attacks.alma_prox import ALMAProx
from medadv.attacks.asma import ASMA
from medadv.attacks.carlini_wagner import CarliniWagner
from medadv.attacks.dag import DAG
from medadv.attacks.fab import FAB
from medadv.attacks.framework import FrameworkAttack
from medadv.attacks.recipes import Recipe
from medadv.search import Search, SteepestAscent

_IMAGES, _VOXELS = ("classification",), ("segmentation",)
_FOR_VOXELS = ("alma-prox", "dag")


def _projected(attack: FrameworkAttack) -> Search:
    return SteepestAscent(attack.max_iter, attack.num_random_init, attack.seed, attack.step_size)


ROWS = (
    Recipe("fab", "projections on linearised boundaries", "nearest boundary", None, "fast adaptive boundary",
           "1907.02044", {"max_iter": 100, "n_target_classes": 9}, FAB, tasks=_IMAGES, directed=False, minimal=True,
           norms=(np.inf, 2.0, 1.0), alternatives=_FOR_VOXELS),
    Recipe("cw", "smallest L2 change by a penalty on the margin", "L2 norm + margin", None, "Adam, search over c",
           "1608.04644", {"max_iter": 100, "binary_search_steps": 9, "initial_const": 0.1, "learning_rate": 0.01,
                          "kappa": 0.0},
           CarliniWagner, tasks=_IMAGES, norms=(2.0,), minimal=True, alternatives=_FOR_VOXELS),
    Recipe("cw-pgd", "projected steps on the margin up to a confidence of 50; eps_step is a quarter of eps (the "
           "survey takes .0015, .0015, .003, .003 at 1, 2, 4, 8 of 255)", "cw", _projected, "projected steps",
           "2303.14133",
           {"max_iter": 30, "eps_step": None, "num_random_init": 1}, norms=(np.inf,)),
    Recipe("dag", "steps along the margins of voxels still right", "sum of margins", None, "normalised steps",
           "1703.08603", {"max_iter": 200, "gamma": None, "threshold": 0.99}, DAG, tasks=_VOXELS,
           norms=(np.inf, 2.0), minimal=True),
    Recipe("alma-prox", "smallest L-inf change under a constraint per voxel", "L-inf norm + constraints", None,
           "augmented Lagrangian", "2206.07179", {"max_iter": 500, "threshold": 0.99, "learning_rate": None}, ALMAProx,
           tasks=_VOXELS, norms=(np.inf,), minimal=True),
    Recipe("asma", "towards a given mask by steps that grow with the overlap", "target logits - L2 norm", None,
           "adaptive steps", "1907.13124", {"max_iter": 1000, "tau": 1e-7, "beta": 1e-6, "threshold": 0.99}, ASMA,
           tasks=_VOXELS, norms=(2.0, np.inf), minimal=True),
)  # fmt: skip
