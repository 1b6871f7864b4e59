"""Losses of large volumes are summed slab by slab: the same numbers, without intermediate results of full size."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medadv.decisions import Multiclass, Multilabel
from medadv.objectives import CrossEntropy, DiceCE, SoftDice, slabs

DECISIONS = (Multiclass(3, background=0, ignore_index=9), Multilabel(2, ignore_index=9), Multiclass(2))


def case(decision, shape=(7, 5, 4), cases=2):
    torch.manual_seed(0)
    z = torch.randn(cases, decision.channels, *shape, dtype=torch.float64)
    y = torch.randint(0, decision.channels, (cases, *shape)) if decision.exclusive else (z > torch.rand_like(z)).long()
    y[:, :2, :1] = 9 if decision.ignore_index == 9 else 0
    return z, *decision.canonical(y, shape)


def value_and_gradient(objective, z, target, valid):
    leaf = z.clone().requires_grad_()
    value = objective(leaf, target, valid=valid)
    return value.detach(), torch.autograd.grad((value * torch.tensor([1.0, -2.0])).sum(), leaf)[0]


@pytest.mark.parametrize("slab", [1, 60, 10**6])
@pytest.mark.parametrize("decision", DECISIONS, ids=str)
@pytest.mark.parametrize("kind", [SoftDice, CrossEntropy, DiceCE])
def test_slabs_change_neither_value_nor_gradient(kind, decision, slab, monkeypatch):
    seen = case(decision)
    whole = value_and_gradient(kind(decision, targeted=True), *seen)
    monkeypatch.setattr(slabs, "LARGE", 0)
    monkeypatch.setattr(slabs, "SLAB", slab)
    in_slabs = value_and_gradient(kind(decision, targeted=True), *seen)
    for one, other in zip(whole, in_slabs, strict=True):
        assert torch.allclose(one, other, rtol=1e-13, atol=1e-16) and float(one.abs().sum()) > 0


def test_no_intermediate_result_is_as_large_as_the_logits(monkeypatch):
    monkeypatch.setattr(slabs, "LARGE", 0)
    monkeypatch.setattr(slabs, "SLAB", 2 * 10 * 8)
    made = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            given = {z.untyped_storage().data_ptr() for z in args if isinstance(z, torch.Tensor)}
            if isinstance(found, torch.Tensor) and found.untyped_storage().data_ptr() not in given:
                made.append(found.numel())
            return found

    z, target, valid = case(Multiclass(2), (16, 10, 8), cases=1)
    leaf = z.requires_grad_()
    with Watched():
        torch.autograd.grad(SoftDice(Multiclass(2))(leaf, target, valid=valid).sum(), leaf)
    assert made.count(z.numel()) == 1  # the gradient
    assert sorted(made)[-2] <= slabs.SLAB


def test_images_and_small_volumes_are_left_to_autograd():
    for shape in ((), (8, 8, 8)):
        z = torch.randn(2, 2, *shape, requires_grad=True)
        total = slabs.summed_in_slabs(lambda z, *_: z.flatten(1).sum(1), z, torch.zeros(2, *shape), z[:, 0] > 0)
        assert "InSlabs" not in type(total.grad_fn).__name__
