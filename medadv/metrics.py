"""Hard scores and clinical endpoints, per case.

Every function takes one case or a batch of hard masks and never averages over cases.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score
from torch import Tensor

EMPTY_POLICIES = ("present", "brats", "monai")


def dice_per_class(prediction: Tensor, reference: Tensor) -> Tensor:
    """Dice coefficient of each case and class.

    Args:
        prediction: bool ``(N, C, *S)``.
        reference: bool ``(N, C, *S)``.

    Returns:
        ``(N, C)``; NaN where the class is absent from the reference.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[True, True, False, False]]])
        >>> dice_per_class(mask.roll(1, -1), mask)
        tensor([[0.5000]])
    """
    overlap, both, present = _overlap(prediction, reference)
    return torch.where(present, 2 * overlap / both.clamp(min=1), torch.nan)


def iou_per_class(prediction: Tensor, reference: Tensor) -> Tensor:
    """Intersection over union of each case and class.

    Args:
        prediction: bool ``(N, C, *S)``.
        reference: bool ``(N, C, *S)``.

    Returns:
        ``(N, C)``; NaN where the class is absent from the reference.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[True, True, False, False]]])
        >>> iou_per_class(mask.roll(1, -1), mask)
        tensor([[0.3333]])
    """
    overlap, both, present = _overlap(prediction, reference)
    return torch.where(present, overlap / (both - overlap).clamp(min=1), torch.nan)


def _overlap(prediction: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Voxels in both masks, those of the two added up, and whether the reference has any, ``(N, C)``."""
    size = voxels_in(reference, 2)
    return voxels_in(prediction & reference, 2), voxels_in(prediction, 2) + size, size > 0


def voxels_in(mask: Tensor, first: int) -> Tensor:
    """Number of True values over all dimensions from ``first`` on, int32 (on a CPU twice as fast as int64)."""
    return mask.flatten(first).sum(first, dtype=torch.int32)


def mean_dice(prediction: Tensor, reference: Tensor, *, empty: str = "present") -> Tensor:
    """Mean Dice over classes, per case.

    Args:
        prediction: bool ``(N, C, *S)``, the classes that count.
        reference: bool ``(N, C, *S)``.
        empty: what a class absent from the reference counts. ``"present"``, ``"monai"``: nothing (a denominator that
            depends on the prediction would let one false voxel take half the score). ``"brats"``: 1 if it is not
            predicted either, else 0.

    Returns:
        ``(N,)``; NaN for a case in which no class counts.
    """
    dice = dice_per_class(prediction, reference)
    if empty == "brats":
        clean = (~prediction.flatten(2).any(2)).to(dice.dtype)
        dice = torch.where(dice.isnan(), clean, dice)
    return dice.nanmean(1)


def volume(mask: np.ndarray, voxel_volume: float = 1.0) -> float:
    """Volume of a mask in units of ``voxel_volume``.

    Example:
        >>> import numpy as np
        >>> volume(np.ones((2, 2)), voxel_volume=0.5)
        2.0
    """
    return float(np.count_nonzero(mask) * voxel_volume)


def components(mask: np.ndarray) -> int:
    """Number of connected components (full connectivity: voxels that share a corner touch)."""
    return int(_label(mask)[1])


def lesion_detection(prediction: np.ndarray, reference: np.ndarray) -> tuple[float, int]:
    """Lesion-wise sensitivity and false positives: lesions are connected components, one shared voxel is a hit.

    Args:
        prediction: mask ``S``.
        reference: mask ``S``.

    Returns:
        The share of the reference's lesions that are hit (NaN without any), and the number of predicted components
        that hit none.

    Example:
        >>> import numpy as np
        >>> lesion_detection(np.array([1, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0]))
        (1.0, 1)
    """
    reference_labels, lesions = _label(reference)
    predicted_labels, predicted = _label(prediction)
    hit = np.unique(reference_labels[prediction > 0])
    explained = np.unique(predicted_labels[reference > 0])
    sensitivity = float(np.count_nonzero(hit) / lesions) if lesions else float("nan")
    return sensitivity, int(predicted - np.count_nonzero(explained))


def _label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    return ndimage.label(mask > 0, structure=np.ones((3,) * mask.ndim))


def brier(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Brier score of each case: mean squared distance of probabilities to the 0/1 truth.

    Args:
        probabilities: ``(N, C, *S)``.
        truth: bool ``(N, C, *S)``.

    Returns:
        ``(N,)``, 0 is best.
    """
    return (probabilities - truth.to(probabilities.dtype)).square().flatten(1).mean(1)


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve; NaN where one of the two classes is missing.

    Args:
        scores: ``(N,)``, higher means more likely positive.
        truth: bool ``(N,)``.

    Example:
        >>> import numpy as np
        >>> auc(np.array([.1, .4, .35, .8]), np.array([False, False, True, True]))
        0.75
    """
    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else float("nan")


def macro_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Recall, precision and F1 over all cases, each class on its own, then the mean over classes.

    Classes without a positive case in the truth have no recall and are left out of all three means; a class that is in
    the truth and is never predicted has precision 0. Cases of a class that are not to count are False in both arrays.

    Args:
        prediction: bool ``(N, C)``, one column a class or label.
        truth: bool ``(N, C)``.

    Returns:
        ``recall``, ``precision``, ``f1`` (NaN where there is no class), and ``classes``: how many the means are over.

    Example:
        >>> import numpy as np
        >>> truth = np.eye(3, dtype=bool)[[0, 0, 1, 1]]  # the third class is absent
        >>> {name: round(value, 2) for name, value in macro_scores(truth[[0, 2, 2, 3]], truth).items()}
        {'recall': 0.75, 'precision': 0.83, 'f1': 0.73, 'classes': 2}
    """
    present = [c for c in range(truth.shape[1]) if truth[:, c].any()]
    each = [
        precision_recall_fscore_support(truth[:, c], prediction[:, c], average="binary", zero_division=0)
        for c in present
    ]
    means = {
        name: float(np.mean([scores[place] for scores in each])) if each else float("nan")
        for place, name in ((1, "recall"), (0, "precision"), (2, "f1"))
    }
    return {**means, "classes": len(present)}


def macro_auc(scores: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """Mean over classes of the area under the ROC curve; those without positive or without negative cases are left out.

    Args:
        scores: ``(N, C)``, higher means more likely.
        truth: bool ``(N, C)``.
        valid: bool ``(N, C)``, what counts.

    Returns:
        The mean; NaN where no class has both.
    """
    each = [auc(scores[valid[:, c], c], truth[valid[:, c], c]) for c in range(truth.shape[1])]
    known = [value for value in each if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def youden_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The threshold with the largest sensitivity + specificity - 1, half-way between neighbouring scores.

    To be chosen on validation cases and then kept; never on test.
    """
    values = np.unique(np.asarray(scores, dtype=np.float64))
    if not np.any(truth) or np.all(truth):
        raise ValueError("a threshold can't be chosen on cases of one class only; give positive and negative ones.")
    candidates = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    youden = [sum(sensitivity_specificity(scores, truth, t)) for t in candidates]
    return float(candidates[int(np.argmax(youden))])


def sensitivity_specificity(scores: np.ndarray, truth: np.ndarray, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity of ``scores > threshold``; NaN where no case can tell."""
    truth = np.asarray(truth, dtype=bool)
    called = scores > threshold
    sensitivity = float(called[truth].mean()) if truth.any() else float("nan")
    specificity = float((~called[~truth]).mean()) if (~truth).any() else float("nan")
    return sensitivity, specificity


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of one label's probabilities, equal-width bins (arXiv 1706.04599, per label)."""
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [
        np.mean(index == b) * abs(probabilities[index == b].mean() - truth[index == b].mean())
        for b in range(bins)
        if np.any(index == b)
    ]
    return float(sum(gaps))
