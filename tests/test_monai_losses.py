"""Losses of monai.losses as objectives: each is right, per case and differentiable, or refused with the reason."""

from __future__ import annotations

import inspect

import monai.losses
import numpy as np
import pytest
import torch
from builders import setting
from monai.losses import (
    AsymmetricUnifiedFocalLoss,
    AUCMLoss,
    BarlowTwinsLoss,
    BendingEnergyLoss,
    BoundaryLoss,
    BoxGIoULoss,
    ContrastiveLoss,
    DeepSupervisionLoss,
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    DiffusionLoss,
    FocalLoss,
    GeneralizedDiceFocalLoss,
    GeneralizedDiceLoss,
    GeneralizedWassersteinDiceLoss,
    GlobalMutualInformationLoss,
    HausdorffDTLoss,
    JukeboxLoss,
    LocalNormalizedCrossCorrelationLoss,
    LogHausdorffDTLoss,
    MaskedDiceLoss,
    MaskedLoss,
    MCCLoss,
    NACLLoss,
    PatchAdversarialLoss,
    SoftclDiceLoss,
    SoftDiceclDiceLoss,
    SSIMLoss,
    SURELoss,
    TverskyLoss,
)
from torch import nn

from medadv.attacks import create
from medadv.decisions import Multiclass, Multilabel
from medadv.objectives import LossObjective

CLASSES = {"to_onehot_y": True, "softmax": True}
DISTANCES = 1 - np.eye(3)
OF_CLASSES = {
    kind.__name__: (lambda kind=kind: kind(**CLASSES))
    for kind in (
        DiceLoss, DiceCELoss, DiceFocalLoss, TverskyLoss, GeneralizedDiceLoss, GeneralizedDiceFocalLoss, MCCLoss,
        HausdorffDTLoss, LogHausdorffDTLoss, BoundaryLoss, SoftclDiceLoss, SoftDiceclDiceLoss, MaskedDiceLoss,
    )
} | {
    "FocalLoss": lambda: FocalLoss(to_onehot_y=True, use_softmax=True),
    "DiceLoss(sigmoid)": lambda: DiceLoss(to_onehot_y=True, sigmoid=True),  # as some published bundles train
    "DiceLoss(one-hot)": lambda: DiceLoss(softmax=True),
    "DiceLoss(sum)": lambda: DiceLoss(**CLASSES, reduction="sum"),
    "DiceLoss(foreground)": lambda: DiceLoss(**CLASSES, include_background=False),
    "GeneralizedDiceLoss(none)": lambda: GeneralizedDiceLoss(**CLASSES, reduction="none"),
    "GeneralizedWassersteinDiceLoss": lambda: GeneralizedWassersteinDiceLoss(DISTANCES),
    "NACLLoss": lambda: NACLLoss(classes=3, dim=2),
    "DeepSupervisionLoss": lambda: DeepSupervisionLoss(DiceCELoss(**CLASSES)),
    "MaskedLoss": lambda: MaskedLoss(DiceLoss(**CLASSES)),
}  # fmt: skip
OF_LABELS = {
    kind.__name__: (lambda kind=kind: kind(sigmoid=True))
    for kind in (
        DiceLoss, DiceFocalLoss, TverskyLoss, GeneralizedDiceLoss, GeneralizedDiceFocalLoss, MCCLoss, HausdorffDTLoss,
        LogHausdorffDTLoss, BoundaryLoss, SoftclDiceLoss, SoftDiceclDiceLoss, MaskedDiceLoss,
    )
} | {"FocalLoss": FocalLoss, "MaskedLoss": lambda: MaskedLoss(DiceLoss(sigmoid=True))}  # fmt: skip
DECISIONS = {"voxel-class": Multiclass(3, background=0), "voxel-labels": Multilabel(3)}
RIGHT = [("voxel-class", name) for name in OF_CLASSES] + [("voxel-labels", name) for name in OF_LABELS]


def built(kind, name):
    return (OF_CLASSES if kind == "voxel-class" else OF_LABELS)[name]()


def expected_reference(loss, decision, target):
    """What MONAI's documentation says each loss is called with."""
    if isinstance(loss, NACLLoss | GeneralizedWassersteinDiceLoss):
        return target
    wants_labels = any(getattr(part, "to_onehot_y", False) for part in loss.modules())
    return target[:, None] if wants_labels else decision.one_hot(target).double()


def example(kind, spatial=(12, 12)):
    generator = torch.Generator().manual_seed(0)
    shape = (3, *spatial) if kind == "voxel-class" else (3, 3, *spatial)
    target = torch.randint(0, 3 if kind == "voxel-class" else 2, shape, generator=generator)
    return torch.randn(3, 3, *spatial, generator=generator, dtype=torch.float64), target


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("kind", "name"), RIGHT)
def test_each_case_gets_the_loss_it_has_alone(kind, name, targeted):
    loss, decision = built(kind, name), DECISIONS[kind]
    logits, target = example(kind)
    values = LossObjective(decision, loss, targeted=targeted)(logits, target, valid=target >= 0)
    reference = expected_reference(loss, decision, target)
    alone = torch.stack([loss(logits[i : i + 1], reference[i : i + 1]).reshape(()) for i in range(3)])
    torch.testing.assert_close(values.double(), (-alone if targeted else alone).double(), check_dtype=False)


@pytest.mark.parametrize(("kind", "name"), RIGHT)
def test_what_is_wrong_is_larger_than_what_is_right_and_no_case_changes_anothers_gradient(kind, name):
    decision = DECISIONS[kind]
    logits, target = example(kind)
    objective = LossObjective(decision, built(kind, name))
    right = torch.where(decision.one_hot(target), 6.0, -6.0).double()
    values = [objective(output, target, valid=target >= 0) for output in (right, -right)]
    assert (values[0] < values[1]).all()
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(objective(logits, target, valid=target >= 0).sum(), logits)
    one = logits[1:2].detach().requires_grad_()
    (alone,) = torch.autograd.grad(objective(one, target[1:2], valid=target[1:2] >= 0).sum(), one)
    assert grad.isfinite().all() and (grad.flatten(1).abs().amax(1) > 0).all()
    torch.testing.assert_close(grad[1:2], alone, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("kind", "name"), RIGHT)
def test_a_case_without_foreground_has_a_finite_gradient(kind, name):
    logits, target = example(kind)
    target = torch.zeros_like(target[:1])
    leaf = logits[:1].requires_grad_()
    value = LossObjective(DECISIONS[kind], built(kind, name))(leaf, target, valid=target >= 0)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    assert value.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("name", ["DiceCELoss", "HausdorffDTLoss", "GeneralizedDiceFocalLoss", "MaskedDiceLoss"])
def test_an_attack_takes_it(name):
    case = setting("voxel-class", cases=2)
    x_adv = create("pgd", case.estimator, eps=0.1, max_iter=3, objective=OF_CLASSES[name]()).generate(case.x, case.y)
    assert (case.scores(x_adv) < case.scores(case.x)).all()


WRONG = [
    *((lambda kind=kind: kind(to_onehot_y=True), Multiclass(3), "applies no activation")
      for kind in (DiceLoss, DiceCELoss, TverskyLoss, GeneralizedDiceLoss, MCCLoss, HausdorffDTLoss, LogHausdorffDTLoss,
                   BoundaryLoss, SoftclDiceLoss, SoftDiceclDiceLoss, MaskedDiceLoss, DiceFocalLoss,
                   GeneralizedDiceFocalLoss)),
    (lambda: DeepSupervisionLoss(DiceLoss()), Multiclass(3), "DeepSupervisionLoss applies no activation"),
    *((lambda kind=kind: kind(**CLASSES, batch=True), Multiclass(3), "has batch=True, which mixes cases")
      for kind in (DiceLoss, DiceCELoss, TverskyLoss, GeneralizedDiceLoss, MCCLoss, HausdorffDTLoss, MaskedDiceLoss)),
    (AsymmetricUnifiedFocalLoss, Multiclass(2), r"takes probabilities .* loss\(logits.softmax\(1\), y\)"),
    (nn.NLLLoss, Multiclass(3), r"NLLLoss takes probabilities .*logits.log_softmax\(1\)"),
    (nn.BCELoss, Multilabel(3), r"BCELoss takes probabilities .*logits.sigmoid\(\)"),
    (lambda: SSIMLoss(2), Multiclass(3), "SSIMLoss compares images"), (SURELoss, Multiclass(3), "compares images"),
    (lambda: LocalNormalizedCrossCorrelationLoss(2), Multiclass(3), "compares images"),
    (GlobalMutualInformationLoss, Multiclass(3), "compares images"),
    (lambda: JukeboxLoss(2), Multiclass(3), "compares images"), (ContrastiveLoss, Multiclass(3), "embeddings"),
    (BarlowTwinsLoss, Multiclass(3), "embeddings of several"), (AUCMLoss, Multilabel(1), "a ranking of several cases"),
    (BendingEnergyLoss, Multiclass(3), "compares deformations"), (DiffusionLoss, Multiclass(3), "deformations"),
    (BoxGIoULoss, Multiclass(3), "compares boxes"), (PatchAdversarialLoss, Multiclass(3), "discriminator"),
    (lambda: DiceLoss(softmax=True), Multilabel(3), "do not exclude each other; build it with sigmoid=True"),
    (lambda: DiceLoss(softmax=True), Multilabel(1), "do not exclude each other; build it with sigmoid=True"),
    (lambda: FocalLoss(use_softmax=True), Multilabel(3), "do not exclude each other"),
    (lambda: MaskedDiceLoss(softmax=True), Multilabel(3), "do not exclude each other"),
    (lambda: DiceCELoss(sigmoid=True), Multilabel(3), "a cross-entropy over classes, .* use torch's BCEWithLogitsLoss"),
    (nn.CrossEntropyLoss, Multilabel(1), "a cross-entropy over classes"),
    (lambda: NACLLoss(classes=3, dim=2), Multilabel(3), "a cross-entropy over classes"),
    (lambda: DiceLoss(sigmoid=True, to_onehot_y=True), Multilabel(3), "the reference of several labels is one-hot"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "decision", "message"), WRONG)
def test_what_can_not_be_right_is_refused_before_it_runs(build, decision, message):
    with pytest.raises(ValueError, match=message):
        LossObjective(decision, build())


def test_a_network_with_one_logit_takes_dice_with_cross_entropy():
    logits = torch.randn(2, 1, 8, 8)
    target = (torch.rand(2, 1, 8, 8) > 0.5).long()
    values = LossObjective(Multilabel(1), DiceCELoss(sigmoid=True))(logits, target, valid=target >= 0)
    binary = nn.functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").flatten(1).mean(1)
    dice = [DiceLoss(sigmoid=True)(z[None], y[None].float()) for z, y in zip(logits, target)]
    torch.testing.assert_close(values, torch.stack(dice) + binary)


def test_what_does_not_fit_the_shape_is_told_with_both_shapes():
    target = torch.tensor([0, 2])
    message = r"GeneralizedDiceLoss can't compare logits of shape \(1, 3\) with a reference of shape \(1, 1\): "
    with pytest.raises(ValueError, match=message):
        LossObjective(Multiclass(3), GeneralizedDiceLoss(**CLASSES))(torch.randn(2, 3), target, valid=target >= 0)


def test_every_loss_of_monai_is_spoken_for():
    known = {name.partition("(")[0] for name in (*OF_CLASSES, *OF_LABELS)}
    refused = {type(build()).__name__ for build, *_ in WRONG}
    all_of_them = {name for name, kind in vars(monai.losses).items() if inspect.isclass(kind) and "Loss" in name}
    # its weights would have to be downloaded; it wraps a loss of images
    assert all_of_them - known - refused == {"PerceptualLoss", "MultiScaleLoss"}
