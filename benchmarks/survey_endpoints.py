"""What surveys report beside the score: macro recall, precision, F1 and AUC of images, mIoU and HD95 of voxels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from monai.metrics import compute_hausdorff_distance
from torch import Tensor

from medadv import metrics
from medadv.benchmarks.endpoints import ALL_CASES, Diagnosis
from medadv.decisions import Decision, select_channels

MISSED, INVENTED = "structures_missed", "structures_invented"
COUNTS = (MISSED, INVENTED)
CLASSES = "macro_classes"
IDEAL = {"macro_recall": 1.0, "macro_precision": 1.0, "macro_f1": 1.0, "macro_auc": 1.0, "miou": 1.0}
MEASURES = (*IDEAL, "hd95_mm", "hd95_voxels", *COUNTS)


def hausdorff95(prediction: Tensor, reference: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """95th percentile of the Hausdorff distance of each case and class, always finite where there is anything to see.

    A structure that is missed (nothing predicted) or invented (not in the reference) has no distance; it counts the
    diagonal of the image, the largest distance possible. Where both are empty it is NaN.

    Args:
        prediction: bool ``(N, C, *S)``.
        reference: bool ``(N, C, *S)``.
        spacing: mm of a voxel along each axis; None: the result is in voxels.

    Returns:
        ``(N, C)`` in mm (voxels), by MONAI's :func:`~monai.metrics.compute_hausdorff_distance`.

    Example:
        >>> import torch
        >>> mask = torch.zeros(1, 1, 30, 40, dtype=torch.bool)
        >>> mask[..., 5:10, 5:10] = True
        >>> hausdorff95(torch.cat([mask.roll(3, -1), mask & False], 1), mask.expand(-1, 2, -1, -1))
        tensor([[ 3., 50.]])
    """
    sizes = torch.tensor(reference.shape[2:], dtype=torch.float64)
    steps = torch.tensor([1.0] * len(sizes) if spacing is None else list(spacing), dtype=torch.float64)
    diagonal = float((sizes * steps).square().sum().sqrt())
    distances = torch.full(reference.shape[:2], torch.nan)
    found, there = prediction.flatten(2).any(2), reference.flatten(2).any(2)
    distances[found != there] = diagonal
    for case, channel in torch.nonzero(found & there).tolist():
        pair = (prediction[case, channel][None, None], reference[case, channel][None, None])
        # both are there, so MONAI's warnings of empty masks can't be meant
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distance = compute_hausdorff_distance(
                *pair, include_background=True, percentile=95, spacing=None if spacing is None else list(spacing)
            )
        distances[case, channel] = distance.item()
    return distances


@dataclass(frozen=True)
class SurveyMeasures:
    """Computes these measures of one data set.

    Attributes:
        decision: how logits become a diagnosis.
        segments: voxels or images.
        spacing: mm of a voxel along each axis, or None.
        hd95: also HD95, which costs more than all the rest.
    """

    decision: Decision
    segments: bool
    spacing: tuple[float, ...] | None = None
    hd95: bool = False

    def __call__(self, diagnosis: Diagnosis, target: Tensor, valid: Tensor) -> dict[str, np.ndarray]:
        """Measures by name: ``(N,)`` per case for voxels, ``(1,)`` over all cases for images.

        Args:
            diagnosis: of N cases.
            target: canonical reference.
            valid: what of it counts.
        """
        return self._of_voxels(diagnosis, target, valid) if self.segments else self._of_images(diagnosis, target, valid)

    def _of_images(self, diagnosis: Diagnosis, target: Tensor, valid: Tensor) -> dict[str, np.ndarray]:
        assert diagnosis.scores is not None
        truth, said = (self.decision.one_hot(labels).numpy() for labels in (target, diagnosis.hard))
        counts = np.broadcast_to(self.decision.voxelwise(valid).numpy(), truth.shape)
        values = metrics.macro_scores(said & counts, truth & counts)
        values["auc"] = metrics.macro_auc(diagnosis.scores, truth, counts)
        return {f"macro_{name}": np.array([value], dtype=float) for name, value in values.items()}

    def _of_voxels(self, diagnosis: Diagnosis, target: Tensor, valid: Tensor) -> dict[str, np.ndarray]:
        parts = [self._of_case(*rows) for rows in zip(diagnosis.hard[:, None], target[:, None], valid[:, None])]
        return {name: np.array([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _of_case(self, hard: Tensor, target: Tensor, valid: Tensor) -> dict[str, float]:
        """One case at a time, so that the masks of all classes of volumes are never in memory together."""
        channels = self.decision.foreground
        mask = select_channels(self.decision.voxelwise(valid), channels)
        said, truth = (self.decision.one_hot(labels, channels) & mask for labels in (hard, target))
        values = {"miou": metrics.iou_per_class(said, truth).nanmean().item()}
        if self.hd95:
            found, there = (part.flatten(2).any(2) for part in (said, truth))
            name = "hd95_voxels" if self.spacing is None else "hd95_mm"
            values[name] = hausdorff95(said, truth, self.spacing).nanmean().item()
            values[MISSED] = float((there & ~found).sum())
            values[INVENTED] = float((found & ~there).sum())
        return values

    def rows(
        self, ids: Sequence[str], clean: dict[str, np.ndarray], adversarial: dict[str, np.ndarray]
    ) -> pd.DataFrame:
        """Measures as endpoints: ``case, endpoint, reference, clean, adversarial``; the reference is what is best."""
        cases = list(ids) if self.segments else [ALL_CASES]
        best = {**IDEAL, CLASSES: self.decision.channels}
        frames = [
            pd.DataFrame(
                {
                    "case": cases,
                    "endpoint": name,
                    "reference": float(best.get(name, 0.0)),
                    "clean": clean[name],
                    "adversarial": adversarial[name],
                }
            )
            for name in adversarial
        ]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
