"""Tiny networks, images and references for the tests of the core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.decisions import Decision, Multiclass, Multilabel
from medadv.intensities import Intensity

SIDE = {2: (8, 6), 3: (6, 5, 4)}
CLASSES = 3


class Net(nn.Module):
    """Convolution, batch norm, smooth activation, dropout, convolution; the mean over voxels for images.

    Smooth, so that gradients are zero nowhere and differences finite; in inference nothing but a case's own voxels
    decides about it.
    """

    def __init__(self, dims: int, outputs: int, *, voxels: bool, channels: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        self.first = conv(channels, 4, 3, padding=1)
        self.norm = norm(4)
        self.drop = nn.Dropout(0.5)
        self.last = conv(4, outputs, 1)
        self.voxels = voxels
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(3 * self.norm(self.first(x / self.scale)))
        logits = 4 * self.last(self.drop(hidden))
        return logits if self.voxels else logits.flatten(2).mean(2)


@dataclass
class Setting:
    """A model with images and references it mostly agrees with."""

    name: str
    estimator: Any
    net: nn.Module
    x: np.ndarray
    y: np.ndarray

    @property
    def decision(self) -> Decision:
        return self.estimator.decision

    def canonical(self) -> tuple[Tensor, Tensor]:
        spatial = self.x.shape[2:] if self.estimator.segments else ()
        return self.decision.canonical(self.y, spatial)

    def scores(self, x: np.ndarray, y: Any = None) -> np.ndarray:
        """Hard score of each case, independent of the attack's own bookkeeping."""
        spatial = self.x.shape[2:] if self.estimator.segments else ()
        target, valid = self.canonical() if y is None else self.decision.canonical(y, spatial)
        with torch.no_grad():
            self.estimator.model.eval()
            logits = self.estimator.model(torch.as_tensor(x).to(next(self.net.parameters()).dtype))
        return self.decision.score(logits, target, valid).numpy()


KINDS = ("class", "labels", "voxel-class", "voxel-labels")


def decision_of(kind: str, **changes: Any) -> Decision:
    if "labels" in kind:
        return Multilabel(CLASSES, **changes)
    return Multiclass(CLASSES, background=0 if kind == "voxel-class" else None, **changes)


def setting(
    kind: str,
    dims: int = 2,
    *,
    dtype: type = np.float32,
    cases: int = 3,
    channels: int = 1,
    intensity: Intensity | None = None,
    seed: int = 0,
    **changes: Any,
) -> Setting:
    """A tiny model of a kind, with the model's own diagnosis (slightly corrupted on voxels) as reference."""
    intensity = Intensity(0.0, 1.0) if intensity is None else intensity
    decision = decision_of(kind, **changes)
    generator = torch.Generator().manual_seed(seed)
    low, high = np.array(intensity.lows), np.array(intensity.highs)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(dims, CLASSES, voxels="voxel" in kind, channels=channels, scale=float((high - low).max()))
    for buffer, value in ((net.norm.running_mean, -0.1), (net.norm.running_var, 0.2)):
        buffer.fill_(value)
    net = net.to(torch.float64 if dtype == np.float64 else torch.float32)
    shape = (-1, *[1] * dims)
    unit = torch.rand((cases, channels, *SIDE[dims]), generator=generator, dtype=torch.float64).numpy()
    x = (low.reshape(shape) + unit * (high - low).reshape(shape)).astype(dtype)
    if intensity.grid is not None:
        step, offset = intensity.grid
        x = (np.round((x - offset) / step) * step + offset).astype(dtype)
    x = x.clip(low.reshape(shape), high.reshape(shape)).astype(dtype)
    wrapper = {"class": MonaiClassifier, "labels": MonaiMultilabelClassifier}.get(kind, MonaiSegmenter)
    estimator = wrapper(net, (channels, *SIDE[dims]), decision=decision, intensity=intensity)
    with torch.no_grad():
        net.eval()
        # boundaries through the middle of the data, so that every class occurs and small changes matter
        net.last.bias -= net(torch.from_numpy(x)).transpose(0, 1).flatten(1).median(1).values / 4
        y = decision.harden(net(torch.from_numpy(x))).numpy()
    return Setting(f"{kind}-{dims}D", estimator, net, x, y)
