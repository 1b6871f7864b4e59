"""Attacks with a goal of their own: labels, one finding, one organ, volumes, lesions, a threshold, an erased structure.

Score and selection follow the goal (:mod:`medadv.objectives.labels`, :mod:`medadv.objectives.clinical`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from medadv.attacks.base import Batch, Solution
from medadv.attacks.framework import FrameworkAttack, auto_pgd, solution_of
from medadv.attacks.recipes import Recipe
from medadv.decisions import Multiclass
from medadv.objectives import Objective, arguments_of, make_objective
from medadv.objectives.labels import one_channel
from medadv.targets import erase


class GoalAttack(FrameworkAttack):
    """An attack whose objective has parameters, which are options of the attack.

    Args:
        estimator, recipe, eps, norm, batch_size, verbose, keep, seed: see
            :class:`~medadv.attacks.base.CatalogueAttack`.
        options: those of the objective, such as ``label``, and ``max_iter``, ``num_random_init``.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiSegmenter
        >>> from medadv.attacks import create
        >>> net = torch.nn.Conv2d(1, 2, 1)
        >>> with torch.no_grad():
        ...     _ = net.weight.copy_(torch.tensor([-20.0, 20.0]).view(2, 1, 1, 1))
        ...     _ = net.bias.copy_(torch.tensor([10.0, -10.0]))
        >>> estimator = MonaiSegmenter(net, (1, 4, 4), decision=Multiclass(2, background=0))
        >>> x = np.full((1, 1, 4, 4), 0.48, dtype=np.float32)  # voxels above 0.5 are foreground
        >>> x_adv = create("volume-up", estimator, eps=0.05, max_iter=5).generate(x)
        >>> estimator.predict(x_adv).argmax(1).sum()
        np.int64(16)
    """

    def _make_objective(self) -> Objective:
        name = self.recipe.objective
        given = {
            argument: getattr(self, argument) for argument in arguments_of(name) if argument in self.recipe.options
        }
        return make_objective({"name": name, **given}, self.victim.decision, targeted=self.targeted)


class EraseAttack(FrameworkAttack):
    """Makes the model overlook one structure and see in its place what it finds next likely.

    The mask wanted is the reference (the model's own diagnosis where none is given) with the structure filled by
    :func:`medadv.targets.erase`, which costs one forward pass; it is approached as by the objective ``"towards-mask"``.
    Whether that worked, and what else changed, tells :func:`medadv.targets.target_success`.

    Args:
        estimator, recipe, eps, norm, batch_size, verbose, keep, seed: see
            :class:`~medadv.attacks.base.CatalogueAttack`.
        options: ``label`` of the structure (may be left out where there is only one), ``max_iter``,
            ``num_random_init``.
    """

    label: int | None

    def _make_objective(self) -> Objective:
        decision = self.victim.decision
        self._channel = one_channel(decision, self.label)
        return make_objective("towards-mask", decision, targeted=True)

    def _solve(self, batch: Batch) -> Solution:
        logits = self.victim.logits(batch.x) if isinstance(self.victim.decision, Multiclass) else None
        wanted = erase(batch.target, self.victim.decision, self._channel, logits=logits)
        problem = self.problem_of(replace(batch, target=wanted))
        self._search.run(problem, batch.ids)
        if logits is not None:
            problem.queries += 1
        # what the images are scored against stays y, not the mask that was approached
        return replace(solution_of(problem), reference=None)


_SEARCH = {"max_iter": 100, "num_random_init": 1}


def _labels(name: str, summary: str, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"attack": GoalAttack, "options": _SEARCH, **changes}
    return Recipe(name, summary, name, auto_pgd, "auto-pgd", "medadv", tasks=("classification",),
                  decisions=("multilabel",), alternatives=("apgd-margin",), **settings)  # fmt: skip


def _voxels(name: str, summary: str, *, attack: Any = GoalAttack, objective: str | None = None, **own: Any) -> Recipe:
    return Recipe(name, summary, objective or name, auto_pgd, "auto-pgd", "medadv", {**own, **_SEARCH}, attack=attack,
                  tasks=("segmentation",), directed=False, alternatives=("apgd-margin",))  # fmt: skip


ROWS = (
    _labels("any-label", "at least one label wrong, by the smallest margin"),
    _labels("all-labels", "every label wrong, by the largest margin"),
    _labels("label-share", "as many labels wrong as possible, by the sum of margins"),
    _labels("one-label", "one finding added or removed", directed=False,
            options={"label": None, "goal": "add", "keep_weight": 0.0, **_SEARCH}),
    Recipe("label-margin", "the smallest signed margin of one label, beyond the boundary too", "label-margin", auto_pgd,
           "auto-pgd", "medadv", {"label": None, **_SEARCH}, attack=GoalAttack, tasks=("classification",)),
    _voxels("one-organ", "one organ spoiled, the others left alone", label=None, keep_weight=1.0),
    _voxels("erase", "one structure erased, filled with what comes next", attack=EraseAttack,
            objective="towards-mask", label=None),
    _voxels("volume-up", "a larger volume", label=None),
    _voxels("volume-down", "a smaller volume", label=None),
    _voxels("threshold-crossed", "a decision on a volume flipped", label=None, threshold_voxels=None,
            threshold_ml=None, spacing=None, direction=None),
    _voxels("lesion-missed", "lesions overlooked", label=None),
    _voxels("lesion-invented", "lesions where there are none", label=None, min_voxels=1),
)  # fmt: skip
