"""Models that show their inside, and what clean images look like there: Gaussian mixtures per layer and class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from medadv.decisions import Multiclass
from medadv.victims import Features, Loss, ModuleVictim, Victim, victim_of


class FeatureVictim(ModuleVictim):
    """A model whose output is :class:`~medadv.victims.Features`: its logits and the activations of named layers.

    Args:
        estimator: a medadv estimator, a stock ART classifier, or a :class:`~medadv.victims.ModuleVictim`.
        layers: names of submodules of the user's network.

    Raises:
        TypeError: a model that is no single module.
        ValueError: no layer, or one that the network does not have.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> victim = FeatureVictim(MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2)), ["0"])
        >>> victim.logits(torch.rand(3, 1, 4, 4)).features["0"].shape
        torch.Size([3, 4, 2, 2])
    """

    def __init__(self, estimator: Any, layers: Sequence[str]) -> None:
        inner = victim_of(estimator)
        if not isinstance(inner, ModuleVictim) or isinstance(inner, FeatureVictim):
            raise TypeError(
                f"{type(inner).__name__} is no plain model whose layers can be read; make the feature victim first and "
                "wrap it, as in eot(FeatureVictim(estimator, layers), n=8)."
            )
        super().__init__(
            inner.module, inner.decision, inner.intensity, segments=inner.segments, deterministic=inner.deterministic
        )
        self.check_image_shape = getattr(estimator, "check_image_shape", None)
        network: Any = getattr(estimator, "network", None) or getattr(inner.module, "network", inner.module)
        known = dict(network.named_modules())
        if isinstance(layers, str) or not layers or not all(layer in known and layer for layer in layers):
            some = [name for name in known if name][:8]
            raise ValueError(
                f"layers={layers!r} must name submodules of the network, such as {', '.join(map(repr, some))}."
            )
        self.layers = tuple(layers)
        self._watched: dict[str, nn.Module] = {layer: known[layer] for layer in layers}

    def _run(self, x: Tensor) -> Features:  # type: ignore[override]
        seen: dict[str, list[Any]] = {layer: [] for layer in self.layers}
        hooks = [
            module.register_forward_hook(lambda _, inputs, output, layer=layer: seen[layer].append(output))
            for layer, module in self._watched.items()
        ]
        try:
            logits = super()._run(x)
        finally:
            for hook in hooks:
                hook.remove()
        return Features(logits, {layer: self._activation(layer, seen[layer], len(x)) for layer in self.layers})

    @staticmethod
    def _activation(layer: str, outputs: list[Any], cases: int) -> Tensor:
        if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or len(outputs[0]) != cases:
            raise ValueError(
                f"layer {layer!r} ran {len(outputs)} times for {cases} images or gives no tensor (N, ...); choose one "
                "that runs once on whole images."
            )
        return outputs[0].as_subclass(Tensor)

    def logits(self, x: Tensor) -> Features:  # type: ignore[override]
        with torch.no_grad():
            return self._run(x)

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Features, Tensor, Tensor]:  # type: ignore[override]
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            output = self._run(leaf)
            values = loss(output)  # type: ignore[arg-type]
            (grad,) = torch.autograd.grad(values.sum(), leaf)
        self.passes.backward += 1
        inside = {layer: h.detach() for layer, h in output.features.items()}
        return Features(output.logits.detach(), inside), values.detach(), grad


def feature_victim_in(victim: Victim) -> FeatureVictim | None:
    """The feature victim at the core of a victim and its wrappers, if there is one."""
    inside: Any = victim
    while inside is not None and not isinstance(inside, FeatureVictim):
        inside = getattr(inside, "inner", None)
    return inside


def pooled(activation: Tensor) -> Tensor:
    """Mean over the voxels, ``(N, F, *S) -> (N, F)``, or over a transformer's tokens, ``(N, T, F) -> (N, F)``."""
    if activation.ndim == 3:  # voxels of an image have two or three axes of their own
        return activation.mean(1)
    return activation.flatten(2).mean(2) if activation.ndim > 2 else activation


def last_hidden_layer(estimator: Any, x: Tensor) -> str:
    """The module whose output the network's last layer turns into logits, by name.

    Args:
        estimator: as for :class:`FeatureVictim`.
        x: one or more images ``(N, C, *S)``.

    Raises:
        ValueError: a network without such a layer (all run more than once, or there is only one).

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
        >>> last_hidden_layer(MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2)), torch.rand(1, 1, 4, 4))
        '1'
    """
    victim: Any = victim_of(estimator)
    network: Any = getattr(estimator, "network", None) or getattr(victim.module, "network", victim.module)
    ran: list[tuple[str, int]] = []

    def seen(name: str, module: nn.Module, output: Any) -> None:
        # what only reshapes or drops shows nothing that the layer before it does not
        if isinstance(output, Tensor) and not isinstance(
            module, nn.Flatten | nn.Identity | nn.modules.dropout._DropoutNd
        ):
            ran.append((name, len(output)))

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: seen(name, module, output))
        for name, module in network.named_modules()
        if name and not list(module.children())
    ]
    try:
        with victim.attacked():
            victim.logits(x)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _ in ran]
    once = [name for name, cases in ran[:-1] if names.count(name) == 1 and cases == len(x)]
    if not once:
        raise ValueError("the network has no layer before its last one that runs once per image; name some in layers=.")
    return once[-1]


def activations(victim: FeatureVictim, x: Any, batch_size: int = 32) -> tuple[dict[str, Tensor], Tensor]:
    """Pooled activations ``(N, F)`` of each layer, float64 on the CPU, and logits.

    Args:
        victim: shows the layers.
        x: images ``(N, C, *S)``, array or tensor.
        batch_size: images per forward pass.
    """
    images = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
    with victim.attacked():
        parts = [victim.logits(part) for part in images.as_subclass(Tensor).to(victim.device).split(batch_size)]
    inside = {
        layer: torch.cat([pooled(part.features[layer]) for part in parts]).double().cpu() for layer in victim.layers
    }
    return inside, torch.cat([part.logits for part in parts]).cpu()


@dataclass(frozen=True)
class GaussianStatistics:
    """What clean images look like inside a network: a Gaussian mixture for each layer and class.

    Attributes:
        means: per layer ``(classes, K, F)``.
        factors: per layer ``(classes, K, F, F)``: P with precision ``P P^T``.
        log_weights: per layer ``(classes, K)``.
    """

    means: Mapping[str, Tensor]
    factors: Mapping[str, Tensor]
    log_weights: Mapping[str, Tensor]
    on = "features"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(self.means)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(next(iter(self.means.values())))

    def distance(self, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """How untypical activations are of a class: ``sum_l mean_j [((h_l - mu_k) P_k)_j]^2`` (arXiv 2012.09501).

        ``h_l`` is the mean of a layer over its voxels and k the likeliest component, through whose choice no gradient
        flows.

        Args:
            features: activations ``(N, F, ...)`` by layer.
            target: class of each case, ``(N,)`` int64.

        Returns:
            ``(N,)``; about 1 per layer for a clean image of the class.
        """
        total: Tensor | None = None
        for layer in self.layers:
            h = pooled(features[layer])
            means, factors, log_weights = (
                values[layer].to(h.device, h.dtype)[target] for values in (self.means, self.factors, self.log_weights)
            )
            white = torch.einsum("nkf,nkfg->nkg", h[:, None] - means, factors)
            with torch.no_grad():
                log_det = factors.diagonal(dim1=2, dim2=3).log().sum(2)
                likeliest = (log_weights + log_det - white.square().sum(2) / 2).argmax(1)
            part = white[torch.arange(len(h), device=h.device), likeliest].square().mean(1)
            total = part if total is None else total + part
        assert total is not None
        return total

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """As a detector: the distance to the nearest class, ``(N,)``; large is suspicious."""
        cases = len(next(iter(features.values())))
        device = next(iter(features.values())).device
        each = [self.distance(features, torch.full((cases,), c, device=device)) for c in range(self.classes)]
        return torch.stack(each, 1).amin(1)


def fit_statistics(
    estimator: Any,
    x: Any,
    y: Any,
    *,
    layers: Sequence[str],
    components: int = 1,
    tied: bool = False,
    regularisation: float = 1e-6,
    batch_size: int = 32,
    seed: int = 0,
) -> GaussianStatistics:
    """Fits a Gaussian mixture to the pooled activations of clean images, for each layer and class.

    Args:
        estimator: an image-level model with exclusive classes, or a :class:`FeatureVictim`.
        x: clean images ``(N, C, *S)``, array or tensor.
        y: their classes, in any usual form.
        layers: names of submodules of the network. The released code of arXiv 2012.09501 skips layers of more than 512
            channels, whose covariance is costly.
        components: Gaussians per class.
        tied: one covariance for all classes, about the mean of each, as in arXiv 1807.03888.
        regularisation: added to the diagonal of every covariance, in squared units of the activations; raise it where a
            class has fewer cases than a layer has channels.
        batch_size: images per forward pass.
        seed: of the mixture's start (matters with several components).

    Raises:
        ValueError: a model with one diagnosis per voxel or with overlapping labels; a class with too few cases.
    """
    victim = estimator if isinstance(estimator, FeatureVictim) else FeatureVictim(estimator, layers)
    if not isinstance(victim.decision, Multiclass) or victim.segments:
        raise ValueError("feature statistics are for one of several classes per image; this model decides otherwise.")
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise ValueError(f"components={components!r} must be a whole number of at least 1.")
    if not isinstance(regularisation, int | float) or not 0 <= regularisation < math.inf:
        raise ValueError(f"regularisation={regularisation!r} must be finite and not negative.")
    if tied and components != 1:
        raise ValueError(f"components={components} have no covariance in common; leave components or tied out.")
    target, valid = victim.decision.canonical(y)
    if len(target) != len(x):
        raise ValueError(f"{len(target)} references for {len(x)} images; give one per case.")
    classes = target[valid].bincount(minlength=victim.decision.num_classes)
    if int(classes.min()) < max(2, components):
        raise ValueError(
            f"the classes have {', '.join(map(str, classes.tolist()))} clean cases; give at least "
            f"{max(2, components)} of each."
        )
    inside, _ = activations(victim, x, batch_size)
    by_class = {layer: [h[(target == c) & valid].numpy() for c in range(len(classes))] for layer, h in inside.items()}
    _tell_thin_classes(inside, int(classes.sum() if tied else classes.min()))
    if tied:
        return _tied(by_class, regularisation)
    mixtures = {
        layer: [_mixture(h, components, regularisation, seed) for h in parts] for layer, parts in by_class.items()
    }
    return GaussianStatistics(
        {layer: _stack(fits, "means_") for layer, fits in mixtures.items()},
        {layer: _stack(fits, "precisions_cholesky_") for layer, fits in mixtures.items()},
        {layer: _stack(fits, "weights_").log() for layer, fits in mixtures.items()},
    )


def _tied(by_class: Mapping[str, Sequence[np.ndarray]], regularisation: float) -> GaussianStatistics:
    """One Gaussian per class, all with the covariance of the cases about the mean of their class."""
    means, factors = {}, {}
    for layer, parts in by_class.items():
        centred = np.concatenate([h - h.mean(0) for h in parts])
        covariance = centred.T @ centred / len(centred) + regularisation * np.eye(centred.shape[1])
        lower = torch.linalg.cholesky(torch.from_numpy(covariance))
        inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
        means[layer] = torch.stack([torch.from_numpy(h.mean(0)) for h in parts])[:, None]
        factors[layer] = inverse.T.expand(len(parts), 1, *lower.shape).contiguous()
    return GaussianStatistics(means, factors, {layer: torch.zeros(len(m), 1) for layer, m in means.items()})


def _mixture(h: np.ndarray, components: int, regularisation: float, seed: int) -> GaussianMixture:
    return GaussianMixture(components, covariance_type="full", reg_covar=regularisation, random_state=seed).fit(h)


def _stack(mixtures: Sequence[GaussianMixture], name: str) -> Tensor:
    return torch.stack([torch.from_numpy(np.asarray(getattr(mixture, name))) for mixture in mixtures])


def _tell_thin_classes(inside: Mapping[str, Tensor], least: int) -> None:
    thin = [layer for layer, h in inside.items() if h.shape[1] >= least]
    if thin:
        warnings.warn(
            f"layers {', '.join(thin)} have at least as many channels as a covariance has cases ({least}), so it "
            "rests on the regularisation; give more cases, fewer channels or a larger regularisation.",
            stacklevel=3,
        )
