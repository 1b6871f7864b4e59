"""Free adversarial training: one backward pass gives the gradients of the weights and of the perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medadv.numbers import whole_number
from medadv.threats import LInfBall
from medadv.training.adversarial import NaturalStep
from medadv.training.base import Preparation, Recipe, Step, TrainingBatch


@dataclass(frozen=True)
class FreeTraining(Recipe):
    """Free adversarial training (arXiv 1904.12843): every batch is replayed, and each update also moves its attack.

    Each of ``replays`` updates sees ``x + delta`` and takes the natural loss; the same backward pass that gives the
    gradient of the weights gives that of the image, along whose sign delta then moves, inside the L-inf ball. Delta
    belongs to the place in the batch, not to the case: the next batch begins where the last one ended. It begins at
    zero, as in the released code. So that one pass can serve both, delta is made for the network in train mode (batch
    statistics, dropout) by definition, unlike the attacks of all other recipes. An epoch is ``replays`` epochs of
    updates; the paper divides the epochs by it.

    Attributes:
        eps: training budget, in any form that :meth:`~medadv.intensities.Intensity.budget` reads.
        replays: updates per batch; the paper has 8 for CIFAR-10 and 4 for ImageNet.
        eps_step: how far delta moves after each update, in the same forms; default: ``eps``, as in the paper.
    """

    eps: float | str
    replays: int = 4
    eps_step: float | str | None = None

    def __post_init__(self) -> None:
        whole_number("replays", self.replays, 1)

    @property
    def eps_trained(self) -> float | str:
        return self.eps

    def step(self, preparation: Preparation) -> Step:
        return FreeStep(preparation, self)


class FreeStep(NaturalStep):
    """The natural loss of perturbed images, whose gradient moves the perturbation."""

    def __init__(self, preparation: Preparation, recipe: FreeTraining) -> None:
        super().__init__(preparation.estimator)
        self.replays = recipe.replays
        self.budget = self.estimator.intensity.budget(recipe.eps)
        step = self.budget if recipe.eps_step is None else self.estimator.intensity.budget(recipe.eps_step)
        self.step_size = step.eps
        self.perturbation: Tensor | None = None

    def craft(self, batch: TrainingBatch) -> Tensor:
        ball = LInfBall(batch.x, self.budget, self.estimator.intensity)
        begin = self._carried(batch.x)
        crafted = ball.apply(begin).requires_grad_()

        def move(leaf: Tensor) -> None:
            grad, leaf.grad = leaf.grad, None
            assert grad is not None
            # a scaled half-precision loss that overflowed is no direction
            moved = ball.ascend(begin, grad.nan_to_num(0, 0, 0), self.step_size)
            reach = self.budget.eps * ball.weights
            self._keep(moved.clamp(-reach, reach) if isinstance(reach, float) else moved.minimum(reach).maximum(-reach))

        # called by the very backward pass that gives the gradient of the weights
        crafted.register_post_accumulate_grad_hook(move)
        return crafted

    def _carried(self, x: Tensor) -> Tensor:
        """The perturbation of each place in the batch; zero for places, and shapes, that were not there before."""
        kept = self.perturbation
        if kept is None or kept.shape[1:] != x.shape[1:]:
            return torch.zeros_like(x)
        kept = kept[: len(x)].to(x)
        return torch.cat([kept, x.new_zeros(len(x) - len(kept), *x.shape[1:])])

    def _keep(self, moved: Tensor) -> None:
        """The places that a smaller batch did not fill keep their perturbation."""
        kept = self.perturbation
        if kept is not None and kept.shape[1:] == moved.shape[1:] and len(kept) > len(moved):
            moved = torch.cat([moved, kept[len(moved) :].to(moved)])
        self.perturbation = moved

    def state_dict(self) -> dict[str, Any]:
        return {"perturbation": self.perturbation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.perturbation = state["perturbation"]
