"""Metrics of monai.metrics as endpoints: a value per case and class, nothing averaged away."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from monai.metrics import (
    AbsoluteVolumeDifferenceMetric,
    CumulativeIterationMetric,
    DiceMetric,
    GeneralizedDiceScore,
    HausdorffDistanceMetric,
    MeanIoU,
    SurfaceDiceMetric,
    SurfaceDistanceMetric,
)
from torch import Tensor

from medadv.decisions import Decision, Multiclass

_DISTANCES = (HausdorffDistanceMetric, SurfaceDistanceMetric)
_OF_SPACING = (*_DISTANCES, SurfaceDiceMetric)
# what each kind of metric is at best
_BEST: dict[type, float] = {
    DiceMetric: 1.0, MeanIoU: 1.0, GeneralizedDiceScore: 1.0, SurfaceDiceMetric: 1.0, HausdorffDistanceMetric: 0.0,
    SurfaceDistanceMetric: 0.0, AbsoluteVolumeDifferenceMetric: 0.0,
}  # fmt: skip


class MonaiMetrics:
    """Computes metrics of MONAI on hard diagnoses of voxels, one case at a time.

    The values are those that a metric buffers, before MONAI reduces them: NaN where MONAI scores nothing (by default a
    class that the reference lacks, however much of it is predicted) and infinite where a structure is missed stay what
    they are. :meth:`medadv.benchmarks.Leaderboard.endpoint_summary` counts both beside each mean.

    Args:
        metrics: by the name they get; settings are kept, buffers are not touched.
        decision: how logits become a diagnosis.
        classes: names of its channels.
        segments: whether there is one diagnosis per voxel.
        spacing: mm of a voxel along each axis; None: distances are in voxels.

    Attributes:
        names: of the endpoints that were computed last: ``"dice:liver"``, and with the unit of a distance
            ``"hd95_mm:liver"``.

    Raises:
        TypeError: what is no metric of hard segmentations.
        ValueError: a metric that leaves out a first class which is no background.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> hard, target = torch.tensor([[[0, 0, 1]], [[0, 0, 0]]]), torch.tensor([[[0, 1, 1]], [[0, 0, 0]]])
        >>> classes = ("background", "liver")
        >>> metrics = MonaiMetrics({"iou": MeanIoU()}, Multiclass(2, background=0), classes, segments=True)
        >>> metrics(hard, target, target >= 0)["iou:liver"]
        array([0.5, nan])
    """

    def __init__(
        self,
        metrics: Mapping[str, Any],
        decision: Decision,
        classes: Sequence[str],
        *,
        segments: bool,
        spacing: Sequence[float] | None = None,
    ) -> None:
        self.metrics = {name: copy.deepcopy(metric) for name, metric in metrics.items()}
        self.decision = decision
        self.classes = tuple(classes)
        self.spacing = None if spacing is None else list(spacing)
        self.names: dict[str, float] = {}
        for name, metric in self.metrics.items():
            _check(name, metric, decision, segments)

    def __call__(self, hard: Tensor, target: Tensor, valid: Tensor) -> dict[str, np.ndarray]:
        """Values by name of the endpoint, ``(N,)`` each.

        Args:
            hard: canonical hard diagnosis of N cases.
            target: canonical reference.
            valid: what of it counts; all else is background in both.
        """
        found: dict[str, np.ndarray] = {}
        self.names = {}
        for name, metric in self.metrics.items():
            metric.reset()
            for rows in zip(hard[:, None], target[:, None], valid[:, None]):
                self._add(metric, *rows)
            values = metric.get_buffer()
            metric.reset()
            for endpoint, column in self._columns(name, metric, values):
                found[endpoint] = column
                self.names[endpoint] = _best_of(metric)
        return found

    def _add(self, metric: Any, hard: Tensor, target: Tensor, valid: Tensor) -> None:
        counted = self.decision.voxelwise(valid)
        said, truth = ((self.decision.one_hot(labels.long()) & counted).float() for labels in (hard, target))
        options = {"spacing": self.spacing} if isinstance(metric, _OF_SPACING) and self.spacing is not None else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of empty masks, whose NaN and infinite values are counted
            metric(said, truth, **options)

    def _columns(self, name: str, metric: Any, values: Any) -> list[tuple[str, np.ndarray]]:
        if not isinstance(values, Tensor) or values.ndim > 2:
            kept = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"metric {name!r} keeps {kept} and not one number per case and class (N, C); give another.")
        table = values.reshape(len(values), -1).double().cpu().numpy()
        unit = ("_voxels" if self.spacing is None else "_mm") if isinstance(metric, _DISTANCES) else ""
        if values.ndim == 1 or (table.shape[1] == 1 and len(self.classes) > 2):  # one number over all classes
            return [(f"{name}{unit}", table[:, 0])]
        return [
            (f"{name}{unit}:{label}", column)
            for label, column in zip(self.classes[len(self.classes) - table.shape[1] :], table.T, strict=True)
        ]

    def rows(
        self, ids: Sequence[str], clean: Mapping[str, np.ndarray], adversarial: Mapping[str, np.ndarray]
    ) -> pd.DataFrame:
        """Endpoints ``case, endpoint, reference, clean, adversarial``; the reference is what is best, if known."""
        frames = [
            pd.DataFrame(
                {
                    "case": list(ids), "endpoint": name, "reference": best, "clean": clean[name],
                    "adversarial": adversarial[name],
                }
            )
            for name, best in self.names.items()
        ]  # fmt: skip
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _best_of(metric: Any) -> float:
    return next((best for kind, best in _BEST.items() if isinstance(metric, kind)), np.nan)


def _check(name: str, metric: Any, decision: Decision, segments: bool) -> None:
    if not segments:
        raise TypeError(
            f"metric {name!r} compares segmentations, but this model gives one diagnosis per image; leave metrics out, "
            "as the endpoints have AUC, sensitivity and specificity."
        )
    own = not type(metric).__module__.startswith("monai.")
    if not isinstance(metric, tuple(_BEST)) and not (own and isinstance(metric, CumulativeIterationMetric)):
        raise TypeError(
            f"metric {name!r} ({type(metric).__name__}) has no number per case and class of a hard segmentation; give "
            f"one of {', '.join(kind.__name__ for kind in _BEST)}, or a CumulativeIterationMetric of your own."
        )
    background = isinstance(decision, Multiclass) and decision.background == 0
    if getattr(metric, "include_background", True) is False and not background:
        raise ValueError(
            f"metric {name!r} ({type(metric).__name__}) leaves out the first class, which is no background here; build "
            "it with include_background=True."
        )


def summary(endpoints: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Endpoints of cases in groups, with what no mean can show counted.

    Args:
        endpoints: rows ``*keys, case, endpoint, reference, clean, adversarial``.
        keys: what a group has in common.

    Returns:
        Rows ``*keys, endpoint, n_cases`` and for ``clean`` and ``adversarial`` each: the mean over the cases whose
        value is finite, ``_unscored`` how many have none (NaN), ``_infinite`` how many are infinite. A mean of which
        cases are left out has to be read with their numbers.
    """
    rows = []
    for key, group in endpoints.groupby([*keys, "endpoint"], sort=False, dropna=False):
        row: dict[str, Any] = dict(zip([*keys, "endpoint"], key, strict=True), n_cases=len(group))
        for side in ("clean", "adversarial"):
            values = group[side].to_numpy(float)
            finite = values[np.isfinite(values)]
            row[side] = float(finite.mean()) if len(finite) else np.nan
            row[f"{side}_unscored"] = int(np.isnan(values).sum())
            row[f"{side}_infinite"] = int(np.isinf(values).sum())
        rows.append(row)
    return pd.DataFrame(rows)
