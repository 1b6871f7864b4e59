"""How logits become a diagnosis: one class of several, or several labels at once; of an image or of each voxel.

Logits are ``(N, C, *S)``. ``S`` is empty for an image-level model, ``(H, W)`` or ``(H, W, D)`` for a segmenter, so a
segmenter is a classifier with voxels and the same code serves both.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medadv.metrics import EMPTY_POLICIES, mean_dice
from medadv.names import unknown_name

Shape = tuple[int, ...]


def as_plain_tensor(value: Any) -> Tensor:
    """A torch tensor without subclass (MetaTensor is stripped), sharing memory where it can."""
    if isinstance(value, Tensor):
        return value.detach().as_subclass(Tensor)
    return torch.as_tensor(np.asarray(value))


def select_channels(values: Tensor, channels: Sequence[int]) -> Tensor:
    """``values[:, channels]``, without a copy where they are neighbours; a shared single channel stays."""
    if values.shape[1] == 1:
        return values
    first, count = channels[0], len(channels)
    if tuple(channels) == tuple(range(first, first + count)):
        return values.narrow(1, first, count)
    return values[:, list(channels)]


class Decision(ABC):
    """The rule that turns logits into a diagnosis and scores it against a reference."""

    background: int | None
    ignore_index: int | None
    empty: str
    scored: tuple[int, ...] | None

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number C of logits per image or voxel."""

    @property
    def foreground(self) -> tuple[int, ...]:
        """Channels that count in a Dice score; ``scored``, or all but the background where nothing is said."""
        if self.scored is not None:
            return self.scored
        return tuple(c for c in range(self.channels) if c != self.background)

    @abstractmethod
    def harden(self, logits: Tensor) -> Tensor:
        """The diagnosis: logits ``(N, C, *S)`` -> target of the decision's canonical form."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits ``(N, C, *S)`` -> probabilities of the same shape (softmax over classes, or a sigmoid per label)."""

    @abstractmethod
    def one_hot(self, target: Tensor, channels: Sequence[int] | None = None) -> Tensor:
        """Canonical target -> bool ``(N, C, *S)``, of the given channels only or of all."""

    @abstractmethod
    def voxelwise(self, valid: Tensor) -> Tensor:
        """``valid`` broadcast to logits: ``(N, C, *S)`` or ``(N, 1, *S)``."""

    @abstractmethod
    def _canonical(self, y: Tensor, spatial: Shape) -> Tensor:
        """``y`` of any usual form -> canonical target with ``ignore_index`` still in it."""

    @abstractmethod
    def _check_values(self, target: Tensor, valid: Tensor) -> None:
        """Refuses a canonical target with values outside the decision."""

    def canonical(
        self, y: Any, spatial: Sequence[int] = (), *, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Brings a reference of any usual form into the canonical one.

        Accepted are class indices, one-hot or multi-hot arrays, channel-first masks with one channel, bool masks,
        lists, numpy arrays, tensors and MetaTensors. Label maps of voxels may be float (MONAI's readers give float32)
        if they hold whole numbers.

        Args:
            y: the reference of N cases.
            spatial: the spatial shape ``S`` of the logits; ``()`` for an image-level model.
            device: where the result is put; default: where ``y`` is.

        Returns:
            ``target`` (``(N, *S)`` int64 for Multiclass, ``(N, C, *S)`` int64 of 0/1 for Multilabel) and ``valid``
            (bool, same shape; False where the reference is ``ignore_index``; ``target`` is 0 there).

        Raises:
            ValueError: ``y`` has another shape, or values that are no label of this decision.
        """
        tensor = as_plain_tensor(y)
        target = self._canonical(tensor if device is None else tensor.to(device), tuple(spatial))
        valid = torch.ones_like(target, dtype=torch.bool)
        if self.ignore_index is not None:
            valid = target != self.ignore_index
            target = torch.where(valid, target, torch.zeros_like(target))
        self._check_values(target, valid)
        return target.to(torch.int64), valid

    def canonical_or_logits(
        self, y: Any, spatial: Sequence[int] = (), *, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`canonical`, but a model's own float output ``(N, C, *S)`` is hardened first.

        ART's attacks hand an estimator its own predictions as ``y`` where the user gives none.
        """
        tensor = as_plain_tensor(y)
        if self._looks_like_logits(tensor, tuple(spatial)):
            tensor = self.harden(tensor)
        return self.canonical(tensor, spatial, device=device)

    def _looks_like_logits(self, y: Tensor, spatial: Shape) -> bool:
        if not y.is_floating_point() or tuple(y.shape[1:]) != (self.channels, *spatial):
            return False
        labels = (y == 0) | (y == 1)
        if self.ignore_index is not None:
            labels |= y == self.ignore_index
        return not bool(labels.all())

    def score(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """How good the hard diagnosis is for the clinic, per case.

        Images: correct or not (Multiclass), share of labels correct (Multilabel). Voxels: mean Dice over the
        foreground classes present in the reference (``empty`` names another policy).

        Args:
            logits: ``(N, C, *S)``.
            target: canonical reference.
            valid: as :meth:`canonical` returns it.

        Returns:
            ``(N,)`` in [0, 1], high is good; NaN where there is nothing to score (a negative case: no foreground in
            the reference; or no valid label).
        """
        return self.score_hard(self.harden(logits), target, valid)

    def score_hard(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """:meth:`score` of a diagnosis that is hard already (canonical form)."""
        if target.ndim > self._image_ndim:
            channels = tuple(range(self.channels)) if self.empty == "monai" else self.foreground
            mask = select_channels(self.voxelwise(valid), channels)
            hard, reference = (self.one_hot(labels, channels) & mask for labels in (prediction, target))
            return mean_dice(hard, reference, empty=self.empty)
        correct = (
            ((prediction == target) & valid).flatten(1)
            if target.ndim > 1
            else ((prediction == target) & valid)[:, None]
        )
        count = valid.flatten(1).sum(1) if valid.ndim > 1 else valid.to(torch.int64)
        return correct.sum(1) / torch.where(count > 0, count, torch.nan)

    def _check_scoring(self) -> None:
        if self.empty not in EMPTY_POLICIES:
            raise unknown_name("policy for absent classes", self.empty, EMPTY_POLICIES)
        if self.scored is not None and not (self.scored and set(self.scored) <= set(range(self.channels))):
            raise ValueError(
                f"scored={self.scored} names no classes to score; give numbers from 0 to {self.channels - 1}."
            )

    @property
    @abstractmethod
    def _image_ndim(self) -> int:
        """Number of dimensions of an image-level canonical target."""

    @property
    @abstractmethod
    def exclusive(self) -> bool:
        """True if exactly one class holds, False if labels do not exclude each other."""


def _whole_numbers(y: Tensor, what: str) -> Tensor:
    if y.is_complex() or (y.is_floating_point() and not bool((y == y.round()).all())):
        raise ValueError(
            f"{what} must be whole class numbers, got {y.dtype} with fractions; give integers, a one-hot array of "
            "0 and 1, or harden probabilities first."
        )
    return y.to(torch.int64)


@dataclass(frozen=True)
class Multiclass(Decision):
    """Exactly one of ``num_classes`` classes, the one with the largest logit.

    Args:
        num_classes: number C of classes, at least 2 (for a one-logit network use ``Multilabel(1)``).
        background: the class that is no finding and does not count in a Dice score; None: all classes count.
        ignore_index: value in the reference that marks voxels or cases which are not to be scored or attacked.
        empty: what a class absent from the reference counts: ``"present"`` (not at all), ``"brats"`` (1 if not
            predicted either, else 0), ``"monai"`` (as ``monai.metrics.DiceMetric()``: background included,
            absent classes left out).
        scored: the classes that count in a Dice score, such as one organ of several; default: all but the background.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> decision = Multiclass(3)
        >>> target, valid = decision.canonical([2, 0])
        >>> decision.score(torch.tensor([[0., 1., 2.], [0., 1., 2.]]), target, valid)
        tensor([1., 0.])
    """

    num_classes: int
    background: int | None = None
    ignore_index: int | None = None
    empty: str = "present"
    scored: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(
                f"Multiclass needs at least 2 classes, got {self.num_classes}; for one logit use Multilabel(1)."
            )
        if self.background is not None and not 0 <= self.background < self.num_classes:
            raise ValueError(f"background={self.background} is no class; give 0 to {self.num_classes - 1} or None.")
        self._check_scoring()

    @property
    def channels(self) -> int:
        return self.num_classes

    @property
    def exclusive(self) -> bool:
        return True

    @property
    def _image_ndim(self) -> int:
        return 1

    def harden(self, logits: Tensor) -> Tensor:
        if self.num_classes == 2:
            return (logits[:, 1] > logits[:, 0]).to(torch.int64)
        return logits.max(1).indices  # on a CPU many times faster than argmax along the channels

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def one_hot(self, target: Tensor, channels: Sequence[int] | None = None) -> Tensor:
        wanted = list(range(self.num_classes) if channels is None else channels)
        if self.num_classes == 2 and len(wanted) == 1:  # as a conversion: comparing whole numbers is slow on a CPU
            second = target[:, None].to(torch.bool)
            return second if wanted == [1] else ~second
        classes = torch.tensor(wanted, dtype=target.dtype, device=target.device)
        return target[:, None] == classes.view(1, -1, *[1] * (target.ndim - 1))

    def voxelwise(self, valid: Tensor) -> Tensor:
        return valid[:, None]

    def _canonical(self, y: Tensor, spatial: Shape) -> Tensor:
        n = len(y) if y.ndim else 0
        if y.shape == (n, *spatial):
            if y.is_floating_point() and not spatial:
                raise ValueError(
                    f"got {y.dtype} labels of shape {tuple(y.shape)} for a multi-class decision; give integer class "
                    "numbers, or a one-hot array of shape (N, C)."
                )
            return _whole_numbers(y, "labels")
        if y.shape == (n, 1, *spatial):
            return _whole_numbers(y[:, 0], "labels")
        if y.shape == (n, self.num_classes, *spatial):
            return self._from_one_hot(y)
        raise ValueError(
            f"reference has shape {tuple(y.shape)}; accepted are (N, *S), (N, 1, *S) with class numbers and "
            f"(N, {self.num_classes}, *S) one-hot, where S is {spatial}."
        )

    def _from_one_hot(self, y: Tensor) -> Tensor:
        ignored = torch.zeros_like(y[:, 0], dtype=torch.bool)
        if self.ignore_index is not None and self.ignore_index not in (0, 1):
            ignored = (y == self.ignore_index).all(1)
        one = y == 1
        proper = ((y == 0) | one).all(1) & (one.sum(1) == 1)
        if not bool((proper | ignored).all()):
            raise ValueError(
                f"reference of shape {tuple(y.shape)} is not one-hot over its {self.num_classes} channels; give "
                "exactly one 1 per case or voxel, class numbers, or use Multilabel if labels overlap."
            )
        target = one.to(torch.int8).argmax(1)
        return target if self.ignore_index is None else torch.where(ignored, self.ignore_index, target)

    def _check_values(self, target: Tensor, valid: Tensor) -> None:
        if target.numel() and (int(target.min()) < 0 or int(target.max()) >= self.num_classes):
            wrong = sorted(set(target[(target < 0) | (target >= self.num_classes)].tolist()))[:5]
            raise ValueError(
                f"reference holds class {', '.join(map(str, wrong))}; accepted are 0 to {self.num_classes - 1}"
                f"{'' if self.ignore_index is None else f' and ignore_index {self.ignore_index}'}."
            )


@dataclass(frozen=True)
class Multilabel(Decision):
    """Any of ``num_labels`` labels, each decided by its own logit; overlapping regions; a one-logit network.

    Args:
        num_labels: number C of labels.
        threshold: probability from which a label is given; one number or one per label, in (0, 1).
        ignore_index: value in the reference that marks labels or voxels not to be scored or attacked.
        empty: as in :class:`Multiclass`.
        scored: as in :class:`Multiclass`.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multilabel
        >>> decision = Multilabel(3)
        >>> target, valid = decision.canonical([[1, 0, 1]])
        >>> decision.score(torch.tensor([[2., 1., -1.]]), target, valid)
        tensor([0.3333])
    """

    num_labels: int
    threshold: float | tuple[float, ...] = 0.5
    ignore_index: int | None = None
    empty: str = "present"
    scored: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_labels < 1:
            raise ValueError(f"Multilabel needs at least 1 label, got {self.num_labels}.")
        thresholds = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,) * self.num_labels
        if len(thresholds) != self.num_labels or not all(0 < t < 1 for t in thresholds):
            raise ValueError(
                f"threshold={self.threshold} does not fit; give one probability between 0 and 1, or a tuple of "
                f"{self.num_labels}."
            )
        self._check_scoring()

    @property
    def background(self) -> None:  # type: ignore[override]
        """Every label counts."""
        return None

    @property
    def channels(self) -> int:
        return self.num_labels

    @property
    def exclusive(self) -> bool:
        return False

    @property
    def _image_ndim(self) -> int:
        return 2

    def logit_threshold(self, like: Tensor) -> Tensor:
        """The thresholds as logits, shaped ``(1, C, 1...)`` to compare with ``like`` ``(N, C, *S)``."""
        thresholds = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,) * self.num_labels
        values = [math.log(t / (1 - t)) for t in thresholds]
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, *[1] * (like.ndim - 2))

    def harden(self, logits: Tensor) -> Tensor:
        return (logits > self.logit_threshold(logits)).to(torch.int64)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def one_hot(self, target: Tensor, channels: Sequence[int] | None = None) -> Tensor:
        return (target if channels is None else select_channels(target, channels)) == 1

    def voxelwise(self, valid: Tensor) -> Tensor:
        return valid

    def _canonical(self, y: Tensor, spatial: Shape) -> Tensor:
        n = len(y) if y.ndim else 0
        if self.num_labels == 1 and y.shape == (n, *spatial):
            y = y[:, None]
        if y.shape != (n, self.num_labels, *spatial):
            raise ValueError(
                f"reference has shape {tuple(y.shape)}; accepted is (N, {self.num_labels}, *S) of 0 and 1, "
                f"where S is {spatial}{'; or (N, *S)' if self.num_labels == 1 else ''}."
            )
        return _whole_numbers(y, "labels")

    def _check_values(self, target: Tensor, valid: Tensor) -> None:
        if bool(((target != 0) & (target != 1)).any()):
            wrong = sorted(set(target[(target != 0) & (target != 1)].tolist()))[:5]
            raise ValueError(
                f"reference holds {', '.join(map(str, wrong))}; a multi-label reference holds 0 and 1"
                f"{'' if self.ignore_index is None else f' and ignore_index {self.ignore_index}'}."
            )
