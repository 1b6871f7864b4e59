"""Attacks a scanner, a patient or an object could make: deformations, affine maps, patches, changes of k-space.

What moves anatomy moves the reference too, and what is covered by a patch does not count: images are to be scored
against ``attack.reference``. Leaderboards of one fixed reference refuse these attacks on voxels.

Example:
    >>> import numpy as np, torch
    >>> from medadv.adapters import MonaiSegmenter
    >>> from medadv.attacks import create
    >>> from medadv.decisions import Multiclass
    >>> net = torch.nn.Conv2d(1, 2, 3, padding=1)
    >>> estimator = MonaiSegmenter(net, (1, 16, 16), decision=Multiclass(2, background=0))
    >>> x = np.random.default_rng(0).random((2, 1, 16, 16), dtype=np.float32)
    >>> y = (x[:, 0] > 0.5).astype(int)
    >>> attack = create("deformation", estimator, eps=1.5, control_points=4, max_iter=3)
    >>> x_adv = attack.generate(x, y)
    >>> target, valid = attack.reference
    >>> target.shape, bool((target != y).any()), bool(valid.all())
    ((2, 16, 16), True, False)
    >>> attack = create("patch", estimator, eps=0.1, location="center", max_iter=3)
    >>> x_adv = attack.generate(x, y)
    >>> float((x_adv != x).mean()) <= 0.1, int((~attack.reference[1]).sum(axis=(1, 2))[0])
    (True, 25)
"""

from __future__ import annotations

from typing import Any

from medadv.attacks.framework import auto_pgd
from medadv.attacks.recipes import Recipe


def _physical(name: str, summary: str, reference: str, *, max_iter: int = 40, restarts: int = 1) -> Recipe:
    options: dict[str, Any] = {"max_iter": max_iter, "num_random_init": restarts}
    return Recipe(name, summary, "auto", auto_pgd, "auto-pgd", reference, options, norms=(), threat=name,
                  fixed_objective=False)  # fmt: skip


ROWS = (
    _physical("deformation", "a smooth field moves image and reference", "2108.03429"),
    _physical("affine", "image and reference turn, scale and shift", "2108.03429", restarts=3),
    _physical("patch", "a painted box, in 2D and 3D", "1712.09665", max_iter=100),
    _physical("kspace", "a small change of the measured k-space of MR images", "2208.03161"),
)
