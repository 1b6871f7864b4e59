"""Detectors that look at activations: kernel density, local intrinsic dimensionality, Mahalanobis distance.

Each is fitted on clean images and gives one differentiable score per image, large is suspicious; put a model behind one
with :func:`medadv.detectors.guarded`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medadv.decisions import Multiclass
from medadv.features import FeatureVictim, activations, fit_statistics, pooled
from medadv.names import check_options, unknown_name
from medadv.numbers import whole_number
from medadv.victims import Features

# enough for a bandwidth and for neighbours; more cost memory in every look of an attack
MOST_REFERENCES = 1000
# a distance that is exactly 0 has no logarithm
TINY = 1e-24


def squared_distances(h: Tensor, references: Tensor) -> Tensor:
    """Squared Euclidean distance of every row to every reference: ``(N, F), (M, F) -> (N, M)`` float64.

    Example:
        >>> import torch
        >>> squared_distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        tensor([[25.,  1.]], dtype=torch.float64)
    """
    # in float64, as the difference of squares cancels
    a, b = h.double(), references.to(h.device, torch.float64)
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


@dataclass(frozen=True)
class KernelDensity:
    """How rare an image's activations are among clean ones of the class it is given (arXiv 1703.00410).

    ``-log 1/M sum_i exp(-|h - h_i|^2 / bandwidth^2)`` over the M clean images of the predicted class, summed over the
    layers (the paper takes the last hidden one). No gradient flows through the choice of the class.

    Attributes:
        references: per layer and class the clean activations ``(M, F)``.
        bandwidths: per layer.
    """

    references: Mapping[str, Sequence[Tensor]]
    bandwidths: Mapping[str, float]
    on = "output"

    def __call__(self, output: Features) -> Tensor:
        """Score of each image, ``(N,)``."""
        classes = output.logits.detach().argmax(1)
        total = torch.zeros(len(classes), dtype=torch.float64, device=classes.device)
        for layer, references in self.references.items():
            h = pooled(output.features[layer])
            scores = [self._score(h, members, self.bandwidths[layer]) for members in references]
            total = total + torch.stack(scores, 1).gather(1, classes[:, None])[:, 0]
        return total.to(output.logits.dtype)

    @staticmethod
    def _score(h: Tensor, members: Tensor, bandwidth: float) -> Tensor:
        exponents = -squared_distances(h, members) / bandwidth**2
        return math.log(len(members)) - exponents.logsumexp(1)


@dataclass(frozen=True)
class IntrinsicDimensionality:
    """Local intrinsic dimensionality of an image's activations among clean ones (arXiv 1801.02613).

    The maximum-likelihood estimate ``-(1/k sum_i log(r_i / r_k))^-1`` from the distances r to the k nearest clean
    activations, as a mean over the layers. The paper estimates it within batches and has a classifier, trained on
    adversarial images, weigh the layers; here the references are fixed, so that no case influences another, and nothing
    adversarial is needed.

    Attributes:
        references: per layer the clean activations ``(M, F)``.
        neighbours: k.
    """

    references: Mapping[str, Tensor]
    neighbours: int
    on = "features"

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """Score of each image, ``(N,)``."""
        each = []
        for layer, references in self.references.items():
            h = pooled(features[layer])
            nearest = squared_distances(h, references).topk(self.neighbours, dim=1, largest=False).values
            # log r = log(r^2) / 2; the clamp keeps the score finite where all k are equally far
            logs = nearest.clamp(min=TINY).log() / 2
            each.append(1 / (logs.amax(1, keepdim=True) - logs).mean(1).clamp(min=1e-12))
            dtype = h.dtype
        return torch.stack(each).mean(0).to(dtype)


def _classes_of(victim: FeatureVictim, y: Any, cases: int) -> Tensor:
    if not isinstance(victim.decision, Multiclass):
        raise ValueError("this detector needs one of several classes per image; for labels that overlap use 'lid'.")
    target, _ = victim.decision.canonical(y)
    if len(target) != cases:
        raise ValueError(f"{len(target)} references for {cases} images; give one per case.")
    return target


def fit_kernel_density(
    victim: FeatureVictim, x: Any, y: Any, *, bandwidth: float | None = None, batch_size: int = 32
) -> KernelDensity:
    """Fits :class:`KernelDensity`.

    Args:
        victim: shows the layers.
        x: clean images ``(N, C, *S)``.
        y: their classes.
        bandwidth: in units of the activations; None: per layer the likeliest in leave-one-out.
        batch_size: images per forward pass.

    Raises:
        ValueError: a model without exclusive classes, a class with fewer than two cases, or a bandwidth that is none.
    """
    target = _classes_of(victim, y, len(x))
    if bandwidth is not None and not (isinstance(bandwidth, int | float) and 0 < bandwidth < math.inf):
        raise ValueError(f"bandwidth={bandwidth!r} must be a finite number above 0, or None to choose the likeliest.")
    counts = target.bincount(minlength=victim.decision.channels)
    if int(counts.min()) < 2:
        raise ValueError(
            f"the classes have {', '.join(map(str, counts.tolist()))} clean cases; give at least 2 of each."
        )
    inside, _ = activations(victim, x, batch_size)
    references = {layer: [h[target == c] for c in range(len(counts))] for layer, h in inside.items()}
    chosen = {
        layer: float(bandwidth) if bandwidth is not None else likeliest_bandwidth(members)
        for layer, members in references.items()
    }
    return KernelDensity(references, chosen)


def likeliest_bandwidth(members: Sequence[Tensor]) -> float:
    """The bandwidth under which each case is likeliest given the others of its class, on a grid of powers of root two.

    Args:
        members: per class the activations ``(M, F)``; of more than 1000 the first are taken.

    Example:
        >>> import torch
        >>> cloud = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> 0.2 < likeliest_bandwidth([cloud]) < 1.2
        True
    """
    distances = [squared_distances(h[:MOST_REFERENCES], h[:MOST_REFERENCES]) for h in members]
    scale = (
        torch.cat([d[d > 0] for d in distances]).median().sqrt().item() if any(bool(d.any()) for d in distances) else 1
    )
    grid = [scale * 2 ** (step / 2) for step in range(-14, 5)]
    width = members[0].shape[1]

    def likelihood(bandwidth: float) -> float:
        total = 0.0
        for d in distances:
            others = (-d / bandwidth**2).fill_diagonal_(-torch.inf)
            total += float((others.logsumexp(1) - math.log(len(d) - 1) - width * math.log(bandwidth)).sum())
        return total

    return max(grid, key=likelihood)


def fit_intrinsic_dimensionality(
    victim: FeatureVictim, x: Any, y: Any = None, *, neighbours: int = 20, seed: int = 0, batch_size: int = 32
) -> IntrinsicDimensionality:
    """Fits :class:`IntrinsicDimensionality`.

    Args:
        victim: shows the layers.
        x: clean images ``(N, C, *S)``; of more than 1000 a draw is taken.
        y: not looked at; classes do not matter here.
        neighbours: k.
        seed: of the draw.
        batch_size: images per forward pass.

    Raises:
        ValueError: fewer images than neighbours.
    """
    whole_number("neighbours", neighbours, 2)
    if len(x) < neighbours:
        raise ValueError(f"{len(x)} clean images have no {neighbours} neighbours; give more, or a smaller neighbours=.")
    kept = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:MOST_REFERENCES].sort().values
    images = x[kept] if isinstance(x, Tensor) else x[kept.numpy()]
    return IntrinsicDimensionality(activations(victim, images, batch_size)[0], neighbours)


def fit_mahalanobis(
    victim: FeatureVictim, x: Any, y: Any, *, tied: bool = True, regularisation: float = 1e-6, batch_size: int = 32
) -> Any:
    """:func:`~medadv.features.fit_statistics` as a detector: the distance to the nearest class (arXiv 1807.03888).

    Args:
        victim: shows the layers.
        x: clean images ``(N, C, *S)``.
        y: their classes.
        tied: one covariance for all classes, as in the paper; False: one for each.
        regularisation, batch_size: as there.
    """
    return fit_statistics(
        victim, x, y, layers=victim.layers, tied=tied, regularisation=regularisation, batch_size=batch_size
    )


@dataclass(frozen=True)
class FeatureDetectorKind:
    """A detector that can be named.

    Attributes:
        fit: builds it from a feature victim, clean images and their classes.
        summary: what it is, in one line.
        reference: paper id.
        options: of ``fit``, with their defaults.
    """

    fit: Callable[..., Any]
    summary: str
    reference: str
    options: Mapping[str, Any]


FEATURE_DETECTORS = {
    "mahalanobis": FeatureDetectorKind(
        fit_mahalanobis, "distance to the nearest class", "1807.03888", {"tied": True, "regularisation": 1e-6}),
    "kde": FeatureDetectorKind(
        fit_kernel_density, "density among clean images of the predicted class", "1703.00410", {"bandwidth": None}),
    "lid": FeatureDetectorKind(
        fit_intrinsic_dimensionality, "local intrinsic dimensionality among clean images", "1801.02613",
        {"neighbours": 20, "seed": 0}),
}  # fmt: skip


def fit_detector(name: str, victim: FeatureVictim, x: Any, y: Any, *, batch_size: int = 32, **options: Any) -> Any:
    """A detector by name, fitted on clean images.

    Args:
        name: ``"mahalanobis"``, ``"kde"`` or ``"lid"``.
        victim: shows the layers it looks at.
        x: clean images ``(N, C, *S)``, array or tensor.
        y: their diagnosis in any usual form.
        batch_size: images per forward pass.
        **options: of the detector, see :data:`FEATURE_DETECTORS`.

    Returns:
        A callable for :func:`~medadv.detectors.guarded`, with ``on`` saying what it looks at.

    Raises:
        ValueError: an unknown name, a segmenter, too few cases.
        TypeError: an option it does not have.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> from medadv.detectors import guarded
        >>> from medadv.features import FeatureVictim
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
        >>> victim = FeatureVictim(MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2)), ["0"])
        >>> detector = fit_detector("lid", victim, torch.rand(30, 1, 4, 4), torch.arange(30) % 2, neighbours=5)
        >>> guarded(victim, detector, threshold=10.0, on=detector.on).logits(torch.rand(3, 1, 4, 4)).shape
        torch.Size([3, 3])
    """
    if name not in FEATURE_DETECTORS:
        raise unknown_name("detector", name, FEATURE_DETECTORS)
    kind = FEATURE_DETECTORS[name]
    check_options(name, options, kind.options)
    if victim.segments:
        raise ValueError("detectors are for one diagnosis per image; this model gives one per voxel.")
    return kind.fit(victim, x, y, batch_size=batch_size, **options)
