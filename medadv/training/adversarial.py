"""Recipes that minimise the natural loss of images they choose: as they are, or adversarial."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.threats import CaseRandom, per_case
from medadv.training.base import Preparation, Recipe, Step, TrainingBatch, check_share
from medadv.training.crafting import Crafter


class NaturalStep(Step):
    """The natural loss of whatever images are crafted."""

    def loss(self, batch: TrainingBatch, crafted: Tensor) -> Tensor:
        return self.estimator.training_loss(self.estimator.model(crafted), batch.target, batch.valid)


@dataclass(frozen=True)
class Natural(Recipe):
    """Natural training: the images as they are.

    The loss is the estimator's own: cross-entropy, for voxels plus soft Dice, unless it was built with another.
    """

    def step(self, preparation: Preparation) -> Step:
        return NaturalStep(preparation.estimator)


@dataclass(frozen=True)
class BallRecipe(Recipe):
    """What recipes that search a ball share.

    Attributes:
        eps: training budget, in any form that :meth:`~medadv.intensities.Intensity.budget` reads.
        steps: attack steps per update.
        eps_step: step size in the same forms; default: 2.5 eps / steps.
        norm: ``inf`` or 2.
    """

    eps: float | str
    steps: int = 10
    eps_step: float | str | None = None
    norm: float = torch.inf

    @property
    def eps_trained(self) -> float | str:
        return self.eps

    def crafter(self, preparation: Preparation) -> Crafter:
        """The attack of this training."""
        return Crafter(
            preparation.estimator, eps=self.eps, steps=self.steps, eps_step=self.eps_step, norm=self.norm,
            seed=preparation.seed,
        )  # fmt: skip


@dataclass(frozen=True)
class AdversarialTraining(BallRecipe):
    """PGD-AT (arXiv 1706.06083): each update sees the batch's adversarial counterpart.

    The attack runs on the network in inference mode, from a random start, and its last iterate is taken; it maximises
    what natural training minimises.
    """

    def step(self, preparation: Preparation) -> Step:
        return AdversarialStep(preparation, self.crafter(preparation))


class AdversarialStep(NaturalStep):
    """The natural loss of images that maximise it."""

    def __init__(self, preparation: Preparation, crafter: Crafter) -> None:
        super().__init__(preparation.estimator)
        self.objective = preparation.estimator.loss_objective
        self.crafter = crafter

    def craft(self, batch: TrainingBatch) -> Tensor:
        return self.crafter.from_random_start(batch, self.objective)


@dataclass(frozen=True)
class FastTraining(Recipe):
    """Fast adversarial training: one step from a random start, a quarter longer than the budget (arXiv 2001.03994).

    Attributes:
        eps: training budget.
        stride: length of the step in budgets; 1.25 in the paper.
    """

    eps: float | str
    stride: float = 1.25

    def __post_init__(self) -> None:
        if not 0 < self.stride <= 2:
            raise ValueError(f"stride={self.stride!r} must be above 0 and at most 2 budgets; the paper has 1.25.")

    @property
    def eps_trained(self) -> float | str:
        return self.eps

    def step(self, preparation: Preparation) -> Step:
        step = self.stride * preparation.estimator.intensity.budget(self.eps).eps
        return AdversarialStep(
            preparation, Crafter(preparation.estimator, eps=self.eps, steps=1, eps_step=step, seed=preparation.seed)
        )


@dataclass(frozen=True)
class MultiPerturbation(Recipe):
    """MPAdvT, multi-perturbation adversarial training (arXiv 2103.03438): budgets and numbers of steps are drawn.

    Half of the cases stay clean; the others get L-inf PGD from a random start with a budget drawn uniformly between
    ``least_eps`` and ``most_eps`` and a whole number of steps drawn uniformly from 1 to ``most_steps``. The released
    code draws once per batch, and applies the budget after normalisation; here every case draws, and the budget is one
    of the image. (Whether the paper also mixes kinds of perturbation is not settled by the sources this project has.)

    Attributes:
        least_eps, most_eps: range of the budgets, in any form that :meth:`~medadv.intensities.Intensity.budget` reads.
        most_steps: largest number of steps.
        eps_step: size of a step.
        clean_share: share of the cases that stay clean.
    """

    least_eps: float | str = "0.01/1"
    most_eps: float | str = "0.04/1"
    most_steps: int = 9
    eps_step: float | str = "1/255"
    clean_share: float = 0.5

    def __post_init__(self) -> None:
        check_share(clean_share=self.clean_share)

    @property
    def eps_trained(self) -> float | str:
        return self.most_eps

    def step(self, preparation: Preparation) -> Step:
        return MultiPerturbationStep(preparation, self)


class MultiPerturbationStep(AdversarialStep):
    """Budgets and numbers of steps drawn per case."""

    def __init__(self, preparation: Preparation, recipe: MultiPerturbation) -> None:
        crafter = Crafter(
            preparation.estimator, eps=recipe.most_eps, steps=recipe.most_steps, eps_step=recipe.eps_step,
            seed=preparation.seed,
        )  # fmt: skip
        super().__init__(preparation, crafter)
        self.recipe = recipe
        self.most = crafter.budget.eps
        self.least = preparation.estimator.intensity.budget(recipe.least_eps).eps
        if self.least > self.most:
            raise ValueError(f"least_eps={recipe.least_eps!r} is above most_eps={recipe.most_eps!r}; swap them.")

    def drawn(self, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Budget, number of steps and whether it stays clean of each case, ``(N,)``."""
        random = CaseRandom(self.crafter.seed, batch.ids, restart=-1)
        like = torch.zeros(len(batch), 3, dtype=torch.float64)
        coin, size, steps = random.uniform(like).to(batch.x.device).unbind(1)
        eps = self.least + (self.most - self.least) * size
        return eps, 1 + (self.recipe.most_steps * steps).long(), coin < self.recipe.clean_share

    def craft(self, batch: TrainingBatch) -> Tensor:
        eps, steps, clean = self.drawn(batch)
        if bool(clean.all()):
            return batch.x
        found = self.crafter.each_with_its_own(batch, self.objective, eps, torch.where(clean, 0, steps))
        return torch.where(per_case(clean, batch.x), batch.x, found)
