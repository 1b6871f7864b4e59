"""One case of a deployed model: the stored image to attack, where it may change, and what a written file is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRanged
from torch import Tensor

from medadv.adapters.base import MonaiEstimator
from medadv.adapters.deployments import Deployment, Files
from medadv.adapters.estimators import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.adapters.preprocessing import FrozenPreprocessing, frozen
from medadv.adapters.scans import Scan, read_scan
from medadv.intensities import Intensity

# what CT scanners give; a file that holds more widens it
_HOUNSFIELD = (-1024.0, 3071.0)


@dataclass(frozen=True)
class Case:
    """One case of a deployed model, made by :func:`case_of`.

    Attributes:
        deployment: the model.
        scan: the image as it is stored.
        prepared: the preprocessing, bound to this image.
        intensity: range, unit, window and grid of the stored values.
        target, valid: reference in the canonical form, of one case; None where none was given.
        extras: further files that the network sees.
    """

    deployment: Deployment
    scan: Scan
    prepared: FrozenPreprocessing
    intensity: Intensity
    target: Tensor | None = None
    valid: Tensor | None = None
    extras: Mapping[str, Files] | None = None

    @property
    def x(self) -> np.ndarray:
        """What is attacked: the stored values, float32 ``(1, C, *S)``."""
        return self.scan.values.numpy()

    @property
    def y(self) -> np.ndarray | None:
        """The reference ``(1, ...)``, or None."""
        return None if self.target is None else self.target.numpy()

    @property
    def sides(self) -> tuple[int, ...]:
        """Spatial shape of a diagnosis, ``S``; empty for an image-level model."""
        return tuple(self.scan.image.shape[1:]) if self.deployment.segments else ()

    @cached_property
    def region(self) -> np.ndarray | None:
        """Where the image may change, bool ``(1, C, *S)``; None: everywhere.

        Not where the box of a foreground crop would move, and not in channels that are no image (masks, clicks).
        """
        region = self.prepared.region(self.scan.values)
        fixed = self._fixed_channels
        if fixed:
            inside = (
                torch.ones_like(self.scan.values, dtype=torch.bool)
                if region is None
                else region.repeat(1, len(self.scan.image), *[1] * (self.scan.image.ndim - 1))
            )
            inside[:, fixed] = False
            region = inside
        return None if region is None else region.numpy()

    @property
    def _fixed_channels(self) -> list[int]:
        return [channel for channel in self.deployment.fixed_channels if channel < len(self.scan.image)]

    @cached_property
    def estimator(self) -> MonaiEstimator:
        """The model of this case from stored values to the diagnosis on their grid, for any attack."""
        deployment = self.deployment
        given: dict[str, Any] = {
            "network": deployment.network,
            "input_shape": tuple(self.scan.image.shape),
            "intensity": self.intensity,
            "inferer": deployment.inferer,
            "head": deployment.head,
            "input_transform": self.prepared,
            "device": deployment.device,
        }
        decision = deployment.decision
        if deployment.segments:
            return MonaiSegmenter(decision=decision, output_transform=self._placed, **given)
        if decision.exclusive or decision.channels == 1:
            return MonaiClassifier(decision=decision, **given)
        return MonaiMultilabelClassifier(decision=decision, **given)  # type: ignore[arg-type]

    def _placed(self, logits: Tensor) -> Tensor:
        exclusive = self.deployment.decision.exclusive
        return self.prepared.logits_of(logits, exclusive=exclusive, nearest=self.deployment.nearest)

    def score(self, prediction: Tensor) -> float:
        """Score of a canonical prediction against the reference, see :meth:`medadv.decisions.Decision.score`.

        Raises:
            ValueError: the case has no reference.
        """
        if self.target is None or self.valid is None:
            raise ValueError("the case has no reference; give label= to score against.")
        return float(self.deployment.decision.score_hard(prediction, self.target, self.valid)[0])

    def judged(self, files: Sequence[Path]) -> Tensor:
        """The diagnosis of a changed image that was written, from its bytes on, by the model's own preprocessing.

        Args:
            files: what :meth:`write` gave.

        Returns:
            Canonical prediction of one case.

        Raises:
            ValueError: the image that the network sees is not the one it was attacked with, as where a foreground crop
                found another box.
        """
        data = self.deployment.read(_one_or_all(files), self.extras)
        values = data[self.deployment.image_key]
        with torch.no_grad():
            expected = self.prepared(values.as_subclass(Tensor)[None].float())[0]
        data = self.deployment.applied(self.deployment.inside, data)
        found = data[self.deployment.input_key].as_subclass(Tensor).to(expected.dtype)
        scale = float(expected.abs().max()) or 1.0
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * scale):
            raise ValueError(
                "preprocessing the written image gives the network another input than the attack saw (a crop box that "
                "moved, or frozen statistics that changed); confine the attack to .region, or use "
                "statistics='differentiated'."
            )
        return self.deployment.diagnosed(data, tuple(self.scan.image.shape[1:]))

    def write(self, image: Tensor | np.ndarray, folder: Path, suffix: str = "_adversarial") -> tuple[Path, ...]:
        """Writes a changed image as the case is stored, see :meth:`medadv.adapters.scans.Scan.write`.

        Raises:
            ValueError: a channel that is no image was changed.
        """
        fixed = self._fixed_channels
        values = np.asarray(image.cpu() if isinstance(image, Tensor) else image).reshape(self.x.shape)
        if not np.array_equal(values[:, fixed], self.x[:, fixed]):
            raise ValueError(
                f"channels {', '.join(map(str, fixed))} are no image (masks, clicks) and were changed; attack with "
                "mask=case.region."
            )
        return self.scan.write(image, folder, suffix)

    def write_prediction(self, prediction: Tensor, path: Path) -> Path:
        """Writes a canonical prediction of a segmenter on the grid of the image, see :meth:`Scan.write_mask`."""
        return self.scan.write_mask(prediction[0], path)


def case_of(
    deployment: Deployment,
    image: Files,
    label: Any = None,
    *,
    extras: Mapping[str, Files] | None = None,
    storage: str | None = None,
    statistics: str = "differentiated",
) -> Case:
    """Reads a case of a deployed model.

    Args:
        deployment: the model.
        image: file (NIfTI, 2D image), folder of a DICOM series, or a file per channel.
        label: segmentation on the grid of the image; class number, or 0 and 1 per label; None: no reference.
        extras: files under the model's ``extra_keys``.
        storage: numpy dtype that a changed image is written as, such as ``"int16"``; None: that of the file. Attacks on
            :attr:`Case.estimator` keep to the values it can hold.
        statistics: ``"differentiated"`` or ``"frozen"``, see :func:`medadv.adapters.preprocessing.frozen`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file, a label or preprocessing that can't be right; the message says which.
    """
    paths = tuple(Path(p) for p in ([image] if isinstance(image, str | Path) else image))
    data: dict[str, Any] = {}

    def load(names: Any) -> MetaTensor:
        data.update(deployment.read(names, extras))
        return data[deployment.image_key]

    scan = read_scan(paths, load, storage=storage)
    data[deployment.image_key] = scan.image
    prepared = frozen(
        deployment.inside,
        data,
        deployment.image_key,
        result=deployment.input_key,
        statistics=statistics,
        any_transform=deployment.any_transform,
    )
    target, valid = (None, None) if label is None else deployment.labelled(label, scan.image)
    return Case(deployment, scan, prepared, _intensity(deployment, scan), target, valid, extras)


def _intensity(deployment: Deployment, scan: Scan) -> Intensity:
    """Range, unit and window of the stored values: as given, or as image, file and preprocessing say."""
    if deployment.intensity is not None:
        return replace(deployment.intensity, grid=scan.grid)
    values = scan.values
    if scan.storage == np.uint8:
        return Intensity(0.0, 255.0, deployment.unit, grid=scan.grid)
    measured = Intensity.from_data(values, per_channel=len(scan.image) > 1, unit=deployment.unit)
    window = _window(deployment)
    if deployment.unit == "HU":
        low = min(_HOUNSFIELD[0], *measured.lows)
        high = max(_HOUNSFIELD[1], *measured.highs)
        return Intensity(low, high, "HU", window=window, grid=scan.grid)
    return replace(measured, window=window, grid=scan.grid)


def _window(deployment: Deployment) -> tuple[float, float] | None:
    """The stored values that the model tells apart, where its first look at them clips to a range."""
    for transform in deployment.inside:
        if isinstance(transform, ScaleIntensityRanged) and deployment.image_key in transform.keys:
            scaler = transform.scaler
            return (float(scaler.a_min), float(scaler.a_max)) if scaler.clip else None
        if type(transform).__name__.startswith(("Scale", "Normalize", "Clip", "Threshold", "Shift")):
            return None
    return None


def _one_or_all(files: Sequence[Path]) -> Files:
    return files[0] if len(files) == 1 else list(files)
