"""Every objective against its formula, written once more in numpy for one case at a time."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from builders import setting
from monai.losses import (
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    GeneralizedDiceFocalLoss,
    GeneralizedDiceLoss,
    TverskyLoss,
)
from torch import nn

from medadv.attacks import create
from medadv.decisions import Multiclass, Multilabel
from medadv.objectives import (
    OBJECTIVES,
    CosPGD,
    CrossEntropy,
    DiceCE,
    LossObjective,
    Margin,
    MaskedCrossEntropy,
    MaskedSpherical,
    SegPGD,
    SoftDice,
    make_objective,
    monitor_of,
)

# objectives that need nothing but the decision and are right for every decision
PLAIN = ("ce", "margin", "dice", "dicece", "segpgd", "cospgd", "masked-ce", "js", "mask-norm")
SHAPES = {"image": (), "2D": (4, 3), "3D": (3, 2, 2)}
THRESHOLDS = (0.3, 0.5, 0.8)
CHANNELS = {"classes": 3, "two classes": 2, "labels": 3}


def decision_of(kind):
    if kind == "labels":
        return Multilabel(3, threshold=THRESHOLDS, ignore_index=9)
    return Multiclass(CHANNELS[kind], background=0, ignore_index=9)


def example(kind, spatial, seed=0, cases=3, ignored=0.3):
    """Logits, canonical target and validity, with all cases different and a third of the voxels ignored."""
    generator = torch.Generator().manual_seed(seed)
    channels = CHANNELS[kind]
    logits = 2 * torch.randn(cases, channels, *spatial, generator=generator, dtype=torch.float64)
    shape = (cases, channels, *spatial) if kind == "labels" else (cases, *spatial)
    target = torch.randint(0, 2 if kind == "labels" else channels, shape, generator=generator)
    valid = torch.rand(shape, generator=generator) >= ignored
    return logits, torch.where(valid, target, 0), valid


# the formulas again: z (C, V), t and ok (V,) for classes or (C, V) for labels


def softmax(z):
    e = np.exp(z - z.max(0))
    return e / e.sum(0)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def ce(kind, z, t):
    if kind == "labels":
        p = sigmoid(z)
        return -(t * np.log(p) + (1 - t) * np.log(1 - p))
    return -np.log(np.take_along_axis(softmax(z), t[None], 0)[0])


def hard_agrees(kind, z, t):
    if kind == "labels":
        return (sigmoid(z) > np.array(THRESHOLDS)[:, None]).astype(int) == t
    return z.argmax(0) == t


def mean(values, ok):
    return (values * ok).sum() / max(ok.sum(), 1)


def margin_of(kind, z, t):
    if kind == "labels":
        tau = np.log(np.array(THRESHOLDS) / (1 - np.array(THRESHOLDS)))[:, None]
        return np.where(t == 1, z - tau, tau - z)
    own = np.take_along_axis(z, t[None], 0)[0]
    others = z.copy()
    np.put_along_axis(others, t[None], -np.inf, 0)
    return own - others.max(0)


def soft_dice(kind, z, t, ok):
    p = sigmoid(z) if kind == "labels" else softmax(z)
    missed, invented = [], []
    for c in range(3) if kind == "labels" else range(1, len(z)):
        y, seen = (t[c], ok[c]) if kind == "labels" else (t == c, ok)
        y, q = y[seen].astype(float), p[c][seen]
        if y.any():
            missed.append(1 - 2 * (q * y).sum() / (q.sum() + y.sum()))
        else:
            invented.append(q.sum() / max(seen.sum(), 1))
    return sum(missed) / max(len(missed), 1) + sum(invented) / max(len(invented), 1)


def cosine(kind, z, t):
    if kind == "labels":
        p = sigmoid(z)
        a, b = np.stack([p, 1 - p]), np.stack([t, 1 - t])
    else:
        a, b = softmax(z), np.eye(len(z))[t].T
    return (a * b).sum(0) / np.sqrt((a**2).sum(0)) / np.sqrt((b**2).sum(0))


def jensen_shannon(kind, z, t):
    """From the two relative entropies to the mean distribution, with 0 log 0 = 0."""
    p = np.stack([sigmoid(z), 1 - sigmoid(z)]) if kind == "labels" else softmax(z)
    q = np.stack([t, 1 - t]) if kind == "labels" else np.eye(len(z))[t].T
    middle = (p + q) / 2
    return (scipy.special.rel_entr(p, middle) + scipy.special.rel_entr(q, middle)).sum(0) / 2


def spherical(kind, z, t):
    if kind == "labels":
        m = margin_of(kind, z, t)
        return m / np.sqrt(m**2 + 1)
    return np.take_along_axis(z, t[None], 0)[0] / np.sqrt((z**2).sum(0))


def expected(name, kind, z, t, ok, targeted, progress):
    sign, loss = (-1 if targeted else 1), ce(kind, z, t)
    right = hard_agrees(kind, z, t)
    unfinished = ~right if targeted else right
    if name == "ce":
        return sign * mean(loss, ok)
    if name == "margin":
        m = margin_of(kind, z, t)
        if kind != "labels" and z.shape[1] == 1:  # an image: not hinged
            return -sign * m[0] * ok[0]
        return mean(np.minimum(m, 0), ok) if targeted else -mean(np.maximum(m, 0), ok)
    if name == "cw":
        return mean(np.minimum(-sign * margin_of(kind, z, t), 50), ok)
    if name == "dice":
        return sign * soft_dice(kind, z, t, ok)
    if name == "dicece":
        return sign * (soft_dice(kind, z, t, ok) + mean(loss, ok))
    if name == "segpgd":
        late = progress / 2
        return sign * mean(np.where(unfinished, 1 - late, late) * loss, ok)
    if name == "cospgd":
        weight = cosine(kind, z, t)
        return sign * mean((1 - weight if targeted else weight) * loss, ok)
    if name == "masked-ce":
        return sign * mean(unfinished * loss, ok)
    if name == "js":
        return sign * mean(jensen_shannon(kind, z, t), ok)
    if name == "mask-norm":
        return -sign * mean(unfinished * spherical(kind, z, t), ok)
    raise AssertionError(name)


@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("name", PLAIN)
def test_values_are_those_of_the_formula(name, kind, rank, targeted, progress, ignored):
    spatial = SHAPES[rank]
    objective = OBJECTIVES[name](decision_of(kind), targeted=targeted)
    if objective.voxels_only and not spatial:
        pytest.skip("compares regions")
    logits, target, valid = example(kind, spatial, ignored=ignored)
    values = objective(logits, target, valid=valid, progress=progress)
    assert values.shape == (3,)
    for i in range(3):
        flat = (3, -1) if kind == "labels" else (-1,)
        z, t, ok = (part[i].numpy() for part in (logits, target, valid))
        z, t, ok = z.reshape(len(z), -1), t.reshape(flat), ok.reshape(flat)
        assert float(values[i]) == pytest.approx(expected(name, kind, z, t, ok, targeted, progress), abs=1e-12)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("over", ["any", "all"])
def test_margin_over_labels_pushes_the_label_that_decides(over, targeted):
    logits, target, valid = example("labels", (), seed=3, cases=6)
    values = Margin(decision_of("labels"), targeted=targeted, over=over)(logits, target, valid=valid)
    for i in range(6):
        margins = margin_of("labels", logits[i].numpy()[:, None], target[i].numpy()[:, None])[:, 0][valid[i].numpy()]
        # "any": one label wrong breaks the diagnosis; a target with "any" is met by one label, with "all" by all
        if targeted:
            wanted = margins.max() if over == "any" else margins.min()
        else:
            wanted = -margins.min() if over == "any" else -margins.max()
        assert float(values[i]) == pytest.approx(wanted, abs=1e-12)


DETACHED = {SegPGD, CosPGD, MaskedCrossEntropy, MaskedSpherical}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("name", PLAIN)
def test_gradients_are_those_of_finite_differences_with_weights_held_fixed(name, kind, targeted):
    objective = OBJECTIVES[name](decision_of(kind), targeted=targeted)
    logits, target, valid = example(kind, SHAPES["2D"], seed=1, cases=2)
    leaf = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(objective(leaf, target, valid=valid, progress=0.4).sum(), leaf)
    t, ok = target.numpy(), valid.numpy()

    def frozen(z):
        """The value at z with weights of the unmoved logits."""
        total = 0.0
        for i in range(2):
            flat = (3, -1) if kind == "labels" else (-1,)
            now, base = (array[i].reshape(array.shape[1], -1) for array in (z, logits.numpy()))
            ti, oki = t[i].reshape(flat), ok[i].reshape(flat)
            if type(objective) not in DETACHED:
                total += expected(name, kind, now, ti, oki, targeted, 0.4)
                continue
            unfinished = hard_agrees(kind, base, ti) != targeted
            if name == "mask-norm":
                total += (1 if targeted else -1) * mean(unfinished * spherical(kind, now, ti), oki)
                continue
            weight = {
                "segpgd": np.where(unfinished, 0.8, 0.2),
                "masked-ce": unfinished,
                "cospgd": 1 - cosine(kind, base, ti) if targeted else cosine(kind, base, ti),
            }[name]
            total += (-1 if targeted else 1) * mean(weight * ce(kind, now, ti), oki)
        return total

    step, numeric = 1e-6, np.zeros(logits.shape)
    for at in np.ndindex(*logits.shape):
        bump = np.zeros(logits.shape)
        bump[at] = step
        numeric[at] = (frozen(logits.numpy() + bump) - frozen(logits.numpy() - bump)) / (2 * step)
    assert np.allclose(grad.numpy(), numeric, rtol=0, atol=1e-8)
    assert np.abs(numeric).max() > 1e-3


@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("name", PLAIN)
def test_cases_are_independent_and_ignored_voxels_have_no_gradient(name, kind):
    objective = OBJECTIVES[name](decision_of(kind))
    logits, target, valid = example(kind, SHAPES["2D"])
    leaf = logits.clone().requires_grad_()
    values = objective(leaf, target, valid=valid, progress=0.4)
    (grad,) = torch.autograd.grad(values[1], leaf)
    assert not grad[0].any() and not grad[2].any() and bool(grad[1].any())
    seen = valid if kind == "labels" else valid[:, None].expand_as(grad)
    assert not grad[~seen].any()
    alone = objective(logits[1:2], target[1:2], valid=valid[1:2], progress=0.4)
    assert float(alone) == pytest.approx(float(values[1].detach()), abs=1e-13)


@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_case_without_valid_voxels_is_worth_nothing(name, kind):
    logits, target, valid = example(kind, SHAPES["2D"])
    valid[1] = False
    leaf = logits.clone().requires_grad_()
    values = OBJECTIVES[name](decision_of(kind))(leaf, torch.where(valid, target, 0), valid=valid, progress=0.2)
    (grad,) = torch.autograd.grad(values.sum(), leaf)
    assert float(values[1].detach()) == 0 and not grad[1].any() and bool(grad.isfinite().all())


@pytest.mark.parametrize("objective", [SoftDice, DiceCE])
def test_absent_classes_have_a_gradient_that_invents_them(objective):
    decision = Multiclass(3, background=0)
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    target[0, 0, 0] = 1  # class 2 is absent
    leaf = torch.zeros(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(objective(decision)(leaf, target, valid=target >= 0).sum(), leaf)
    assert bool((grad[:, 2] > 0).all())
    nothing = torch.zeros_like(target)
    (grad,) = torch.autograd.grad(objective(decision)(leaf, nothing, valid=target >= 0).sum(), leaf)
    assert bool((grad[:, 1:] > 0).all()) and bool((grad[:, 0] < 0).all())


def test_dice_known_answers():
    decision = Multiclass(2, background=0)
    target = torch.tensor([[[0, 1, 1, 0]]])
    even = torch.zeros(1, 2, 1, 4)
    assert float(SoftDice(decision)(even, target, valid=target >= 0)) == pytest.approx(1 - 2 * 1 / (2 + 2))
    perfect = 50.0 * torch.stack([1.0 - target, 1.0 * target], 1)
    assert float(SoftDice(decision)(perfect, target, valid=target >= 0)) == pytest.approx(0)
    assert float(SoftDice(decision)(-perfect, target, valid=target >= 0)) == pytest.approx(1)
    assert float(SoftDice(decision, targeted=True)(-perfect, target, valid=target >= 0)) == pytest.approx(-1)


def test_what_is_scheduled_is_watched_by_something_fixed():
    for name in (*PLAIN, "dlr"):
        objective = OBJECTIVES[name](Multiclass(2, background=0), targeted=True)
        for segments in (False, True) if not objective.voxels_only else (True,):
            monitor = monitor_of(objective, segments)
            assert not monitor.scheduled and monitor.targeted
            assert (monitor is objective) != (name in ("segpgd", "cospgd", "masked-ce", "mask-norm"))
            if monitor is not objective:
                assert type(monitor) is (SoftDice if segments else CrossEntropy)


LOSSES = [
    DiceLoss(to_onehot_y=True, softmax=True),
    DiceLoss(softmax=True, include_background=False, squared_pred=True),
    DiceCELoss(to_onehot_y=True, softmax=True, lambda_ce=0.3),
    DiceFocalLoss(to_onehot_y=True, softmax=True),
    TverskyLoss(to_onehot_y=True, softmax=True, alpha=0.3, beta=0.7),
    FocalLoss(to_onehot_y=True, use_softmax=True),
    GeneralizedDiceLoss(to_onehot_y=True, softmax=True),
    GeneralizedDiceFocalLoss(to_onehot_y=True, softmax=True),
    nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
]


def label(loss):
    return type(loss).__name__


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("rank", ["2D", "3D"])
@pytest.mark.parametrize("loss", LOSSES, ids=label)
def test_a_loss_as_objective_is_the_loss_of_each_case(loss, rank, targeted):
    spatial = SHAPES[rank]
    logits, target, _ = example("classes", spatial)
    values = LossObjective(Multiclass(3), loss, targeted=targeted)(logits, target, valid=target >= 0)
    for i in range(3):
        if isinstance(loss, nn.CrossEntropyLoss):
            reference = target[i : i + 1]
        elif any(getattr(part, "to_onehot_y", False) for part in loss.modules()):
            reference = target[i : i + 1, None]
        else:
            reference = torch.stack([(target[i : i + 1] == c).double() for c in range(3)], 1)
        alone = float(loss(logits[i : i + 1], reference))
        assert float(values[i]) == pytest.approx(-alone if targeted else alone, abs=1e-12)


@pytest.mark.parametrize("loss", [
    DiceLoss(sigmoid=True), DiceFocalLoss(sigmoid=True), FocalLoss(), TverskyLoss(sigmoid=True), nn.BCEWithLogitsLoss(),
], ids=label)  # fmt: skip
def test_multi_label_losses_get_the_labels(loss):
    logits, target, _ = example("labels", SHAPES["2D"])
    values = LossObjective(Multilabel(3), loss)(logits, target, valid=target >= 0)
    alone = [float(loss(logits[i : i + 1], target[i : i + 1].double())) for i in range(3)]
    assert values.tolist() == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("loss", [
    DiceLoss(), DiceLoss(to_onehot_y=True), DiceCELoss(), DiceFocalLoss(), TverskyLoss(), GeneralizedDiceLoss(),
    GeneralizedDiceFocalLoss(),
], ids=label)  # fmt: skip
def test_a_loss_without_activation_is_refused(loss):
    with pytest.raises(ValueError, match="applies no activation.*softmax=True or sigmoid=True"):
        LossObjective(Multiclass(3), loss)


@pytest.mark.parametrize("kind", [DiceLoss, DiceCELoss, TverskyLoss, GeneralizedDiceLoss, GeneralizedDiceFocalLoss])
def test_a_loss_that_mixes_cases_is_refused(kind):
    with pytest.raises(ValueError, match="batch=True, which mixes cases"):
        LossObjective(Multiclass(3), kind(softmax=True, batch=True))


def test_a_loss_cannot_ignore_voxels():
    logits, target, valid = example("classes", SHAPES["2D"])
    with pytest.raises(ValueError, match="can't leave out ignored voxels.*dice"):
        LossObjective(Multiclass(3), DiceLoss(softmax=True))(logits, target, valid=valid)


@pytest.mark.parametrize("loss", [
    DiceLoss(softmax=True, reduction="none"), nn.CrossEntropyLoss(reduction="none"),
], ids=label)  # fmt: skip
def test_a_loss_must_give_one_number_per_case(loss):
    logits, target, _ = example("classes", SHAPES["2D"])
    with pytest.raises(ValueError, match="one number per case; build it with reduction='mean'"):
        LossObjective(Multiclass(3), loss)(logits, target, valid=target >= 0)


@pytest.mark.parametrize(("given", "message"), [
    ("dise", "objective 'dise' is unknown; did you mean 'dice'"),
    (CrossEntropy(Multiclass(4)), "made for Multiclass.num_classes=4.*the attack is on Multiclass.num_classes=3"),
    (CrossEntropy(Multiclass(3), targeted=True), "targeted=True, the attack is on .* targeted=False"),
])  # fmt: skip
def test_objectives_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make_objective(given, Multiclass(3), targeted=False)


@pytest.mark.parametrize(("decision", "over", "message"), [
    (Multilabel(3), "most", "over='most' is unknown"), (Multiclass(3), "any", "is about several labels"),
])  # fmt: skip
def test_margins_that_make_no_sense_are_refused(decision, over, message):
    with pytest.raises(ValueError, match=message):
        Margin(decision, over=over)


def test_make_objective_takes_names_objectives_and_losses():
    decision = Multiclass(3)
    assert type(make_objective("dicece", decision, targeted=True)) is DiceCE
    ready = Margin(decision)
    assert make_objective(ready, decision, targeted=False) is ready
    assert isinstance(make_objective(nn.CrossEntropyLoss(), decision, targeted=False), LossObjective)


@pytest.mark.parametrize(("kind", "expected"), [("class", CrossEntropy), ("labels", CrossEntropy),
                                                ("voxel-class", SoftDice), ("voxel-labels", SoftDice)])  # fmt: skip
def test_auto_is_dice_on_voxels_and_cross_entropy_on_images(kind, expected):
    attack = create("pgd", setting(kind).estimator, eps=0.1, objective="auto", targeted=True)
    assert type(attack._objective) is expected and attack._objective.targeted


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("make", [CrossEntropy, SoftDice])
def test_a_sure_model_of_two_classes_still_has_a_gradient(make, sign):
    # the difference of the logits is 30, so one of the probabilities is 1 in float32
    logits = torch.tensor([-15.0, 15.0])[None, :, None, None].mul(sign).repeat(1, 1, 2, 2).requires_grad_()
    target = torch.ones(1, 2, 2, dtype=torch.int64)
    objective = make(Multiclass(2, background=0))
    (grad,) = torch.autograd.grad(objective(logits, target, valid=target > 0).sum(), logits)
    assert bool((grad[:, 1] < 0).all())
