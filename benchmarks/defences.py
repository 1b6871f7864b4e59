"""Defences that are not training: a trained model behind a detector, a preprocessor or a vote, and its evaluation.

Each attack is judged twice: with images made on the undefended model, as papers often report, and with images made by
the same attack looking through the defence (detector-aware, BPDA, expectation over draws).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medadv import metrics
from medadv.adapters.art_preprocessors import PREPROCESSORS, art_preprocessor
from medadv.adaptive import bpda, eot
from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.defence_kinds import check_defence, options_of
from medadv.benchmarks.endpoints import ALL_CASES
from medadv.benchmarks.models import Estimator, reference_of
from medadv.detectors import balanced_weight, guarded, threshold_at_fpr
from medadv.feature_detectors import fit_detector
from medadv.features import FeatureVictim, last_hidden_layer
from medadv.numbers import whole_number
from medadv.objectives.evasion import rejected, split
from medadv.smoothing import noisy, smoothed

# endpoints of a detector that mean nothing in a worst case over attacks
OF_ONE_ATTACK = ("detection_auc", "rejected")
Row = tuple[str, str, float, float, float]
# of the balanced weight: which of them evades best differs with the detector
WEIGHTS = (0.1, 0.3, 1.0)
# cases on which the detector's slope is measured against the model's
_WEIGHED_CASES = 16


class Defended(ABC):
    """A trained model behind a defence, as it is deployed.

    Attributes:
        deployed: what the clinic runs.
        views: what an attacker who knows the defence looks at, one after the other.
        differentiable: what diagnostics of gradients look at.
        facts: what was measured or found when it was built, for the leaderboard's provenance.
    """

    deployed: Any
    views: list[Any]
    differentiable: Any

    def __init__(self, estimator: Estimator) -> None:
        self.facts: dict[str, Any] = {}
        self.decision = estimator.decision
        self.intensity = estimator.intensity
        self.segments = estimator.segments

    def output(self, x: Tensor, batch_size: int) -> tuple[Tensor, np.ndarray]:
        """Logits ``(N, C, *S)`` of images and the defence's verdict on each, ``(N,)``."""
        with self.deployed.attacked():
            parts = [self._run(part.to(self.deployed.device)) for part in x.split(batch_size)]
        return torch.cat([z.float().cpu() for z, _ in parts]), np.concatenate([verdict for _, verdict in parts])

    def _run(self, x: Tensor) -> tuple[Tensor, np.ndarray]:
        return self.deployed.logits(x), np.zeros(len(x))

    def settled(self, scores: np.ndarray, verdict: np.ndarray) -> np.ndarray:
        """Scores ``(N,)`` once the verdict is heard."""
        return scores

    def cohort_rows(
        self, clean: tuple[np.ndarray, np.ndarray], adversarial: tuple[np.ndarray, np.ndarray], ids: tuple[str, ...]
    ) -> list[Row]:
        """Rows ``case, endpoint, reference, clean, adversarial`` from (settled scores, verdicts) before and after."""
        return []

    def clean_rows(self, x: Tensor, target: Tensor, batch_size: int, ids: tuple[str, ...]) -> list[Row]:
        """Rows that are told of the clean images alone."""
        return []


class Detecting(Defended):
    """A detector on activations, fitted on training cases, its threshold fixed on validation cases."""

    def __init__(
        self, estimator: Estimator, detector: Any, layers: list[str], threshold: float, weights: Sequence[float]
    ) -> None:
        super().__init__(estimator)
        shown = FeatureVictim(estimator, layers)
        self.views = [
            guarded(shown, detector, threshold=threshold, on=detector.on, weight=weight) for weight in weights
        ]
        self.deployed = self.views[0]
        self.facts = {"layers": list(layers), "threshold": threshold, "weights": list(weights)}
        self.differentiable = estimator.victim()

    def _run(self, x: Tensor) -> tuple[Tensor, np.ndarray]:
        logits, excess = split(self.deployed.logits(x))
        return logits, excess.double().cpu().numpy()

    def settled(self, scores: np.ndarray, verdict: np.ndarray) -> np.ndarray:
        """A rejected image goes to a human and counts as right."""
        return np.where(_rejected(verdict) & np.isfinite(scores), 1.0, scores)

    def cohort_rows(
        self, clean: tuple[np.ndarray, np.ndarray], adversarial: tuple[np.ndarray, np.ndarray], ids: tuple[str, ...]
    ) -> list[Row]:
        (before, quiet), (after, alarm) = clean, adversarial
        truth = np.repeat([False, True], [len(quiet), len(alarm)])
        rows = [(case, "detector_score", 0.0, float(a), float(b)) for case, a, b in zip(ids, quiet, alarm, strict=True)]
        return [
            *rows,
            (ALL_CASES, "detection_auc", 1.0, 0.5, metrics.auc(np.concatenate([quiet, alarm]), truth)),
            (ALL_CASES, "rejected", 0.0, float(_rejected(quiet).mean()), float(_rejected(alarm).mean())),
            # rejected ones have score 1 by now
            (ALL_CASES, "joint_evasion", 0.0, float((before < 1).mean()), float((after < 1).mean())),
        ]


def _rejected(excess: np.ndarray) -> np.ndarray:
    found: np.ndarray = rejected(torch.from_numpy(excess)).numpy()
    return found


class Preprocessing(Defended):
    """One of ART's preprocessors in front of the model."""

    def __init__(self, estimator: Estimator, name: str, samples: int, seed: int, options: Mapping[str, Any]) -> None:
        super().__init__(estimator)
        seen = bpda(estimator, transform=art_preprocessor(name, estimator.intensity, **options))
        random = PREPROCESSORS[name].random
        # the attacker's draws are not those of the deployed model
        self.deployed = eot(seen, 1, seed) if random else seen
        self.views = [eot(seen, samples, seed + 1) if random else seen]
        self.differentiable = seen


class Smoothing(Defended):
    """Randomised smoothing: the vote of noisy copies."""

    def __init__(
        self, estimator: Estimator, seed: int, sigma: Any, n: int, alpha: float, certificate: int, samples: int
    ):
        super().__init__(estimator)
        whole_number("certificate", certificate, 1)
        self.certificate = certificate
        self.rule = smoothed(estimator, sigma, n=n, alpha=alpha, seed=seed)
        self.deployed = self.rule
        self.differentiable = noisy(self.rule, samples, seed + 1)
        self.views = [self.differentiable]

    def _run(self, x: Tensor) -> tuple[Tensor, np.ndarray]:
        votes = self.rule.votes(x)
        return self.rule.as_logits(votes), self.rule.abstained(votes).astype(float)

    def settled(self, scores: np.ndarray, verdict: np.ndarray) -> np.ndarray:
        """A vote too close to call is no right answer (arXiv 1902.02918)."""
        return np.where((verdict > 0) & np.isfinite(scores), 0.0, scores)

    def cohort_rows(
        self, clean: tuple[np.ndarray, np.ndarray], adversarial: tuple[np.ndarray, np.ndarray], ids: tuple[str, ...]
    ) -> list[Row]:
        if not self.rule.certifies:
            return []
        pairs = zip(ids, clean[1], adversarial[1], strict=True)
        return [(case, "abstained", 0.0, float(a), float(b)) for case, a, b in pairs]

    def clean_rows(self, x: Tensor, target: Tensor, batch_size: int, ids: tuple[str, ...]) -> list[Row]:
        """L2 radius within which the right class is certified, in data units; 0 where it is wrong or abstains."""
        if not self.rule.certifies:
            return []
        with self.rule.attacked():
            parts = [self.rule.radius(part.to(self.rule.device), self.certificate) for part in x.split(batch_size)]
        chosen, radius = (np.concatenate(values) for values in zip(*parts, strict=True))
        held = np.where(chosen == target.numpy(), radius, 0.0)
        return [(case, "certified_radius", 0.0, float(r), float(r)) for case, r in zip(ids, held, strict=True)]


def build_defence(
    kind: str,
    name: str,
    options: Mapping[str, Any],
    estimator: Estimator,
    data: Dataset,
    *,
    batch_size: int = 32,
    seed: int = 0,
    fitted: bool = True,
) -> Defended:
    """A defence on a trained model.

    Args:
        kind: ``"detector"``, ``"preprocessor"`` or ``"smoothing"``.
        name: of the detector or preprocessor.
        options: see :func:`~medadv.benchmarks.defence_kinds.options_of`.
        estimator: the trained model.
        data: its training cases fit a detector, its validation cases fix the threshold.
        batch_size: cases at once.
        seed: of draws.
        fitted: False: a detector is only tried, not fitted, to find out early what can't be right.

    Raises:
        ValueError, TypeError: a defence that is not right for the model or the data.
    """
    check_defence(kind, name, options)
    given = {**options_of(kind, name), **options}
    if kind == "detector":
        return _detecting(name, given, estimator, data, batch_size, fitted)
    if kind == "smoothing":
        return Smoothing(estimator, seed, **given)
    return Preprocessing(estimator, name, given.pop("samples", 1), seed, given)


def _detecting(
    name: str, options: dict[str, Any], estimator: Estimator, data: Dataset, batch_size: int, fitted: bool
) -> Detecting:
    if estimator.segments:
        raise ValueError(f"the detector {name!r} is for one diagnosis per image; this model gives one per voxel.")
    if not len(data.validation):
        raise ValueError(f"{data.name} has no validation cases to fix the threshold of the detector {name!r} on.")
    layers, fpr, weights = (options.pop(key) for key in ("layers", "fpr", "weights"))
    layers = [last_hidden_layer(estimator, torch.from_numpy(data.train.x[:2]))] if layers is None else list(layers)
    train, y = data.train.x, reference_of(estimator, data.train.y)
    if not fitted:
        few = _few_of_each(y, max(32, options.get("neighbours", 0)))
        train, y = train[few], y[few]
    victim = FeatureVictim(estimator, layers)
    detector = fit_detector(name, victim, train, y, batch_size=batch_size, **options)
    found = Detecting(estimator, detector, layers, 0.0, [1.0])
    x = torch.from_numpy(data.validation.x)
    scores = found.output(x if fitted else x[:2], batch_size)[1]
    if weights is None:
        balanced = balanced_weight(found.deployed, x[: _WEIGHED_CASES if fitted else 1])
        weights = [share * balanced for share in WEIGHTS]
    return Detecting(estimator, detector, layers, threshold_at_fpr(scores, fpr), np.atleast_1d(weights).tolist())


def _few_of_each(y: np.ndarray, count: int) -> np.ndarray:
    """Up to ``count`` rows of each class (of labels: that many rows)."""
    if y.ndim > 1:
        return np.arange(min(count, len(y)))
    return np.sort(np.concatenate([np.flatnonzero(y == c)[:count] for c in np.unique(y)]))


def frame_of(rows: list[Row]) -> pd.DataFrame:
    """Endpoint rows as a table."""
    return pd.DataFrame(rows, columns=["case", "endpoint", "reference", "clean", "adversarial"])
