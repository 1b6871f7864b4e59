"""Tiny networks whose decision is known and easy to break, 2D and 3D, for tests that need an attack to succeed.

Those with a known break look at brightness alone and decide at 0.5, so images near 0.5 are broken by a change of a few
hundredths and no attack needs more than a handful of steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medadv import Intensity, Multiclass, Multilabel
from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter

SHAPES = {2: (8, 8), 3: (6, 6, 6)}
LEVEL = 0.02  # how far the images lie from the decision


class BrightnessClassifier(nn.Module):
    """Logits ``weight * (mean intensity - 0.5) + bias``, one weight and bias per output.

    Args:
        weights: sign and steepness per output.
        biases: the logits of an image whose mean is 0.5; default 0, where all classes meet.
        channels: of the images.
    """

    def __init__(self, weights: tuple[float, ...], biases: tuple[float, ...] | None = None, channels: int = 1) -> None:
        super().__init__()
        self.pool = nn.Flatten(2)
        self.head = nn.Linear(channels, len(weights))
        slopes, offsets = torch.tensor(weights), torch.tensor(biases or (0.0,) * len(weights))
        with torch.no_grad():
            self.head.weight.copy_(slopes[:, None] / channels)
            self.head.bias.copy_(offsets - 0.5 * slopes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(x).mean(2))


class BrightnessSegmenter(nn.Module):
    """Voxels brighter than 0.5 are foreground: ``slope * (x - 0.5)`` through a 1 x 1 convolution.

    Args:
        dims: 2 or 3.
        outputs: 1 (one logit) or 2 (background and foreground logits, each half of it).
        slope: steepness.
    """

    def __init__(self, dims: int, outputs: int = 2, slope: float = 40.0) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.conv = convolution(1, outputs, 1)
        signs = torch.tensor([-0.5, 0.5] if outputs == 2 else [1.0])
        with torch.no_grad():
            self.conv.weight.copy_((slope * signs).view(-1, 1, *[1] * dims))
            self.conv.bias.copy_(-0.5 * slope * signs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Awkward(nn.Module):
    """A small network with all that an attack may disturb: batch norm (frozen and not), dropout, a frozen weight.

    Args:
        dims: 2 or 3.
        outputs: channels of the output.
        segments: True for a map of logits, False for one vector per image.
    """

    def __init__(self, dims: int, outputs: int, *, segments: bool, channels: int = 1) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        self.segments = segments
        self.first = convolution(channels, 4, 3, padding=1)
        self.frozen_norm = norm(4)
        self.second = convolution(4, 4, 3, padding=1)
        self.norm = norm(4)
        self.dropout = nn.Dropout(0.3)
        self.last = convolution(4, outputs, 1)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.frozen_norm(self.first(x)))
        hidden = self.dropout(torch.tanh(self.norm(self.second(hidden))))
        if self.fails:
            raise RuntimeError("the network failed")
        logits = self.last(hidden)
        return logits if self.segments else logits.flatten(2).mean(2)


def awkward(dims: int, outputs: int, *, segments: bool, seed: int = 0, channels: int = 1) -> Awkward:
    """A seeded :class:`Awkward` network in training, with one norm in eval, one weight frozen and one gradient left."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Awkward(dims, outputs, segments=segments, channels=channels)
        for norm in (network.frozen_norm, network.norm):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
    network.train()
    network.frozen_norm.eval()
    network.second.bias.requires_grad_(False)
    network.first.bias.grad = torch.full_like(network.first.bias, 3.0)
    return network


def grey_images(dims: int, means: tuple[float, ...], *, seed: int = 0) -> np.ndarray:
    """Images ``(N, 1, *S)`` with exactly these means and a little noise."""
    noise = np.random.default_rng(seed).uniform(-0.01, 0.01, (len(means), 1, *SHAPES[dims]))
    noise -= noise.reshape(len(means), -1).mean(1).reshape(-1, 1, *[1] * dims)
    return (np.asarray(means).reshape(-1, 1, *[1] * dims) + noise).astype(np.float32)


def bright_boxes(dims: int, cases: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Images of a bright box on a dark ground, both ``LEVEL`` from the decision, and its masks ``(N, *S)``."""
    shape = SHAPES[dims]
    mask = np.zeros((cases, *shape), dtype=np.int64)
    for case in range(cases):
        start = 1 + case % 2
        mask[(case, *[slice(start, start + 4 if dims == 2 else start + 3)] * dims)] = 1
    noise = np.random.default_rng(dims).uniform(-0.004, 0.004, mask.shape)
    image = 0.5 + LEVEL * (2 * mask - 1) + noise
    return image[:, None].astype(np.float32), mask


def shape_of(dims: int) -> tuple[int, ...]:
    return bright_boxes(dims)[0].shape[1:]


def multiclass(dims: int, **kwargs: Any) -> MonaiClassifier:
    network = BrightnessClassifier((-20.0, 20.0, 0.0), (0.0, 0.0, -3.0))
    return MonaiClassifier(network, shape_of(dims), decision=Multiclass(3), **kwargs)


def one_logit(dims: int, **kwargs: Any) -> MonaiClassifier:
    return MonaiClassifier(BrightnessClassifier((20.0,)), shape_of(dims), decision=Multilabel(1), **kwargs)


def multilabel(dims: int, **kwargs: Any) -> MonaiMultilabelClassifier:
    network = BrightnessClassifier((20.0, -20.0, 20.0), (0.0, 0.0, 4.0))
    return MonaiMultilabelClassifier(network, shape_of(dims), **{"decision": Multilabel(3), **kwargs})


def segmenter(dims: int, outputs: int = 2, **kwargs: Any) -> MonaiSegmenter:
    decision = Multiclass(2, background=0) if outputs == 2 else Multilabel(1)
    return MonaiSegmenter(BrightnessSegmenter(dims, outputs), shape_of(dims), **{"decision": decision, **kwargs})


def assert_valid(x: np.ndarray, x_adv: np.ndarray, intensity: Intensity, norm: float | None, eps: float) -> None:
    """Shape, dtype, range and budget, with the two ulp that ART's float32 arithmetic may cost."""
    assert x_adv.shape == x.shape and x_adv.dtype == np.float32 and np.isfinite(x_adv).all()
    shape = (-1, *[1] * (x.ndim - 2))
    low, high = (np.asarray(b, dtype=np.float32).reshape(shape) for b in (intensity.lows, intensity.highs))
    assert (x_adv >= low).all() and (x_adv <= high).all()
    if norm is not None:
        ulp = 2 * np.spacing(np.abs(x).max().astype(np.float32))
        difference = (x_adv.astype(np.float64) - x).reshape(len(x), -1)
        entries = 1 if norm == np.inf else difference.shape[1] ** (1 / norm)
        assert np.linalg.norm(difference, norm, axis=1).max() <= eps * (1 + 1e-6) + ulp * entries


def state(network: torch.nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {f"flag {name}": module.training for name, module in network.named_modules()}
    for name, parameter in network.named_parameters():
        found[f"grad {name}"] = None if parameter.grad is None else parameter.grad.clone()
        found[f"frozen {name}"] = parameter.requires_grad
    return found | {name: value.clone() for name, value in network.state_dict().items()}


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        return bool(torch.equal(a, b)) if both else a is b or (not isinstance(a, torch.Tensor) and a == b)

    return [name for name in before if not same(before[name], after[name])]
