"""Models built to mislead attacks, and honest ones beside them, 2D and 3D, images, labels and voxels.

All decide by brightness, of the whole image or around each voxel, at 0.5, so that their true robustness is known: a
budget above ``LEVEL`` breaks every case, and noise of that size next to none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medadv import Intensity, Multiclass, Multilabel
from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.adapters.art_preprocessors import art_preprocessor
from medadv.decisions import Decision

SIDES = {2: (16, 16), 3: (8, 8, 8)}
LEVEL = 0.02
EPS = 0.05
KINDS: dict[str, Decision] = {
    "class": Multiclass(3),
    "labels": Multilabel(3),
    "voxel-class": Multiclass(2, background=0),
    "voxel-labels": Multilabel(1),
}
# logits per unit of brightness above 0.5, and logits at 0.5
_HEADS = {
    "class": ((-20.0, 20.0, 0.0), (0.0, 0.0, -3.0)),
    "labels": ((20.0, -20.0, 20.0), (0.0, 0.0, 0.0)),
    "voxel-class": ((-20.0, 20.0), (0.0, 0.0)),
    "voxel-labels": ((40.0,), (0.0,)),
}


class Brightness(nn.Module):
    """Logits from the mean brightness of an image, or of the 3 x 3 (x 3) or 5 x 5 voxels around each voxel.

    Args:
        kind: of :data:`KINDS`.
        gain: all logits times that.
        texture: adds a term of small amplitude, but with a gradient many times that of the brightness, of random
            patterns: layers that change the strengths ``(N, K, ...)`` of the patterns at random; None: without.
        front: what happens to the image first.
        dims: 2 or 3.
    """

    def __init__(
        self, kind: str, gain: float = 1.0, texture: nn.Module | None = None, front: nn.Module | None = None,
        dims: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.voxels = kind.startswith("voxel")
        slopes, offsets = (torch.tensor(values) for values in _HEADS[kind])
        self.slopes, self.offsets = nn.Parameter(gain * slopes), nn.Parameter(gain * offsets)
        self.texture, self.front = texture, front
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("patterns", torch.randn(1, 16, *SIDES[dims], generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.front is None else self.front(x)
        level = self._local_mean(x) - 0.5
        if self.texture is not None:
            strength = self.texture(self._local_mean(x * self.patterns)).sum(1, keepdim=True) / 4
            level = level + 0.005 * torch.sin(3200 * strength)
        shape = (1, -1, *[1] * (level.ndim - 2))
        return level * self.slopes.view(shape) + self.offsets.view(shape)

    def _local_mean(self, x: Tensor) -> Tensor:
        if not self.voxels:
            return x.flatten(2).mean(2)
        size, pool = (5, F.avg_pool2d) if x.ndim == 4 else (3, F.avg_pool3d)
        return pool(x, size, stride=1, padding=size // 2, count_include_pad=False)


class Behind(nn.Module):
    """A model behind a transform without a gradient."""

    def __init__(self, inner: nn.Module, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.transform(x))


class RandomlyResized(nn.Module):
    """Enlarges an image to a random size and cuts a random piece of the old size out of it."""

    def forward(self, x: Tensor) -> Tensor:
        more = [int(torch.randint(0, 5, ())) for _ in x.shape[2:]]
        z = F.interpolate(x, size=[s + m for s, m in zip(x.shape[2:], more, strict=True)], mode="nearest")
        for axis, (side, m) in enumerate(zip(x.shape[2:], more, strict=True), start=2):
            z = z.narrow(axis, int(torch.randint(0, m + 1, ())), side)
        return z


class LeftOn(nn.Dropout):
    """Dropout that stays on in inference mode."""

    def train(self, mode: bool = True) -> LeftOn:
        return super().train(True)


def quantised(x: Tensor) -> Tensor:
    return (x * 64).round() / 64


def detached(x: Tensor) -> Tensor:
    return 0.5 + 1.1 * (x.detach() - 0.5)


def jpeg(x: Tensor) -> Tensor:
    return art_preprocessor("jpeg", Intensity(0, 1), quality=90)(x.detach())


@dataclass
class Case:
    """A model with cases that it gets right; ``inner`` is the part behind its transform, where it has one."""

    estimator: Any
    x: np.ndarray
    y: np.ndarray
    inner: Any = None
    transform: Callable[[Tensor], Tensor] | None = None

    def score(self, x: np.ndarray) -> float:
        target, valid = self.estimator.decision.canonical(self.y, self.x.shape[2:] if self.estimator.segments else ())
        logits = torch.from_numpy(self.estimator.predict(x))
        return float(self.estimator.decision.score(logits, target, valid).mean())


def images(kind: str, dims: int, cases: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Images at ``LEVEL`` from the decision, with a little noise, and the right answers."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(-0.005, 0.005, (cases, 1, *SIDES[dims]))
    bright = np.arange(cases) % 2
    if not kind.startswith("voxel"):
        x = 0.5 + LEVEL * (2 * bright - 1).reshape(-1, 1, *[1] * dims) + noise
        return x.astype(np.float32), bright if kind == "class" else np.stack([bright, 1 - bright, bright], 1)
    mask = np.zeros((cases, *SIDES[dims]), dtype=np.int64)
    for case in range(cases):
        start = bright[case]
        mask[(case, *[slice(start, start + SIDES[dims][0] // 2)] * dims)] = 1
    x = (0.5 + LEVEL * (2 * mask[:, None] - 1) + noise).astype(np.float32)
    return x, mask


def wrapped(net: nn.Module, kind: str, dims: int, **options: Any) -> Any:
    wrapper = {"class": MonaiClassifier, "labels": MonaiMultilabelClassifier}.get(kind, MonaiSegmenter)
    return wrapper(net, (1, *SIDES[dims]), decision=KINDS[kind], **options)


def honest(kind: str, dims: int = 2, **options: Any) -> Case:
    return _case(Brightness(kind, **options), kind, dims)


def behind(transform: Callable[[Tensor], Tensor], kind: str, dims: int = 2) -> Case:
    inner = Brightness(kind)
    case = _case(Behind(inner, transform), kind, dims)
    case.inner, case.transform = wrapped(inner, kind, dims), transform
    return case


def resized(kind: str, dims: int = 2) -> Case:
    return _case(Brightness(kind, texture=nn.Identity(), front=RandomlyResized(), dims=dims), kind, dims)


def dropping(kind: str, dims: int = 2) -> Case:
    return _case(Brightness(kind, texture=LeftOn(0.5), dims=dims), kind, dims)


def _case(net: nn.Module, kind: str, dims: int) -> Case:
    x, y = images(kind, dims)
    estimator = wrapped(net, kind, dims)
    if kind.startswith("voxel"):  # borders of the boxes are blurred; the reference is what an honest model says
        y = wrapped(Brightness(kind), kind, dims).predict(x)
        y = KINDS[kind].harden(torch.from_numpy(y)).numpy()
    return Case(estimator, x, y)
