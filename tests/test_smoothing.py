"""Randomised smoothing: the certificate is the paper's formula, votes are counted right, attacks see through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import setting
from networks import LEVEL, grey_images, multiclass, multilabel, segmenter
from scipy import stats
from torch import nn

from medadv.adapters import MonaiClassifier
from medadv.attacks import create
from medadv.decisions import Multiclass
from medadv.detectors import guarded
from medadv.smoothing import abstains, certified_radius, noisy, smoothed


def test_the_radius_is_that_of_the_paper():
    # 100 000 copies that all agree: the known ceiling of arXiv 1902.02918, alpha = .001, is about 3.8 sigma
    lower = 0.001 ** (1 / 100_000)
    assert certified_radius(100_000, 100_000, sigma=0.5) == pytest.approx(0.5 * stats.norm.ppf(lower))
    assert certified_radius(100_000, 100_000, sigma=1.0) == pytest.approx(3.811, abs=1e-3)
    # the bound solves P(X >= k | p) = alpha
    k, n, alpha = 870, 1000, 0.01
    p = stats.norm.cdf(certified_radius(k, n, sigma=1.0, alpha=alpha))
    assert stats.binom.sf(k - 1, n, p) == pytest.approx(alpha)
    assert certified_radius([0, 500, 540], 1000, sigma=1.0).tolist() == [0, 0, 0]


def test_a_vote_that_may_be_chance_is_no_diagnosis():
    for most, rest in ((60, 40), (9, 1), (100, 0), (5, 5)):
        p = stats.binomtest(most, most + rest, 0.5).pvalue
        for alpha in (0.001, 0.05):
            assert abstains(most, rest, alpha) == (p > alpha)


def linear(slope: float = 1.0) -> tuple[MonaiClassifier, np.ndarray]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    rng = np.random.default_rng(0)
    weight = rng.normal(size=16)
    with torch.no_grad():
        net[1].weight.copy_(slope * torch.from_numpy(np.stack([-weight, weight])))
        net[1].bias.copy_(slope * torch.tensor([0.5, -0.5]) * float(weight.sum()))
    return MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2)), weight / np.linalg.norm(weight)


def test_the_certificate_of_a_linear_model_is_its_distance_and_no_more():
    # smoothing leaves a linear boundary where it is and the share of votes is Phi(distance / sigma)
    estimator, normal = linear()
    distances = np.array([0.05, 0.1, 0.2, -0.1])
    x = torch.from_numpy((0.5 + distances[:, None] * normal).reshape(4, 1, 4, 4).astype(np.float32))
    rule = smoothed(estimator, 0.1, n=100, alpha=0.001)
    chosen, radius = rule.radius(x, 2000)
    assert chosen.tolist() == [1, 1, 1, 0]
    assert (radius <= np.abs(distances)).all() and (radius > 0.8 * np.abs(distances)).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("build", [multiclass, multilabel, segmenter])
def test_votes_are_the_share_of_copies_and_hard_diagnoses_their_majority(dims, build):
    estimator = build(dims)
    x = torch.from_numpy(grey_images(dims, (0.5 - LEVEL, 0.5 + LEVEL)))
    rule = smoothed(estimator, 0.02, n=40, seed=3)
    votes = rule.votes(x)
    expected = torch.zeros_like(votes.counts)
    generator = torch.Generator().manual_seed(3 * 1_000_003)
    for _ in range(40):
        noise = torch.randn(x.shape[1:], generator=generator)
        logits = torch.from_numpy(estimator.model(x + 0.02 * noise).detach().numpy())
        expected += rule.decision.one_hot(rule.decision.harden(logits))
    assert torch.equal(votes.counts, expected)
    hard = rule.decision.harden(rule.logits(x))
    if isinstance(rule.decision, Multiclass):
        assert torch.equal(hard, expected.argmax(1))
    else:
        assert torch.equal(hard == 1, expected > 20)
    assert torch.equal(rule.logits(x[1:]), rule.logits(x)[1:])  # neither the batch nor other cases matter


def test_an_attack_that_knows_the_noise_breaks_what_the_vote_can_be_broken_by():
    estimator, normal = linear(slope=50.0)
    rule = smoothed(estimator, 0.05, n=50)
    x = (0.5 + 0.05 * normal * np.array([1, -1, 1])[:, None]).reshape(3, 1, 4, 4).astype(np.float32)
    y = np.array([1, 0, 1])
    with rule.attacked():
        assert rule.logits(torch.from_numpy(x)).argmax(1).tolist() == y.tolist()
    x_adv = create("pgd", noisy(rule, n=8), eps=0.06, max_iter=10).generate(x, y)
    with rule.attacked():
        assert rule.logits(torch.from_numpy(x_adv)).argmax(1).tolist() == (1 - y).tolist()


def test_bad_input_is_refused():
    estimator = setting("class").estimator
    x = torch.from_numpy(setting("class").x)
    for given, words in (
        ({"sigma": 0}, "no noise"), ({"sigma": 0.1, "n": 0}, "n=0 must be"), ({"sigma": 0.1, "alpha": 1}, "alpha=1 "),
        ({"sigma": 0.1, "seed": 0.5}, "seed=0.5"), ({"sigma": "3 HU"}, "no unit"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            smoothed(estimator, **given)
    with pytest.raises(TypeError, match="let the detector vote"):
        smoothed(guarded(estimator, lambda z: z.flatten(1).sum(1), threshold=1.0), 0.1)
    with pytest.raises(TypeError, match=r"attack noisy copies"):
        smoothed(estimator, 0.1).differentiate(x, lambda z: z[:, 0])
    for kind in ("labels", "voxel-class"):
        case = setting(kind)
        with pytest.raises(TypeError, match="one of several classes per image"):
            smoothed(case.estimator, 0.1).radius(torch.from_numpy(case.x), 10)
