"""Training losses against their papers' formulas, computed in numpy, and inner maxima that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import CLASSES, KINDS, setting
from scipy.fft import dctn
from scipy.special import expit, log_softmax
from scipy.stats import chisquare, kstest
from torch import nn

from medadv import Intensity
from medadv.adapters import MonaiClassifier, MonaiSegmenter
from medadv.decisions import Multiclass
from medadv.threats import CaseRandom
from medadv.training import MAADVT, RECIPES, WeightPerturbation
from medadv.training.base import batch_of

VOXELS = ("voxel-class", "voxel-labels")


def case_of(kind, dims):
    """A setting in float64 without dropout, its batch, and the batch's images moved a little."""
    case = setting(kind, dims, dtype=np.float64)
    case.net.drop.p = 0.0
    batch = batch_of(case.estimator, torch.from_numpy(case.x), case.y, range(3))
    moved = (batch.x + 0.03 * torch.sin(40 * batch.x)).clamp(0, 1)
    return case, batch, moved


def outputs(case, *images):
    """Logits in train mode, as numpy."""
    case.net.train()
    with torch.no_grad():
        return [case.net(x).numpy() for x in images]


def parts(kind, z):
    """log p and log(1 - p) of every class or label, (N, C, *S)."""
    if "labels" in kind:
        return np.log(expit(z)), np.log(expit(-z))
    logp = log_softmax(z, 1)
    return logp, np.log1p(-np.exp(logp))


def hot(kind, y):
    return y if "labels" in kind else np.moveaxis(np.eye(CLASSES)[y], -1, 1)


def mean(values):
    """Mean over all but the cases."""
    return values.reshape(len(values), -1).mean(1)


def cross_entropy(kind, z, y):
    logp, logq = parts(kind, z)
    h = hot(kind, y)
    return mean(-(h * logp + (1 - h) * logq)) if "labels" in kind else mean(-(h * logp).sum(1))


def natural(kind, z, y):
    """The mean natural loss: cross-entropy, on voxels plus soft Dice of the foreground."""
    loss = cross_entropy(kind, z, y)
    if kind in VOXELS:
        p, h = np.exp(parts(kind, z)[0]), hot(kind, y)
        channels = range(CLASSES) if "labels" in kind else range(1, CLASSES)
        for i in range(len(z)):
            present = [c for c in channels if h[i, c].any()]
            absent = [c for c in channels if not h[i, c].any()]
            dice = [1 - 2 * (p[i, c] * h[i, c]).sum() / (p[i, c] + h[i, c]).sum() for c in present]
            loss[i] += (np.mean(dice) if dice else 0) + (np.mean([p[i, c].mean() for c in absent]) if absent else 0)
    return loss.mean()


def divergence(kind, z, w, weight=1.0):
    """KL(p || q), summed over classes or over the labels' Bernoullis, in the mean over voxels, per case."""
    (logp, logp_), (logq, logq_) = parts(kind, z), parts(kind, w)
    each = np.exp(logp) * (logp - logq)
    if "labels" in kind:
        each = (each + np.exp(logp_) * (logp_ - logq_)) * weight
        return mean(each.sum(1))
    return mean(each.sum(1) * weight)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
class TestFormulas:
    def loss_of(self, recipe, case, batch, moved):
        step = recipe.prepare(case.estimator)
        case.net.train()
        return step.loss(batch, moved).item()

    def test_trades(self, kind, dims):
        case, batch, moved = case_of(kind, dims)
        z, w = outputs(case, batch.x, moved)
        expected = natural(kind, z, case.y) + 6 * divergence(kind, z, w).mean()
        assert self.loss_of(RECIPES["trades"](eps=0.1), case, batch, moved) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("name", ["mart", "maadvt"])
    def test_mart(self, kind, dims, name):
        case, batch, moved = case_of(kind, dims)
        z, w = outputs(case, batch.x, moved)
        h, p = hot(kind, case.y), np.exp(parts(kind, z)[0])
        if "labels" in kind:
            rival, unsure = cross_entropy(kind, w, case.y), np.where(h == 1, 1 - p, p)
        else:
            others = np.where(h == 1, -np.inf, log_softmax(w, 1)).max(1)
            rival, unsure = mean(-np.log1p(-np.exp(others))), 1 - (h * p).sum(1)
        weight = 6.0 if name == "mart" else 8.0
        expected = natural(kind, w, case.y) + (rival + weight * divergence(kind, z, w, unsure)).mean()
        recipe = RECIPES[name](eps=0.1, lam=weight)
        assert self.loss_of(recipe, case, batch, moved) == pytest.approx(expected, rel=1e-9)

    def test_hat(self, kind, dims):
        case, batch, moved = case_of(kind, dims)
        helper = setting(kind, dims, dtype=np.float64, seed=5)
        with torch.no_grad():
            told = helper.net.eval()(moved).numpy()  # the helper is in inference mode
        named = (told >= 0).astype(int) if "labels" in kind else told.argmax(1)
        z, w, far = outputs(case, batch.x, moved, batch.x + 3.5 * (moved - batch.x))
        expected = natural(kind, z, case.y) + 2.5 * divergence(kind, z, w).mean() + 0.5 * natural(kind, far, named)
        recipe = RECIPES["hat"](eps=0.1, h=3.5, helper=helper.estimator)
        assert self.loss_of(recipe, case, batch, moved) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("name", ["natural", "pgd-at", "fast", "free", "mpadvt", "bias-field", "attack"])
    def test_natural_loss_of_what_was_crafted(self, kind, dims, name):
        case, batch, moved = case_of(kind, dims)
        needed = {"pgd-at": {"eps": 0.1}, "fast": {"eps": 0.1}, "free": {"eps": 0.1}, "attack": {"attack": "vafa"}}
        recipe = RECIPES[name](**needed.get(name, {}))
        expected = natural(kind, outputs(case, moved)[0], case.y)
        assert self.loss_of(recipe, case, batch, moved) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", VOXELS)
def test_vaft_compares_the_frequencies_of_the_logits(kind, dims):
    case, batch, moved = case_of(kind, dims)
    z, w = outputs(case, batch.x, moved)
    gaps = []
    for one, other in zip(z, w):
        a, b = (np.stack([dctn(channel, norm="ortho") for channel in logits]) for logits in (one, other))
        gaps.append(np.abs(a - b).sum() / np.abs(a).sum())
    expected = natural(kind, z, case.y) + natural(kind, w, case.y) + 3 * np.mean(gaps)
    step = RECIPES["vaft"](weight=3.0).prepare(case.estimator)
    case.net.train()
    assert step.loss(batch, moved).item() == pytest.approx(expected, rel=1e-9)


def test_voxels_that_do_not_count_have_no_part_in_the_frequencies():
    case = setting("voxel-class", dtype=np.float64, ignore_index=9)
    case.net.drop.p = 0.0
    y = case.y.copy()
    y[:, :3] = 9
    batch = batch_of(case.estimator, torch.from_numpy(case.x), y, range(3))
    step, moved = RECIPES["vaft"]().prepare(case.estimator), batch.x.clone()
    case.net.norm.eval()
    case.net.norm.train = lambda mode=True: case.net.norm
    before = step.loss(batch, moved)
    moved[:, :, :2] = 0.9  # the convolution reaches one voxel further
    torch.testing.assert_close(step.loss(batch, moved), before)


def test_maadvt_is_mart_with_the_numbers_of_the_released_code():
    recipe = MAADVT()
    assert isinstance(recipe, RECIPES["mart"])
    assert (recipe.eps, recipe.steps, recipe.eps_step, recipe.lam) == ("0.031/1", 4, "0.007/1", 6)
    assert recipe.prepare(setting("class").estimator).crafter.budget.eps == 0.031


def linear(voxels=False):
    """Two classes decided by a linear function with known weights, per image or per voxel (two channels)."""
    torch.manual_seed(0)
    if voxels:
        net = nn.Conv2d(2, 2, 1).double()
        return MonaiSegmenter(net, (2, 5, 4), decision=Multiclass(2, background=0)), net.weight[:, :, 0, 0].detach()
    net = nn.Sequential(nn.Flatten(), nn.Linear(40, 2)).double()
    weight = net[1].weight.detach().view(2, 2, 5, 4)
    return MonaiClassifier(net, (2, 5, 4), decision=Multiclass(2)), weight


def linear_batch(estimator, cases=6):
    rng = np.random.default_rng(0)
    spatial = (5, 4) if estimator.segments else ()
    x = torch.from_numpy(rng.uniform(0.02, 0.98, (cases, 2, 5, 4)))
    return batch_of(estimator, x, rng.integers(0, 2, (cases, *spatial)), range(cases))


def uphill(estimator, weight, batch):
    """Where the loss of the reference grows: the gradient of the wrong logit less the right one, like x."""
    away = weight[1] - weight[0]
    sign = 1.0 - 2 * batch.target.double()
    if estimator.segments:
        return away.view(1, 2, 1, 1) * sign[:, None]
    return away[None] * sign.view(-1, 1, 1, 1)


@pytest.mark.parametrize("voxels", [False, True])
@pytest.mark.parametrize(("name", "options"), [
    ("pgd-at", {"steps": 3, "eps_step": 0.2}), ("fast", {"stride": 2.0}), ("mart", {"steps": 2, "eps_step": 0.2}),
    ("attack", {"attack": "pgd", "options": {"max_iter": 3, "eps_step": 0.2}}),
])  # fmt: skip
def test_the_inner_maximum_of_the_natural_loss_is_the_corner_it_is_known_to_be(name, options, voxels):
    estimator, weight = linear(voxels)
    batch = linear_batch(estimator)
    crafted = RECIPES[name](eps=0.1, **options).prepare(estimator).craft(batch)
    expected = (batch.x + 0.1 * uphill(estimator, weight, batch).sign()).clamp(0, 1)
    torch.testing.assert_close(crafted, expected)


def test_the_inner_maximum_in_an_l2_ball_lies_along_the_weights():
    estimator, weight = linear()
    batch = linear_batch(estimator)
    wide = MonaiClassifier(estimator.network, (2, 5, 4), decision=Multiclass(2), intensity=Intensity(-9, 9))
    crafted = RECIPES["pgd-at"](eps=0.5, steps=12, eps_step=2.0, norm=2).prepare(wide).craft(batch)
    away = uphill(estimator, weight, batch)
    expected = batch.x + 0.5 * away / away.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(crafted, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["trades", "hat"])
def test_the_inner_maximum_of_the_departure_is_a_corner_on_either_side(name):
    estimator, weight = linear()
    batch = linear_batch(estimator)
    recipe = RECIPES[name](eps=0.1, steps=3, eps_step=0.2, **({"helper": estimator} if name == "hat" else {}))
    crafted = recipe.prepare(estimator).craft(batch)
    direction = (weight[1] - weight[0]).sign()
    corners = [(batch.x + 0.1 * side * direction).clamp(0, 1) for side in (1, -1)]
    hits = [torch.stack([torch.allclose(a, b) * torch.ones(()) for a, b in zip(crafted, c)]) for c in corners]
    assert bool(((hits[0] + hits[1]) == 1).all())


def test_mpadvt_draws_every_case_as_the_paper_says():
    estimator, _ = linear()
    step = RECIPES["mpadvt"]().prepare(estimator, seed=4)
    many = batch_of(estimator, torch.zeros(4000, 2, 5, 4), np.zeros(4000, dtype=int), range(4000))
    eps, steps, clean = (values.numpy() for values in step.drawn(many))
    assert kstest(eps, "uniform", (0.01, 0.03)).pvalue > 0.01
    assert chisquare(np.bincount(steps, minlength=10)[1:]).pvalue > 0.01 and steps.min() == 1 and steps.max() == 9
    assert abs(clean.mean() - 0.5) < 0.03
    assert abs(np.corrcoef([eps, steps, clean]) - np.eye(3)).max() < 0.05
    few = batch_of(estimator, torch.zeros(2, 2, 5, 4), np.zeros(2, dtype=int), [7, 3999])
    for one, all_of_them in zip(step.drawn(few), (eps, steps, clean)):
        assert one.tolist() == all_of_them[[7, 3999]].tolist()


def test_mpadvt_moves_every_case_as_far_as_it_drew():
    estimator, weight = linear()
    batch, step = linear_batch(estimator, cases=20), RECIPES["mpadvt"]().prepare(estimator, seed=4)
    eps, steps, clean = (values.view(-1, 1, 1, 1) for values in step.drawn(batch))
    reach = eps.double()
    begin = (2 * CaseRandom(4, batch.ids).uniform(batch.x) - 1) * reach
    # constant gradient: n steps of one length, then the walls of ball and range
    end = begin + steps / 255 * uphill(estimator, weight, batch).sign()
    expected = (batch.x + torch.minimum(torch.maximum(end, -reach), reach)).clamp(0, 1)
    assert 0 < int(clean.sum()) < 20
    torch.testing.assert_close(step.craft(batch), torch.where(clean, batch.x, expected))


def test_free_training_is_the_papers_loop():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(40, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    estimator = MonaiClassifier(net, (2, 5, 4), decision=Multiclass(2))
    whole = linear_batch(estimator, cases=12)
    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]
    step, optimizer = RECIPES["free"](eps=0.05, replays=3).prepare(estimator), torch.optim.SGD(net.parameters(), lr=0.1)
    delta = torch.zeros(4, 2, 5, 4, dtype=torch.float64)
    for rows in (slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 12)):  # a smaller and a larger one
        x, y = whole.x[rows], whole.target[rows]
        for _ in range(step.replays):
            optimizer.zero_grad()
            step(x, y).backward()
            optimizer.step()
            moved = (x + delta[: len(x)]).clamp(0, 1).requires_grad_()
            hidden = torch.tanh(moved.flatten(1) @ weights[0].T + weights[1])
            loss = nn.functional.cross_entropy(hidden @ weights[2].T + weights[3], y)
            *grads, image_grad = torch.autograd.grad(loss, [*weights, moved])
            delta[: len(x)] = (delta[: len(x)] + 0.05 * image_grad.sign()).clamp(-0.05, 0.05)
            weights = [(w - 0.1 * g).detach().requires_grad_() for w, g in zip(weights, grads)]
    for found, expected in zip(net.parameters(), weights):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(step.perturbation, delta)
    assert float(delta.abs().max()) == pytest.approx(0.05)


def test_a_share_of_the_cases_gets_the_bias_field_and_their_loss_grows():
    case = setting("voxel-class", cases=40, dtype=np.float64)
    batch = batch_of(case.estimator, torch.from_numpy(case.x), case.y, range(40))
    step = RECIPES["bias-field"](eps=0.2, clean_share=0.25).prepare(case.estimator, seed=1)
    crafted = step.craft(batch)
    moved = (crafted != batch.x).flatten(1).any(1)
    assert 20 <= int(moved.sum()) <= 38
    inside = batch.x > 0
    factor = (crafted / batch.x)[inside & (crafted < 1)]
    assert float(factor.min()) >= 0.8 - 1e-9 and float(factor.max()) <= 1.2 + 1e-9
    case.net.eval()
    with torch.no_grad():
        loss = [case.estimator.loss_objective(case.net(x), batch.target, valid=batch.valid) for x in (batch.x, crafted)]
    assert bool((loss[1] > loss[0])[moved].double().mean() > 0.9)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x))).mean((2, 3)))


def test_weights_are_perturbed_by_a_share_of_each_layers_norm_along_the_gradient():
    net, gamma = Layers(), 0.02
    x, y = torch.rand(8, 1, 6, 6), torch.tensor([0, 1] * 4)

    def loss():
        return nn.functional.cross_entropy(net(x), y)

    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss(), list(net.parameters()))))
    net.load_state_dict(before)
    with WeightPerturbation(gamma).worst(net, loss):
        for name, parameter in net.named_parameters():
            step = parameter.detach() - before[name]
            if parameter.ndim < 2:
                assert not step.any()
                continue
            assert float(step.norm()) == pytest.approx(gamma * float(before[name].norm()), rel=1e-4)
            cosine = (step * expected[name]).sum() / step.norm() / expected[name].norm()
            assert float(cosine) == pytest.approx(1, abs=1e-4)
        assert int(net.norm.num_batches_tracked) == 0
        worse = loss().item()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name])
    assert int(net.norm.num_batches_tracked) == 1  # the pass inside alone
    assert worse > loss().item()
