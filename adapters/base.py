"""What all estimators share: the deployed model, its decision and intensity, gradients to the input alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.estimators.pytorch import PyTorchEstimator
from torch import Tensor, nn

from medadv.adapters.acceleration import NONE, Acceleration, SearchNetwork, acceleration_of
from medadv.adapters.precision import DeployedVictim, search_dtype
from medadv.decisions import Decision, Multilabel, as_plain_tensor
from medadv.intensities import Intensity
from medadv.objectives import Objective, make_objective
from medadv.training import train
from medadv.victims import ModuleVictim, left_as_found

LossFunction = Callable[[Tensor, Tensor], Tensor]

# ART's attacks overshoot their box by rounding; a z-scored image misses it by far more
_RANGE_TOLERANCE = 1e-3


class MonaiEstimator(PyTorchEstimator):
    """What all estimators share: the deployed model with its decision and intensity, gradients to the input alone.

    Attributes:
        decision: how logits become a diagnosis.
        intensity: range and unit of the images.
        segments: True if there is one diagnosis per voxel.
        acceleration: the form of the network that attacks compute gradients in, by a name of
            :data:`~medadv.adapters.acceleration.ACCELERATIONS` or as one of its values; what scores images and chooses
            the one that is returned is always the network itself. May be set; see
            :func:`~medadv.adapters.calibration.calibrate`.
    """

    decision: Decision
    intensity: Intensity
    segments: bool
    _search: SearchNetwork | None
    loss_objective: Objective
    _optimizer: torch.optim.Optimizer | None
    _range_tolerance = _RANGE_TOLERANCE

    @property
    def network(self) -> nn.Module:
        """The user's network, as it was given."""
        return self.model.network

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    def victim(self) -> ModuleVictim:
        """The model as medadv's attacks see it, with a pass counter of its own."""
        return DeployedVictim(self.model, self.decision, self.intensity, segments=self.segments, search=self._search)

    @property
    def acceleration(self) -> Acceleration:
        """The form of the network that attacks compute gradients in."""
        return NONE if self._search is None else self._search.how

    @acceleration.setter
    def acceleration(self, how: Acceleration | str | None) -> None:
        chosen = how if isinstance(how, Acceleration) else acceleration_of(how)
        if chosen.dtype is not None:
            search_dtype("bfloat16", self.network)
        if chosen != self.acceleration:
            self._search = None if chosen == NONE else SearchNetwork(self.network, chosen)

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses images of another rank or number of channels than ``input_shape``."""
        if len(shape) != len(self.input_shape) + 1 or shape[1] != self.input_shape[0]:
            raise ValueError(
                f"images have shape {shape}; this model takes (N, {self.input_shape[0]}, *S) with "
                f"{len(self.input_shape) - 1} spatial dimensions."
            )

    def check_images(self, images: Tensor) -> None:
        """Refuses images ``(N, C, *S)`` that this model can't be meant for: shape, dtype, or range."""
        self.check_image_shape(tuple(images.shape))
        if not len(images):
            raise ValueError("the batch is empty; give at least one image.")
        if not images.is_floating_point():
            raise ValueError(f"images have dtype {images.dtype}; convert them to float32 and keep their units.")
        self.intensity.check(images, tolerance=self._range_tolerance)

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **kwargs: Any) -> np.ndarray:
        """Logits of images.

        Args:
            x: images ``(N, C, *S)`` in the units of :attr:`intensity`; float64 is cast to the network's precision.
            batch_size: images per forward pass.
            training_mode: True runs batch norm and dropout as in training.

        Returns:
            Logits ``(N, C, *S)``, float32.
        """
        images = self._images(x)
        victim = self.victim()
        with left_as_found(self.model):
            self.model.train(training_mode)
            logits = torch.cat([victim.logits(part) for part in images.split(batch_size)])
        return logits.to(torch.float32).cpu().numpy()

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **kwargs: Any) -> Any:
        """Gradient of the summed loss to the images, so that no case changes another's; no weight gradients.

        Args:
            x: images ``(N, C, *S)``, array or tensor.
            y: reference in any usual form, or the model's own logits.
            training_mode: as in :meth:`predict`.

        Returns:
            Array or tensor like ``x``.
        """
        images = self._images(x)
        target, valid = self.referred(images, y)
        victim = self.victim()
        with left_as_found(self.model):
            self.model.train(training_mode)
            _, _, grad = victim.differentiate(images, lambda z: self.loss_objective(z, target, valid=valid))
        return _like(grad, x)

    def compute_loss(self, x: Any, y: Any, reduction: str = "none", **kwargs: Any) -> Any:
        """The loss of each case ``(N,)``, or its ``"mean"`` or ``"sum"``."""
        images = self._images(x)
        target, valid = self.referred(images, y)
        with left_as_found(self.model):
            self.model.eval()
            values = self.loss_objective(self.victim().logits(images), target, valid=valid)
        reduced = {"none": values, "mean": values.mean(), "sum": values.sum()}
        if reduction not in reduced:
            raise ValueError(f"reduction={reduction!r} is unknown; choose 'none', 'mean' or 'sum'.")
        return reduced[reduction] if isinstance(x, Tensor) else reduced[reduction].cpu().numpy()

    def training_loss(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """What :meth:`fit` minimises: the mean loss of the cases."""
        return self.loss_objective(output, target, valid=valid).mean()

    def fit(self, x: np.ndarray, y: np.ndarray, batch_size: int = 16, nb_epochs: int = 20, **kwargs: Any) -> None:  # type: ignore[override]
        """Trains the network on images and references (the inferer is left out in training mode).

        Args:
            x: images ``(N, C, *S)``.
            y: reference in any usual form.
            batch_size: cases per update.
            nb_epochs: passes over the data.
            **kwargs: ``seed`` of the shuffling, ``verbose`` for a progress bar. ART's trainers hand over further
                ones that concern other frameworks; these are ignored as ART's own estimators do.
        """
        optimizer = self.optimizer
        train(
            self,
            self._images(x),
            y,
            optimizer=optimizer,
            batch_size=batch_size,
            epochs=nb_epochs,
            seed=kwargs.get("seed"),
            progress=bool(kwargs.get("verbose")),
        )

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer given, or Adam with a learning rate of 1e-3."""
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        return self._optimizer

    @property
    def layer_names(self) -> list[str]:
        """Names of the network's submodules, for :meth:`get_activations`."""
        return [name for name, _ in self.network.named_modules() if name]

    def get_activations(self, x: Any, layer: int | str, batch_size: int = 128, framework: bool = False) -> Any:
        """Output of a submodule of the network.

        Args:
            x: images, array or tensor.
            layer: name in :attr:`layer_names`, or its index there.
            batch_size: images per forward pass.
            framework: True returns a tensor with its graph.
        """
        names = self.layer_names
        known = -len(names) <= layer < len(names) if isinstance(layer, int) else layer in names
        if not known:
            raise ValueError(f"layer {layer!r} is unknown; see layer_names.")
        name = names[layer] if isinstance(layer, int) else layer
        seen: list[Any] = []
        hook = self.network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: seen.append(output)
        )
        images = x if framework and isinstance(x, Tensor) else self._images(x)
        try:
            with left_as_found(self.model), torch.set_grad_enabled(framework):
                self.model.eval()
                # a graph that leads to the weights would leave gradients there once ART runs backward()
                self.model.requires_grad_(False)
                for part in [images] if framework else images.split(batch_size):
                    before = len(seen)
                    self.model(part)
                    self._check_activation(name, seen[before:], len(part))
        finally:
            hook.remove()
        activations = torch.cat(seen).as_subclass(Tensor)
        return activations if framework else activations.cpu().numpy()

    @staticmethod
    def _check_activation(name: str, outputs: list[Any], cases: int) -> None:
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or len(outputs[0]) != cases:
            found = ", ".join(str(tuple(o.shape)) if isinstance(o, Tensor) else type(o).__name__ for o in outputs)
            raise ValueError(
                f"layer {name!r} gave {found or 'nothing'} for {cases} images; choose a layer that runs once per image "
                "and returns a tensor (windows of a sliding-window inferer have no activations of the whole image)."
            )

    def _images(self, x: Any) -> Tensor:
        """Checked images on the model's device, in the network's precision."""
        images = x.detach().as_subclass(Tensor) if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
        self.check_images(images)
        return images.to(self._device, dtype_of(self.model))

    def referred(self, images: Tensor, y: Any) -> tuple[Tensor, Tensor]:
        """Canonical reference of some images and where it counts, from any usual form of it."""
        spatial = tuple(images.shape[2:]) if self.segments else ()
        values = as_plain_tensor(y)
        if isinstance(self.decision, Multilabel) and values.is_floating_point():
            ambiguous = bool(((values >= 0) & (values <= 1)).all()) and bool((values != values.round()).any())
            if ambiguous:  # as logits, probabilities would all count as labels that are given
                raise ValueError(
                    "the reference holds fractions between 0 and 1, which may be probabilities or logits; give labels "
                    "of 0 and 1."
                )
        target, valid = self.decision.canonical_or_logits(values, spatial, device=self._device)
        if len(target) != len(images):
            raise ValueError(f"{len(target)} references for {len(images)} images; give one per case.")
        return target, valid

    def _describe(
        self,
        decision: Decision,
        intensity: Intensity,
        loss: Any,
        default: str,
        *,
        segments: bool,
        search_precision: str | None,
    ) -> None:
        self.decision = decision
        self.intensity = intensity
        self.segments = segments
        self._search = None
        self.acceleration = Acceleration(dtype=search_dtype(search_precision, self.network))
        self.loss_objective = make_objective(default if loss is None else loss, decision, targeted=False)


def _like(result: Tensor, x: Any) -> Any:
    return result.to(x.dtype) if isinstance(x, Tensor) else result.cpu().numpy().astype(x.dtype, copy=False)


def clip_values_of(intensity: Intensity, dims: int) -> tuple[Any, Any]:
    """An intensity range as ART's ``clip_values``: two numbers, or two arrays ``(C, 1, ...)``."""
    if len(intensity.lows) == 1:
        return intensity.lows[0], intensity.highs[0]
    shape = (-1, *[1] * dims)
    return np.array(intensity.lows, dtype=np.float32).reshape(shape), np.array(
        intensity.highs, dtype=np.float32
    ).reshape(shape)


def device_of(network: nn.Module, device: torch.device | str | None) -> torch.device:
    """The device asked for, or the one the network is on."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}.")
    if device is not None:
        return torch.device(device)
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def dtype_of(network: nn.Module) -> torch.dtype:
    """The precision of a network; float32 where nothing says."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def check_input_shape(input_shape: tuple[int, ...]) -> None:
    """Refuses what is no shape of one 2D or 3D image."""
    if len(input_shape) not in (3, 4) or not all(isinstance(s, int) and s > 0 for s in input_shape):
        raise ValueError(f"input_shape={input_shape} must be (C, H, W) or (C, H, W, D), without the batch.")
