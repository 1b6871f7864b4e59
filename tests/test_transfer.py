"""Images made on a surrogate: kept by loss, counted on the surrogate, the target never asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import KINDS, SIDE, setting
from torch import nn

from medadv.adapters import MonaiClassifier
from medadv.adaptive import rescaled
from medadv.attacks import create
from medadv.attacks.transfer import transfer
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity


def counted(estimator) -> list[int]:
    """Sizes of the batches that a model saw."""
    seen: list[int] = []
    estimator.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_what_is_replayed_is_the_surrogates_attack_kept_by_loss(kind, dims, norm):
    mine, theirs = setting(kind, dims, seed=1), setting(kind, dims)
    seen, asked = counted(mine.estimator), counted(theirs.estimator)
    options = {"eps": 0.1, "norm": norm, "max_iter": 3, "seed": 5}
    attack = transfer(mine.estimator, theirs.estimator, attack="pgd", num_random_init=2, **options)
    x_adv = attack.generate(theirs.x, theirs.y)
    assert not asked and attack.queries.tolist() == [0, 0, 0]
    assert attack.passes.forward == len(seen) == 2 * 4 and attack.passes.backward == 2 * 3
    own = create("pgd", mine.estimator, keep="loss", num_random_init=2, **options)
    assert np.array_equal(x_adv, own.generate(theirs.x, theirs.y))
    assert np.array_equal(create("transfer", theirs.estimator, eps=0.1, norm=norm, seed=5, surrogate=mine.estimator,
        attack="pgd", settings={"max_iter": 3, "num_random_init": 2}).generate(theirs.x, theirs.y), x_adv)  # fmt: skip


def linear(weight, bias=0.0) -> MonaiClassifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([torch.zeros(16), torch.as_tensor(weight, dtype=torch.float32)]))
        net[1].bias.copy_(torch.tensor([0.0, bias]))
    return MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))


def test_a_target_with_a_later_boundary_falls_because_the_loss_decides():
    # the surrogate is wrong after a third of the way to the corner, the target only near the corner
    weight = np.where(np.arange(16) % 2, 1.0, -1.0)
    start = 0.5 + 0.01 * weight.reshape(1, 1, 4, 4)
    x, y = start.astype(np.float32).repeat(3, 0), np.array([1, 1, 1])
    mine, theirs = linear(weight), linear(weight, bias=0.5)
    attack = transfer(mine, theirs, attack="pgd", eps=0.05, eps_step=0.01, max_iter=8, num_random_init=0)
    x_adv = attack.generate(x, y)
    assert np.allclose(x_adv, x - 0.05 * weight.reshape(1, 1, 4, 4), atol=1e-6)  # the corner, in closed form
    assert (theirs.predict(x).argmax(1) == 1).all() and (theirs.predict(x_adv).argmax(1) == 0).all()


def test_without_a_reference_the_surrogates_diagnosis_is_attacked():
    mine, theirs = setting("class", seed=1), setting("class")
    asked = counted(theirs.estimator)
    attack = transfer(mine.estimator, theirs.estimator, eps=0.1)
    own = mine.estimator.predict(theirs.x).argmax(1)
    assert np.array_equal(attack.generate(theirs.x), attack.generate(theirs.x, own)) and not asked


def test_targets_masks_ignored_labels_and_batches_reach_the_surrogates_attack():
    mine, theirs = (setting("voxel-class", seed=seed, ignore_index=9, dtype=np.float64) for seed in (1, 0))
    y = theirs.y.copy()
    y[:, :4] = 9
    mask = np.zeros((1, 1, *SIDE[2]), dtype=bool)
    mask[..., 2:] = True
    options = {"eps": 0.1, "targeted": True, "max_iter": 3, "attack": "pgd"}
    whole = transfer(mine.estimator, theirs.estimator, **options).generate(theirs.x, y, mask=mask)
    parts = transfer(mine.estimator, theirs.estimator, batch_size=2, **options).generate(theirs.x, y, mask=mask)
    assert np.allclose(whole, parts, atol=1e-9) and not (whole != theirs.x)[..., :2].any()
    own = create("pgd", mine.estimator, eps=0.1, targeted=True, keep="loss", max_iter=3)
    assert np.array_equal(whole, own.generate(theirs.x, y, mask=mask))


def test_settings_can_change_afterwards():
    mine, theirs = setting("class", seed=1), setting("class")
    attack = transfer(mine.estimator, theirs.estimator, eps=0.1)
    attack.set_params(eps=0.01, attack="fgsm")
    assert np.abs(attack.generate(theirs.x, theirs.y) - theirs.x).max() <= 0.01
    assert attack.passes.backward == 1


def test_a_victim_can_be_the_surrogate():
    mine, theirs = setting("class", seed=1), setting("class")
    attack = transfer(rescaled(mine.estimator), theirs.estimator, eps=0.1)
    assert (attack.generate(theirs.x, theirs.y) != theirs.x).any()


def refused(error, words, surrogate, target, **options):
    with pytest.raises(error, match=words):
        transfer(surrogate, target, **{"eps": 0.1, **options})


def test_what_does_not_fit_is_refused():
    case, target = setting("class"), setting("class").estimator
    refused(ValueError, "give one for the same images", setting("class", 3).estimator, target)
    refused(ValueError, "give one for the same images", setting("class", channels=2).estimator, target)
    refused(ValueError, "state one intensity", setting("class", intensity=Intensity(0, 255)).estimator, target)
    refused(ValueError, "must mean the same", setting("labels").estimator, target)
    refused(ValueError, "per voxel", setting("voxel-class").estimator, target)
    four = MonaiClassifier(nn.Flatten(), (1, 8, 6), decision=Multiclass(4))
    refused(ValueError, "must mean the same", four, target)
    refused(TypeError, "no estimator that medadv can attack", "resnet", target)
    refused(ValueError, "keeps by loss", case.estimator, target, keep="score")
    refused(ValueError, "can't be replayed", case.estimator, target, attack="noise")
    refused(ValueError, "can't be replayed", case.estimator, target, attack="transfer")
    refused(ValueError, "can't be replayed", case.estimator, target, attack="universal")
    refused(ValueError, "unknown", case.estimator, target, attack="mifgsm")
    refused(TypeError, "max_iters", case.estimator, target, max_iters=3)
    with pytest.raises(TypeError, match="needs surrogate="):
        create("transfer", target, eps=0.1)
    labels = setting("labels").estimator
    labels.decision = replace(labels.decision, threshold=0.3)
    assert isinstance(labels.decision, Multilabel)
    transfer(setting("labels").estimator, labels, eps=0.1)  # another threshold means the same reference
