"""What a model scores that never looks at the image: the majority class, the mean training mask."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medadv.benchmarks.data.base import Cases, Dataset
from medadv.decisions import Decision


def image_blind_scores(data: Dataset, cases: Cases) -> np.ndarray:
    """Scores ``(N,)`` of the constant diagnosis that fits the training references best, per voxel or for the image.

    Exclusive classes: the most frequent one (of each voxel; images: of all cases). Labels: each if more than half have
    it. A mean mask may be empty where structures are small and move; then the constant that claims every voxel which is
    foreground in any share of training cases is tried at several cut-offs and the best on training counts.
    """
    decision = data.decision
    spatial = data.train.x.shape[2:] if data.task == "segmentation" else ()
    train, train_valid = decision.canonical(data.train.y, spatial)
    test, valid = decision.canonical(cases.y, spatial)
    frequency = decision.one_hot(train).double().mean(0)
    candidates = [_most_frequent(decision, frequency)]
    if data.task == "segmentation":
        candidates += [_most_frequent(decision, frequency, favour) for favour in (2.0, 5.0, 20.0, 100.0)]
    skill = [_score(decision, constant, train, train_valid).nanmean() for constant in candidates]
    best = candidates[int(torch.stack(skill).nan_to_num(0.0).argmax())]
    return _score(decision, best, test, valid).double().numpy()


def _most_frequent(decision: Decision, frequency: Tensor, favour: float = 1.0) -> Tensor:
    """The constant diagnosis; foreground counts ``favour`` times its frequency."""
    weighted = frequency.clone()
    foreground = list(decision.foreground)
    weighted[foreground] *= favour
    if not decision.exclusive:
        return (weighted > 0.5).to(torch.int64)
    return weighted.argmax(0)


def _score(decision: Decision, constant: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return decision.score_hard(constant.expand_as(target), target, valid)
