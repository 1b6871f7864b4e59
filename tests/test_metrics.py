"""Scores and endpoints against MONAI, scikit-learn and answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from medadv import metrics

QUICK = settings(max_examples=40, deadline=None, derandomize=True)


@QUICK
@given(seed=st.integers(0, 10_000), spatial=st.sampled_from([(6,), (4, 5), (3, 4, 2)]), share=st.floats(0, 1))
def test_dice_per_class_is_monais(seed, spatial, share):
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(3, 4, *spatial, generator=generator) < share for _ in range(2)]
    ours, theirs = metrics.dice_per_class(*masks), compute_dice(*(m.float() for m in masks), ignore_empty=True)
    assert torch.allclose(ours, theirs, equal_nan=True)


def test_mean_dice_per_policy():
    prediction = torch.tensor([[[1, 0], [0, 0], [0, 1]]], dtype=torch.bool)
    reference = torch.tensor([[[1, 1], [0, 0], [0, 0]]], dtype=torch.bool)
    assert float(metrics.mean_dice(prediction, reference)) == pytest.approx(2 / 3)
    assert float(metrics.mean_dice(prediction, reference, empty="brats")) == pytest.approx((2 / 3 + 1 + 0) / 3)
    nothing = torch.zeros_like(reference)
    assert bool(metrics.mean_dice(prediction, nothing).isnan())
    assert float(metrics.mean_dice(nothing, nothing, empty="brats")) == 1


MAP = np.zeros((8, 8), dtype=int)


def drawn(*boxes):
    mask = MAP.copy()
    for rows, columns in boxes:
        mask[rows, columns] = 1
    return mask


A, B, C = (slice(0, 2), slice(0, 2)), (slice(4, 6), slice(4, 6)), (slice(7, 8), slice(0, 1))


@pytest.mark.parametrize(("prediction", "reference", "sensitivity", "false_positives"), [
    (drawn(A, B), drawn(A, B), 1.0, 0),
    (drawn(A), drawn(A, B), 0.5, 0),
    (drawn(A, C), drawn(A, B), 0.5, 1),
    (drawn(B, C), drawn(A), 0.0, 2),
    (MAP, drawn(A), 0.0, 0),
    (np.ones_like(MAP), drawn(A, B), 1.0, 0),  # one blob over all lesions hits them all
    (drawn((slice(1, 2), slice(1, 2))), drawn(A), 1.0, 0),  # one shared voxel is a hit
    (drawn((slice(2, 3), slice(2, 3))), drawn(A), 0.0, 1),  # touching is none
    (drawn(A, (slice(2, 3), slice(2, 3))), drawn(A), 1.0, 0),  # a corner joins components
    (drawn(A, B), MAP, np.nan, 2),
    (MAP, MAP, np.nan, 0),
])  # fmt: skip
def test_lesion_detection(prediction, reference, sensitivity, false_positives):
    for cast in (lambda m: m, lambda m: m.astype(bool), lambda m: np.stack([m, 0 * m], -1)):
        found = metrics.lesion_detection(cast(prediction), cast(reference))
        assert found == (pytest.approx(sensitivity, nan_ok=True), false_positives)


def test_volume_and_components():
    mask = drawn(A, B, C)
    assert metrics.volume(mask, 0.25) == 9 * 0.25 and metrics.components(mask) == 3
    assert metrics.components(np.eye(4)) == 1 and metrics.components(MAP) == 0


@QUICK
@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_auc_is_sklearns(seed, ties):
    rng = np.random.default_rng(seed)
    scores, truth = rng.random(30), rng.random(30) < 0.4
    scores = scores.round(1) if ties else scores
    if truth.any() and not truth.all():
        assert metrics.auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
        assert metrics.auc(-scores, truth) == pytest.approx(1 - metrics.auc(scores, truth))


@pytest.mark.parametrize("truth", [np.zeros(4, dtype=bool), np.ones(4, dtype=bool)])
def test_one_class_has_no_auc_and_no_threshold(truth):
    assert np.isnan(metrics.auc(np.arange(4.0), truth))
    with pytest.raises(ValueError, match="cases of one class only"):
        metrics.youden_threshold(np.arange(4.0), truth)


@QUICK
@given(seed=st.integers(0, 10_000), dtype=st.sampled_from([np.float32, np.float64]), as_int=st.booleans())
def test_youden_threshold_is_the_best_point_of_the_roc_curve(seed, dtype, as_int):
    rng = np.random.default_rng(seed)
    truth = rng.random(25) < 0.5
    if not truth.any() or truth.all():
        return
    scores = (rng.random(25) + 0.3 * truth).round(2).astype(dtype)
    threshold = metrics.youden_threshold(scores, truth.astype(int) if as_int else truth)
    sensitivity, specificity = metrics.sensitivity_specificity(scores, truth, threshold)
    assert sensitivity == pytest.approx((scores[truth] > threshold).mean())
    assert specificity == pytest.approx((scores[~truth] <= threshold).mean())
    false_positive, true_positive, _ = roc_curve(truth, scores)
    assert sensitivity + specificity - 1 == pytest.approx((true_positive - false_positive).max())
    assert threshold not in scores


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_sensitivity_and_specificity(dtype):
    scores, truth = np.array([0.1, 0.6, 0.4, 0.9]), np.array([0, 0, 1, 1], dtype=dtype)
    assert metrics.sensitivity_specificity(scores, truth, 0.5) == (0.5, 0.5)
    assert metrics.sensitivity_specificity(scores, truth, 0.0) == (1.0, 0.0)
    sensitivity, specificity = metrics.sensitivity_specificity(scores, np.ones(4, dtype=dtype), 0.5)
    assert sensitivity == 0.5 and np.isnan(specificity)


def test_brier_is_per_case_and_sklearns():
    p = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = p > 0.6
    ours = metrics.brier(p, truth)
    for i in range(3):
        assert float(ours[i]) == pytest.approx(brier_score_loss(truth[i].flatten().numpy(), p[i].flatten().numpy()))


@pytest.mark.parametrize(("p", "truth", "error"), [
    ([0.05, 0.95], [0, 1], 0.05),  # both a twentieth off
    ([0.75] * 4, [1, 1, 1, 0], 0.0),  # calibrated as a group
    ([0.85] * 4, [0, 0, 0, 0], 0.85),
    ([0.15] * 3 + [0.95], [0, 0, 0, 1], 3 / 4 * 0.15 + 1 / 4 * 0.05),
    ([0.0, 1.0], [0, 1], 0.0),  # 1.0 falls into the last bin
])  # fmt: skip
def test_calibration_error(p, truth, error):
    assert metrics.calibration_error(np.array(p), np.array(truth)) == pytest.approx(error)
