"""Detectors on activations against formulas written down again, and against the attack that knows them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders import setting
from scipy.spatial.distance import cdist, mahalanobis
from scipy.stats import norm
from torch import nn

from medadv.adapters import MonaiClassifier
from medadv.attacks import create
from medadv.decisions import Multiclass
from medadv.detectors import balanced_weight, evasion, guarded, threshold_at_fpr
from medadv.feature_detectors import FEATURE_DETECTORS, fit_detector, likeliest_bandwidth
from medadv.features import FeatureVictim, fit_statistics, last_hidden_layer, pooled
from medadv.victims import Features


class Features4(nn.Module):
    """Four fixed features; classes are told apart by the first, the others follow from it in clean images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.block_diag(*[torch.full((1, 4), 0.25)] * 4))
            self.layer.bias.zero_()
            self.head.weight.copy_(torch.tensor([[-30.0, 0, 0, 0], [30.0, 0, 0, 0]]))
            self.head.bias.copy_(torch.tensor([15.0, -15.0]))

    def forward(self, x):
        return self.head(self.layer(x.flatten(1)))


def estimator() -> MonaiClassifier:
    return MonaiClassifier(Features4(), (1, 4, 4), decision=Multiclass(2))


def images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clean images: all four rows near .45 (class 0) or near .55."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    rows = (0.45 + 0.1 * y)[:, None, None, None] + rng.normal(0, 0.012, (n, 1, 4, 1))
    return (rows + rng.normal(0, 0.002, (n, 1, 4, 4))).clip(0, 1).astype(np.float32), y


def seen(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), 4, 4).mean(2).astype(np.float64)


def scores_of(detector, x: np.ndarray) -> np.ndarray:
    output = FeatureVictim(estimator(), ["layer"]).logits(torch.from_numpy(x))
    return detector(output if detector.on == "output" else output.features).numpy()


def test_mahalanobis_is_the_distance_to_the_nearest_class_under_one_covariance():
    (x, y), (other, _) = images(60), images(9, seed=1)
    detector = fit_detector("mahalanobis", FeatureVictim(estimator(), ["layer"]), x, y, regularisation=0.0)
    h = seen(x)
    means = [h[y == c].mean(0) for c in (0, 1)]
    centred = np.concatenate([h[y == c] - means[c] for c in (0, 1)])
    inverse = np.linalg.inv(centred.T @ centred / len(h))
    expected = [min(mahalanobis(f, mean, inverse) ** 2 / 4 for mean in means) for f in seen(other)]
    np.testing.assert_allclose(scores_of(detector, other), expected, rtol=1e-3)


def test_kernel_density_is_that_of_the_predicted_class():
    (x, y), (other, _) = images(60), images(9, seed=1)
    detector = fit_detector("kde", FeatureVictim(estimator(), ["layer"]), x, y, bandwidth=0.02)
    predicted = estimator().predict(other).argmax(1)
    assert set(predicted) == {0, 1}
    expected = [
        -math.log(np.mean([math.exp(-np.sum((f - g) ** 2) / 0.02**2) for g in seen(x)[y == c]]))
        for f, c in zip(seen(other), predicted)
    ]
    np.testing.assert_allclose(scores_of(detector, other), expected, rtol=1e-3)


def test_the_likeliest_bandwidth_is_that_of_the_density_left_one_out():
    cloud = np.random.default_rng(0).normal(0, 1, (80, 1))
    grid = [0.05, 0.2, 0.8, 3.2]

    def likelihood(bandwidth):  # exp(-d^2 / b^2) is a Gaussian with sigma = b / sqrt 2
        kernel = norm.pdf(cloud - cloud.T, scale=bandwidth / math.sqrt(2))
        np.fill_diagonal(kernel, 0)
        return np.log(kernel.sum(1) / (len(cloud) - 1)).sum()

    found = likeliest_bandwidth([torch.from_numpy(cloud)])
    assert likelihood(found) >= max(map(likelihood, grid))


def test_intrinsic_dimensionality_is_the_maximum_likelihood_estimate():
    (x, y), (other, _) = images(60), images(5, seed=1)
    detector = fit_detector("lid", FeatureVictim(estimator(), ["layer"]), x, y, neighbours=7)
    distances = np.sort(cdist(seen(other), seen(x)), axis=1)[:, :7]
    expected = -1 / np.log(distances / distances[:, -1:]).mean(1)
    np.testing.assert_allclose(scores_of(detector, other), expected, rtol=2e-3)


def test_intrinsic_dimensionality_tells_the_dimension_of_a_cloud():
    # uniform in a ball of dimension d, seen from its middle: P(r < t) = t^d, and the estimate is d
    rng = np.random.default_rng(0)
    for d in (2, 6):
        directions = rng.normal(size=(900, d))
        cloud = directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.random((900, 1)) ** (1 / d)
        kind = type(fit_detector("lid", FeatureVictim(estimator(), ["layer"]), *images(30), neighbours=3))
        score = kind({"h": torch.from_numpy(cloud)}, 200)({"h": torch.zeros(1, d, dtype=torch.float64)})
        assert float(score) == pytest.approx(d, rel=0.2)


@pytest.mark.parametrize("name", FEATURE_DETECTORS)
def test_an_unaware_attack_is_caught_and_an_aware_one_evades(name):
    (x, y), (validation, _), (test, truth) = images(200), images(200, seed=1), images(30, seed=2)
    shown = FeatureVictim(estimator(), ["layer"])
    detector = fit_detector(name, shown, x, y)
    threshold = threshold_at_fpr(torch.from_numpy(scores_of(detector, validation)), 0.05)
    weight = balanced_weight(guarded(shown, detector, threshold=threshold, on=detector.on), torch.from_numpy(x[:16]))
    victim = guarded(shown, detector, threshold=threshold, on=detector.on, weight=0.3 * weight)
    found = {
        kind: evasion(victim, test, create("apgd-ce", attacked, eps=0.14, max_iter=60).generate(test, truth), truth)
        for kind, attacked in (("unaware", estimator()), ("aware", victim))
    }
    assert found["unaware"].wrong.mean() > 0.9 and found["unaware"].auc > 0.95
    assert found["unaware"].evaded.mean() < 0.1 and found["aware"].evaded.mean() > 0.9
    assert found["aware"].false_alarms <= 0.2


def test_gradients_of_the_scores_are_right():
    x, y = images(60)
    for name in FEATURE_DETECTORS:
        detector = fit_detector(name, FeatureVictim(estimator(), ["layer"]), x, y)
        h = torch.from_numpy(seen(images(3, seed=5)[0]))

        def score(values, detector=detector):
            logits = estimator().model.network.head.double()(values)
            return detector(Features(logits, {"layer": values}) if detector.on == "output" else {"layer": values})

        assert torch.autograd.gradcheck(score, (h.requires_grad_(),), eps=1e-7, atol=1e-2, rtol=1e-3), name


@pytest.mark.parametrize("dims", [2, 3])
def test_the_last_hidden_layer_is_what_the_head_reads(dims):
    case = setting("class", dims)
    assert last_hidden_layer(case.estimator, torch.from_numpy(case.x)) == "norm"  # dropout in between shows nothing
    from monai.networks.nets import DenseNet121, ResNet

    resnet = ResNet("basic", [1, 1, 1, 1], [4, 8, 8, 8], spatial_dims=dims, n_input_channels=1, num_classes=2)
    densenet = DenseNet121(spatial_dims=dims, in_channels=1, out_channels=2, init_features=4, growth_rate=2)
    for network, layer in ((resnet, "avgpool"), (densenet, "class_layers.pool")):
        victim = MonaiClassifier(network, (1, *[32] * dims), decision=Multiclass(2))
        assert last_hidden_layer(victim, torch.rand(2, 1, *[32] * dims)) == layer


def test_activations_of_transformers_are_averaged_over_tokens():
    tokens = torch.rand(2, 5, 8)
    assert torch.equal(pooled(tokens), tokens.mean(1))
    assert pooled(torch.rand(2, 8, 3, 3)).shape == (2, 8) and pooled(torch.rand(2, 8)).shape == (2, 8)


def test_bad_input_is_refused():
    x, y = images(30)
    shown = FeatureVictim(estimator(), ["layer"])
    voxels, labels = setting("voxel-class"), setting("labels")
    for error, words, do in (
        (ValueError, "detector 'mahalanobi' is unknown; did you mean 'mahalanobis'",
         lambda: fit_detector("mahalanobi", shown, x, y)),
        (TypeError, "option of kde 'bandwith' is unknown; did you mean 'bandwidth'",
         lambda: fit_detector("kde", shown, x, y, bandwith=1)),
        (ValueError, "bandwidth=0 must", lambda: fit_detector("kde", shown, x, y, bandwidth=0)),
        (ValueError, "neighbours=1 must", lambda: fit_detector("lid", shown, x, y, neighbours=1)),
        (ValueError, "4 clean images have no 20 neighbours", lambda: fit_detector("lid", shown, x[:4], y[:4])),
        (ValueError, "the classes have 2, 1 clean cases", lambda: fit_detector("kde", shown, x[:3], y[:3])),
        (ValueError, "29 references for 30 images", lambda: fit_detector("kde", shown, x, y[:29])),
        (ValueError, "one per voxel",
         lambda: fit_detector("lid", FeatureVictim(voxels.estimator, ["norm"]), voxels.x, voxels.y)),
        (ValueError, "labels that overlap use 'lid'",
         lambda: fit_detector("kde", FeatureVictim(labels.estimator, ["norm"]), labels.x, labels.y)),
        (ValueError, "have no covariance in common",
         lambda: fit_statistics(estimator(), x, y, layers=["layer"], components=2, tied=True)),
        (ValueError, "no layer before its last one",
         lambda: last_hidden_layer(
             MonaiClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), (1, 4, 4), decision=Multiclass(2)),
             torch.rand(1, 1, 4, 4))),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            do()
