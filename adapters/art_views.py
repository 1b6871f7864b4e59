"""Models as ART's attacks see them through the catalogue: images in 0 to 1, each case alone, every pass counted."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from medadv.adapters.estimators import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.adapters.views import DiceMarginView, LabelsMarginView, QueryView, cross_entropy_of_probabilities
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity
from medadv.victims import ModuleVictim, logits_in


@dataclass(frozen=True)
class UnitRange:
    """Images between data units and the range ART's attacks are made for, width 1 in every channel.

    Several of ART's attacks mistake wider ranges (DeepFool's steps grow with the width) or others than 0 to 1
    (Auto-PGD begins with an image of ones, ZOO clips the perturbation to the range).

    Attributes:
        intensity: range of the data.
        start: lower end of ART's range: 0, or -0.5 for attacks that need a range centred on zero.
    """

    intensity: Intensity
    start: float = 0.0

    @property
    def range(self) -> Intensity:
        """The range ART sees."""
        return Intensity(self.start, self.start + 1)

    def encode(self, x: Tensor) -> np.ndarray:
        """Images ``(N, C, *S)`` in data units -> float32 array in ART's range."""
        low, high = self.intensity.bounds(x)
        unit = ((x - low) / (high - low)).to(torch.float32) + self.start
        return unit.clamp(self.start, self.start + 1).cpu().numpy()

    def decode(self, unit: Tensor) -> Tensor:
        """Images in ART's range -> data units; what lies outside is read as the range's end, as a file would store."""
        low, high = self.intensity.bounds(unit)
        return low + (unit - self.start).clamp(0, 1) * (high - low)

    def moved(self, x: Tensor, before: np.ndarray, after: np.ndarray) -> Tensor:
        """``x`` with the change from ``before`` to ``after``; voxels that ART left alone keep every bit."""
        low, high = self.intensity.bounds(x)
        first, last = (torch.from_numpy(image).to(x.device, torch.float64) for image in (before, after))
        last = last.clamp(self.start, self.start + 1)
        image = (x.to(torch.float64) + (last - first) * (high - low).to(torch.float64)).to(x.dtype)
        return torch.where(last == first, x, torch.maximum(torch.minimum(image, high), low))


class Doorway(nn.Module):
    """A victim's model for images in ART's range: range undone, region kept, every pass and image counted.

    Args:
        victim: the model.
        unit: ART's range.
        x: the image ``(1, C, *S)`` that shows outside ``mask``, whatever the attack does there; None: no mask.
        mask: bool like ``x``: where the image may change.
    """

    def __init__(self, victim: ModuleVictim, unit: UnitRange, x: Tensor | None = None, mask: Tensor | None = None):
        super().__init__()
        self.deployed = victim.module
        self.passes = victim.passes
        self.unit = unit
        self.x = x
        self.mask = mask
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        image = self.unit.decode(x)
        if self.mask is not None and self.x is not None:
            image = torch.where(self.mask, image, self.x.to(image.dtype))
        output = logits_in(self.deployed(image))
        self.passes.forward += 1
        self.images += len(x)
        if output.requires_grad:
            output.register_hook(self._count_backward)
        return output

    def _count_backward(self, grad: Tensor) -> None:
        self.passes.backward += 1


class Blank(nn.Module):
    """The same logits for every image: what an ART attack is built on to have its parameters checked, unasked.

    Args:
        classes: number of logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + x.new_zeros(len(x), 1)


def as_art_classifier(module: nn.Module, shape: tuple[int, ...], classes: int, unit: UnitRange, *, soft: bool) -> Any:
    """A classifier in ART's range.

    Args:
        module: images in ART's range -> ``(N, classes)``.
        shape: ``(C, *S)``.
        classes: number of classes.
        unit: ART's range.
        soft: True shows probabilities instead of logits.
    """
    shown = QueryView(module, unit.range, probabilities=soft, saturate=False)
    loss = cross_entropy_of_probabilities if soft else None
    return _lenient(MonaiClassifier(shown, shape, decision=Multiclass(classes), intensity=unit.range, loss=loss))


def as_art_dense(victim: ModuleVictim, door: Doorway, shape: tuple[int, ...]) -> Any:
    """A multi-label classifier or segmenter in ART's range, with the default loss."""
    kind = MonaiSegmenter if victim.segments else MonaiMultilabelClassifier
    return _lenient(kind(door, shape, decision=victim.decision, intensity=door.unit.range))  # type: ignore[arg-type]


def margin_of(victim: ModuleVictim, door: Doorway, target: Tensor, valid: Tensor, threshold: float) -> nn.Module:
    """Two logits of one case: the diagnosis holds, or it is broken (Dice below ``threshold``; one label differs)."""
    if victim.segments:
        return DiceMarginView(door, victim.decision, target, valid, threshold=threshold)
    assert isinstance(victim.decision, Multilabel)
    return LabelsMarginView(door, victim.decision, target, valid)


def layer_in(estimator: Any, network: Any, layer: int | str | None) -> int | str | None:
    """A layer of the user's network, by its name there, as the name it has in ``estimator``; numbers count there."""
    if not isinstance(layer, str) or network is None or layer not in dict(network.named_modules()):
        return layer
    wanted = network.get_submodule(layer)
    return next((name for name, module in estimator.network.named_modules() if module is wanted), layer)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Seeds every generator that ART draws from; the global ones are restored by who called.

    HopSkipJump and BoundaryAttack make generators of their own without a seed, so these are seeded too.
    """

    class Seeded(np.random.RandomState):
        def __init__(self, given: Any = None) -> None:
            super().__init__(seed % 2**32 if given is None else given)

    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.manual_seed(seed)
    with mock.patch.object(np.random, "RandomState", Seeded):
        yield


def _lenient(estimator: Any) -> Any:
    # images outside the range are read as its ends by the doorway, so ART may ask about them on its way
    estimator._range_tolerance = math.inf
    return estimator
