"""Robust metrics beside those of clean images, in the evaluators of MONAI."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.networks.utils import eval_mode
from monai.utils import CommonKeys, optional_import
from torch import Tensor, nn

from medadv.adapters.counterparts import check_attack, counterpart
from medadv.adapters.engines import bare, check_inferer, check_network, prepared, refuse_arguments, require_ignite
from medadv.attacks import CatalogueAttack
from medadv.decisions import as_plain_tensor

Engine, _ = optional_import("ignite.engine", name="Engine")
Events, _ = optional_import("ignite.engine", name="Events")

SUFFIX = "_robust"


class RobustMetrics:
    """Handler that adds metrics of adversarial images to a run of a MONAI ``SupervisedEvaluator``.

    Each batch is attacked right after its clean forward pass. The adversarial images go through the evaluator's own
    inferer, precision, decollation and post-processing (which therefore run twice; of files that they write under the
    same name, those of the clean images remain), and what comes out is shown to ``metrics`` and ``handlers``. The
    evaluator's own output, metrics and handlers see the clean images as ever.

    Once the last batch is done, the values are in ``engine.state.metrics`` and those of each case in
    ``engine.state.metric_details``, before any handler reads them at the end of the epoch: ``StatsHandler`` prints
    them, ``MetricsSaver`` writes them, ``CheckpointSaver(save_key_metric=True, key_metric_name=...)`` selects by them.
    (Of a loader whose length is unknown, only handlers that come after this one find them.)

    Args:
        attack: made by :func:`medadv.attacks.create` for the estimator of the evaluator's network.
        metrics: metrics of ignite or MONAI (``monai.handlers.MeanDice`` and the like) by the name they get; objects of
            their own, not those of the evaluator.
        handlers: further handlers that see the adversarial output, such as a ``MetricsSaver`` with a folder of its own.

    Attributes:
        engine: the engine whose ``state`` has the adversarial ``output`` of the last batch, as the handlers see it.

    Raises:
        ImportError: pytorch-ignite is not installed.
        TypeError: what is no attack.
        ValueError: a targeted attack, as the labels of a batch are not the diagnosis wanted. In the run: an evaluator
            that does not predict as the estimator does.

    Example:
        .. code-block:: python

            shown = from_engine(["pred", "label"])
            attack = create("pgd-dice", estimator, eps="4/255", max_iter=10)
            robust = RobustMetrics(attack, {"val_mean_dice_robust": MeanDice(output_transform=shown)})
            evaluator = SupervisedEvaluator(
                device=device, val_data_loader=loader, network=estimator.model, postprocessing=postprocessing,
                key_val_metric={"val_mean_dice": MeanDice(output_transform=shown)},
                val_handlers=[robust, StatsHandler(), MetricsSaver("out", metric_details="*")],
            )
    """

    def __init__(self, attack: CatalogueAttack, metrics: Mapping[str, Any], handlers: Iterable[Any] = ()) -> None:
        require_ignite()
        check_attack(attack)
        if attack.targeted:
            raise ValueError("a targeted attack needs the diagnosis wanted, which the labels of a batch are not.")
        self.attack = attack
        self.metrics = dict(metrics)
        self.engine = Engine(lambda engine, batch: None)
        self.engine.register_events(*IterationEvents)
        self.engine.state.metric_details = {}
        for name, metric in self.metrics.items():
            metric.attach(self.engine, name)
        for handler in handlers:
            handler.attach(self.engine)
        self._checked = self._finished = False

    def attach(self, engine: Any) -> None:
        """Adds the handler to an evaluator.

        Args:
            engine: a MONAI ``SupervisedEvaluator``.

        Raises:
            TypeError: another engine.
            ValueError: a metric that the evaluator has as well.
        """
        if not isinstance(engine, SupervisedEvaluator):
            raise TypeError(f"robust metrics are of a SupervisedEvaluator, not of {type(engine).__name__}.")
        for name, metric in self.metrics.items():
            if engine.has_event_handler(metric.iteration_completed):
                raise ValueError(f"metric {name!r} is one of the evaluator's own; give an object of its own.")
        for event in (Events.STARTED, Events.EPOCH_STARTED, Events.COMPLETED):
            engine.add_event_handler(event, self._follow, event)
        engine.add_event_handler(Events.ITERATION_STARTED, self._check)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._attack)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._finish_after_the_last)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _follow(self, engine: Any, event: Any) -> None:
        self._checked = self._finished = False
        self._copy_state(engine)
        self.engine.fire_event(event)

    def _copy_state(self, engine: Any) -> None:
        for name in ("rank", "device", "epoch", "max_epochs", "epoch_length", "iteration"):
            setattr(self.engine.state, name, getattr(engine.state, name))

    def _check(self, engine: Any) -> None:
        if self._checked:
            return
        self._checked = True
        network = bare(getattr(engine.network, "_orig_mod", engine.network))
        check_network(engine, network, self.attack.estimator)
        check_inferer(engine, network, self.attack.estimator)
        if engine.mode is not eval_mode:
            raise ValueError(
                "the evaluator runs in mode='train', attacks on a network in inference mode; leave mode out."
            )
        prepared(engine, engine.state.batch)

    def _attack(self, engine: Any) -> None:
        state, clean, batch = engine.state, engine.state.output, engine.state.batch
        images, labels = clean[CommonKeys.IMAGE], clean[CommonKeys.LABEL]
        adversarial = counterpart(self.attack, images, labels)
        state.output = {**clean, CommonKeys.IMAGE: adversarial, CommonKeys.PRED: _prediction(engine, adversarial)}
        state.batch = copy.copy(batch)  # post-processing writes into it
        try:
            engine.fire_event(IterationEvents.MODEL_COMPLETED)
            self.engine.state.output, self.engine.state.batch = state.output, state.batch
        finally:
            state.output, state.batch = clean, batch
        self._copy_state(engine)
        self.engine.fire_event(Events.ITERATION_COMPLETED)

    def _finish_after_the_last(self, engine: Any) -> None:
        length = engine.state.epoch_length
        if length is not None and engine.state.iteration % length == 0:
            self._finish(engine)

    def _finish(self, engine: Any) -> None:
        if self._finished:
            return
        self._finished = True
        self.engine.fire_event(Events.EPOCH_COMPLETED)
        engine.state.metrics.update(self.engine.state.metrics)
        engine.state.metric_details.update(self.engine.state.metric_details)


def _prediction(engine: Any, images: Tensor) -> Any:
    """What the evaluator's network says of images, as in MONAI's own iteration."""
    shown = as_plain_tensor(images) if engine.compile else images
    # "cuda" as in MONAI, so that what is mixed precision there is here, and nothing else
    precision: Any = torch.autocast("cuda", **engine.amp_kwargs) if engine.amp else nullcontext()
    with engine.mode(engine.network), precision:
        found = engine.inferer(shown, engine.network)
    if engine.compile and isinstance(images, MetaTensor):
        return MetaTensor(found, meta=images.meta, applied_operations=images.applied_operations)
    return found


_NOT_TAKEN = {"iteration_update": "an iteration is the clean and the adversarial forward pass of the batch"}


class AdversarialEvaluator(SupervisedEvaluator):
    """A MONAI ``SupervisedEvaluator`` that computes every metric twice: of the clean images and of adversarial ones.

    ``val_mean_dice`` is followed by ``val_mean_dice_robust``, in ``state.metrics`` and ``state.metric_details``, so in
    all that handlers print and write. Output, post-processing and handlers are of the clean images as in MONAI; what
    the adversarial ones give is described in :class:`RobustMetrics`, which is attribute ``robust``.

    Args:
        device: where to run.
        val_data_loader: batches with an image and a label.
        network: ``estimator.model`` of the estimator the attack was made for; or ``estimator.network``, with the
            inferer of the estimator.
        attack: made by :func:`medadv.attacks.create`.
        key_val_metric: as in MONAI; it gives the robust key metric too.
        additional_metrics: as in MONAI.
        suffix: what the names of robust metrics end in.
        key_is_robust: whether the best model is that of the best robust key metric, or of the best clean one.
        adversarial_handlers: handlers that see the adversarial output.
        **kwargs: what else ``SupervisedEvaluator`` takes.

    Raises:
        ImportError: pytorch-ignite is not installed.
        TypeError, ValueError: arguments that don't fit each other; the message says which.

    Example:
        .. code-block:: python

            evaluator = AdversarialEvaluator(
                device, loader, estimator.model, attack=create("pgd-dice", estimator, eps="4/255", max_iter=10),
                key_val_metric={"val_mean_dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
                postprocessing=AsDiscreted(keys=["pred", "label"], argmax=[True, False], to_onehot=2),
            )
            evaluator.run()
            evaluator.state.metrics  # {"val_mean_dice": ..., "val_mean_dice_robust": ...}
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable[Any],
        network: nn.Module,
        *,
        attack: CatalogueAttack,
        key_val_metric: dict[str, Any],
        additional_metrics: dict[str, Any] | None = None,
        suffix: str = SUFFIX,
        key_is_robust: bool = True,
        adversarial_handlers: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        require_ignite()
        refuse_arguments(kwargs, _NOT_TAKEN, type(self).__name__)
        if not isinstance(key_val_metric, Mapping) or not key_val_metric:
            raise ValueError("key_val_metric is empty, so there is nothing to tell of attacks; give a metric by name.")
        if not suffix:
            raise ValueError("suffix is empty, so robust metrics would replace the clean ones; give one.")
        given = {**key_val_metric, **(additional_metrics or {})}
        twins = {f"{name}{suffix}": copy.deepcopy(metric) for name, metric in given.items()}
        self.robust = RobustMetrics(attack, twins, adversarial_handlers)
        self._key_suffix = suffix if key_is_robust else ""
        super().__init__(
            torch.device(device), val_data_loader, network, key_val_metric=key_val_metric,
            additional_metrics=additional_metrics, **kwargs,
        )  # fmt: skip

    def _register_metrics(self, k_metric: dict[str, Any], add_metrics: dict[str, Any] | None = None) -> None:
        self.robust.attach(self)  # before MONAI compares the key metric
        super()._register_metrics(k_metric, add_metrics)
        self.state.key_metric_name += self._key_suffix
