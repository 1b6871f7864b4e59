"""Searches against closed forms and against the algorithms written out once more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from builders import setting
from monai.networks.nets import UNet
from torch import nn
from torch.nn import functional as F

from medadv.adapters import MonaiClassifier, MonaiSegmenter
from medadv.attacks import create
from medadv.decisions import Multiclass
from medadv.intensities import Intensity
from medadv.objectives import CrossEntropy, Margin, SegPGD, SoftDice
from medadv.problem import Problem, chain
from medadv.search import AutoPGD, SteepestAscent, checkpoints
from medadv.search.diversity import Resizing
from medadv.threats import BALLS, CaseRandom, LInfBall
from medadv.victims import ModuleVictim

FREE = Intensity(-1e6, 1e6)


def linear(weights: torch.Tensor) -> nn.Module:
    """Two classes; the logit of class 1 minus that of class 0 is ``weights . x``."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(weights.numel(), 2)).to(weights.dtype)
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([-weights.flatten() / 2, weights.flatten() / 2]))
        net[1].bias.zero_()
    return net


def linear_case(seed=0, dtype=torch.float64, cases=3):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(1, 4, 5, generator=generator, dtype=dtype)
    x = torch.rand(cases, 1, 4, 5, generator=generator, dtype=dtype)
    return weights, x, linear(weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), [
    ("fgsm", {}), ("pgd", {"max_iter": 10}), ("mi-fgsm", {"max_iter": 10}), ("apgd-ce", {"max_iter": 5}),
    ("apgd-margin", {"max_iter": 5}),
])  # fmt: skip
def test_linf_attacks_reach_the_corner_of_a_linear_model(name, options, dtype):
    weights, x, net = linear_case(dtype=dtype)
    estimator = MonaiClassifier(net, (1, 4, 5), decision=Multiclass(2))
    x_adv = create(name, estimator, eps=0.1, **options).perturb(x, [0, 0, 0])
    expected = (x + 0.1 * weights.sign()).clamp(0, 1)
    assert torch.allclose(x_adv, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)
    # what stops at the range is there exactly
    assert torch.equal((x_adv == 0) | (x_adv == 1), (expected == 0) | (expected == 1))


@pytest.mark.parametrize(("name", "options"), [
    ("pgd", {"max_iter": 80, "eps_step": 0.8}), ("apgd-ce", {"max_iter": 40}), ("apgd-margin", {"max_iter": 40}),
])  # fmt: skip
def test_l2_attacks_reach_the_closed_form_of_a_linear_model(name, options):
    weights, x, net = linear_case()
    estimator = MonaiClassifier(net, (1, 4, 5), decision=Multiclass(2), intensity=FREE)
    x_adv = create(name, estimator, eps=0.8, norm=2, **options).perturb(x, [0, 0, 0])
    assert torch.allclose(x_adv, x + 0.8 * weights / weights.norm(), rtol=0, atol=1e-5)


def test_l2_attacks_on_a_box_reach_the_water_filling_optimum():
    weights, x, net = linear_case(3)
    estimator = MonaiClassifier(net, (1, 4, 5), decision=Multiclass(2))
    x_adv = create("pgd", estimator, eps=0.8, norm=2, max_iter=200, eps_step=0.2).perturb(x, [0, 0, 0])
    low, high, eps = -x, 1 - x, 0.8
    for i in range(3):
        # the optimum of a linear function on ball and box is clip(s w): s by bisection
        near, far = 0.0, 1e4
        for _ in range(200):
            s = (near + far) / 2
            inside = (s * weights).clamp(low[i], high[i]).norm() <= eps
            near, far = (s, far) if inside else (near, s)
        best = ((near * weights).clamp(low[i], high[i]) * weights).sum()
        assert float(((x_adv[i] - x[i]) * weights).sum()) >= float(best) - 1e-4


class Wavy(nn.Module):
    """A small non-linear model whose loss has hills, so that step control matters."""

    def __init__(self, seed=0, features=20, classes=3, gain=3.0):
        super().__init__()
        self.gain = gain
        generator = torch.Generator().manual_seed(seed)
        self.w1 = nn.Parameter(1.5 * torch.randn(8, features, generator=generator, dtype=torch.float64))
        self.w2 = nn.Parameter(torch.randn(classes, 8, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return torch.sin(self.gain * x.flatten(1) @ self.w1.T) @ self.w2.T


class NumpyWavy:
    """The same model, its cross-entropy and input gradient, by hand, for one case."""

    def __init__(self, net: Wavy, label: int):
        self.w1, self.w2, self.label = net.w1.detach().numpy(), net.w2.detach().numpy(), label
        self.gain = net.gain

    def __call__(self, x):
        inner = self.gain * self.w1 @ x
        z = self.w2 @ np.sin(inner)
        p = np.exp(z - z.max())
        p /= p.sum()
        error = p.copy()
        error[self.label] -= 1
        return -np.log(p[self.label]), self.gain * self.w1.T @ (np.cos(inner) * (self.w2.T @ error))


def auto_pgd_of_one_case(f, x, start, eps, steps, norm):
    """Algorithm 1 of arXiv 2003.01690, for one case, with the checkpoints and conditions written out.

    As in the authors' code, checkpoints are counted in whole steps, condition 2 needs a checkpoint before it, and a
    case sent back to its best point compares the next loss with the one it had before.
    """

    def project(z):
        d = z - x
        d = np.clip(d, -eps, eps) if norm == np.inf else d * min(1.0, eps / max(np.linalg.norm(d), 1e-300))
        return x + d

    def step_along(z, g, eta):
        return project(z + eta * (np.sign(g) if norm == np.inf else g / np.linalg.norm(g)))

    marks, gap = [], max(int(0.22 * steps), 1)
    while sum(marks[-1:]) + gap < steps:
        marks.append(sum(marks[-1:]) + gap)
        gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    eta, alpha, rho = 2 * eps, 0.75, 0.75
    losses = []
    x_old = x_now = start
    loss, grad = f(x_now)
    losses.append(loss)
    x_max, f_max, g_max = x_now, loss, grad
    w_last, f_max_then, halved_then = 0, None, True
    for k in range(1, steps + 1):
        z = step_along(x_now, grad, eta)
        a = alpha if k > 1 else 1.0
        x_new = project(x_now + a * (z - x_now) + (1 - a) * (x_now - x_old))
        x_old, x_now = x_now, x_new
        loss, grad = f(x_now)
        losses.append(loss)
        if loss > f_max:
            x_max, f_max, g_max = x_now, loss, grad
        if k in marks:
            window = losses[w_last : k + 1]
            increases = sum(b > a for a, b in zip(window, window[1:]))
            first = increases < rho * (k - w_last)
            second = not halved_then and f_max == f_max_then
            halved_then, f_max_then, w_last = first or second, f_max, k
            if first or second:
                eta, x_now, grad = eta / 2, x_max, g_max
    return f_max, eta


@pytest.mark.parametrize("norm", [np.inf, 2])
@pytest.mark.parametrize("steps", [10, 40, 100])
@pytest.mark.parametrize("seed", range(3))
def test_auto_pgd_follows_the_paper(seed, steps, norm):
    # with steps along the gradient itself a hilly loss amplifies the last bit; a smoother one does not
    net, eps, cases = Wavy(seed, gain=3.0 if norm == np.inf else 1.0), 0.4, 4
    x = torch.rand(cases, 1, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.arange(cases) % 3
    victim = ModuleVictim(net, Multiclass(3), FREE, segments=False)
    threat = BALLS[norm](x, FREE.budget(eps), FREE)
    problem = Problem(victim, CrossEntropy(victim.decision), threat, labels, labels >= 0, keep="loss")
    search = AutoPGD(steps, restarts=1, seed=seed)
    search.run(problem, range(cases))
    start = x + threat.start(CaseRandom(seed, range(cases)))
    halved = []
    for i in range(cases):
        expected, step_size = auto_pgd_of_one_case(
            NumpyWavy(net, int(labels[i])), x[i].flatten().numpy(), start[i].flatten().numpy(), eps, steps, norm
        )
        assert float(problem.best.loss[i]) == pytest.approx(expected, rel=0, abs=1e-9)
        halved.append(step_size < 2 * eps)
    assert any(halved)


@pytest.mark.parametrize(("steps", "expected"), [
    # p = .22, .41, .57, .70, .80, .87, .93, .99: paper, section 3.2
    (100, [22, 41, 57, 70, 80, 87, 93, 99]),
    (1000, [220, 410, 570, 700, 800, 870, 930, 990]),
    (1, []),
])  # fmt: skip
def test_checkpoints_are_those_of_the_paper(steps, expected):
    assert checkpoints(steps) == expected


@pytest.mark.parametrize("steps", range(1, 60))
def test_checkpoints_increase_and_end_before_the_last_step(steps):
    marks = checkpoints(steps)
    assert marks == sorted(set(marks)) and all(0 < mark < steps for mark in marks)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mi_fgsm_is_its_formula(decay):
    net = Wavy()
    x = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    estimator = MonaiClassifier(net, (1, 4, 5), decision=Multiclass(3))
    eps, alpha, steps = 0.1, 0.03, 7
    x_adv = create("mi-fgsm", estimator, eps=eps, eps_step=alpha, max_iter=steps, decay=decay, keep="last").perturb(
        x, labels
    )
    for i in range(3):
        model, g = NumpyWavy(net, i), np.zeros(20)
        clean = now = x[i].flatten().numpy()
        for _ in range(steps):
            grad = model(now)[1]
            g = decay * g + grad / np.abs(grad).mean()
            now = np.clip(np.clip(now + alpha * np.sign(g), clean - eps, clean + eps), 0, 1)
        assert np.allclose(x_adv[i].flatten().numpy(), now, rtol=0, atol=1e-12)


def unet(dims, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(dims)
        net = UNet(
            spatial_dims=dims, in_channels=1, out_channels=3, channels=(8, 16, 32), strides=(2, 2), num_res_units=1,
            norm="batch",
        )  # fmt: skip
    return net.to(dtype).eval()


def plain_pgd(net, x, y, start, eps, alpha, steps):
    """The loop as everybody writes it."""
    delta = start.clone()
    delta = (x + delta).clamp(0, 1) - x
    for _ in range(steps):
        delta.requires_grad_()
        loss = F.cross_entropy(net(x + delta), y, reduction="none").flatten(1).mean(1).sum()
        (grad,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + alpha * grad.sign()).clamp(-eps, eps)
        delta = (x + delta).clamp(0, 1) - x
    return x + delta


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pgd_equals_a_hand_written_loop(dims, dtype):
    net, shape = unet(dims, dtype), (48, 48) if dims == 2 else (16, 16, 16)
    generator = torch.Generator().manual_seed(dims)
    x = torch.rand(4, 1, *shape, generator=generator, dtype=dtype)
    y = (torch.rand(4, *shape, generator=generator) * 3).long()
    eps, alpha, steps = 8 / 255, 2 / 255, 10
    estimator = MonaiSegmenter(net, (1, *shape), decision=Multiclass(3, background=0))
    attack = create("pgd-ce", estimator, eps=eps, eps_step=alpha, max_iter=steps, keep="last", seed=3)
    ours = attack.perturb(x, y)
    start = LInfBall(x, estimator.intensity.budget(eps), estimator.intensity).start(CaseRandom(3, range(4)))
    apart = (ours - plain_pgd(net, x, y, start, eps, alpha, steps)).abs() > 1e-6
    assert float(apart.double().mean()) <= (0 if dtype == torch.float64 else 1e-4)


class Recorder(ModuleVictim):
    """Remembers the logits of every look at the model."""

    def _run(self, x):
        output = super()._run(x)
        self.seen = [*getattr(self, "seen", []), output.detach()]
        return output


def test_scheduled_objectives_are_ranked_by_a_fixed_monitor():
    case = setting("voxel-class", dtype=np.float64)
    target, valid = case.canonical()
    x = torch.from_numpy(case.x)
    monitor = SoftDice(case.decision)
    for search in (SteepestAscent(8, 1, 0, step_size=0.05), AutoPGD(8, 1, 0)):
        victim = Recorder(case.net.eval(), case.decision, case.estimator.intensity, segments=True)
        threat = LInfBall(x, victim.intensity.budget(0.1), victim.intensity)
        problem = Problem(victim, SegPGD(case.decision), threat, target, valid, keep="loss")
        search.run(problem, range(3))
        found = problem.best.x
        looks = torch.stack([monitor(z, target, valid=valid) for z in victim.seen])
        assert len(looks) == 9
        assert torch.allclose(problem.best.loss, looks.amax(0), rtol=0, atol=1e-12)
        assert torch.allclose(monitor(victim.logits(found), target, valid=valid), looks.amax(0), rtol=0, atol=1e-12)


def test_progress_of_a_scheduled_objective_runs_from_zero_to_just_below_one():
    seen = []

    class Spy(SegPGD):
        def __call__(self, output, target, *, valid, progress=0.0):
            seen.append(progress)
            return super().__call__(output, target, valid=valid, progress=progress)

    case = setting("voxel-class")
    create("pgd", case.estimator, eps=0.1, max_iter=4, objective=Spy(case.decision)).generate(case.x, case.y)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("search", [SteepestAscent(5, 1, 0, step_size=0.1), AutoPGD(15, 1, 0)])
def test_restarts_help_or_equal_and_the_first_is_the_single_run(search):
    net = Wavy(4)
    x = torch.rand(5, 1, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.arange(5) % 3
    losses = []
    for restarts in (1, 2, 4, 8):
        victim = ModuleVictim(net, Multiclass(3), FREE, segments=False)
        threat = LInfBall(x, FREE.budget(0.3), FREE)
        problem = Problem(victim, Margin(victim.decision), threat, labels, labels >= 0, keep="loss")
        replace(search, restarts=restarts).run(problem, range(5))
        losses.append(problem.best.loss)
    assert all(bool((b >= a).all()) for a, b in zip(losses, losses[1:]))
    assert bool((losses[-1] > losses[0]).any())


def best_l1_gain(weights, low, high, eps):
    """The most that ``w . d`` can be with the summed absolute change at most eps: the steepest voxels first."""
    gain = 0.0
    for i in np.argsort(-np.abs(weights)):
        move = min(high[i] if weights[i] > 0 else -low[i], eps)
        gain, eps = gain + abs(weights[i]) * move, eps - move
    return gain


def test_apgd_l1_fills_the_steepest_voxels_of_a_linear_model_up_to_their_bounds():
    weights, x, net = linear_case(1)
    estimator = MonaiClassifier(net, (1, 4, 5), decision=Multiclass(2))
    x_adv = create("apgd-l1", estimator, eps=1.5, max_iter=100).perturb(x, [0, 0, 0])
    w = weights.flatten().numpy()
    for i in range(3):
        d = (x_adv[i] - x[i]).flatten().numpy()
        assert np.abs(d).sum() <= 1.5
        best = best_l1_gain(w, -x[i].flatten().numpy(), 1 - x[i].flatten().numpy(), 1.5)
        assert d @ w >= 0.98 * best
        assert (np.abs(d) > 1e-9).sum() > 1  # plain steepest ascent would stop at the first voxel's bound


def test_ni_fgsm_is_its_formula():
    net = Wavy()
    x = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    estimator = MonaiClassifier(net, (1, 4, 5), decision=Multiclass(3))
    eps, alpha, steps, decay = 0.1, 0.03, 7, 0.8
    x_adv = create("ni-fgsm", estimator, eps=eps, eps_step=alpha, max_iter=steps, decay=decay, keep="last").perturb(
        x, torch.tensor([0, 1, 2])
    )
    for i in range(3):
        model, g = NumpyWavy(net, i), np.zeros(20)
        clean = now = x[i].flatten().numpy()

        def allowed(z, clean=clean):
            return np.clip(np.clip(z, clean - eps, clean + eps), 0, 1)

        for _ in range(steps):
            grad = model(allowed(now + alpha * decay * g))[1]
            g = decay * g + grad / np.abs(grad).mean()
            now = allowed(now + alpha * np.sign(g))
        assert np.allclose(x_adv[i].flatten().numpy(), now, rtol=0, atol=1e-12)


def resizing(shape, share=1.0, segments=True, cases=4, seed=0):
    fill = torch.zeros(1, 1, *[1] * len(shape))
    draws = CaseRandom(seed, range(cases))
    return Resizing(draws, shape, least=0.6, share=share, fill=fill, segments=segments)


@pytest.mark.parametrize("shape", [(12, 9), (8, 6, 7)])
def test_resizing_moves_image_and_reference_alike(shape):
    through = resizing(shape)
    mask = torch.zeros(4, *shape, dtype=torch.int64)
    mask[(slice(None), *[slice(2, side - 2) for side in shape])] = 1
    image = through.image(mask[:, None].double())
    target, valid = through.target(mask, torch.ones_like(mask, dtype=torch.bool))
    for i in range(4):
        small, _ = through.boxes[i]
        assert int(valid[i].sum()) == np.prod(small) and not bool(target[i][~valid[i]].any())
        # where the smaller image is clearly structure or clearly not, the smaller reference says so
        sure = ((image[i, 0] > 0.9) | (image[i, 0] < 0.1)) & valid[i]
        assert bool(((image[i, 0] > 0.5) == (target[i] == 1))[sure].all()) and bool(sure.any())
    sizes = {through.boxes[i][0] for i in range(4)}
    assert len(sizes) > 1  # drawn per case


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3)])
def test_the_gradient_through_a_resizing_is_that_of_finite_differences(shape):
    through = resizing(shape, cases=1)
    x = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad = chain(through.image, x, weights)
    for at in range(0, x.numel(), 5):
        up, down = x.flatten().clone(), x.flatten().clone()
        up[at] += 1e-5
        down[at] -= 1e-5
        slope = ((through.image(up.view_as(x)) - through.image(down.view_as(x))) * weights).sum() / 2e-5
        assert float(grad.flatten()[at]) == pytest.approx(float(slope), abs=1e-8)


def test_an_image_level_reference_is_not_resized_and_some_cases_stay():
    through = resizing((8, 8), share=0.5, segments=False, cases=30)
    y, valid = torch.arange(30), torch.ones(30, dtype=torch.bool)
    assert through.target(y, valid)[0] is y
    untouched = sum(box is None for box in through.boxes)
    assert 5 < untouched < 25
    x = torch.rand(30, 1, 8, 8)
    for i in range(30):
        assert torch.equal(through.image(x)[i], x[i]) == (through.boxes[i] in (None, ((8, 8), (0, 0))))


@pytest.mark.parametrize("option", ["resize_rate", "diversity_prob"])
@pytest.mark.parametrize("value", [0, 1.5, -1, "much", True])
def test_shares_of_input_diversity_are_checked(option, value):
    case = setting("class")
    with pytest.raises(ValueError, match=f"{option}=.*must be a share above 0 and at most 1"):
        create("di-fgsm", case.estimator, eps=0.1, **{option: value})


def test_wider_balls_come_first_and_nothing_outside_the_ball_is_kept():
    case = setting("voxel-class", dtype=np.float64)
    radii = []

    class Spy(ModuleVictim):
        def _run(self, x):
            radii.append(float((x.detach() - torch.from_numpy(case.x)).abs().max()))
            return super()._run(x)

    victim = Spy(case.net.eval(), case.decision, case.estimator.intensity, segments=True)
    target, valid = case.canonical()
    x = torch.from_numpy(case.x)
    threat = LInfBall(x, victim.intensity.budget(0.02), victim.intensity)
    problem = Problem(victim, SoftDice(case.decision), threat, target, valid)
    AutoPGD(10, radii=((2.0, 0.3), (1.5, 0.3), (1.0, 0.4))).run(problem, range(3))
    assert len(radii) == 11 and problem.queries.tolist() == [11, 11, 11]
    assert max(radii[:3]) == pytest.approx(0.04) and max(radii[3:6]) == pytest.approx(0.03)
    assert max(radii[6:]) <= 0.02 and float(threat.distance(problem.best.x).max()) <= 0.02


def test_apgd_t_reaches_the_class_that_is_nearest_and_not_the_likeliest():
    # class 1 is the runner-up, but only class 2 can be reached: its weights differ from those of class 0
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [-1, -1, -1, -1], [1, 1, 1, 1]]))
        net[1].bias.copy_(torch.tensor([0.0, -0.1, 1.5, -9.0]))
    estimator = MonaiClassifier(net, (1, 2, 2), decision=Multiclass(4))
    x = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)
    attack = create("apgd-t", estimator, eps=0.1, max_iter=5)
    x_adv = attack.perturb(x, [0])
    assert int(net(x).argmax()) == 0 and int(net(x_adv).argmax()) == 2
    assert attack.passes.forward == 1 + 3 * (5 + 2) and attack.passes.backward == 3 * 5


def test_apgd_t_refuses_to_keep_by_a_loss_that_changes_from_class_to_class():
    with pytest.raises(ValueError, match="keep='loss' does not fit apgd-t"):
        create("apgd-t", setting("class").estimator, eps=0.1, keep="loss")


@pytest.mark.parametrize("dims", [2, 3])
def test_pgd_from_the_image_equals_that_of_art(dims):
    case = setting("class", dims, cases=4)
    options = {"eps": 0.1, "eps_step": 0.03, "max_iter": 6, "num_random_init": 0}
    ours = create("pgd", case.estimator, keep="last", **options).generate(case.x, case.y)
    theirs = ProjectedGradientDescentPyTorch(case.estimator, verbose=False, **options).generate(case.x, case.y)
    assert np.abs(ours - theirs).max() <= 1e-6 and np.abs(ours - case.x).max() > 0.09


def test_l2_pgd_equals_that_of_art_where_the_range_is_far():
    case = setting("class", cases=4, intensity=Intensity(-5.0, 5.0))
    options = {"eps": 0.6, "eps_step": 0.2, "max_iter": 6, "norm": 2, "num_random_init": 0}
    ours = create("pgd", case.estimator, keep="last", **options).generate(case.x * 0.1, case.y)
    theirs = ProjectedGradientDescentPyTorch(case.estimator, verbose=False, **options).generate(case.x * 0.1, case.y)
    assert np.abs(ours - theirs).max() <= 2e-6 and np.abs(ours - case.x * 0.1).max() > 0.05
