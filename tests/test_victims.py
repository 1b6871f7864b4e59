"""The model as attacks see it: stock ART classifiers, counted passes, gradients to the input alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.defences.postprocessor import HighConfidence
from art.defences.preprocessor import JpegCompression, SpatialSmoothing
from art.estimators.classification import BlackBoxClassifier, PyTorchClassifier
from builders import KINDS, Net, setting
from torch import nn

from medadv.attacks import create
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity
from medadv.victims import ModuleVictim, Passes, Victim, left_as_found, victim_of

MEAN, STD = np.array([0.1, 0.5]), np.array([0.3, 2.0])


def stock(channels=2, **options):
    torch.manual_seed(0)
    net = Net(2, 3, voxels=False, channels=channels).eval()
    options = {"clip_values": (0.0, 1.0), **options}
    return PyTorchClassifier(net, nn.CrossEntropyLoss(reduction="sum"), (channels, 8, 6), 3, **options)


def images(n=4, channels=2):
    return np.random.default_rng(0).random((n, channels, 8, 6), dtype=np.float32)


@pytest.mark.parametrize("preprocessing", [
    None, (0.4, 0.2), (MEAN, STD), (MEAN.reshape(2, 1, 1), STD.reshape(2, 1, 1)),
], ids=["none", "numbers", "vectors", "arrays"])  # fmt: skip
def test_a_stock_classifier_has_arts_logits_and_gradients(preprocessing):
    classifier, x, y = stock(preprocessing=preprocessing), images(), np.array([0, 1, 2, 1])
    victim = victim_of(classifier)
    assert isinstance(victim, Victim) and victim.decision == Multiclass(3) and not victim.segments
    assert victim.intensity == Intensity(0, 1)
    loss = nn.CrossEntropyLoss(reduction="none")
    with victim.attacked():
        output, values, grad = victim.differentiate(torch.from_numpy(x), lambda z: loss(z, torch.from_numpy(y)))
    assert np.allclose(output.numpy(), classifier.predict(x), atol=1e-6)
    assert np.allclose(grad.numpy(), classifier.loss_gradient(x, np.eye(3, dtype=np.float32)[y]), atol=1e-7)
    assert values.shape == (4,)
    x_adv = create("pgd", classifier, eps="8/255", max_iter=3).generate(x, y)
    assert 0 < np.abs(x_adv - x).max() <= 8 / 255
    before, after = (loss(torch.from_numpy(classifier.predict(i)), torch.from_numpy(y)).sum() for i in (x, x_adv))
    assert after > before


def test_per_channel_clip_values_become_per_channel_ranges():
    low, high = np.zeros((2, 1, 1), dtype=np.float32), np.float32([1, 4]).reshape(2, 1, 1)
    assert victim_of(stock(clip_values=(low, high))).intensity == Intensity((0, 0), (1, 4))


@pytest.mark.parametrize("options", [
    {"preprocessing_defences": [SpatialSmoothing(channels_first=True)]},
    {"preprocessing_defences": [JpegCompression(clip_values=(0, 1), channels_first=True)]},
    {"postprocessing_defences": [HighConfidence()]},
])  # fmt: skip
def test_defences_that_gradients_would_miss_are_refused(options):
    name = type(next(iter(options.values()))[0]).__name__
    with pytest.raises(TypeError, match=rf"defences \({name}\) that are not part of its network"):
        victim_of(stock(**options))


def test_a_classifier_without_clip_values_is_refused():
    with pytest.raises(TypeError, match="no clip_values, so its intensity range is unknown"):
        victim_of(stock(clip_values=None))


@pytest.mark.parametrize("thing", [
    nn.Linear(2, 2), "net", None, BlackBoxClassifier(lambda x: x, (1, 2, 2), 2, clip_values=(0, 1)),
], ids=lambda thing: type(thing).__name__)  # fmt: skip
def test_what_is_no_estimator_is_refused(thing):
    with pytest.raises(TypeError, match=rf"{type(thing).__name__} is no estimator.*MonaiClassifier"):
        victim_of(thing)


def test_a_victim_is_its_own_victim():
    victim = ModuleVictim(nn.Flatten(), Multiclass(4), Intensity(0, 1), segments=False)
    assert victim_of(victim) is victim and victim.device == torch.device("cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_passes_are_counted_and_weights_get_no_gradient(kind, dims):
    case = setting(kind, dims)
    victim = victim_of(case.estimator)
    x = torch.from_numpy(case.x)
    touched = []
    for parameter in case.net.parameters():
        parameter.register_hook(lambda grad: touched.append(grad))
    with victim.attacked():
        logits = victim.logits(x)
        output, loss, grad = victim.differentiate(x, lambda z: z.flatten(1).square().sum(1))
    assert victim.passes == Passes(2, 1) and victim.passes - Passes(1, 1) == Passes(1, 0)
    assert not touched and all(p.grad is None for p in case.net.parameters())
    assert torch.equal(logits, output) and not output.requires_grad and not loss.requires_grad
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(case.net.eval()(leaf).square().sum(), leaf)
    assert torch.allclose(grad, expected, rtol=1e-4, atol=1e-6) and not x.requires_grad


def test_images_keep_their_precision_and_the_network_its_own():
    case = setting("class")
    x = torch.from_numpy(case.x).double()
    output, _, grad = victim_of(case.estimator).differentiate(x, lambda z: z.sum(1))
    assert grad.dtype == torch.float64 and output.dtype == torch.float32


def test_gradients_are_computed_also_where_autograd_was_switched_off():
    case = setting("class")
    with torch.no_grad():
        x_adv = create("fgsm", case.estimator, eps=0.1).generate(case.x, case.y)
    assert not np.array_equal(x_adv, case.x)


def test_attacks_see_inference_mode_and_nothing_stays():
    net = Net(2, 2, voxels=False)
    net.train()
    victim = ModuleVictim(net, Multilabel(2), Intensity(0, 1), segments=False)
    with victim.attacked():
        assert not any(m.training for m in net.modules())
        net.norm.running_mean += 1
        torch.manual_seed(1)
    assert all(m.training for m in net.modules()) and not net.norm.running_mean.any()


def test_a_layer_in_training_mode_is_switched_and_switched_back():
    net = Net(2, 2, voxels=False).eval()
    net.norm.train()
    with ModuleVictim(net, Multilabel(2), Intensity(0, 1), segments=False).attacked():
        assert not any(m.training for m in net.modules())
    assert net.norm.training and sum(m.training for m in net.modules()) == 1


def test_left_as_found_restores_each_of_several_buffers_of_one_shape():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(4))
    net.append(net[0])  # a layer used twice
    kept = [b.clone() for b in net.buffers()]
    with left_as_found(net):
        net[1].running_var.fill_(torch.nan)
        net[2].num_batches_tracked += 1
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), kept, strict=True))


def test_left_as_found_restores_buffers_in_place():
    net = Net(2, 2, voxels=False)
    mean = net.norm.running_mean
    with left_as_found(net):
        net.train()(torch.rand(4, 1, 8, 6))
        assert mean.any()
    assert net.norm.running_mean is mean and not mean.any() and int(net.norm.num_batches_tracked) == 0
