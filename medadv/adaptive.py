"""Attackers that know the defence: victims that see through randomness, non-differentiable code and saturated logits.

Each wrapper takes an estimator (or another victim) and returns a :class:`~medadv.victims.Victim` that
:func:`medadv.attacks.create` accepts in place of the estimator. They compose, as in
``eot(bpda(estimator, transform=...), n=8)``. A defence is measured against an attacker that uses them; the adversarial
images are then evaluated on the deployed model itself.
"""

from __future__ import annotations

import copy
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medadv.decisions import Decision, Multiclass
from medadv.intensities import Intensity
from medadv.problem import chain
from medadv.victims import Features, Loss, Passes, Victim, at_inference, logits_in, victim_of

Transform = Callable[[Tensor], Tensor]


class WrappedVictim:
    """A victim around another one; everything that a subclass does not change is the inner victim's.

    Args:
        estimator: a medadv estimator, a stock ART classifier, or a victim.
        modules: further modules that run beside the model, put into inference mode and left as found with it.
    """

    def __init__(self, estimator: Any, modules: Sequence[Any] = ()) -> None:
        self.inner: Victim = victim_of(estimator)
        self.decision = self.inner.decision
        self.intensity = self.inner.intensity
        self.segments = self.inner.segments
        self.deterministic = self.inner.deterministic
        self.check_image_shape = getattr(estimator, "check_image_shape", None)
        self._modules = [module for module in modules if isinstance(module, nn.Module)]

    @property
    def passes(self) -> Passes:
        """What really ran, counted by the innermost victim."""
        return self.inner.passes

    @property
    def module(self) -> nn.Module | None:
        """The module at the core, where there is one."""
        return getattr(self.inner, "module", None)

    @property
    def runs(self) -> int:
        """How often the deployed model runs per look."""
        return getattr(self.inner, "runs", 1)

    @property
    def approximate(self) -> bool:
        """True if outputs that come with a gradient are no verdict."""
        return getattr(self.inner, "approximate", False)

    @property
    def exact(self) -> Any:
        """The same around the inner victim as it is deployed."""
        twin = copy.copy(self)
        twin.inner = getattr(self.inner, "exact", self.inner)
        return twin

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.inner.device

    def logits(self, x: Tensor) -> Any:
        """Output for images ``(N, C, *S)``, without a graph."""
        return self.inner.logits(x)

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Any, Tensor, Tensor]:
        """Output, loss ``(N,)`` and input gradient."""
        return self.inner.differentiate(x, loss)

    @contextmanager
    def attacked(self) -> Iterator[None]:
        """Inference mode of all that runs; all is left as found."""
        with ExitStack() as stack:
            stack.enter_context(self.inner.attacked())
            for module in self._modules:
                stack.enter_context(at_inference(module))
            yield


def _mean_prediction(decision: Decision, values: Sequence[Tensor]) -> Tensor:
    """Logits of the averaged probabilities: thresholds and the leading class are those of the mean prediction."""
    if isinstance(decision, Multiclass):
        return torch.stack([z.log_softmax(1) for z in values]).logsumexp(0) - math.log(len(values))
    given = torch.stack([F.logsigmoid(z) for z in values]).logsumexp(0)
    withheld = torch.stack([F.logsigmoid(-z) for z in values]).logsumexp(0)
    return given - withheld


def _averaged(decision: Decision, outputs: Sequence[Tensor | Features]) -> Tensor | Features:
    if len(outputs) == 1:
        return outputs[0]
    logits = _mean_prediction(decision, [logits_in(output) for output in outputs])
    if isinstance(outputs[0], Tensor):
        return logits
    inside = [output.features for output in outputs if isinstance(output, Features)]
    return Features(logits, {name: torch.stack([f[name] for f in inside]).mean(0) for name in inside[0]})


class ExpectationOverRuns(WrappedVictim):
    """A randomised model as the attacker sees it: see :func:`eot`."""

    def __init__(self, estimator: Any, n: int, seed: int = 0, active: Sequence[type[nn.Module]] = ()) -> None:
        super().__init__(estimator)
        for name, value, least in (("n", n, 1), ("seed", seed, None)):
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or (least is not None and value < least):
                raise ValueError(f"{name}={value!r} must be a whole number{f' of at least {least}' if least else ''}.")
        if getattr(self.decision, "guarded", False):
            raise TypeError("eot(guarded(...)) would average the detector's verdict; use guarded(eot(...)).")
        self.n, self.seed = int(n), int(seed)
        self.deterministic = False
        self._active = self._active_layers(tuple(active))
        self._run = 0

    def _active_layers(self, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
        if not kinds:
            return []
        if self.module is None:
            raise TypeError(f"{type(self.inner).__name__} shows no module, so active= can't find its layers.")
        layers = [layer for layer in self.module.modules() if isinstance(layer, kinds)]
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers):
            raise ValueError("active= names batch norm, which in training mode lets cases influence one another.")
        if not layers:
            names = ", ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"active= names {names}, but the model has no such layer; leave it out.")
        return layers

    @property
    def runs(self) -> int:
        """How often the deployed model runs per look."""
        return self.n * getattr(self.inner, "runs", 1)

    @contextmanager
    def _fresh_draws(self) -> Iterator[None]:
        """Seeds every generator a model may use for one run; the caller's state comes back."""
        digest = hashlib.blake2b(f"{self.seed}/{self._run}".encode(), digest_size=4).digest()
        self._run += 1
        seed = int.from_bytes(digest, "big")
        devices = [self.device] if self.device.type == "cuda" else []
        numpy_state, python_state = np.random.get_state(), random.getstate()
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                np.random.seed(seed)
                random.seed(seed)
                yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)

    def logits(self, x: Tensor) -> Any:
        outputs = []
        for _ in range(self.n):
            with self._fresh_draws():
                outputs.append(self.inner.logits(x))
        return _averaged(self.decision, outputs)

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Any, Tensor, Tensor]:
        outputs = []
        total = torch.zeros_like(x)
        for _ in range(self.n):
            with self._fresh_draws():
                output, _, grad = self.inner.differentiate(x, loss)
            outputs.append(output)
            total += grad
        averaged = _averaged(self.decision, outputs)
        with torch.no_grad():
            # of the averaged output, as images that are only looked at are ranked by it too
            values = loss(averaged)  # type: ignore[arg-type]
        return averaged, values, total / self.n

    @contextmanager
    def attacked(self) -> Iterator[None]:
        with super().attacked():
            for layer in self._active:
                layer.train()
            self._run = 0  # the same attack draws the same
            yield


def eot(estimator: Any, n: int, seed: int = 0, *, active: Sequence[type[nn.Module]] = ()) -> ExpectationOverRuns:
    """Expectation over the runs of a randomised model (arXiv 1707.07397).

    The gradient is the mean of the loss gradients of ``n`` runs with draws of their own. The diagnosis by which images
    are ranked is that of the mean probabilities over ``n`` runs, given as their logits; loss values are of it too. As
    the best of many noisy looks looks better than it is, evaluate what comes out on fresh draws (another ``seed``).
    ``n`` forward (and backward) passes are counted per look. The draws come from (seed, number of the run) alone,
    through torch's, numpy's and Python's global generators, which are left as found; they are shared by a batch, so a
    randomised model is exempt from the promise that batches do not matter (``deterministic`` is False).

    Args:
        estimator: a medadv estimator, a stock ART classifier, or a victim.
        n: runs per look.
        seed: of the draws.
        active: classes of layers that stay in training mode under attack, such as ``torch.nn.Dropout`` of a model
            deployed with dropout on; layers that are random in inference mode anyway need no mention.

    Raises:
        ValueError: ``n`` or ``seed`` is no such number, or ``active`` names layers that the model does not have or
            batch norm.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> attack = create("pgd", eot(estimator, n=4, active=[torch.nn.Dropout]), eps="8/255", max_iter=2)
        >>> x_adv = attack.perturb(torch.rand(3, 1, 4, 4), [0, 1, 0])
        >>> attack.passes
        Passes(forward=12, backward=8)
    """
    return ExpectationOverRuns(estimator, n, seed, active)


class BackwardApproximation(WrappedVictim):
    """A model behind code without a useful gradient: see :func:`bpda`."""

    def __init__(
        self, estimator: Any, transform: Transform, backward: Transform | None, intensity: Intensity | None
    ) -> None:
        super().__init__(estimator, (transform, backward))
        if not callable(transform) or not (backward is None or callable(backward)):
            raise TypeError("transform and backward must be callables on images (N, C, *S); backward=None is identity.")
        self.transform = transform
        self.backward = backward
        self.intensity = self.inner.intensity if intensity is None else intensity
        self._check_seen, self.check_image_shape = self.check_image_shape, None

    def _seen(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.transform(x.detach())
        if not isinstance(z, Tensor) or len(z) != len(x):
            got = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"transform gave {got} for {len(x)} images; it must return a tensor (N, C, *S).")
        if self._check_seen is not None:
            self._check_seen(tuple(z.shape))
        return z.detach().to(x.dtype)

    def logits(self, x: Tensor) -> Any:
        return self.inner.logits(self._seen(x))

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Any, Tensor, Tensor]:
        z = self._seen(x)
        output, values, grad = self.inner.differentiate(z, loss)
        if self.backward is not None:
            return output, values, chain(self.backward, x, grad)
        if z.shape != x.shape:
            raise ValueError(
                f"transform turns shape {tuple(x.shape)} into {tuple(z.shape)}, through which the identity has no "
                "gradient; give backward=, a differentiable approximation of it."
            )
        return output, values, grad


def bpda(
    estimator: Any, *, transform: Transform, backward: Transform | None = None, intensity: Intensity | None = None
) -> BackwardApproximation:
    """Backward pass by a differentiable approximation (arXiv 1802.00420), for preprocessing without a useful gradient.

    The forward pass runs ``transform`` exactly, in front of the model; in the backward pass it is replaced by
    ``backward``. Random transforms go inside :func:`eot`.

    Args:
        estimator: the model behind the transform.
        transform: images ``(N, C, *S)`` -> images the model takes, such as quantisation or a denoiser; case by case.
        backward: differentiable approximation of ``transform``; None: the identity.
        intensity: range and unit of the images in front of the transform; default: the model's.

    Raises:
        TypeError: a transform that can't be called.
        ValueError: (when it runs) a transform that changes the number of cases, or the shape without ``backward``.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> victim = bpda(estimator, transform=lambda x: (x * 16).round() / 16)
        >>> x = torch.rand(3, 1, 4, 4)
        >>> bool((create("pgd", victim, eps=0.1, max_iter=2).perturb(x, [0, 1, 0]) - x).abs().max() <= 0.1)
        True
    """
    return BackwardApproximation(estimator, transform, backward, intensity)


class RescaledLogits(WrappedVictim):
    """A model whose logits are rescaled about the decision threshold: see :func:`rescaled`."""

    def __init__(self, estimator: Any, scale: float | str) -> None:
        super().__init__(estimator)
        number = isinstance(scale, int | float | np.number) and not isinstance(scale, bool)
        if scale != "auto" and not (number and 0 < float(scale) < math.inf):
            raise ValueError(f"scale={scale!r} must be 'auto' or a positive number.")
        if getattr(self.decision, "guarded", False):
            raise TypeError("rescaled(guarded(...)) would rescale the detector too; use guarded(rescaled(...)).")
        self.scale = scale if isinstance(scale, str) else float(scale)

    def _rescaled(self, output: Tensor | Features) -> Tensor | Features:
        z = self.distance(logits_in(output))
        return z if isinstance(output, Tensor) else Features(z, output.features)

    def distance(self, z: Tensor) -> Tensor:
        """Logits ``(N, C, *S)``, rescaled."""
        if isinstance(self.decision, Multiclass):
            return self._shrunk(z - z.amax(1, keepdim=True))
        threshold = self.decision.logit_threshold(z)  # type: ignore[attr-defined]
        moved = threshold + self._shrunk(z - threshold)
        # rounding must not carry a logit beside the threshold onto it
        given = torch.nextafter(threshold, torch.full_like(threshold, torch.inf))
        return torch.where((z > threshold) & (moved <= threshold), given, moved)

    def _shrunk(self, distance: Tensor) -> Tensor:
        if isinstance(self.scale, float):
            return distance * self.scale
        # two branches, as |d| has no gradient at 0
        near, far = distance.clamp(min=0).log1p(), (-distance).clamp(min=0).log1p()
        return torch.where(distance >= 0, near, -far)

    def logits(self, x: Tensor) -> Any:
        return self._rescaled(self.inner.logits(x))

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Any, Tensor, Tensor]:
        output, values, grad = self.inner.differentiate(x, lambda z: loss(self._rescaled(z)))  # type: ignore[arg-type]
        return self._rescaled(output), values, grad


def rescaled(estimator: Any, scale: float | str = "auto") -> RescaledLogits:
    """Logits rescaled about the decision threshold, so that a softmax or sigmoid loss of a very sure model does not
    saturate and lose its gradient. The hard diagnosis does not change.

    Distances are measured from the leading class (Multiclass) or from each label's threshold (Multilabel), per image or
    voxel, so nothing depends on other cases and values of different steps can be compared.

    Args:
        estimator: a medadv estimator, a stock ART classifier, or a victim.
        scale: factor of the distance; ``"auto"``: distance d becomes ``sign(d) log(1 + |d|)``, which leaves logits near
            the threshold as they are and whose cross-entropy falls off as ``1 / d`` instead of ``exp(-d)``.

    Raises:
        ValueError: a scale that is neither.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> net[1].weight.data *= 1e4  # a loss of such logits has no gradient in float32
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> create("pgd", rescaled(estimator), eps=0.1, max_iter=2).name
        'pgd'
    """
    return RescaledLogits(estimator, scale)
