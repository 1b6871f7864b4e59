"""Training recipes: what the batch of an update is replaced by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from medadv.attacks import create

Craft = Callable[[Tensor, Tensor, Sequence[object]], Tensor]


class Recipe:
    """Natural training: the batch as it is; base of the robust ones."""

    def crafter(self, estimator: Any, seed: int) -> Craft:
        """Builds the function (images, canonical target, ids) -> images to train on."""
        return lambda images, target, ids: images


@dataclass(frozen=True)
class AdversarialTraining(Recipe):
    """PGD-AT (arXiv 1706.06083): each update sees the batch's adversarial counterpart.

    The attack runs on the network in inference mode, from a random start, and its last iterate is taken; it maximises
    cross-entropy on images and Dice plus cross-entropy on voxels, what natural training minimises.

    Attributes:
        eps: training budget.
        steps: attack steps per update.
        eps_step: step size; default: 2.5 eps / steps.
    """

    eps: float | str
    steps: int = 10
    eps_step: float | str | None = None

    def crafter(self, estimator: Any, seed: int) -> Craft:
        step = self.eps_step
        if step is None:
            step = 2.5 * estimator.intensity.budget(self.eps).eps / self.steps
        attack = create(
            "pgd", estimator, eps=self.eps, eps_step=step, max_iter=self.steps, keep="last", seed=seed,
            objective="dicece" if estimator.segments else "ce", batch_size=2**20,
        )  # fmt: skip
        return lambda images, target, ids: attack.perturb(images, target, ids=ids)


NATURAL = Recipe()
RECIPES: dict[str, type[Recipe]] = {"natural": Recipe, "pgd-at": AdversarialTraining}
