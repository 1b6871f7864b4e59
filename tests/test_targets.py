"""Targets of segmentation attacks against masks drawn by hand and by numpy, and success by its two tolerances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import setting
from scipy import ndimage

from medadv.attacks import create
from medadv.decisions import Multiclass, Multilabel
from medadv.targets import add, erase, move, target_success

CLASSES, LABELS = Multiclass(3, background=0), Multilabel(3)
SHAPES = {"2D": (7, 6), "3D": (6, 5, 4)}


def masks(decision, spatial, seed=0, cases=2):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(cases, 3, *spatial, generator=generator, dtype=torch.float64)
    return decision.harden(logits), logits


@pytest.mark.parametrize("rank", SHAPES)
def test_an_erased_class_is_filled_with_the_runner_up_or_the_background(rank):
    prediction, logits = masks(CLASSES, SHAPES[rank])
    filled, emptied = erase(prediction, CLASSES, 2, logits=logits), erase(prediction, CLASSES, 2)
    z, p = logits.numpy(), prediction.numpy()
    assert np.array_equal(filled, np.where(p == 2, (z[:, 1] > z[:, 0]).astype(int), p))
    assert np.array_equal(emptied, np.where(p == 2, 0, p))
    assert filled.dtype == prediction.dtype and (p == 2).any() and (filled != emptied).any()


@pytest.mark.parametrize("rank", SHAPES)
def test_an_erased_label_leaves_those_it_overlaps(rank):
    prediction, logits = masks(LABELS, SHAPES[rank])
    erased = erase(prediction, LABELS, 1, logits=logits)
    assert not erased[:, 1].any() and torch.equal(erased[:, [0, 2]], prediction[:, [0, 2]])
    assert prediction[:, 1].any()


@pytest.mark.parametrize("decision", [CLASSES, LABELS], ids=["classes", "labels"])
@pytest.mark.parametrize(("rank", "centre", "spacing", "radius"), [
    ("2D", (3, 2), None, 1.5), ("2D", (3.5, 0), (0.7, 2.0), 2.1), ("3D", (2, 2, 1), None, 1.0),
    ("3D", (0, 4, 3), (1.0, 1.5, 3.0), 3.0),
])  # fmt: skip
def test_an_added_lesion_is_the_ball_of_its_radius(decision, rank, centre, spacing, radius):
    prediction, _ = masks(decision, SHAPES[rank])
    added = add(prediction, decision, 2, centre, radius, spacing=spacing)
    ball = np.zeros(SHAPES[rank], dtype=bool)
    for at in np.ndindex(*ball.shape):
        ball[at] = np.linalg.norm((np.array(at) - centre) * np.array(spacing or [1] * len(centre))) <= radius
    expected = decision.one_hot(prediction).numpy()
    if decision is CLASSES:
        expected[:, :, ball] = False
    expected[:, 2, ball] = True
    assert np.array_equal(decision.one_hot(added), expected)
    assert 1 < ball.sum() < ball.size


def test_every_case_may_have_its_own_centre():
    nothing = torch.zeros(2, 7, 6, dtype=torch.int64)
    added = add(nothing, CLASSES, 1, [(1, 1), (5, 4)], 0.5)
    assert added.nonzero().tolist() == [[0, 1, 1], [1, 5, 4]]


@pytest.mark.parametrize("decision", [CLASSES, LABELS], ids=["classes", "labels"])
@pytest.mark.parametrize(("rank", "shift", "spacing", "voxels"), [
    ("2D", (1, -2), None, (1, -2)), ("2D", (3.0, 0.9), (2.0, 2.0), (2, 0)), ("3D", (0, 1, -1), None, (0, 1, -1)),
    ("3D", (-2.0, 0.0, 3.1), (1.0, 1.0, 3.0), (-2, 0, 1)),
])  # fmt: skip
def test_a_moved_structure_is_scipys_shift(decision, rank, shift, spacing, voxels):
    prediction, logits = masks(decision, SHAPES[rank])
    moved = move(prediction, decision, 1, shift, spacing=spacing, logits=logits)
    expected = decision.one_hot(erase(prediction, decision, 1, logits=logits)).numpy()
    for i, region in enumerate(decision.one_hot(prediction, (1,))[:, 0].numpy()):
        region = ndimage.shift(region.astype(int), voxels, order=0, cval=0) == 1
        if decision is CLASSES:
            expected[i][:, region] = False
        expected[i, 1, region] = True
    assert np.array_equal(decision.one_hot(moved), expected)
    assert not torch.equal(moved, prediction)


def test_success_needs_the_label_and_the_rest():
    clean = torch.tensor([[[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]]])
    wanted = move(clean, CLASSES, 1, (0, 1))  # 0 1 1 1 1 2 2 2 0 0
    judged = [
        ([0, 1, 1, 1, 1, 2, 2, 2, 0, 0], 1.0, 0.0),
        ([1, 1, 1, 1, 2, 2, 2, 2, 0, 0], 0.75, 0.0),  # the voxel under the moved structure may be of any class
        ([0, 1, 1, 1, 1, 2, 2, 2, 2, 0], 1.0, 1 - 6 / 7),
        ([0, 0, 0, 0, 1, 2, 2, 2, 0, 0], 2 / 5, 0.0),
    ]  # fmt: skip
    for prediction, agreement, change in judged:
        found = target_success(torch.tensor([[prediction]]), wanted, clean, CLASSES, 1)
        assert float(found.agreement) == pytest.approx(agreement) and float(found.change) == pytest.approx(change)
        assert bool(found.success) == (agreement >= 0.5 and change <= 0.05)
    strict = target_success(clean, wanted, clean, CLASSES, 1, tau=0.8)
    lenient = target_success(torch.tensor([[judged[2][0]]]), wanted, clean, CLASSES, 1, delta=0.2)
    assert not bool(strict.success) and bool(lenient.success)


def test_an_erased_label_succeeds_by_the_share_that_is_gone_and_invented_classes_count():
    clean = torch.tensor([[[1, 1, 1, 1, 0, 0, 0, 0, 0, 0]]])
    wanted = erase(clean, CLASSES, 1)
    for prediction, agreement, change in (
        ([0, 0, 0, 1, 0, 0, 0, 0, 0, 0], 0.75, 0.0), ([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], 0.0, 0.0),
        ([0, 0, 0, 0, 2, 0, 0, 0, 0, 0], 1.0, 0.1), ([2, 2, 2, 2, 0, 0, 0, 0, 0, 0], 1.0, 0.0),
    ):  # fmt: skip
        found = target_success(torch.tensor([[prediction]]), wanted, clean, CLASSES, 1)
        assert float(found.agreement) == pytest.approx(agreement) and float(found.change) == pytest.approx(change)


def test_success_of_overlapping_labels_looks_at_each_on_its_own():
    clean = torch.tensor([[[[1, 1, 0, 0]], [[1, 1, 1, 0]]]])
    decision = Multilabel(2)
    wanted = erase(clean, decision, 0)
    overlap_kept = torch.tensor([[[[0, 0, 0, 0]], [[1, 1, 1, 0]]]])
    overlap_lost = torch.tensor([[[[0, 0, 0, 0]], [[0, 0, 1, 0]]]])
    assert bool(target_success(overlap_kept, wanted, clean, decision, 0).success)
    lost = target_success(overlap_lost, wanted, clean, decision, 0)
    assert not bool(lost.success) and float(lost.change) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["voxel-class", "voxel-labels"])
def test_attacks_near_a_target_and_a_large_budget_reaches_it(kind):
    case = setting(kind)
    clean = torch.from_numpy(case.y)
    wanted = erase(clean, case.decision, 1) if kind == "voxel-labels" else add(clean, case.decision, 1, (4, 3), 2)
    agreement = []
    for eps in (0, 0.05, 0.6):
        attack = create("pgd-dicece", case.estimator, eps=eps, targeted=True, max_iter=20)
        x_adv = attack.generate(case.x, wanted.numpy())
        found = case.decision.harden(torch.from_numpy(case.estimator.predict(x_adv)))
        agreement.append(target_success(found, wanted, clean, case.decision, 1, delta=1.0).agreement.mean().item())
    assert agreement[0] < agreement[1] < agreement[2]


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: erase(m, CLASSES, 0), "label=0 is no label to attack; choose one of 1, 2"),
    (lambda m: erase(m, CLASSES, 3), "label=3 is no label"),
    (lambda m: erase(m, Multiclass(3), 1), "without background has nothing to fill with; give logits"),
    (lambda m: erase(m, CLASSES, 1, logits=torch.zeros(1, 3, 2, 2)), "logits have shape .1, 3, 2, 2., the prediction"),
    (lambda m: erase(m.float(), CLASSES, 1), "give a hard mask .N, .S. of whole numbers"),
    (lambda m: erase(m, LABELS, 1), "give a hard mask .N, 3, .S. of whole"),
    (lambda m: add(m, CLASSES, 1, (7, 0), 1), "centre=.7, 0. lies outside the image of .7, 6. voxels"),
    (lambda m: add(m, CLASSES, 1, (-0.1, 0), 1), "lies outside"),
    (lambda m: add(m, CLASSES, 1, (1, 1, 1), 1), "no point of 2 axes"),
    (lambda m: add(m, CLASSES, 1, [(1, 1)] * 3, 1), "no point of 2 axes"),
    (lambda m: add(m, CLASSES, 1, (float("nan"), 1), 1), "no point of 2 axes"),
    (lambda m: add(m, CLASSES, 1, (1.5, 1.5), 0.5), "radius=0.5 holds no voxel"),
    (lambda m: add(m, CLASSES, 1, (1, 1), -1), "radius=-1 holds no voxel"),
    (lambda m: add(m, CLASSES, 1, (1, 1), 1, spacing=(1, 0)), "spacing=.1, 0. does not fit; give 2 lengths in mm"),
    (lambda m: move(m, CLASSES, 1, (0.2, -0.4)), "less than half a voxel and moves nothing"),
    (lambda m: move(m, CLASSES, 1, (1, 1), spacing=(3.0, 3.0)), "less than half a voxel"),
    (lambda m: move(m, CLASSES, 1, (7, 0)), "takes label 1 out of the image"),
    (lambda m: move(m, CLASSES, 1, (1, 0, 0)), "no point of 2 axes"),
    (lambda m: target_success(m, m, m, CLASSES, 1, tau=1.5), "tau=1.5 must lie between 0 and 1"),
    (lambda m: target_success(m, m, m, CLASSES, 1, delta=-0.1), "delta=-0.1 must lie between 0 and 1"),
])  # fmt: skip
def test_what_can_not_be_right_is_refused(call, message):
    prediction, _ = masks(CLASSES, SHAPES["2D"])
    with pytest.raises(ValueError, match=message):
        call(prediction)
