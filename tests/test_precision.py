"""Half precision for the search: gradients in bfloat16, every score and every kept image judged in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from torch import nn

from medadv import Multiclass, Multilabel
from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.adaptive import WrappedVictim, eot
from medadv.attacks import create
from medadv.objectives import SoftDice
from medadv.problem import Problem
from medadv.search import SteepestAscent
from medadv.threats import LInfBall

SIDE = 12


class Net(nn.Module):
    """Notes the type in which its first layer answers."""

    def __init__(self, channels=2, segments=True):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.last = nn.Conv2d(8, channels, 3, padding=1)
        self.segments = segments
        self.seen = []

    def forward(self, x):
        h = self.first(x)
        self.seen.append(h.dtype)
        z = self.last(h.tanh())
        return z if self.segments else z.flatten(2).mean(2)


def segmenter(precision="bfloat16", **options):
    decision = Multiclass(2, background=0)
    return MonaiSegmenter(Net(), (1, SIDE, SIDE), decision=decision, search_precision=precision, **options)


def cases(estimator, n=2):
    x = np.random.default_rng(0).random((n, 1, SIDE, SIDE), dtype=np.float32)
    return x, estimator.predict(x).argmax(1)


def test_gradients_are_of_the_half_precision_network_and_logits_are_not():
    exact, half = segmenter(None), segmenter()
    x, y = cases(exact)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    found = []
    for estimator in (exact, half):
        objective = SoftDice(estimator.decision)
        found.append(estimator.victim().differentiate(x, lambda z, o=objective: o(z, y, valid=y >= 0)))
    (z, loss, grad), (z_half, loss_half, grad_half) = found
    assert half.network.seen == [torch.bfloat16] and set(exact.network.seen) == {torch.float32}
    for one, other in ((z, z_half), (loss, loss_half), (grad, grad_half)):
        assert other.dtype == torch.float32
        assert 0 < float((one - other).norm() / one.norm()) < 0.03  # bfloat16 keeps 8 bits
    assert torch.equal(half.victim().logits(x), exact.victim().logits(x))
    assert half.model.search is None


@pytest.mark.parametrize("make", [lambda e: e, lambda e: eot(e, n=2)], ids=["plain", "wrapped"])
@pytest.mark.parametrize("name", ["pgd-dice", "bim", "apgd-dice", "di-fgsm", "segpgd", "bias-field"])
def test_what_is_returned_was_judged_in_float32(name, make):
    estimator = segmenter()
    x, y = cases(estimator)
    attack = create(name, make(estimator), eps=0.5, max_iter=4)
    victim, judged = attack.victim, {}
    logits = victim.logits

    def watched(x):
        for image in x:
            judged[image.numpy().tobytes()] = True
        return logits(x)

    victim.logits = watched
    found = attack.generate(x, y)
    assert all(image.tobytes() in judged for image in found)
    target, valid = map(torch.from_numpy, attack.reference)
    score = estimator.decision.score(torch.from_numpy(estimator.predict(found)), target, valid)
    assert float(score.mean()) < 1


def test_passes_of_the_verdict_are_counted():
    x, y = cases(segmenter())
    expected = create("pgd-dice", segmenter(None), eps=0.1, max_iter=4)
    half = create("pgd-dice", segmenter(), eps=0.1, max_iter=4)
    for attack in (expected, half):
        attack.generate(x, y)
    assert (expected.passes.forward, expected.passes.backward) == (5, 4)
    assert (half.passes.forward, half.passes.backward) == (7, 4)  # the first image, and the best of those between
    assert (half.queries == 7).all()


class Liar(WrappedVictim):
    """With gradients it says the opposite of what it says without."""

    approximate = True

    def differentiate(self, x, loss):
        output, values, grad = self.inner.differentiate(x, loss)
        return -output, -values, grad


@pytest.mark.parametrize("keep", ["score", "loss"])
def test_no_approximate_number_enters_what_is_kept(keep):
    estimator = segmenter(None)
    x, y = (torch.from_numpy(a) for a in cases(estimator))
    objective, ball = SoftDice(estimator.decision), LInfBall(x, estimator.intensity.budget(0.1), estimator.intensity)
    problem = Problem(Liar(estimator), objective, ball, y, y >= 0, keep=keep)
    SteepestAscent(4, 0, step_size=0.025).run(problem, [0, 1])
    best = problem.best
    logits = estimator.victim().logits(best.x)
    assert torch.equal(best.loss, objective(logits, y, valid=y >= 0))
    if keep == "score":
        assert torch.equal(best.badness, objective.badness(logits, y, y >= 0))
    else:
        assert (best.loss >= objective(estimator.victim().logits(x), y, valid=y >= 0)).all()


def test_windows_are_searched_in_half_precision_too():
    inferer = SlidingWindowInferer((8, 8), overlap=0.5, mode="gaussian")
    x, _ = cases(segmenter())
    found = []
    loss = SoftDice(Multiclass(2, background=0))
    for memory in (0, 10**9):
        estimator = segmenter(inferer=inferer, window_memory=memory)
        y = torch.from_numpy(estimator.predict(x).argmax(1))
        estimator.network.seen.clear()
        found.append(estimator.victim().differentiate(torch.from_numpy(x), lambda z, y=y: loss(z, y, valid=y >= 0))[2])
        assert set(estimator.network.seen) == {torch.bfloat16}
    assert torch.equal(*found) and found[0].dtype == torch.float32


def test_a_3d_network_is_as_robust_as_in_float32():
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (4, 8), (2,), norm="instance")
    x = np.random.default_rng(0).random((2, 1, 16, 16, 16), dtype=np.float32)
    scores = []
    for precision in (None, "bfloat16"):
        decision = Multiclass(2, background=0)
        estimator = MonaiSegmenter(network, (1, 16, 16, 16), decision=decision, search_precision=precision)
        y = estimator.predict(x).argmax(1)
        found = create("pgd-dice", estimator, eps=0.1, max_iter=10).generate(x, y)
        z = torch.from_numpy(estimator.predict(found))
        scores.append(decision.score(z, *decision.canonical(y, x.shape[2:])).mean().item())
    assert scores[0] < 0.9 and abs(scores[0] - scores[1]) < 0.02


@pytest.mark.parametrize("kind", [MonaiClassifier, MonaiMultilabelClassifier])
def test_images_are_searched_in_half_precision_too(kind):
    decision = Multiclass(2) if kind is MonaiClassifier else Multilabel(2)
    estimator = kind(Net(segments=False), (1, SIDE, SIDE), decision=decision, search_precision="bfloat16")
    x = np.random.default_rng(0).random((2, 1, SIDE, SIDE), dtype=np.float32)
    create("pgd", estimator, eps=0.1, max_iter=2).generate(x)
    assert estimator.network.seen.count(torch.bfloat16) == 2


@pytest.mark.parametrize(
    ("precision", "network", "message"),
    [
        ("float16", Net(), "float16.*vanishes.*use 'bfloat16'"),
        ("bfloat", Net(), "did you mean 'bfloat16'"),
        (16, Net(), "search precision 16 is unknown; choose one of bfloat16"),
        ("bfloat16", Net().double(), "parameters in torch.float64; leave it out"),
        ("bfloat16", Net().bfloat16(), "parameters in torch.bfloat16; leave it out"),
    ],
)
def test_what_makes_no_sense_is_refused(precision, network, message):
    with pytest.raises(ValueError, match=message):
        MonaiSegmenter(network, (1, SIDE, SIDE), decision=Multiclass(2), search_precision=precision)


def test_attacks_that_end_at_the_boundary_search_in_full_precision():
    x = torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).numpy()
    y = (x[:, 0] > 0.5).astype(int)
    half, exact = segmenter(), segmenter(None)
    found = [create("dag", one, max_iter=4).generate(x, y) for one in (half, exact)]
    np.testing.assert_array_equal(*found)
    assert set(half.network.seen) == {torch.float32}
