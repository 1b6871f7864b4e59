"""One update of the weights: craft, loss, gradient, step; what the training loop, MONAI's trainer and costs share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medadv.training.base import Step, TrainingBatch
from medadv.training.weights import WeightPerturbation


class UpdateLoss(NamedTuple):
    """The loss of one update and what the model gave first on the way to it, in train mode."""

    loss: Tensor
    output: Tensor


@contextlib.contextmanager
def update_loss(
    step: Step,
    batch: TrainingBatch,
    *,
    perturbation: WeightPerturbation | None = None,
    autocast: dict[str, Any] | None = None,
) -> Iterator[UpdateLoss]:
    """Crafts a batch and yields the loss to differentiate; inside, the weights are those it is taken at.

    Args:
        step: the recipe at work.
        batch: the cases.
        perturbation: adversarial weight perturbation; None: the weights stay where they are.
        autocast: arguments of :class:`torch.autocast` beside the device; None: full precision.

    Raises:
        ValueError: the loss is not finite.
    """
    model, device = step.estimator.model, step.estimator.device.type

    def precision() -> Any:
        return contextlib.nullcontext() if autocast is None else torch.autocast(device, **autocast)

    with precision():
        crafted = step.craft(batch)
    model.train()

    def loss_now() -> Tensor:
        with precision():
            return step.loss(batch, crafted)

    with contextlib.nullcontext() if perturbation is None else perturbation.worst(model, loss_now):
        with _outputs_of(model) as outputs:
            loss = loss_now()
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"the training loss became {loss.item()}; lower the learning rate.")
        yield UpdateLoss(loss, outputs[0])


@contextlib.contextmanager
def _outputs_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a list gathers what the model returns."""
    outputs: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


class Updater:
    """One recipe's updates of the weights.

    Args:
        step: the recipe at work.
        optimizer: of the estimator's weights.
        scheduler: stepped after each update; None: a constant rate.
        weight_perturbation: gamma of :class:`~medadv.training.weights.WeightPerturbation`; None: none.
        amp: mixed precision (bfloat16 on a CPU, float16 with a scaled loss on a GPU).
    """

    def __init__(
        self,
        step: Step,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        weight_perturbation: float | None = None,
        amp: bool = False,
    ) -> None:
        self.step = step
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.perturbation = None if weight_perturbation is None else WeightPerturbation(weight_perturbation)
        device = step.estimator.device.type
        self.autocast = {"dtype": torch.float16 if device == "cuda" else torch.bfloat16} if amp else None
        self.scaler = torch.amp.GradScaler(device, enabled=amp and device == "cuda")

    def __call__(self, batch: TrainingBatch) -> float:
        """All updates that a batch is worth; the mean loss before them."""
        losses = [self._once(batch) for _ in range(self.step.replays)]
        return sum(losses) / len(losses)

    def _once(self, batch: TrainingBatch) -> float:
        self.optimizer.zero_grad()
        with update_loss(self.step, batch, perturbation=self.perturbation, autocast=self.autocast) as found:
            self.scaler.scale(found.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        return found.loss.item()

    def state(self) -> dict[str, Any]:
        """What has to be kept to go on after an interruption."""
        return {
            "model": self.step.estimator.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(), "step": self.step.state_dict(),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state`."""
        self.step.estimator.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.step.load_state_dict(state["step"])
