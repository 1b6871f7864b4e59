"""Tiny models whose break is known in closed form, 2D and 3D, on which every attack can be tried in a moment.

Images hold a box a little brighter than its ground. Classifiers look at a mean that weighs one side of the image more
than the other and decide at a level between the images; segmenters call voxels whose neighbourhood is brighter than a
level that rises from one side to the other. Every diagnosis breaks if all voxels change by :data:`BREAK` together, far
less than :data:`EPS`; noise of that size averages out; and since the place matters, moving the box breaks it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.benchmarks.models import Estimator
from medadv.decisions import Multiclass, Multilabel

EPS = 0.1
BREAK = 0.05
SIDE = {2: 16, 3: 12}
_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


class WeightedMean(nn.Module):
    """Logits ``slope (weighted mean - level) + bias``, one slope and bias per output.

    Args:
        dims: 2 or 3.
        slopes: steepness per output.
        biases: logits where the mean is the level.
        level: weighted mean between the two kinds of images.
    """

    weights: Tensor

    def __init__(self, dims: int, slopes: tuple[float, ...], biases: tuple[float, ...], level: float) -> None:
        super().__init__()
        tilt = torch.linspace(0.0, 2.0, SIDE[dims]).view(-1, *[1] * (dims - 1))
        self.register_buffer("weights", tilt.expand([SIDE[dims]] * dims) / SIDE[dims] ** dims)
        self.level = level
        self.mean = nn.Identity()
        self.head = nn.Linear(1, len(slopes))
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(slopes)[:, None])
            self.head.bias.copy_(torch.tensor(biases))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean((x[:, 0] * self.weights).flatten(1).sum(1, keepdim=True))
        return self.head(mean - self.level)


class RisingThreshold(nn.Module):
    """Voxels whose neighbourhood (3 voxels wide) is brighter than a level that rises along the first axis.

    The mean of the whole image counts too, so that what happens in one place can matter in another.

    Args:
        dims: 2 or 3.
        mean: of an image that leaves the level where it is.
        outputs: 2: logits of ground and structure; else labels, each with the same logit.
    """

    level: Tensor

    def __init__(self, dims: int, mean: float, outputs: int, *, exclusive: bool) -> None:
        super().__init__()
        rise = torch.linspace(0.42, 0.58, SIDE[dims]).view(1, 1, -1, *[1] * (dims - 1))
        self.register_buffer("level", rise)
        self.dims = dims
        self.mean = mean
        signs = torch.tensor([-0.5, 0.5] if exclusive else [1.0] * outputs)
        self.scale = nn.Parameter(30 * signs.view(1, -1, *[1] * dims), requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        smooth = _POOL[self.dims](x, 3, stride=1, padding=1, count_include_pad=False)
        context = x.mean(tuple(range(1, x.ndim)), keepdim=True) - self.mean
        return self.scale * (smooth + context - self.level)


@dataclass(frozen=True)
class Toy:
    """A tiny model with images and the model's own diagnosis as reference.

    Attributes:
        kind: ``"binary"``, ``"multi-class"``, ``"multi-label"``, ``"segmentation"`` or ``"overlapping segmentation"``.
        dims: 2 or 3.
        estimator: the model.
        x: images ``(N, 1, *S)``.
        y: reference, canonical for the estimator's decision.
        wanted: another diagnosis, for targeted attacks.
    """

    kind: str
    dims: int
    estimator: Estimator
    x: np.ndarray
    y: np.ndarray
    wanted: np.ndarray


def boxes(dims: int, offsets: tuple[float, ...], levels: tuple[float, float], seed: int = 0) -> np.ndarray:
    """Images ``(N, 1, *S)`` of a box in the middle, shifted in brightness by ``offsets``, with a little noise.

    Args:
        dims: 2 or 3.
        offsets: brightness added to each image.
        levels: of the ground and of the box.
        seed: of the noise.
    """
    side = SIDE[dims]
    ground, box = levels
    image = np.full((side,) * dims, ground)
    image[(slice(side // 2 - 3, side // 2 + 3),) * dims] = box
    noise = np.random.default_rng(seed).uniform(-0.004, 0.004, (len(offsets), 1, *image.shape))
    return (image + noise + np.reshape(offsets, (-1, 1, *[1] * dims))).astype(np.float32)


def _classifier(dims: int, level: float, kind: str) -> Estimator:
    shape = (1, *[SIDE[dims]] * dims)
    if kind == "binary":
        return MonaiClassifier(WeightedMean(dims, (40.0,), (0.0,), level), shape, decision=Multilabel(1))
    if kind == "multi-class":
        network = WeightedMean(dims, (-20.0, 20.0, 0.0, 0.0), (0.0, 0.0, -1.0, -2.0), level)
        return MonaiClassifier(network, shape, decision=Multiclass(4))
    network = WeightedMean(dims, (40.0, -40.0, 40.0), (0.0, 0.0, 0.3), level)
    return MonaiMultilabelClassifier(network, shape, decision=Multilabel(3))


def _segmenter(dims: int, level: float, kind: str) -> Estimator:
    shape = (1, *[SIDE[dims]] * dims)
    if kind == "segmentation":
        network = RisingThreshold(dims, level, 2, exclusive=True)
        return MonaiSegmenter(network, shape, decision=Multiclass(2, background=0))
    return MonaiSegmenter(RisingThreshold(dims, level, 2, exclusive=False), shape, decision=Multilabel(2))


_BUILDERS: dict[str, Callable[[int, float, str], Estimator]] = {
    "binary": _classifier,
    "multi-class": _classifier,
    "multi-label": _classifier,
    "segmentation": _segmenter,
    "overlapping segmentation": _segmenter,
}
KINDS = tuple(_BUILDERS)


def toy(kind: str, dims: int) -> Toy:
    """The tiny model of a kind.

    Example:
        >>> case = toy("segmentation", 3)
        >>> case.x.shape, case.y.shape
        ((2, 1, 12, 12, 12), (2, 12, 12, 12))
    """
    segments = "segmentation" in kind
    levels, offsets = ((0.44, 0.58), (0.0, 0.0)) if segments else ((0.2, 0.8), (-0.02, 0.02))
    x, middle = boxes(dims, offsets, levels), boxes(dims, (0.0,), levels)[0, 0]
    weights = (
        np.ones_like(middle) / middle.size if segments else WeightedMean(dims, (1.0,), (0.0,), 0.0).weights.numpy()
    )
    level = float((middle * weights).sum())
    estimator = _BUILDERS[kind](dims, level, kind)
    estimator.model.eval()
    y = estimator.decision.harden(torch.from_numpy(estimator.predict(x))).numpy()
    return Toy(kind, dims, estimator, x, y, _other(y, estimator, segments))


def _other(y: np.ndarray, estimator: Any, segments: bool) -> np.ndarray:
    """A diagnosis an attacker may want: the structure moved by two voxels, or the other class, or all labels turned."""
    if segments:
        return np.roll(y, 2, axis=-1)
    return 1 - y if y.ndim > 1 else (y + 1) % 2
