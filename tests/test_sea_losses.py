"""The difference of logits ratio, and what is special about the losses of SEA (their formulas: test_objectives)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from medadv.decisions import Multiclass, Multilabel
from medadv.objectives import DLR, JensenShannon, Margin, MaskedSpherical, make_objective

SHAPES = {"image": (), "2D": (4, 3), "3D": (3, 2, 2)}


def example(classes, spatial, seed=0, cases=4):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(cases, classes, *spatial, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (cases, *spatial), generator=generator)
    return logits, target, torch.rand(target.shape, generator=generator) > 0.3


def ratio(z, t, targeted):
    """One voxel's loss to be maximised, from its sorted logits."""
    ranked = sorted(z, reverse=True)
    rival = max(value for k, value in enumerate(z) if k != t)
    if targeted:
        return -(rival - z[t]) / (ranked[0] - (ranked[2] + ranked[3]) / 2)
    return -(z[t] - rival) / (ranked[0] - ranked[2])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("classes", [3, 4, 6])
def test_dlr_is_its_formula_on_images_and_hinged_on_voxels(classes, rank, targeted):
    if targeted and classes < 4:
        pytest.skip("has its own test")
    logits, target, valid = example(classes, SHAPES[rank])
    values = DLR(Multiclass(classes), targeted=targeted)(logits, target, valid=valid)
    for i in range(len(logits)):
        z, t, ok = logits[i].numpy().reshape(classes, -1), target[i].numpy().reshape(-1), valid[i].numpy().reshape(-1)
        terms = [ratio(list(z[:, v]), t[v], targeted) for v in range(len(t)) if ok[v]]
        if rank != "image":  # finished voxels have no more to give; unfinished ones are below the boundary
            terms = [min(term, 0) for term in terms]
        assert float(values[i]) == pytest.approx(np.mean(terms) if terms else 0, abs=1e-12)


def test_dlr_agrees_with_the_papers_targeted_form_while_the_reference_is_the_diagnosis():
    logits, _, valid = example(6, (), cases=20)
    reference, wanted = logits.argmax(1), logits.argsort(1)[:, 2]
    values = DLR(Multiclass(6), targeted=True)(logits, wanted, valid=valid | True)
    ranked, rows = logits.sort(1, descending=True).values, range(20)
    paper = -(logits[rows, reference] - logits[rows, wanted]) / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2)
    assert torch.allclose(values, paper, atol=1e-13)


@pytest.mark.parametrize(("scale", "offset"), [(100.0, 0.0), (0.01, 5.0)])
def test_dlr_does_not_see_scale_and_offset(scale, offset):
    logits, target, valid = example(5, ())
    for targeted in (False, True):
        objective = DLR(Multiclass(5), targeted=targeted)
        plain, moved = (objective(z, target, valid=valid) for z in (logits, scale * logits + offset))
        assert torch.allclose(plain, moved, atol=1e-9)


@pytest.mark.parametrize(("classes", "targeted"), [(2, False), (2, True), (3, True)])
@pytest.mark.parametrize("rank", SHAPES)
def test_with_too_few_classes_dlr_is_the_margin_with_its_gradient(rank, classes, targeted):
    logits, target, valid = example(classes, SHAPES[rank])
    results = []
    for kind in (DLR, Margin):
        leaf = logits.clone().requires_grad_()
        values = kind(Multiclass(classes), targeted=targeted)(leaf, target, valid=valid)
        results.append((values.detach(), *torch.autograd.grad(values.sum(), leaf)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert bool(results[0][1].any())


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_stays_finite_where_all_logits_are_equal(targeted):
    leaf = torch.zeros(1, 5, requires_grad=True)
    value = DLR(Multiclass(5), targeted=targeted)(leaf, torch.tensor([1]), valid=torch.tensor([True]))
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    assert float(value.detach()) == 0 and bool(grad.isfinite().all()) and bool(grad.any())


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_has_the_gradient_of_finite_differences(targeted):
    logits, target, valid = example(5, (2, 2), seed=3)
    objective = DLR(Multiclass(5), targeted=targeted)
    assert torch.autograd.gradcheck(lambda z: objective(z, target, valid=valid), logits.requires_grad_())


def test_dlr_refuses_labels_that_do_not_compete():
    with pytest.raises(ValueError, match="classes that exclude each other.*num_labels=3.*use 'margin'"):
        make_objective("dlr", Multilabel(3), targeted=False)


def test_jensen_shannon_is_scipys_between_prediction_and_one_hot():
    logits, target, _ = example(4, ())
    values = JensenShannon(Multiclass(4))(logits, target, valid=target >= 0)
    for z, t, value in zip(logits.numpy(), target.tolist(), values.tolist(), strict=True):
        p = np.exp(z) / np.exp(z).sum()
        assert value == pytest.approx(jensenshannon(p, np.eye(4)[t]) ** 2, abs=1e-12)


@pytest.mark.parametrize("decision", [Multiclass(3), Multilabel(3)], ids=["classes", "labels"])
def test_jensen_shannon_is_bounded_and_finite_for_extreme_logits(decision):
    wrong, right = torch.tensor([[-300.0, 300.0, 300.0]]), torch.tensor([[300.0, -300.0, -300.0]])
    target, valid = decision.canonical([[1, 0, 0]])
    for logits, value in ((wrong, math.log(2)), (right, 0.0)):
        leaf = logits.clone().requires_grad_()
        loss = JensenShannon(decision)(leaf, target, valid=valid)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        assert float(loss.detach()) == pytest.approx(value, abs=1e-6) and bool(grad.isfinite().all())


def test_spherical_loss_is_the_cosine_to_the_reference_and_counts_right_voxels_alone():
    logits = torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]], [[0.0, 0.0]]]])  # two voxels: (3, 4, 0) and (0, 2, 0)
    both_right, one_wrong = torch.tensor([[[1, 1]]]), torch.tensor([[[0, 1]]])
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    objective = MaskedSpherical(Multiclass(3))
    assert float(objective(logits, both_right, valid=valid)) == pytest.approx(-(0.8 + 1.0) / 2)
    assert float(objective(logits, one_wrong, valid=valid)) == pytest.approx(-1.0 / 2)
    wanted = MaskedSpherical(Multiclass(3), targeted=True)
    assert float(wanted(logits, one_wrong, valid=valid)) == pytest.approx(0.6 / 2)


@pytest.mark.parametrize("value", [0.0, 1e-3, 5.0, -5.0])
def test_a_single_logit_has_a_direction_on_the_sphere(value):
    leaf = torch.full((1, 1), value, requires_grad=True)
    target = torch.tensor([[int(value > 0)]])
    loss = MaskedSpherical(Multilabel(1))(leaf, target, valid=target >= 0)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    assert float(grad) * (-1 if value > 0 else 1) > 1e-3
