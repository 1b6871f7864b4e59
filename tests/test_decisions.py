"""Every form of reference, every refusal, and scores against MONAI's DiceMetric where the two agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.metrics import DiceMetric

from medadv.decisions import Multiclass, Multilabel

QUICK = settings(max_examples=30, deadline=None, derandomize=True)
CLASSES = Multiclass(3, background=0)


def one_hot(y, classes=3):
    return np.moveaxis(np.eye(classes, dtype=np.int64)[y], -1, 1)


@pytest.mark.parametrize("spatial", [(), (4, 3), (3, 2, 2)])
def test_every_usual_form_of_class_numbers_is_the_same_reference(spatial):
    y = np.random.default_rng(0).integers(0, 3, (5, *spatial))
    forms = [
        y,
        y.tolist(),
        torch.from_numpy(y),
        MetaTensor(torch.from_numpy(y)),
        y.astype(np.uint8),
        y[:, None],
        torch.from_numpy(y)[:, None].to(torch.int16),
        one_hot(y),
        one_hot(y).astype(np.float32),
        one_hot(y).astype(bool),
        torch.from_numpy(one_hot(y)).double(),
    ]
    if spatial:
        forms += [y.astype(np.float32), MetaTensor(torch.from_numpy(y).float()[:, None])]
    for form in forms:
        target, valid = CLASSES.canonical(form, spatial)
        assert type(target) is torch.Tensor and target.dtype == torch.int64 and bool(valid.all())
        assert np.array_equal(target.numpy(), y) and valid.shape == target.shape


@pytest.mark.parametrize("spatial", [(), (4, 3), (3, 2, 2)])
@pytest.mark.parametrize("labels", [1, 3])
def test_every_usual_form_of_labels_is_the_same_reference(spatial, labels):
    y = np.random.default_rng(0).integers(0, 2, (5, labels, *spatial))
    forms = [y, y.tolist(), torch.from_numpy(y), y.astype(bool), y.astype(np.float32), MetaTensor(torch.from_numpy(y))]
    if labels == 1:
        forms += [y[:, 0], y[:, 0].astype(bool)]
    for form in forms:
        target, valid = Multilabel(labels).canonical(form, spatial)
        assert target.dtype == torch.int64 and np.array_equal(target.numpy(), y) and bool(valid.all())


@pytest.mark.parametrize("mark", [-1, 255, 7])
@pytest.mark.parametrize("channel_first", [False, True])
def test_ignored_voxels_are_marked_and_hold_class_zero(mark, channel_first):
    y = np.array([[[0, mark], [2, 1]]])
    decision = Multiclass(3, background=0, ignore_index=mark)
    target, valid = decision.canonical(y[:, None] if channel_first else y, (2, 2))
    assert target.tolist() == [[[0, 0], [2, 1]]] and valid.tolist() == [[[True, False], [True, True]]]
    hot = one_hot(np.where(y == mark, 0, y))
    hot = np.where((y == mark)[:, None], mark, hot)
    assert torch.equal(decision.canonical(hot, (2, 2))[0], target)
    target, valid = Multilabel(2, ignore_index=mark).canonical([[1, mark], [0, 1]])
    assert target.tolist() == [[1, 0], [0, 1]] and valid.tolist() == [[True, False], [True, True]]


def test_ignore_index_may_be_a_class_number():
    target, valid = Multiclass(3, ignore_index=0).canonical([0, 1, 2])
    assert target.tolist() == [0, 1, 2] and valid.tolist() == [False, True, True]


@pytest.mark.parametrize(("decision", "y", "spatial", "message"), [
    (Multiclass(3), np.array([0.0, 1.0]), (), "float64 labels of shape .2,. for a multi-class decision; give integer"),
    (Multiclass(3), [0, 3], (), "holds class 3; accepted are 0 to 2"),
    (Multiclass(3), [0, -1], (), "holds class -1; accepted are 0 to 2"),
    (Multiclass(3, ignore_index=255), [0, 254], (), "holds class 254.*ignore_index 255"),
    (Multiclass(3), [[1, 1, 0]], (), "not one-hot over its 3 channels; .*use Multilabel if labels overlap"),
    (Multiclass(3), [[0, 0, 0]], (), "not one-hot"),
    (Multiclass(3), [[0.2, 0.3, 0.5]], (), "not one-hot"),
    (Multiclass(3), [[0, 1]], (), r"shape \(1, 2\); accepted are \(N, \*S\)"),
    (Multiclass(3), 1, (), r"shape \(\)"),
    (Multiclass(3), np.zeros((2, 5, 4), dtype=int), (4, 5), r"shape \(2, 5, 4\).*S is \(4, 5\)"),
    (Multiclass(3), np.zeros((2, 2, 4, 5), dtype=int), (4, 5), r"\(N, 3, \*S\) one-hot"),
    (Multiclass(3), np.full((1, 4, 5), 0.5), (4, 5), "whole class numbers, got torch.float64 with fractions"),
    (Multiclass(3), np.full((1, 4, 5), np.nan), (4, 5), "whole class numbers"),
    (Multiclass(3), np.full((1, 4, 5), np.inf), (4, 5), "reference holds class|whole class numbers"),
    (Multilabel(3), [[0, 1]], (), r"accepted is \(N, 3, \*S\) of 0 and 1"),
    (Multilabel(3), [0, 1, 1], (), r"shape \(3,\)"),
    (Multilabel(3), [[0, 2, 1]], (), "holds 2; a multi-label reference holds 0 and 1"),
    (Multilabel(3), [[0, 0.5, 1]], (), "fractions"),
    (Multilabel(3, ignore_index=-1), [[0, -2, 1]], (), "holds -2; .* and ignore_index -1"),
    (Multilabel(1), np.zeros((2, 2)), (), r"or \(N, \*S\)"),
])  # fmt: skip
def test_references_that_cannot_be_right_are_refused(decision, y, spatial, message):
    with pytest.raises(ValueError, match=message):
        decision.canonical(y, spatial)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: Multiclass(1), "at least 2 classes, got 1; for one logit use Multilabel"),
    (lambda: Multiclass(3, background=3), "background=3 is no class; give 0 to 2 or None"),
    (lambda: Multiclass(3, empty="monia"), "unknown; did you mean 'monai'"),
    (lambda: Multilabel(3, empty="zero"), "policy for absent classes 'zero' is unknown"),
    (lambda: Multiclass(3, scored=(3,)), "names no classes to score; give numbers from 0 to 2"),
    (lambda: Multiclass(3, scored=()), "names no classes to score"),
    (lambda: Multilabel(0), "at least 1 label"),
    (lambda: Multilabel(2, threshold=0.0), "one probability between 0 and 1, or a tuple of 2"),
    (lambda: Multilabel(2, threshold=(0.5,)), "a tuple of 2"),
    (lambda: Multilabel(2, threshold=(0.5, 1.0)), "threshold"),
])  # fmt: skip
def test_decisions_that_make_no_sense_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_what_a_model_says_is_hardened_where_a_reference_may_be_logits():
    logits = np.array([[0.1, 2.0, -1.0], [3.0, 0.0, 1.0]], dtype=np.float32)
    assert CLASSES.canonical_or_logits(logits)[0].tolist() == [1, 0]
    assert CLASSES.canonical_or_logits(np.eye(3, dtype=np.float32)[[2, 0]])[0].tolist() == [2, 0]
    assert Multilabel(3).canonical_or_logits(logits)[0].tolist() == [[1, 1, 0], [1, 0, 1]]
    assert Multilabel(3).canonical_or_logits(np.float32([[0, 1, 1]]))[0].tolist() == [[0, 1, 1]]


def test_thresholds_are_probabilities_per_label():
    logits = torch.tensor([[0.0, 0.0, 2.0]])
    assert Multilabel(3).harden(logits).tolist() == [[0, 0, 1]]
    assert Multilabel(3, threshold=(0.3, 0.6, 0.95)).harden(logits).tolist() == [[1, 0, 0]]
    assert Multilabel(1, threshold=0.2).harden(torch.tensor([[[-1.0, -2.0]]])).tolist() == [[[1, 0]]]


def test_image_scores():
    classes = Multiclass(3, ignore_index=-1)
    target, valid = classes.canonical([1, 2, -1])
    logits = torch.tensor([[0.0, 1.0, 0.0]] * 3)
    assert classes.score(logits, target, valid).nan_to_num(9).tolist() == [1, 0, 9]
    labels = Multilabel(4, ignore_index=-1)
    target, valid = labels.canonical([[1, 0, 1, -1], [-1, -1, -1, -1]])
    score = labels.score(torch.tensor([[1.0, 1.0, 1.0, 1.0]] * 2), target, valid)
    assert score[0].item() == pytest.approx(2 / 3) and bool(score[1].isnan())


def random_masks(seed, kind, spatial=(5, 4), cases=4):
    """Predictions and references in which classes are often absent."""
    generator = torch.Generator().manual_seed(seed)
    most = torch.randint(1, 4, (cases, *[1] * len(spatial)), generator=generator)
    if kind == "classes":
        draw = [torch.randint(0, 3, (cases, *spatial), generator=generator) % most for _ in range(2)]
        return draw[0], draw[1]
    on = (torch.rand(cases, 3, *[1] * len(spatial), generator=generator) > 0.4).long()
    draws = [torch.randint(0, 2, (cases, 3, *spatial), generator=generator) * on for _ in range(2)]
    return draws[0], draws[1]


def logits_of(prediction, decision):
    return 4.0 * decision.one_hot(prediction) - 2.0


def monai_dice(decision, prediction, reference, **options):
    metric = DiceMetric(reduction="none", **options)
    per_class = metric(decision.one_hot(prediction).float(), decision.one_hot(reference).float())
    return per_class.nanmean(1)


@QUICK
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["classes", "labels"]))
def test_scores_with_every_policy_equal_monais_dice(seed, kind):
    prediction, reference = random_masks(seed, kind)
    valid = torch.ones_like(reference, dtype=torch.bool)
    background = kind == "labels"  # a multi-label decision has none

    def ours(policy):
        decision = Multilabel(3, empty=policy) if kind == "labels" else Multiclass(3, background=0, empty=policy)
        return decision.score(logits_of(prediction, decision), reference, valid), decision

    score, decision = ours("present")
    expected = monai_dice(decision, prediction, reference, include_background=background, ignore_empty=True)
    assert torch.allclose(score, expected, equal_nan=True)
    score, decision = ours("brats")
    expected = monai_dice(decision, prediction, reference, include_background=background, ignore_empty=False)
    assert torch.allclose(score, expected, equal_nan=True)
    score, decision = ours("monai")
    assert torch.allclose(score, monai_dice(decision, prediction, reference), equal_nan=True)


@QUICK
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["classes", "labels"]))
def test_ignored_voxels_do_not_score(seed, kind):
    prediction, reference = random_masks(seed, kind)
    decision = Multilabel(3) if kind == "labels" else CLASSES
    valid = torch.rand(reference.shape, generator=torch.Generator().manual_seed(seed)) > 0.4
    score = decision.score(logits_of(prediction, decision), reference, valid)
    for changed in (1 - prediction.clamp(max=1), torch.zeros_like(prediction)):
        other = torch.where(valid, prediction, changed)
        assert torch.equal(decision.score_hard(other, reference, valid).nan_to_num(9), score.nan_to_num(9))
    # cutting the ignored voxels out leaves the same number
    for i in range(len(reference)):
        if kind == "labels":
            continue
        cut = [part[i][valid[i]][None] for part in (prediction, reference)]
        alone = decision.score_hard(*(part[:, None] for part in cut), valid[i][valid[i]][None, None])
        assert torch.allclose(alone, score[i : i + 1], equal_nan=True)


def test_a_false_voxel_of_an_absent_class_costs_nothing_under_present_but_all_under_brats():
    reference = torch.zeros(1, 4, 4, dtype=torch.int64)
    reference[0, :2] = 1
    prediction = reference.clone()
    prediction[0, 3, 3] = 2
    valid = torch.ones_like(reference, dtype=torch.bool)
    scores = [
        float(Multiclass(3, background=0, empty=policy).score_hard(prediction, reference, valid))
        for policy in ("present", "brats", "monai")
    ]
    assert scores == pytest.approx([1.0, 0.5, (1 + 14 / 15) / 2])


def test_scored_chooses_the_classes_that_count():
    reference = torch.tensor([[[0, 1, 2, 2]]])
    prediction = torch.tensor([[[0, 0, 2, 2]]])
    valid = reference >= 0
    assert float(Multiclass(3, background=0, scored=(2,)).score_hard(prediction, reference, valid)) == 1
    assert float(Multiclass(3, background=0, scored=(1,)).score_hard(prediction, reference, valid)) == 0
    assert Multiclass(3, background=0, scored=(2,)).foreground == (2,)
    assert Multiclass(3, background=1).foreground == (0, 2)
    assert Multilabel(3).foreground == (0, 1, 2)


def test_probabilities_sum_to_one_for_classes_and_not_for_labels():
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(CLASSES.probabilities(logits).sum(1), torch.ones(2, 4))
    assert torch.equal(Multilabel(3).probabilities(logits), logits.sigmoid())
