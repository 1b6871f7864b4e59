"""What a model scores that never looks at the image: the majority class, the mean training mask."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.endpoints import Diagnosis
from medadv.benchmarks.survey_endpoints import SurveyMeasures
from medadv.decisions import Decision, Multiclass


def image_blind_scores(data: Dataset, cases: Cases, constant: Tensor | None = None) -> np.ndarray:
    """Scores ``(N,)`` of a constant diagnosis; default: :func:`image_blind_diagnosis`."""
    target, valid = data.decision.canonical(cases.y, _spatial(data))
    best = image_blind_diagnosis(data) if constant is None else constant
    return _score(data.decision, best, target, valid).double().numpy()


def image_blind_diagnosis(data: Dataset) -> Tensor:
    """The constant diagnosis (canonical, one case) that fits the training references best, per voxel or for the image.

    Exclusive classes: the most frequent one (of each voxel; images: of all cases). Labels: each if more than half have
    it. A mean mask may be empty where structures are small and move; then the constant that claims every voxel which is
    foreground in any share of training cases is tried at several cut-offs and the best on training counts.
    """
    decision = data.decision
    train, train_valid = decision.canonical(data.train.y, _spatial(data))
    frequency = decision.one_hot(train).double().mean(0)
    candidates = [_most_frequent(decision, frequency)]
    if data.task == "segmentation":
        candidates += [_most_frequent(decision, frequency, favour) for favour in (2.0, 5.0, 20.0, 100.0)]
    skill = [_score(decision, constant, train, train_valid).nanmean() for constant in candidates]
    return candidates[int(torch.stack(skill).nan_to_num(0.0).argmax())]


def image_blind_endpoints(data: Dataset, cases: Cases, constant: Tensor, *, hd95: bool = False) -> pd.DataFrame:
    """The measures of :class:`~medadv.benchmarks.survey_endpoints.SurveyMeasures` of a constant diagnosis.

    All cases get the same score of each class, so its AUC is 0.5.
    """
    segments, decision, y, best = data.task == "segmentation", data.decision, cases.y, constant
    if not segments and decision.channels == 1:  # models with one logit are tabulated as two classes
        decision, y, best = Multiclass(2), y.reshape(len(y)), best.reshape(())
    target, valid = decision.canonical(y, _spatial(data))
    scores = None if segments else np.zeros((len(cases), decision.channels))
    diagnosis = Diagnosis(best.expand_as(target), scores, np.full(len(cases), np.nan), None)
    survey = SurveyMeasures(decision, segments, data.spacing, hd95)
    measures = survey(diagnosis, target, valid)
    return survey.rows(cases.ids, measures, measures)


def _spatial(data: Dataset) -> tuple[int, ...]:
    return data.train.x.shape[2:] if data.task == "segmentation" else ()


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
