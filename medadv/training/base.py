"""What every training recipe shares: a batch, and the step that turns it into a loss to minimise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medadv.decisions import Decision, as_plain_tensor
from medadv.intensities import Intensity
from medadv.numbers import is_finite


class Trainable(Protocol):
    """What training needs of an estimator."""

    decision: Decision
    intensity: Intensity
    segments: bool

    @property
    def model(self) -> nn.Module:
        """The deployed model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def check_images(self, images: Tensor) -> None:
        """Refuses images that the model can't be meant for."""
        ...

    def training_loss(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean loss of a batch."""
        ...


@dataclass(frozen=True)
class TrainingBatch:
    """Cases of one update.

    Attributes:
        x: images ``(N, C, *S)`` in the estimator's units.
        target: canonical reference.
        valid: where it counts.
        ids: one id per case and epoch, for its random draws.
    """

    x: Tensor
    target: Tensor
    valid: Tensor
    ids: tuple[object, ...]

    def __len__(self) -> int:
        return len(self.x)


class Step(ABC):
    """A recipe at work on one estimator: what is minimised for a batch.

    An update is: :meth:`craft` the batch (inference mode, no gradient of weights), then :meth:`loss` (train mode) and
    its ``backward()``, then the optimizer's step; ``replays`` times per batch.

    Args:
        estimator: a medadv estimator.

    Attributes:
        replays: updates per batch.
    """

    replays = 1

    def __init__(self, estimator: Trainable) -> None:
        self.estimator = estimator

    def craft(self, batch: TrainingBatch) -> Tensor:
        """The images that :meth:`loss` gets beside the batch: adversarial ones, or the images themselves."""
        return batch.x

    @abstractmethod
    def loss(self, batch: TrainingBatch, crafted: Tensor) -> Tensor:
        """What the update minimises, one number with a graph to the weights; the model is in train mode."""

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept to go on after an interruption."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        return

    def __call__(self, x: Tensor, y: Any, *, ids: Any = None) -> Tensor:
        """The loss of a batch, for a training loop of one's own; call it ``replays`` times per batch.

        Args:
            x: images ``(N, C, *S)`` in the estimator's units, on its device.
            y: reference in any usual form.
            ids: one per case for the attack's random draws; default: drawn from torch's generator.

        Returns:
            One number with a graph to the weights; call ``backward()`` and step the optimizer.

        Example:
            >>> import torch
            >>> from medadv.adapters import MonaiClassifier
            >>> from medadv.decisions import Multiclass
            >>> from medadv.training import RECIPES
            >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
            >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
            >>> step = RECIPES["trades"](eps="4/255", steps=2).prepare(estimator, seed=0)
            >>> loss = step(torch.rand(3, 1, 4, 4), [0, 1, 1])
            >>> loss.backward()
            >>> net[1].weight.grad.shape
            torch.Size([2, 16])
        """
        batch = batch_of(self.estimator, x, y, ids)
        crafted = self.craft(batch)
        self.estimator.model.train()
        return self.loss(batch, crafted)


def batch_of(estimator: Trainable, x: Tensor, y: Any, ids: Any = None) -> TrainingBatch:
    """Images (tensors or MetaTensors) and a reference in any usual form as a batch; refuses what can't be right."""
    x = as_plain_tensor(x)
    estimator.check_images(x)
    spatial = tuple(x.shape[2:]) if estimator.segments else ()
    target, valid = estimator.decision.canonical(y, spatial, device=x.device)
    if len(target) != len(x):
        raise ValueError(f"{len(target)} references for {len(x)} images; give one per case.")
    if ids is None:
        ids = torch.randint(2**62, (len(x),)).tolist()
    return TrainingBatch(x, target, valid, tuple(ids))


def check_weights(**weights: float) -> None:
    """Refuses weights of a loss that are negative or not finite."""
    for name, value in weights.items():
        if not (is_finite(value) and value >= 0):
            raise ValueError(f"{name}={value!r} must be a finite number of at least 0.")


def check_share(**shares: float) -> None:
    """Refuses shares of the cases that leave none to the attack."""
    for name, value in shares.items():
        if not (is_finite(value) and 0 <= value < 1):
            raise ValueError(f"{name}={value!r} must be at least 0 and below 1.")


@dataclass(frozen=True)
class Preparation:
    """What a recipe may ask of the training it is part of.

    Attributes:
        estimator: what is trained.
        seed: of all random draws.
        natural_twin: trains a copy of the estimator as it is now by natural training with the same settings.
    """

    estimator: Any
    seed: int
    natural_twin: Callable[[], Any] | None = None


class Recipe(ABC):
    """How a network is trained, as data; :meth:`prepare` sets it to work on an estimator."""

    @property
    def eps_trained(self) -> float | str | None:
        """The budget of grey values that the recipe trains against; None: none."""
        return None

    def described(self) -> str:
        """Name and settings, to tell the recipe from others; what is no plain value is called by its class."""
        plain = (str, int, float, bool, Mapping, type(None))
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}
        settings = [
            f"{name}={v!r}" if isinstance(v, plain) else f"{name}={type(v).__name__}" for name, v in values.items()
        ]
        return f"{type(self).__name__}({', '.join(settings)})"

    @abstractmethod
    def step(self, preparation: Preparation) -> Step:
        """The recipe at work."""

    def prepare(self, estimator: Any, seed: int = 0) -> Step:
        """The recipe at work on an estimator, for a training loop of one's own.

        Args:
            estimator: a medadv estimator.
            seed: of the attack's random draws.
        """
        return self.step(Preparation(estimator, seed))
