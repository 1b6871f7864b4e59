"""Goals on voxels: each against its formula in numpy for one case, its gradient, its limits, and a known break."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import setting
from networks import BrightnessSegmenter, bright_boxes
from scipy import ndimage
from torch import nn

from medadv.adapters import MonaiSegmenter
from medadv.attacks import create
from medadv.decisions import Multiclass, Multilabel
from medadv.metrics import lesion_detection
from medadv.objectives import (
    LesionInvented,
    LesionMissed,
    OneOrgan,
    ThresholdCrossed,
    TowardsMask,
    VolumeChange,
    make_objective,
)
from medadv.targets import target_success

SHAPES = {"2D": (7, 6), "3D": (5, 4, 3)}
THRESHOLDS = (0.3, 0.5, 0.8)
DECISIONS = {
    "classes": Multiclass(3, background=0, ignore_index=9),
    "labels": Multilabel(3, threshold=THRESHOLDS, ignore_index=9),
}


def example(kind, spatial, seed=0, cases=3):
    """Logits, target with a few lesions per class, and validity; the last case has no foreground."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(cases, 3, *spatial, generator=generator, dtype=torch.float64)
    shape = (cases, 3, *spatial) if kind == "labels" else (cases, *spatial)
    rare = torch.rand(shape, generator=generator) > 0.8
    target = rare.long() * (1 if kind == "labels" else torch.randint(1, 3, shape, generator=generator))
    target[-1] = 0
    valid = torch.rand(shape, generator=generator) > 0.2
    return logits, torch.where(valid, target, 0), valid


# the formulas again, of one case: z (C, *S), t and ok (*S) for classes or (C, *S) for labels


def sigmoid(m):
    return 1 / (1 + np.exp(-m))


def region_of(kind, label, z, t, ok):
    """Margin, reference and validity of the region ``(*S)``."""
    if kind == "classes":
        inside = [1, 2] if label is None else [label]
        outside = [c for c in range(3) if c not in inside]
        return z[inside].max(0) - z[outside].max(0), np.isin(t, inside) & ok, ok
    inside = [0, 1, 2] if label is None else [label]
    tau = np.log(np.array(THRESHOLDS) / (1 - np.array(THRESHOLDS))).reshape(3, *[1] * (z.ndim - 1))
    m = np.where(ok, z - tau, -np.inf)[inside].max(0)
    return m, (t.astype(bool) & ok)[inside].any(0), ok[inside].any(0)


def lesions_of(reference):
    numbered, count = ndimage.label(reference, np.ones((3,) * reference.ndim))
    return [numbered == i + 1 for i in range(count)]


def expected(name, kind, label, z, t, ok):
    """Value and badness of one case."""
    m, reference, counts = region_of(kind, label, z, t, ok)
    q, hard = np.where(counts, sigmoid(m), 0), (m > 0) & counts
    before = reference.sum()
    if name in ("volume-up", "volume-down"):
        way = 1 if name == "volume-up" else -1
        return way * (q.sum() - before) / max(before, 1), way * (hard.sum() - before) / max(before, 1)
    if name == "threshold-crossed":
        up = before <= 5.5
        missing = max(6 - hard.sum(), 0) if up else max(hard.sum() - 5, 0)
        return (1 if up else -1) * (q.sum() - 5.5) / 5.5, -missing / 5.5
    if name == "lesion-missed":
        lesions = lesions_of(reference)
        if not lesions:
            return 0.0, -1.0
        value = np.mean([np.log(1 - q[lesion]).mean() for lesion in lesions])
        return value, -lesion_detection(hard, reference)[0]
    if name == "lesion-invented":
        grown = ndimage.binary_dilation(reference, np.ones((3,) * reference.ndim))
        away = counts & ~grown
        return (q * away).sum() / max(away.sum(), 1), lesion_detection(hard, reference)[1]
    raise AssertionError(name)


ARGUMENTS = {"threshold-crossed": {"threshold_voxels": 5.5}}
REGIONS = ("volume-up", "volume-down", "threshold-crossed", "lesion-missed", "lesion-invented")


def objective_of(name, kind, label):
    return make_objective({"name": name, "label": label, **ARGUMENTS.get(name, {})}, DECISIONS[kind], targeted=False)


@pytest.mark.parametrize("label", [None, 1])
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("kind", DECISIONS)
@pytest.mark.parametrize("name", REGIONS)
def test_goals_on_regions_are_their_formula_soft_and_hard(name, kind, rank, label):
    objective = objective_of(name, kind, label)
    for seed in range(3):
        logits, target, valid = example(kind, SHAPES[rank], seed)
        values, badness = objective(logits, target, valid=valid), objective.badness(logits, target, valid)
        assert values.shape == badness.shape == (3,)
        for i in range(3):
            value, hard = expected(name, kind, label, *(part[i].numpy() for part in (logits, target, valid)))
            assert float(values[i]) == pytest.approx(value, abs=1e-9)
            assert float(badness[i]) == pytest.approx(hard, abs=1e-6)
            assert float(badness[i]) <= objective.floor


def dice_terms(p, y, seen, channels):
    missed, invented = [], []
    for c in channels:
        q, r, ok = p[c] * seen[c], (y[c] & seen[c]).astype(float), seen[c]
        if r.any():
            missed.append(1 - 2 * (q * r).sum() / (q.sum() + r.sum()))
        else:
            invented.append(q.sum() / max(ok.sum(), 1))
    return sum(missed) / max(len(missed), 1) + sum(invented) / max(len(invented), 1)


@pytest.mark.parametrize("keep_weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("kind", DECISIONS)
def test_one_organ_is_its_formula_soft_and_hard(kind, rank, keep_weight):
    decision = DECISIONS[kind]
    objective = OneOrgan(decision, label=1, keep_weight=keep_weight)
    logits, target, valid = example(kind, SHAPES[rank])
    values, badness = objective(logits, target, valid=valid), objective.badness(logits, target, valid)
    others = (2,) if kind == "classes" else (0, 2)
    for i in range(3):
        z, t, ok = (part[i].numpy() for part in (logits, target, valid))
        y = np.stack([t == c for c in range(3)]) if kind == "classes" else t == 1
        seen = np.stack([ok] * 3) if kind == "classes" else ok
        soft = np.exp(z) / np.exp(z).sum(0) if kind == "classes" else sigmoid(z)
        hard = decision.one_hot(decision.harden(logits[i : i + 1]))[0].numpy().astype(float)
        for p, found in ((soft, values[i]), (hard, badness[i])):
            expected = dice_terms(p, y, seen, (1,)) - keep_weight * dice_terms(p, y, seen, others)
            assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", DECISIONS)
@pytest.mark.parametrize("name", [*REGIONS, "one-organ", "towards-mask"])
def test_gradients_are_those_of_finite_differences(name, kind):
    wanted = TowardsMask(DECISIONS[kind], targeted=True)
    objective = wanted if name == "towards-mask" else objective_of(name, kind, 1)
    logits, target, valid = example(kind, (3, 4), seed=4)
    assert torch.autograd.gradcheck(lambda z: objective(z, target, valid=valid), logits.requires_grad_())


@pytest.mark.parametrize("kind", DECISIONS)
@pytest.mark.parametrize("name", [*REGIONS, "one-organ"])
def test_cases_are_independent_and_ignored_voxels_have_no_gradient(name, kind):
    objective = objective_of(name, kind, 1)
    logits, target, valid = example(kind, SHAPES["2D"])
    valid[2] = False
    leaf = logits.clone().requires_grad_()
    values = objective(leaf, target, valid=valid)
    (grad,) = torch.autograd.grad(values.sum(), leaf)
    seen = valid if kind == "labels" else valid[:, None].expand_as(grad)
    assert not grad[~seen].any() and bool(grad[0].any()) and bool(grad.isfinite().all())
    badness = objective.badness(logits, target, valid)
    for i in range(3):
        part = (logits[i : i + 1], target[i : i + 1])
        assert float(objective(*part, valid=valid[i : i + 1])) == pytest.approx(float(values[i].detach()), abs=1e-12)
        assert torch.equal(objective.badness(*part, valid[i : i + 1])[0], badness[i])
    assert bool(badness.isfinite().all())


@pytest.mark.parametrize("kind", DECISIONS)
@pytest.mark.parametrize("label", [None, 1])
def test_the_soft_region_is_beyond_one_half_where_the_hard_one_is(kind, label):
    decision = DECISIONS[kind]
    objective = VolumeChange(decision, label=label)
    logits, _, valid = example(kind, SHAPES["3D"], seed=5)
    soft = objective.margin(logits, valid).sigmoid()
    assert torch.equal(soft > 0.5, objective.region(decision.harden(logits), valid))


@pytest.mark.parametrize("name", REGIONS)
def test_the_hard_number_never_falls_as_the_soft_one_is_driven(name):
    """Along one voxel after the other moved to the goal, value and badness only rise (lesions: never merge here)."""
    objective = objective_of(name, "classes", 1)
    target = torch.zeros(1, 9, 9, dtype=torch.int64)
    target[0, 0, 0:6], target[0, 8, 0:6] = 1, 1
    up = name in ("volume-up", "lesion-invented")
    wanted = torch.zeros(1, 3, 9, 9, dtype=torch.float64)
    wanted[:, 1] = -3.0
    wanted[:, 1][target == 1] = 3.0
    places = (
        [(2 + 2 * i, 2 * j) for i in range(3) for j in range(5)] if up else [(r, c) for r in (0, 8) for c in range(6)]
    )
    numbers = []
    for at in [None, *places]:
        if at is not None:
            wanted[(0, 1, *at)] *= -1
        valid = target >= 0
        numbers.append((float(objective(wanted, target, valid=valid)), float(objective.badness(wanted, target, valid))))
    soft, hard = np.array(numbers).T
    assert (np.diff(soft) > 0).all() and (np.diff(hard) >= 0).all() and hard[-1] > hard[0]


@pytest.mark.parametrize(("given", "voxels"), [
    ({"threshold_voxels": 12}, 12), ({"threshold_ml": 0.3, "spacing": (1, 1, 3)}, 100),
    ({"threshold_ml": 2, "spacing": [0.5, 0.5, 10.0]}, 800),
])  # fmt: skip
def test_thresholds_in_millilitres_are_counted_in_voxels(given, voxels):
    assert ThresholdCrossed(DECISIONS["classes"], **given).threshold == pytest.approx(voxels)


@pytest.mark.parametrize(("direction", "volume", "badness"), [
    (None, 5, 0.0), (None, 4, -0.25), ("down", 4, 0.0), ("down", 6, -0.5), ("up", 3, -0.5), ("up", 9, 0.0),
])  # fmt: skip
def test_a_threshold_is_crossed_by_the_first_voxel_beyond_it(direction, volume, badness):
    decision = Multiclass(2, background=0)
    objective = ThresholdCrossed(decision, threshold_voxels=4, direction=direction)
    target = torch.zeros(1, 3, 4, dtype=torch.int64)
    target[0, 0, :2] = 1
    logits = torch.zeros(1, 2, 12)
    logits[0, 1, :volume] = 1.0
    logits[0, 0, volume:] = 1.0
    assert float(objective.badness(logits.view(1, 2, 3, 4), target, target >= 0)) == pytest.approx(badness)
    assert objective.floor == 0


def test_small_components_need_not_count_as_lesions():
    target = torch.zeros(1, 1, 9, dtype=torch.int64)
    target[0, 0, 0] = 1
    found = torch.tensor([[[1, 1, 0, 1, 0, 1, 1, 1, 0]]])
    logits = torch.stack([1.0 - found, 1.0 * found], 1)
    for least, count in ((1, 2), (2, 1), (4, 0)):
        objective = LesionInvented(Multiclass(2, background=0), min_voxels=least)
        assert float(objective.badness(logits, target, target >= 0)) == count


def test_the_reference_is_analysed_once():
    objective = LesionMissed(DECISIONS["classes"])
    logits, target, valid = example("classes", SHAPES["2D"])
    calls = []
    original, objective.region = objective.region, lambda *given: calls.append(given[0]) or original(*given)
    for _ in range(3):
        objective(logits, target, valid=valid)
    assert len(calls) == 1
    other = target.flip(0)
    value = objective(logits, other, valid=valid)
    assert len(calls) == 2 and torch.equal(value, LesionMissed(DECISIONS["classes"])(logits, other, valid=valid))


@pytest.mark.parametrize("kind", DECISIONS)
def test_towards_a_mask_ranks_by_what_is_erased_too(kind):
    decision = DECISIONS[kind]
    _, target, valid = example(kind, SHAPES["2D"])
    mask = decision.one_hot(target)
    if kind == "labels":
        target[:, 1] = 0
    else:
        target[target == 1] = 0
    objective = TowardsMask(decision, targeted=True)
    reached = torch.where(decision.one_hot(target), 5.0, -5.0)
    kept = torch.where(mask, 5.0, -5.0)
    own = mask[:, 1] & (valid[:, 1] if kind == "labels" else valid)
    numbered = own.flatten(1).cumsum(1).view_as(own)
    still = own & (numbered <= numbered.amax((1, 2), keepdim=True) / 2)
    half = torch.where(still[:, None], kept, reached)
    numbers = [objective.badness(z.double(), target, valid)[:2] for z in (kept, half, reached)]
    assert (numbers[0] < numbers[1]).all() and (numbers[1] < numbers[2]).all()
    assert numbers[2].tolist() == [1.0, 1.0] == [objective.floor] * 2


# attacks on models that see one voxel at a time, so that a change of LEVEL = 0.02 flips any voxel


def bright(dims, decision=Multiclass(2, background=0)):
    net = BrightnessSegmenter(dims, decision.channels)
    x, mask = bright_boxes(dims)
    return MonaiSegmenter(net, x.shape[1:], decision=decision), x, mask


def found_by(estimator, x):
    return np.asarray(estimator.predict(x)).argmax(1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.03), (2, 0.6)])
@pytest.mark.parametrize("name", REGIONS)
def test_every_goal_is_reached_within_a_budget_that_suffices(name, norm, eps, dims):
    estimator, x, mask = bright(dims)
    options = {"threshold_voxels": 12.0} if name == "threshold-crossed" else {}
    attack = create(name, estimator, eps=eps, norm=norm, max_iter=20, **options)
    pairs = list(zip(found_by(estimator, attack.generate(x, mask)), mask, strict=True))
    if name == "volume-up":
        assert all(p.sum() >= 1.5 * m.sum() for p, m in pairs)
        assert norm == 2 or all(p.all() for p, _ in pairs)
    elif name == "volume-down":
        assert not any(p.any() for p, _ in pairs)
    elif name == "threshold-crossed":
        assert all(m.sum() > 12 >= p.sum() for p, m in pairs)
    elif name == "lesion-missed":
        assert all(lesion_detection(p, m)[0] == 0 for p, m in pairs)
    else:
        assert all(lesion_detection(p, m)[1] >= 1 for p, m in pairs)


@pytest.mark.parametrize("name", REGIONS)
def test_no_goal_is_reached_within_a_budget_that_can_not_suffice(name):
    estimator, x, mask = bright(2)
    options = {"threshold_voxels": 12.0} if name == "threshold-crossed" else {}
    x_adv = create(name, estimator, eps=0.01, max_iter=20, **options).generate(x, mask)
    assert np.array_equal(found_by(estimator, x_adv), mask)


def test_a_small_threshold_needs_few_voxels_only():
    estimator, x, mask = bright(2)
    attack = create("threshold-crossed", estimator, eps=0.03, max_iter=20, threshold_voxels=20.0, direction="up")
    assert (found_by(estimator, attack.generate(x, mask)).sum(axis=(1, 2)) > 20).all()


class TwoOrgans(nn.Module):
    """Organ 1 where channel 0 is bright, organ 2 where channel 1 is; by a 1 x 1 convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])[:, :, None, None])
            self.conv.bias.copy_(torch.tensor([0.0, -50.0, -50.0]))

    def forward(self, x):
        return self.conv(x)


def organs():
    mask = np.zeros((1, 8, 8), dtype=np.int64)
    mask[0, 1:4, 1:4], mask[0, 5:7, 2:7] = 1, 2
    x = np.stack([np.where(mask == c, 0.52, 0.48) for c in (1, 2)], 1).astype(np.float32)
    return MonaiSegmenter(TwoOrgans(), (2, 8, 8), decision=Multiclass(3, background=0)), x, mask


@pytest.mark.parametrize("label", [1, 2])
def test_one_organ_is_spoiled_and_the_other_stands(label):
    estimator, x, mask = organs()
    prediction = found_by(
        estimator, create("one-organ", estimator, eps=0.03, max_iter=20, label=label).generate(x, mask)
    )
    assert not ((prediction == label) & (mask == label)).any()
    assert np.array_equal(prediction == 3 - label, mask == 3 - label)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("label", [1, 2])
def test_an_erased_organ_becomes_its_runner_up_and_nothing_else_changes(label, given):
    estimator, x, mask = organs()
    attack = create("erase", estimator, eps=0.03, max_iter=20, label=label)
    prediction = found_by(estimator, attack.generate(x, mask) if given else attack.generate(x))
    wanted = np.where(mask == label, 0, mask)
    assert np.array_equal(prediction, wanted)
    judged = target_success(*(torch.from_numpy(m) for m in (prediction, wanted, mask)), estimator.decision, label)
    assert judged.success.tolist() == [True] and float(judged.change) == 0
    assert np.array_equal(attack.reference[0], mask)


def test_selection_follows_the_goal():
    case = setting("voxel-class", cases=4)
    volumes = {}
    for name in ("volume-up", "volume-down", "apgd-dice"):
        attack = create(name, case.estimator, eps=0.05, max_iter=10)
        x_adv = attack.generate(case.x, case.y)
        volumes[name] = (np.asarray(case.estimator.predict(x_adv)).argmax(1) > 0).sum(axis=(1, 2))
    before = (case.y > 0).sum(axis=(1, 2))
    assert (volumes["volume-down"] < before).all() and (before < volumes["volume-up"]).all()
    assert (volumes["volume-up"] >= volumes["apgd-dice"]).all()


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("volume-up", {"label": 0}, "label=0 is no label to attack; choose one of 1, 2"),
    ("lesion-missed", {"label": 5}, "label=5 is no label to attack"),
    ("lesion-invented", {"min_voxels": 0}, "min_voxels=0 must be a whole number of at least 1"),
    ("lesion-invented", {"min_voxels": 1.5}, "min_voxels=1.5 must be a whole number"),
    ("one-organ", {}, "label is needed where there are several; choose one of 1, 2"),
    ("one-organ", {"label": 1, "keep_weight": -1}, "keep_weight=-1 must be a number that is not negative"),
    ("threshold-crossed", {}, "give one of threshold_voxels and threshold_ml"),
    ("threshold-crossed", {"threshold_voxels": 1, "threshold_ml": 1}, "give one of"),
    ("threshold-crossed", {"threshold_voxels": -1}, "threshold_voxels=-1 must be a number that is not negative"),
    ("threshold-crossed", {"threshold_voxels": "12"}, "threshold_voxels='12' must be a number"),
    ("threshold-crossed", {"threshold_voxels": 1, "spacing": (1, 1, 1)}, "spacing goes with threshold_ml"),
    ("threshold-crossed", {"threshold_ml": 1}, "needs spacing, three lengths of a voxel in mm; got None"),
    ("threshold-crossed", {"threshold_ml": 1, "spacing": (1, 1)}, "three lengths of a voxel in mm; got .1, 1."),
    ("threshold-crossed", {"threshold_ml": 1, "spacing": (1, 1, 0)}, "three lengths"),
    ("threshold-crossed", {"threshold_voxels": 1, "direction": "over"}, "direction='over' is unknown; choose 'up'"),
    ("towards-mask", {}, "nears the mask given as y; set targeted=True"),
])  # fmt: skip
def test_arguments_that_can_not_be_right_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_objective({"name": name, **arguments}, DECISIONS["classes"], targeted=False)


def test_directions_decisions_and_models_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="direction='left' is unknown; choose 'up' or 'down'"):
        VolumeChange(DECISIONS["classes"], direction="left")
    with pytest.raises(ValueError, match="without background is always the whole image; give a label"):
        VolumeChange(Multiclass(3))
    for name in (*REGIONS, "one-organ"):
        given = {"name": name, "label": 1, **ARGUMENTS.get(name, {})}
        with pytest.raises(ValueError, match="states its own goal and takes the reference as y"):
            make_objective(given, DECISIONS["classes"], targeted=True)
        with pytest.raises(ValueError, match="compares voxels, but this model gives one diagnosis per image"):
            create("pgd", setting("class").estimator, eps=0.1, objective=given)
    with pytest.raises(ValueError, match="label is needed where there are several"):
        create("erase", setting("voxel-class").estimator, eps=0.1)
    with pytest.raises(ValueError, match="attack 'erase' has no direction and can't be targeted"):
        create("erase", setting("voxel-class").estimator, eps=0.1, label=1, targeted=True)
    with pytest.raises(TypeError, match="option of volume-up 'threshold_voxels' is unknown"):
        create("volume-up", setting("voxel-class").estimator, eps=0.1, threshold_voxels=1)
