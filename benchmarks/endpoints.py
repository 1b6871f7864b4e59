"""Clinical endpoints of each case, clean and under attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medadv import metrics
from medadv.decisions import Decision, Multilabel

ALL_CASES = "all"
CLASS_DICE = "class_dice"


@dataclass(frozen=True)
class Diagnosis:
    """What is needed of a model's output: hard diagnosis and, for images, one signed number per class.

    Attributes:
        hard: canonical hard diagnosis.
        scores: ``(N, C)`` for images: how much a class is favoured, 0 at the decision boundary; None for voxels.
        brier: ``(N,)`` Brier score.
        probabilities: ``(N, C)`` for images; None for voxels.
    """

    hard: Tensor
    scores: np.ndarray | None
    brier: np.ndarray
    probabilities: np.ndarray | None

    def merged(self, other: Diagnosis, rows: Tensor) -> Diagnosis:
        """This diagnosis with the given rows (bool) taken from another."""

        def pick(mine: np.ndarray | None, theirs: np.ndarray | None) -> np.ndarray | None:
            if mine is None or theirs is None:
                return None
            return np.where(rows.numpy().reshape(-1, *[1] * (mine.ndim - 1)), theirs, mine)

        hard = torch.where(rows.view(-1, *[1] * (self.hard.ndim - 1)), other.hard, self.hard)
        brier = pick(self.brier, other.brier)
        assert brier is not None
        return Diagnosis(hard, pick(self.scores, other.scores), brier, pick(self.probabilities, other.probabilities))


def diagnose(decision: Decision, logits: Tensor, target: Tensor, *, segments: bool) -> Diagnosis:
    """Reduces logits ``(N, C, *S)`` to what the tables need, so that no logits of volumes are kept."""
    probabilities = decision.probabilities(logits)
    brier = metrics.brier(probabilities, decision.one_hot(target)).numpy()
    hard = decision.harden(logits).to(torch.uint8 if decision.channels < 256 else torch.int64)
    if segments:
        return Diagnosis(hard, None, brier, None)
    return Diagnosis(hard, signed_scores(decision, logits).numpy(), brier, probabilities.numpy())


def signed_scores(decision: Decision, logits: Tensor) -> Tensor:
    """Logit of each class minus the best of the others (Multiclass) or minus the threshold (Multilabel)."""
    if isinstance(decision, Multilabel):
        return logits - decision.logit_threshold(logits)
    others = [logits[:, [k for k in range(decision.channels) if k != c]].amax(1) for c in range(decision.channels)]
    return logits - torch.stack(others, 1)


@dataclass(frozen=True)
class EndpointTable:
    """Computes endpoints for one data set.

    Attributes:
        decision: how logits become a diagnosis.
        classes: names of its channels.
        target: canonical reference of all cases.
        ids: names of the cases.
        segments: voxels or images.
        voxel_volume: size of a voxel in ``volume_unit``.
        volume_unit: ``"ml"``, in 2D ``"mm2"``, or ``"voxels"`` where the spacing is unknown.
        thresholds: per class, on the signed scores, fixed on validation cases; images only.
    """

    decision: Decision
    classes: Sequence[str]
    target: Tensor
    ids: Sequence[str]
    segments: bool
    voxel_volume: float = 1.0
    volume_unit: str = "voxels"
    thresholds: Sequence[float] = ()

    def __call__(self, clean: Diagnosis, adversarial: Diagnosis, moved: Tensor | None = None) -> pd.DataFrame:
        """Rows ``case, endpoint, reference, clean, adversarial``.

        Args:
            clean: of the images.
            adversarial: of the adversarial images.
            moved: the reference that belongs to these, where a threat moved anatomy; default: the same.
        """
        if self.segments:
            rows = self._voxel_rows(clean, adversarial, self.target if moved is None else moved)
        else:
            rows = self._image_rows(clean, adversarial)
        brier = pd.DataFrame(
            {
                "case": self.ids,
                "endpoint": "brier",
                "reference": 0.0,
                "clean": clean.brier,
                "adversarial": adversarial.brier,
            }
        )
        return pd.concat([rows, brier], ignore_index=True)

    def _voxel_rows(self, clean: Diagnosis, adversarial: Diagnosis, moved: Tensor) -> pd.DataFrame:
        rows: list[tuple[str, str, float, float, float]] = []
        for i, case in enumerate(self.ids):
            for channel in self.decision.foreground:
                masks = [self._mask(hard[i], channel) for hard in (self.target, moved, clean.hard, adversarial.hard)]
                rows += [(case, *row) for row in self._lesion_rows(self.classes[channel], *masks)]
        return pd.DataFrame(rows, columns=["case", "endpoint", "reference", "clean", "adversarial"])

    def _mask(self, hard: Tensor, channel: int) -> np.ndarray:
        mask = hard[channel] == 1 if isinstance(self.decision, Multilabel) else hard == channel
        return mask.numpy()

    def _lesion_rows(
        self, name: str, truth: np.ndarray, moved: np.ndarray, before: np.ndarray, after: np.ndarray
    ) -> list[tuple[str, float, float, float]]:
        size = "area" if truth.ndim == 2 else "volume"
        volumes = [metrics.volume(mask, self.voxel_volume) for mask in (truth, before, after)]
        if not truth.any():  # a structure that is not there: all that is found is invented
            found = [metrics.components(mask) for mask in (before, after)]
            specific = [float(not mask.any()) for mask in (before, after)]
            return [
                (f"false_positive_{size}_{self.volume_unit}:{name}", 0.0, volumes[1], volumes[2]),
                (f"false_positive_components:{name}", 0.0, float(found[0]), float(found[1])),
                (f"specificity:{name}", 1.0, specific[0], specific[1]),
            ]
        detected = [metrics.lesion_detection(before, truth), metrics.lesion_detection(after, moved)]
        return [
            (f"{CLASS_DICE}:{name}", 1.0, _dice(before, truth), _dice(after, moved)),
            (f"{size}_{self.volume_unit}:{name}", volumes[0], volumes[1], volumes[2]),
            (f"lesion_sensitivity:{name}", 1.0, detected[0][0], detected[1][0]),
            (f"lesion_false_positives:{name}", 0.0, float(detected[0][1]), float(detected[1][1])),
        ]

    def _image_rows(self, clean: Diagnosis, adversarial: Diagnosis) -> pd.DataFrame:
        truth = self.decision.one_hot(self.target).numpy()
        assert clean.scores is not None and adversarial.scores is not None
        frames = []
        for channel in self._reported():
            frames.append(
                pd.DataFrame(
                    {
                        "case": self.ids,
                        "endpoint": f"score:{self.classes[channel]}",
                        "reference": truth[:, channel].astype(float),
                        "clean": clean.scores[:, channel],
                        "adversarial": adversarial.scores[:, channel],
                    }
                )
            )
            frames.append(self._cohort_rows(channel, truth[:, channel], clean, adversarial))
        return pd.concat(frames, ignore_index=True)

    def _reported(self) -> range:
        """Of two exclusive classes the second tells all."""
        two = not isinstance(self.decision, Multilabel) and self.decision.channels == 2
        return range(1, 2) if two else range(self.decision.channels)

    def _cohort_rows(self, channel: int, truth: np.ndarray, clean: Diagnosis, adversarial: Diagnosis) -> pd.DataFrame:
        """AUC, calibration, and sensitivity and specificity at the validation threshold, over all cases."""
        name = self.classes[channel]
        measures: dict[str, tuple[float, Callable[[Diagnosis], float]]] = {
            f"auc:{name}": (1.0, lambda d: metrics.auc(d.scores[:, channel], truth)),  # type: ignore[index]
            f"calibration_error:{name}": (0.0, lambda d: metrics.calibration_error(d.probabilities[:, channel], truth)),  # type: ignore[index]
        }
        if self.thresholds:
            at = self.thresholds[channel]
            for i, measure in enumerate(("sensitivity", "specificity")):
                measures[f"{measure}:{name}"] = (
                    1.0,
                    lambda d, i=i: metrics.sensitivity_specificity(d.scores[:, channel], truth, at)[i],  # type: ignore[misc]
                )
        values = [(ideal, of(clean), of(adversarial)) for ideal, of in measures.values()]
        table = pd.DataFrame(values, columns=["reference", "clean", "adversarial"])
        table.insert(0, "endpoint", list(measures))
        table.insert(0, "case", list(repeat(ALL_CASES, len(table))))
        return table


def _dice(said: np.ndarray, truth: np.ndarray) -> float:
    """Dice of a structure; NaN where a threat moved all of its reference out of the image and nothing is said."""
    size = int(said.sum()) + int(truth.sum())
    return 2 * int((said & truth).sum()) / size if size else np.nan


def validation_thresholds(decision: Decision, logits: Tensor, target: Tensor) -> list[float]:
    """For each class the threshold on the signed scores with the largest Youden index on validation cases."""
    scores, truth = signed_scores(decision, logits).numpy(), decision.one_hot(target).numpy()
    return [metrics.youden_threshold(scores[:, c], truth[:, c]) for c in range(decision.channels)]


def worst_margins(outcomes: Sequence[Diagnosis], truth: np.ndarray) -> np.ndarray:
    """Per case and class the score that speaks most against the truth, over several attacks: ``(N, C)``."""
    scores = np.stack([outcome.scores for outcome in outcomes])  # type: ignore[misc]
    return np.where(truth, scores.min(0), scores.max(0))
