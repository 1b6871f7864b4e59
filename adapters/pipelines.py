"""Robust training inside MONAI's engines: every recipe as the ``iteration_update`` of a ``SupervisedTrainer``."""

from __future__ import annotations

from typing import Any

from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from medadv.adapters.engines import bare, check_network, prepared, require_ignite
from medadv.adapters.processes import average_gradients, share_buffers
from medadv.training import Recipe, Step, TrainingBatch, WeightPerturbation
from medadv.training.base import batch_of
from medadv.training.updates import update_loss


class RobustUpdate:
    """The iteration of a MONAI ``SupervisedTrainer`` that trains by a recipe; made by :func:`robust_update`.

    What the trainer says is done: ``prepare_batch``, ``non_blocking``, ``amp`` with ``amp_kwargs`` and its scaler,
    ``optim_set_to_none``, ``accumulation_steps``, and the events of an iteration, which fire once per update. In
    ``engine.state.output`` are IMAGE and LABEL as prepared, LOSS, and PRED: logits of the loss's first forward pass, so
    of the clean images for recipes that show both (TRADES, MART, HAT, VAFT), else of those trained on.
    The trainer's ``loss_function`` and ``inferer`` are not used: the loss is the recipe's, on the estimator's own.

    Where the trainer's network is ``DistributedDataParallel(estimator.model)``, each process attacks and differentiates
    its own batch on the model itself, and the gradients of all are averaged before the optimizer's step, once per
    update however many forward passes a recipe takes; buffers are those of the first process.

    It has a state (the perturbation of ``free``, HAT's helper), so give it to MONAI's ``CheckpointSaver`` beside
    network and optimizer.

    Args:
        step: the recipe at work.
        weight_perturbation: gamma of adversarial weight perturbation; None: none.
    """

    def __init__(self, step: Step, weight_perturbation: float | None = None) -> None:
        self.step = step
        self.perturbation = None if weight_perturbation is None else WeightPerturbation(weight_perturbation)

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept to go on after an interruption."""
        return self.step.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        self.step.load_state_dict(state)

    def __call__(self, engine: Any, batchdata: Any) -> dict[str, Any]:
        """One iteration; ``engine`` and the result are as in MONAI's own."""
        self._check(engine)
        inputs, targets = prepared(engine, batchdata)
        if targets is None:
            raise ValueError("prepare_batch gave no label; training needs a reference for every case.")
        engine.state.output = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: targets}
        # the draws of a case depend on the iteration, so a training that goes on draws as if it had not stopped
        first = distributed.get_rank() * len(inputs) if _is_wrapped(engine) else 0
        ids = [f"{engine.state.iteration}-{place}" for place in range(first, first + len(inputs))]
        if _is_wrapped(engine) and engine.network.broadcast_buffers:
            share_buffers(engine.network.module, engine.network.process_group)
        batch = batch_of(self.step.estimator, inputs, targets, ids)
        for _ in range(self.step.replays):
            self._once(engine, batch)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _once(self, engine: Any, batch: TrainingBatch) -> None:
        first, last, share = _accumulation(engine)
        if first:
            engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        scaler: Any = engine.scaler if engine.amp else None
        autocast = engine.amp_kwargs if engine.amp else None
        with update_loss(self.step, batch, perturbation=self.perturbation, autocast=autocast) as found:
            engine.state.output[CommonKeys.PRED] = found.output
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            engine.state.output[CommonKeys.LOSS] = found.loss
            engine.fire_event(IterationEvents.LOSS_COMPLETED)
            shared = found.loss * share
            (shared if scaler is None else scaler.scale(shared)).backward()
        if last and _is_wrapped(engine):
            average_gradients(engine.network.module, engine.network.process_group)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if last and scaler is None:
            engine.optimizer.step()
        elif last:
            scaler.step(engine.optimizer)
            scaler.update()

    def _check(self, engine: Any) -> None:
        check_network(engine, bare(engine.network), self.step.estimator)
        if self.step.replays > 1 and getattr(engine, "accumulation_steps", 1) > 1:
            raise ValueError(
                f"a recipe that replays each batch {self.step.replays} times updates the weights in between and can't "
                f"accumulate gradients over accumulation_steps={engine.accumulation_steps} batches; set it to 1."
            )


def robust_update(
    estimator: Any, recipe: Recipe, *, seed: int = 0, weight_perturbation: float | None = None
) -> RobustUpdate:
    """Every recipe in the form of MONAI's ``SupervisedTrainer``, which needs pytorch-ignite.

    Args:
        estimator: a medadv estimator; the trainer gets its network: ``network=estimator.model`` or
            ``estimator.network``.
        recipe: how the network is made robust, see :data:`medadv.training.RECIPES`.
        seed: of the attacks' random draws.
        weight_perturbation: gamma of adversarial weight perturbation, see
            :class:`~medadv.training.weights.WeightPerturbation`; None: none.

    Returns:
        What the trainer takes as ``iteration_update``.

    Raises:
        ImportError: pytorch-ignite is not installed.

    Example:
        .. code-block:: python

            trainer = SupervisedTrainer(
                device=device, max_epochs=20, train_data_loader=loader, network=estimator.model, optimizer=optimizer,
                loss_function=None, iteration_update=robust_update(estimator, RECIPES["trades"](eps="4/255"), seed=0),
            )
            trainer.run()
    """
    require_ignite()
    return RobustUpdate(recipe.prepare(estimator, seed), weight_perturbation)


def _is_wrapped(engine: Any) -> bool:
    return isinstance(engine.network, DistributedDataParallel)


def _accumulation(engine: Any) -> tuple[bool, bool, float]:
    """Whether the gradient begins anew with this batch, whether the weights change after it, and its share."""
    steps = getattr(engine, "accumulation_steps", 1)
    length = engine.state.epoch_length
    place = engine.state.iteration - 1 if length is None else (engine.state.iteration - 1) % length
    last = (place + 1) % steps == 0 or place + 1 == length
    return place % steps == 0, last, 1 / steps
