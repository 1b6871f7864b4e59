"""What medadv's parts of MONAI's engines share: pytorch-ignite, and an engine that runs the very model attacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from monai.inferers import SimpleInferer
from monai.utils import optional_import
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from medadv.adapters.base import MonaiEstimator
from medadv.adapters.deployed import deployed_in

_, HAS_IGNITE = optional_import("ignite")


def require_ignite() -> None:
    """Says how to install what MONAI's engines need.

    Raises:
        ImportError: pytorch-ignite is not installed.
    """
    if not HAS_IGNITE:
        raise ImportError("MONAI's engines need pytorch-ignite; install it by: pip install 'medadv[engines]'.")


def bare(network: Any) -> Any:
    """A network without what torch wraps around it to run it on several processes."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def check_network(engine: Any, network: Any, estimator: Any) -> None:
    """Refuses an engine whose network is not that of an estimator.

    Args:
        engine: what the message calls by its class.
        network: the engine's network, without wrappers.
        estimator: a medadv estimator.

    Raises:
        TypeError: an estimator whose model alone does not say what is deployed.
        ValueError: another network, or one that is wrapped inside the estimator.
    """
    if not isinstance(estimator, MonaiEstimator):
        raise TypeError(
            f"{type(estimator).__name__} is no estimator of medadv, so what it does outside its network would be "
            "missed; wrap the network in medadv.adapters.MonaiClassifier, MonaiMultilabelClassifier or MonaiSegmenter."
        )
    if any(isinstance(part, DistributedDataParallel) for part in estimator.model.modules()):
        raise ValueError(
            "the network was wrapped in DistributedDataParallel before the estimator was made; make the estimator of "
            "the network itself and give the engine network=DistributedDataParallel(estimator.model)."
        )
    if network is not estimator.model and network is not getattr(estimator.model, "network", None):
        raise ValueError(
            f"the network of {type(engine).__name__} ({type(network).__name__}) is not that of the estimator that is "
            "attacked; give network=estimator.model, and compile the network, if at all, before it is wrapped."
        )


def check_inferer(engine: Any, network: Any, estimator: Any) -> None:
    """Refuses an evaluator that predicts in another way than its estimator, so that attacks would miss something.

    Args:
        engine: a ``SupervisedEvaluator`` whose network passed :func:`check_network`.
        network: its network, without wrappers.
        estimator: the medadv estimator that is attacked.

    Raises:
        ValueError: another inferer, or a transform of the input that only the estimator has.
    """
    plain = isinstance(engine.inferer, SimpleInferer)
    if network is estimator.model:
        if not plain:
            raise ValueError(
                f"the estimator's model has its inferer inside, and {type(engine.inferer).__name__} would run around "
                "it; leave inferer out, or give network=estimator.network."
            )
        return
    deployed = deployed_in(estimator.model)
    if deployed.input_transform is not None:
        raise ValueError(
            "the estimator has an input_transform that the evaluator's network would not see; give "
            "network=estimator.model."
        )
    own = deployed.inferer
    if not (plain if own is None else _same_settings(engine.inferer, own)):
        raise ValueError(
            f"the evaluator predicts with {type(engine.inferer).__name__}, the estimator that is attacked with "
            f"{'the whole image' if own is None else type(own).__name__} or other settings; give the estimator and the "
            "evaluator one inferer, or give network=estimator.model and no inferer."
        )


# settings of an inferer that say how it runs and not what it predicts
_HOW_IT_RUNS = {"progress", "sw_batch_size", "cpu_thresh", "buffer_steps", "buffer_dim", "device", "sw_device"}


def _same_settings(first: Any, second: Any) -> bool:
    """Whether two inferers predict the same."""
    if first is second:
        return True
    mine, theirs = ({k: v for k, v in vars(i).items() if k not in _HOW_IT_RUNS} for i in (first, second))
    return (
        type(first) is type(second) and mine.keys() == theirs.keys() and all(_equal(mine[k], theirs[k]) for k in mine)
    )


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return isinstance(first, Tensor) and isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, Sequence) and isinstance(second, Sequence) and not isinstance(first, str | Enum):
        return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second))
    return bool(first == second)


def prepared(engine: Any, batchdata: Any) -> tuple[Tensor, Tensor | None]:
    """Images and reference of a batch as the engine prepares them, on its device.

    Raises:
        ValueError: no batch, or further arguments for the network, which an estimator's model does not take.
    """
    if batchdata is None:
        raise ValueError("the loader gave None; it must give batches with an image.")
    inputs, targets, *others = engine.prepare_batch(
        batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs
    )
    if any(others):
        raise ValueError(
            "prepare_batch gave further arguments for the network; an estimator's model takes images alone."
        )
    return inputs, targets


def refuse_arguments(given: Mapping[str, Any], reasons: Mapping[str, str], name: str) -> None:
    """Refuses arguments of MONAI's engine that an engine of medadv can't have, with the reason of each.

    Raises:
        TypeError: one of them was given.
    """
    for argument in given:
        if argument in reasons:
            raise TypeError(f"{name} takes no {argument}=: {reasons[argument]}.")
