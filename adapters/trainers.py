"""Robust training as a MONAI trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import nn
from torch.optim import Optimizer

from medadv.adapters.engines import bare, check_network, refuse_arguments
from medadv.adapters.pipelines import robust_update
from medadv.training import Recipe

_NOT_TAKEN = {
    "loss_function": "the loss is the recipe's, made of the estimator's own; give the estimator loss=",
    "inferer": "the network is trained on the images as they are loaded",
    "iteration_update": "an iteration is an update of the recipe",
    "compile": "compile the network before the estimator is made",
    "compile_kwargs": "compile the network before the estimator is made",
}


class AdversarialTrainer(SupervisedTrainer):
    """A MONAI ``SupervisedTrainer`` that trains by a recipe of :data:`medadv.training.RECIPES`.

    Handlers, events, metrics, post-processing, mixed precision and accumulated gradients are MONAI's; see
    :class:`~medadv.adapters.pipelines.RobustUpdate` for what an iteration is. On several GPUs, give each process
    ``network=DistributedDataParallel(estimator.model)`` and its share of the data, as for MONAI's trainers.

    Args:
        device: where to run; that of the estimator.
        max_epochs: passes over the data.
        train_data_loader: batches with an image and a label.
        estimator: a medadv estimator; its network is trained in place.
        optimizer: of its weights.
        recipe: how the network is made robust.
        network: ``estimator.model``, wrapped in ``DistributedDataParallel``; None: ``estimator.model``.
        seed: of the attacks' random draws.
        weight_perturbation: gamma of adversarial weight perturbation; None: none.
        **kwargs: what else ``SupervisedTrainer`` takes.

    Attributes:
        update: the recipe at work, for ``CheckpointSaver``: its state belongs beside those of network, optimizer and
            trainer.

    Raises:
        ImportError: pytorch-ignite is not installed.
        TypeError: an argument of ``SupervisedTrainer`` that a recipe leaves no room for.
        ValueError: a network that is not the estimator's, or a recipe that is not for it.

    Example:
        .. code-block:: python

            trainer = AdversarialTrainer(
                device, 20, loader, estimator, torch.optim.Adam(estimator.model.parameters(), 1e-3),
                RECIPES["trades"](eps="4/255"), train_handlers=[ValidationHandler(1, evaluator)],
            )
            saver = CheckpointSaver("out", {"net": estimator.network, "recipe": trainer.update}, save_final=True)
            saver.attach(trainer)
            trainer.run()
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Any],
        estimator: Any,
        optimizer: Optimizer,
        recipe: Recipe,
        *,
        network: nn.Module | None = None,
        seed: int = 0,
        weight_perturbation: float | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_arguments(kwargs, _NOT_TAKEN, type(self).__name__)
        trained = estimator.model if network is None else network
        check_network(self, bare(trained), estimator)
        self.update = robust_update(estimator, recipe, seed=seed, weight_perturbation=weight_perturbation)
        super().__init__(
            device, max_epochs, train_data_loader, trained, optimizer,
            loss_function=estimator.training_loss, iteration_update=self.update, **kwargs,
        )  # fmt: skip
