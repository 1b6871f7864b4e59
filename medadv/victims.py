"""A model as the attacker sees it: logits, input gradients, and a count of every pass that ran."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from medadv.decisions import Decision, Multiclass
from medadv.intensities import Intensity

Loss = Callable[[Tensor], Tensor]


@dataclass
class Passes:
    """Forward and backward passes of whole batches that really ran."""

    forward: int = 0
    backward: int = 0

    def __sub__(self, earlier: Passes) -> Passes:
        return Passes(self.forward - earlier.forward, self.backward - earlier.backward)

    def copy(self) -> Passes:
        """The counts as they are now."""
        return Passes(self.forward, self.backward)


@dataclass(frozen=True)
class Features:
    """What a model that shows its inside returns.

    Attributes:
        logits: ``(N, C, *S)``.
        features: named activations ``(N, ...)``.
    """

    logits: Tensor
    features: dict[str, Tensor]


def logits_in(output: Tensor | Features) -> Tensor:
    """The logits of a victim's output."""
    return output if isinstance(output, Tensor) else output.logits


class SegmenterMixin:
    """Marks an ART estimator whose output is one diagnosis per voxel, ``(N, C, *S)``; ART has no such mixin."""


@runtime_checkable
class Victim(Protocol):
    """The deployed model: input transform, network, inferer and head as one function.

    Attributes:
        decision: how its logits become a diagnosis.
        intensity: range and unit of its input.
        deterministic: False if the same input may give another output.
        passes: counts what ran.
        segments: True if it has one diagnosis per voxel.
    """

    decision: Decision
    intensity: Intensity
    deterministic: bool
    passes: Passes
    segments: bool

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """Images ``(N, C_in, *S_in)`` -> logits ``(N, C, *S)``, without a graph."""
        ...

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the model and the gradient of ``loss(output).sum()`` to the input.

        Args:
            x: images ``(N, C_in, *S_in)``.
            loss: logits -> one number per case ``(N,)``.

        Returns:
            Detached logits, loss ``(N,)`` and input gradient like ``x``. No gradient of weights is computed.
        """
        ...

    def attacked(self) -> Any:
        """Context in which attacks run: inference mode of every layer; all is restored at the end, generators too."""
        ...


class ModuleVictim:
    """A :class:`Victim` made of one ``nn.Module`` from images to logits, differentiated by autograd.

    Args:
        module: the deployed model.
        decision: how its logits become a diagnosis.
        intensity: range and unit of its input.
        segments: True if its output has one diagnosis per voxel.
        deterministic: False for models that draw random numbers at inference.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> from medadv.intensities import Intensity
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> victim = ModuleVictim(net, Multiclass(2), Intensity(0, 1), segments=False)
        >>> output, loss, grad = victim.differentiate(torch.rand(3, 1, 2, 2), lambda z: z[:, 0])
        >>> grad.shape, victim.passes
        (torch.Size([3, 1, 2, 2]), Passes(forward=1, backward=1))
    """

    def __init__(
        self, module: nn.Module, decision: Decision, intensity: Intensity, *, segments: bool, deterministic: bool = True
    ) -> None:
        self.module = module
        self.decision = decision
        self.intensity = intensity
        self.segments = segments
        self.deterministic = deterministic
        self.passes = Passes()

    @property
    def _like(self) -> Tensor:
        return next((p for p in self.module.parameters() if p.is_floating_point()), torch.empty(0))

    @property
    def device(self) -> torch.device:
        return self._like.device

    def _run(self, x: Tensor) -> Tensor:
        # the attacked image keeps its own precision; only the network's view of it is cast
        output = self.module(x.to(self._like.dtype))
        self.passes.forward += 1
        return output.as_subclass(Tensor)

    def logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._run(x)

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            output = self._run(leaf)
            values = loss(output)
            (grad,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
        if grad is None:  # the output is cut off from the input: no direction, and attacks tell so
            grad = torch.full_like(leaf, torch.nan, requires_grad=False)
        self.passes.backward += 1
        return output.detach(), values.detach(), grad

    @contextmanager
    def attacked(self) -> Iterator[None]:
        with at_inference(self.module):
            yield


@contextmanager
def at_inference(module: nn.Module) -> Iterator[None]:
    """Inference mode of every layer; all is restored at the end (:func:`left_as_found`)."""
    with left_as_found(module) as training:
        if training:  # to tell every layer again takes a good part of a pass through a small network
            module.eval()
        yield


@contextmanager
def left_as_found(module: nn.Module) -> Iterator[bool]:
    """Restores a model and all random number generators on leaving, also after an exception.

    Kept are the training flag of every submodule, ``requires_grad`` and ``.grad`` of every parameter, the value of
    every buffer, and the states of torch's, numpy's and Python's global generators.

    Yields:
        Whether any submodule was in training mode.
    """
    # one walk, buffers in few tensors, and nothing written that is as it was: with hundreds of small layers the rest of
    # an attack of one step takes less than doing it one by one
    children = _submodules(module)
    flags = [(child, child.training) for child in children]
    parameters = [
        (p, p.requires_grad, p.grad) for child in children for p in child._parameters.values() if p is not None
    ]
    buffers = _alike(b for child in children for b in child._buffers.values() if b is not None)
    with torch.no_grad():
        values = [torch.stack(group) for group in buffers]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = sorted({p.device.index or 0 for p, _, _ in parameters if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield any(flag for _, flag in flags)
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for child, flag in flags:
            if child.training != flag:
                child.training = flag
        for parameter, requires_grad, grad in parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
        with torch.no_grad():
            for group, stacked in zip(buffers, values, strict=True):
                if not torch.equal(torch.stack(group), stacked):
                    for buffer, value in zip(group, stacked, strict=True):
                        buffer.copy_(value)


def _submodules(module: nn.Module) -> list[nn.Module]:
    """As ``module.modules()``, whose nested generators take three times as long."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        child = waiting.pop()
        if child is not None and child not in found:
            found[child] = None
            waiting.extend(child._modules.values())
    return list(found)


def _alike(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors grouped by shape, type and place, so that each group can be stacked."""
    groups: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def victim_of(estimator: Any) -> Victim:
    """The victim behind an ART estimator.

    Args:
        estimator: a medadv estimator (anything with a ``victim()`` method), a stock ``PyTorchClassifier`` whose
            defences are not numpy code, or a :class:`Victim`.

    Raises:
        TypeError: the estimator can't be differentiated as deployed; the message says why and what to use.
    """
    if isinstance(estimator, Victim):
        return estimator
    if callable(getattr(estimator, "victim", None)):
        return estimator.victim()
    if isinstance(estimator, PyTorchClassifier):
        return _stock_victim(estimator)
    raise TypeError(
        f"{type(estimator).__name__} is no estimator that medadv can attack; wrap the network in "
        "medadv.adapters.MonaiClassifier, MonaiMultilabelClassifier or MonaiSegmenter."
    )


def _stock_victim(estimator: PyTorchClassifier) -> Victim:
    defences = [*(estimator.preprocessing_defences or []), *(estimator.postprocessing_defences or [])]
    if estimator.preprocessing is not None and not hasattr(estimator.preprocessing, "std"):
        defences.append(estimator.preprocessing)
    if defences:
        names = ", ".join(type(defence).__name__ for defence in defences)
        raise TypeError(
            f"this PyTorchClassifier has defences ({names}) that are not part of its network, so gradients would miss "
            "them; put differentiable ones into the network or use medadv.adapters.MonaiClassifier."
        )
    if estimator.clip_values is None:
        raise TypeError(
            "this PyTorchClassifier has no clip_values, so its intensity range is unknown; set clip_values=(low, high)."
        )
    low, high = (np.atleast_1d(np.squeeze(v)).astype(float) for v in estimator.clip_values)
    intensity = Intensity(low[0], high[0]) if len(low) == 1 else Intensity(tuple(low), tuple(high))
    module = _Preprocessed(estimator)
    return ModuleVictim(module, Multiclass(estimator.nb_classes), intensity, segments=False)


class _Preprocessed(nn.Module):
    """A stock classifier's network behind its mean/std preprocessing, which ART applies outside the network."""

    def __init__(self, estimator: PyTorchClassifier) -> None:
        super().__init__()
        self.network = estimator._model._model
        self.standardisation = estimator.preprocessing

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x if self.standardisation is None else self.standardisation.forward(x)[0].to(x.dtype))
