"""Attacks on the look of an image, against the papers' formulas in numpy and scipy and against full autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import KINDS, SIDE, setting
from monai.metrics import SSIMMetric
from monai.transforms import AdjustContrast
from scipy.fft import dctn, idctn
from scipy.interpolate import BSpline
from scipy.stats import poisson, rice
from torch import nn

from medadv.adapters import MonaiClassifier
from medadv.attacks import CATALOGUE, create
from medadv.decisions import Multiclass
from medadv.image_terms import StructuralSimilarity, ssim
from medadv.intensities import Intensity
from medadv.objectives import SoftDice
from medadv.problem import Problem
from medadv.search import AutoPGD, SteepestAscent
from medadv.threats import THREATS, CaseRandom
from medadv.threats.frequency import soft_round
from medadv.threats.intensity_fields import spline_basis

ATTACKS = ("bias-field", "intensity-curve", "vafa")
NOISE = ("rician-noise", "poisson-noise")
UNIT = Intensity(0, 1)
HU = Intensity(-1024, 3071, unit="HU", window=(-175, 250), grid=(1, 0))
CHANNELS = Intensity((0.0, -2.0), (1.0, 6.0))
OPTIONS = {"bias-field": {"control_points": 5}, "vafa": {"block": 4}}


def images(shape, *, intensity=UNIT, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    low, high = intensity.bounds(torch.zeros(shape, dtype=torch.float64))
    x = low + torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low)
    return intensity.snap(x).to(dtype)


def threat(name, x, eps=None, *, intensity=UNIT, mask=None, **options):
    kind = THREATS[name]
    budget = kind.budget(kind.eps if eps is None else eps, intensity)
    return kind.threat(x, budget, intensity, mask, {**kind.options, **options})


def start(given, seed=0):
    return given.start(CaseRandom(seed, range(len(given.x))))


def shapes(channels=1):
    return [(2, channels, *SIDE[dims]) for dims in (2, 3)]


@pytest.mark.parametrize(("size", "points"), [(1, 4), (2, 4), (7, 4), (16, 5), (33, 9)])
def test_the_spline_basis_is_scipys_and_sums_to_one(size, points):
    basis = spline_basis(size, points, torch.zeros(1, dtype=torch.float64)).numpy()
    knots = np.concatenate([[0] * 3, np.linspace(0, 1, points - 2), [1] * 3])
    at = np.linspace(0, 1, size) if size > 1 else np.zeros(1)
    assert np.allclose(basis, BSpline.design_matrix(at, knots, 3).toarray(), rtol=0, atol=1e-14)
    assert (basis >= 0).all() and np.allclose(basis.sum(1), 1, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", shapes())
def test_a_bias_field_multiplies_by_the_exponential_of_scipys_spline(shape):
    x = images(shape)
    given = threat("bias-field", x, control_points=5)
    theta = start(given)
    knots = np.concatenate([[0] * 3, np.linspace(0, 1, 3), [1] * 3])
    field = np.log1p(theta.numpy())
    for axis, size in enumerate(shape[2:], start=1):
        field = np.moveaxis(BSpline(knots, np.moveaxis(field, axis, 0), 3)(np.linspace(0, 1, size)), 0, axis)
    expected = (x.numpy() * np.exp(field)[:, None]).clip(0, 1)
    assert np.allclose(given.apply(theta).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("intensity", [UNIT, HU, CHANNELS])
@pytest.mark.parametrize("eps", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_never_leaves_its_limits(intensity, eps, dtype):
    for shape in shapes(2):
        x = images(shape, intensity=intensity, dtype=dtype)
        given = threat("bias-field", x, eps, intensity=intensity)
        random = torch.randn(given.most.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
        for theta in (given.most, given.least, torch.where(random > 0, given.most, given.least)):
            assert float((given.bias(theta).double() - 1).abs().max()) <= eps + 4 * torch.finfo(dtype).eps
            low = intensity.bounds(x)[0].double()
            moved, room = (given.apply(theta).double() - x.double()).abs(), eps * (x.double() - low)
            step = intensity.grid[0] / 2 if intensity.grid else 0
            assert bool((moved <= room + step + 8 * torch.finfo(dtype).eps * (x.double() - low + low.abs())).all())


def test_a_bias_field_is_shared_by_the_channels_and_gives_each_its_own_zero():
    x = images((2, 2, 8, 6), intensity=CHANNELS) * 0.5
    given = threat("bias-field", x, 0.2, intensity=CHANNELS)
    factor = (given.transform(start(given)) - torch.tensor([0.0, -2.0]).view(1, 2, 1, 1)) / (
        x - torch.tensor([0.0, -2.0]).view(1, 2, 1, 1)
    )
    assert torch.allclose(factor[:, 0], factor[:, 1]) and float(factor.std()) > 0.01


def test_the_curve_is_monais_gamma_then_window_width_and_level():
    x = images((3, 1, 16, 16))
    for case in range(3):  # MONAI stretches to the image's own range
        x[case].flatten()[:2] = torch.tensor([0.0, 1.0])
    given = threat("intensity-curve", x, 0.5)
    theta = start(given)
    for case, (gamma, contrast, shift) in enumerate(theta.tolist()):
        curved = AdjustContrast(gamma=float(np.exp(gamma)))(x[case].float()).numpy()
        expected = (np.exp(contrast) * (curved - 0.5) + 0.5 + shift).clip(0, 1)
        assert np.allclose(given.apply(theta)[case], expected, rtol=0, atol=1e-5)


def test_the_curve_runs_over_the_window_and_has_no_gamma_outside():
    x = torch.tensor([-1024.0, -175.0, 37.5, 250.0, 3071.0], dtype=torch.float64).view(1, 1, 1, 5)
    free = Intensity(-1024, 3071, unit="HU", window=(-175, 250))
    given = threat("intensity-curve", x, 0.2, intensity=free)
    gamma = given.apply(torch.tensor([[0.2, 0.0, 0.0]], dtype=torch.float64)).flatten()
    assert torch.allclose(gamma[[0, 1, 3, 4]], x.flatten()[[0, 1, 3, 4]], rtol=0, atol=1e-9)
    assert float(gamma[2]) == pytest.approx(-175 + 425 * 0.5 ** np.exp(0.2))
    shifted = given.apply(torch.tensor([[0.0, 0.0, 0.1]], dtype=torch.float64)).flatten()
    assert shifted.tolist() == pytest.approx([-981.5, -132.5, 80.0, 292.5, 3071.0])


def quantised(x, q):
    """The published formula for one block of grey values in 0..1."""
    coefficients = dctn(x * 255 - 128, norm="ortho")
    return (idctn(q * np.round(coefficients / q), norm="ortho") + 128) / 255


@pytest.mark.parametrize("shape", shapes())
def test_vafa_on_one_block_is_the_published_formula(shape):
    x = images(shape)
    given = threat("vafa", x)
    theta = start(given)
    expected = np.stack([quantised(x[n, 0].numpy(), theta[n, 0].numpy())[None] for n in range(len(x))])
    assert float((given.transform(theta) - x).abs().max()) > 0.02
    assert np.allclose(given.transform(theta).numpy(), expected, rtol=0, atol=1e-12)
    assert np.allclose(given.apply(theta).numpy(), expected.clip(0, 1), rtol=0, atol=1e-12)


def test_vafa_quantises_blocks_on_their_own_and_repeats_the_border():
    x = images((1, 1, 8, 6))
    given = threat("vafa", x, block=4)
    theta = start(given)
    assert theta.shape == (1, 1, 8, 8)
    padded = np.pad(x[0, 0].numpy(), ((0, 0), (0, 2)), mode="edge")
    expected = np.zeros((8, 8))
    for i in (0, 4):
        for j in (0, 4):
            place = (slice(i, i + 4), slice(j, j + 4))
            expected[place] = quantised(padded[place], theta[0, 0].numpy()[place])
    assert np.allclose(given.transform(theta)[0, 0], expected[:, :6], rtol=0, atol=1e-12)


def test_vafa_sees_the_window_in_data_units():
    x = images((1, 1, 8, 6), intensity=HU)
    given = threat("vafa", x, intensity=HU)
    theta = start(given)
    share = quantised((x[0, 0].numpy() + 175) / 425, theta[0, 0].numpy())
    assert np.allclose(given.transform(theta)[0, 0], share * 425 - 175, rtol=0, atol=1e-8)
    assert torch.equal(given.apply(theta), given.transform(theta).round().clamp(-1024, 3071))


def test_vafa_nears_the_image_as_q_nears_zero():
    x = images((1, 1, 8, 8))
    given = threat("vafa", x, eps=20)
    sizes = [float((given.apply(torch.full_like(x, q)) - x).abs().max()) for q in (10.0, 1.0, 1e-2, 1e-4, 1e-7, 0.0)]
    assert sizes == sorted(sizes, reverse=True) and 0.2 / 255 < sizes[1] < 4 / 255
    assert sizes[3] < 1e-6 and sizes[4] < 1e-12 and sizes[5] == 0


def test_vafa_starts_at_coarse_steps_or_at_the_image():
    given = threat("vafa", images((3, 1, 8, 6)), eps=12)
    theta = start(given)
    assert 6 <= float(theta.min()) < 6.5 and 11.5 < float(theta.max()) <= 12
    assert not given.start(None).any() and not torch.equal(theta[0], theta[1])


def smoothly(u):
    return soft_round(u)[0]


def test_soft_rounding_is_continuous_and_right_at_whole_and_half_numbers():
    u = torch.linspace(-3, 3, 13, dtype=torch.float64)
    assert torch.allclose(smoothly(u), u, rtol=0, atol=1e-12)
    around = torch.tensor([-1e-7, 1e-7], dtype=torch.float64)
    assert torch.allclose(smoothly(2 + around), torch.full((2,), 2.0, dtype=torch.float64), atol=1e-6)
    inner = torch.tensor([0.25, 0.75, -1.2], dtype=torch.float64)
    assert bool(((smoothly(inner) - inner.round()).abs() < (inner - inner.round()).abs()).all())


@pytest.mark.parametrize("intensity", [UNIT, HU, CHANNELS])
@pytest.mark.parametrize("shape", shapes(2))
@pytest.mark.parametrize("name", ATTACKS)
def test_gradients_are_those_of_finite_differences(name, shape, intensity):
    x = images(shape, intensity=intensity)
    given = threat(name, x, intensity=intensity, **OPTIONS.get(name, {}))
    theta = start(given) * 0.9 + 0.05 * given.most
    surrogate = given.transform if name != "vafa" else lambda t: given._quantised(t, smoothly)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = 1e-6 * direction
    numeric = ((surrogate(theta + step) - surrogate(theta - step)) / 2e-6 * grad).sum()
    assert float((given.pullback(theta, grad) * direction).sum()) == pytest.approx(float(numeric), rel=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_gradient_of_an_attack_is_that_of_full_autograd(name):
    case = setting("voxel-class", dtype=np.float64)
    # neither the range nor the grid cuts anything off, so that autograd may go through all
    wide = Intensity(-10, 11, window=(0, 1))
    x = torch.from_numpy(case.x)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    given = threat(name, x, intensity=wide, mask=mask, **OPTIONS.get(name, {}))
    victim = case.estimator.victim()
    target, valid = case.canonical()
    objective, term = SoftDice(case.decision), StructuralSimilarity(wide, 0.7)
    with victim.attacked():
        theta = start(given)
        theta = theta.clamp(min=1.0) if name == "vafa" else theta  # below 1 the gradient is that at 1
        found = Problem(victim, objective, given, target, valid, image_terms=(term,)).evaluate(theta)
        leaf = theta.clone().requires_grad_()
        if name == "vafa":  # forward as it is shown, backward through the smooth rounding
            soft = given._quantised(leaf, smoothly)
            shown = soft + (given.transform(leaf) - soft).detach()
        else:
            shown = given.transform(leaf)
        x_adv = torch.where(mask, shown, x)
        value = objective(case.net(x_adv), target, valid=valid) + term(x_adv, x)
        (expected,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.allclose(found.loss, value.detach(), rtol=1e-10, atol=0)
    assert float((found.grad - expected).norm() / expected.norm()) < 1e-10


def test_vafas_gradient_at_zero_is_that_of_steps_of_one_grey_value():
    x = images((1, 1, 8, 6))
    given = threat("vafa", x)
    grad = torch.ones_like(x)
    at_zero = given.pullback(given.start(None), grad)
    assert torch.equal(at_zero, given.pullback(torch.ones_like(x), grad)) and bool(at_zero.any())


def linear_estimator(weights, dtype):
    net = nn.Sequential(nn.Flatten(), nn.Linear(weights.size, 2, bias=False))
    net[1].weight.data = torch.tensor(np.stack([np.zeros(weights.size), weights.ravel()]))
    net = net.to(dtype)
    return MonaiClassifier(net, weights.shape, decision=Multiclass(2), intensity=Intensity(-10, 10, window=(0, 1)))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_worst_curve_of_a_linear_model_is_in_a_corner_that_can_be_counted(dims):
    rng = np.random.default_rng(dims)
    weights, x = rng.normal(size=(1, *SIDE[dims])), rng.uniform(0.05, 0.95, (4, 1, *SIDE[dims]))
    estimator = linear_estimator(weights, torch.float64)
    signs = rng.choice([-1, 1], 4)
    x_adv = create("intensity-curve", estimator, eps=0.05, objective="margin", keep="loss").generate(x, signs > 0)
    # the margin is monotone in each of the three at this size, so the worst is one of the eight corners
    corners = np.array(np.meshgrid(*[[-0.05, 0.05]] * 3)).reshape(3, -1).T
    for case in range(4):
        values = [
            float(-signs[case] * (weights * (0.5 + np.exp(c) * (x[case] ** np.exp(g) - 0.5) + b)).sum())
            for g, c, b in corners
        ]
        assert float(-signs[case] * (weights * x_adv[case]).sum()) == pytest.approx(max(values), abs=1e-9)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_worst_small_bias_of_a_linear_model_is_known(dims):
    rng = np.random.default_rng(dims)
    weights, x = rng.normal(size=(1, *SIDE[dims])), rng.uniform(0.05, 0.95, (3, 1, *SIDE[dims]))
    wide = Intensity(0, 10)
    estimator = linear_estimator(weights, torch.float64)
    estimator = MonaiClassifier(estimator.network, weights.shape, decision=Multiclass(2), intensity=wide)
    eps, labels = 1e-4, np.array([0, 1, 1])
    x_adv = create("bias-field", estimator, eps=eps, objective="margin", keep="loss").generate(x, labels)
    # to first order the margin is linear in the control points: sum over voxels of weight x basis theta
    moments = x * weights
    knots = [0] * 4 + [1] * 4
    for axis, size in enumerate(SIDE[dims], start=2):
        basis = BSpline.design_matrix(np.linspace(0, 1, size), knots, 3).toarray()
        moments = np.moveaxis(np.moveaxis(moments, axis, -1) @ basis, -1, axis)
    expected = eps * np.abs(moments).reshape(3, -1).sum(1)
    gained = (1 - 2 * labels) * (weights * (x_adv - x)).reshape(3, -1).sum(1)
    assert np.allclose(gained, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(3, 2, 16, 14), (2, 1, 12, 11, 13)])
def test_ssim_is_monais_and_differentiable(shape):
    a = images(shape)
    b = (a + 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).clamp(0, 1)
    theirs = SSIMMetric(spatial_dims=len(shape) - 2, data_range=1.0, reduction="none")(a, b)[:, 0]
    assert torch.allclose(ssim(a, b), theirs.double(), rtol=0, atol=2e-6) and float(theirs.max()) < 0.95
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    leaf = b.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ssim(a, leaf).sum(), leaf)
    numeric = (ssim(a, b + 1e-6 * direction) - ssim(a, b - 1e-6 * direction)).sum() / 2e-6
    assert float((grad * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)


def test_the_ssim_window_is_the_greatest_odd_one_that_fits():
    a, b = images((2, 1, 8, 6)), images((2, 1, 8, 6), seed=1)
    theirs = SSIMMetric(spatial_dims=2, data_range=1.0, win_size=(7, 5), reduction="none")(a, b)[:, 0]
    assert torch.allclose(ssim(a, b), theirs.double(), rtol=0, atol=2e-6)
    scaled = StructuralSimilarity(HU, 2.0)(a * 425 - 175, b * 425 - 175)
    assert torch.allclose(scaled, -2 * (1 - ssim(a, b)), rtol=0, atol=1e-9)


def test_the_ssim_term_is_added_with_its_weight():
    case = setting("voxel-class", cases=4)
    seen = {}
    for weight in (0.0, 3.0):
        attack = create("vafa", case.estimator, ssim_weight=weight)
        problem = attack.problem_of(batch_of(attack, case))
        with attack.victim.attacked():
            theta = start(problem.threat)
            seen[weight] = problem.evaluate(theta).loss
    lost = 1 - ssim(problem.threat.apply(theta), torch.from_numpy(case.x))
    assert torch.allclose(seen[0.0] - seen[3.0], 3 * lost, rtol=0, atol=1e-6) and float(lost.min()) > 1e-4


@pytest.mark.parametrize(("level", "eps"), [(0.0, 0.1), (0.2, 0.1), (0.6, 0.05)])
def test_rician_noise_has_the_moments_of_its_distribution(level, eps):
    intensity = Intensity(-1, 5, window=(-1, 1))
    x = torch.full((2, 1, 200, 200), 2 * level - 1, dtype=torch.float64)
    given = threat("rician-noise", x, eps, intensity=intensity)
    noisy = (given.apply(start(given)) + 1) / 2
    reference = rice(level / eps, scale=eps)
    for case in noisy.flatten(1):
        assert float(case.mean()) == pytest.approx(reference.mean(), abs=5 * reference.std() / 200)
        assert float(case.std()) == pytest.approx(reference.std(), rel=0.03)
    assert not torch.equal(noisy[0], noisy[1])


@pytest.mark.parametrize(("level", "eps"), [(0.01, 0.2), (0.5, 0.1), (0.8, 0.02)])
def test_poisson_noise_has_the_moments_and_shares_of_its_distribution(level, eps):
    x = torch.full((2, 1, 200, 200), level, dtype=torch.float64)
    given = threat("poisson-noise", x, eps)
    noisy = given.transform(start(given))
    reference = poisson(level / 0.5 / eps**2)
    counts = noisy / 0.5 / eps**2
    assert torch.allclose(counts, counts.round(), rtol=0, atol=1e-6)
    for case in counts.round().flatten(1):
        assert float(case.mean()) == pytest.approx(reference.mean(), abs=5 * reference.std() / 200)
        assert float(case.std()) == pytest.approx(reference.std(), rel=0.03)
        most_likely = int(reference.mean())
        assert float((case == most_likely).double().mean()) == pytest.approx(reference.pmf(most_likely), abs=0.01)
    assert float(noisy.std()) == pytest.approx(eps * np.sqrt(level * 0.5), rel=0.03)


def test_counts_are_relative_to_the_middle_of_the_window():
    x = torch.full((1, 1, 200, 200), 37.5, dtype=torch.float64)
    free = Intensity(-1024, 3071, unit="HU", window=(-175, 250))
    given = threat("poisson-noise", x, 0.02, intensity=free)
    assert float(given.apply(start(given)).std()) == pytest.approx(0.02 * (37.5 + 1024), rel=0.03)


@pytest.mark.parametrize("name", NOISE)
def test_noise_reports_its_own_strength(name):
    x = torch.full((3, 1, 60, 60), 0.5)
    given = threat(name, x, 0.05)
    theta = start(given)
    x_adv = given.apply(theta)
    assert np.allclose(given.distance(x_adv, theta), 0.05, rtol=0.1)
    assert bool(given.contains(x_adv, theta).all())


@pytest.mark.parametrize("name", [*ATTACKS, *NOISE])
@pytest.mark.parametrize("intensity", [UNIT, HU, CHANNELS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_comes_back_bit_equal_and_something_stays_allowed(name, intensity, dtype):
    for kind, dims in (("class", 2), ("voxel-labels", 3)):
        case = setting(kind, dims, dtype=dtype, intensity=intensity, channels=2, cases=2)
        quick = {} if name in NOISE else {"max_iter": 2}
        assert np.array_equal(create(name, case.estimator, eps=0, **quick).generate(case.x, case.y), case.x)
        mask = np.random.default_rng(0).random(case.x.shape) > 0.5
        x_adv = create(name, case.estimator, **quick).generate(case.x, case.y, mask=mask)
        intensity.check(torch.from_numpy(x_adv))
        assert x_adv.dtype == dtype and np.array_equal(x_adv[~mask], case.x[~mask]) and (x_adv != case.x).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_beat_random_draws_of_the_same_set(name, kind):
    case = setting(kind, cases=8)
    loss = {}
    for steps, keep in ((1, "loss"), (12, "loss")):
        attack = create(name, case.estimator, max_iter=steps, keep=keep, objective="margin")
        problem = attack.problem_of(batch_of(attack, case))
        with attack.victim.attacked():
            if steps == 1:
                problem.evaluate(problem.threat.start(CaseRandom(0, range(8))), grad=False)
            else:
                attack._search.run(problem, range(8))
        loss[steps] = problem.best.loss
    assert bool((loss[12] >= loss[1]).all()) and float((loss[12] - loss[1]).mean()) > 0.004


def batch_of(attack, case):
    return attack._batches(torch.from_numpy(case.x), case.y, None, None)[0]


def test_both_searches_run_on_these_sets():
    case = setting("voxel-class", cases=4)
    for name in ATTACKS:
        for search in (AutoPGD(10), SteepestAscent(10, step_size=THREATS[name].eps / 10)):
            problem = create(name, case.estimator).problem_of(batch_of(create(name, case.estimator), case))
            with problem.victim.attacked():
                search.run(problem, range(4))
            assert bool(problem.threat.contains(problem.best.x, problem.best.theta).all())
            assert case.scores(problem.best.x.numpy()).mean() < case.scores(case.x).mean()


@pytest.mark.parametrize("name", [*ATTACKS, *NOISE])
def test_a_part_of_the_cases_has_the_same_set_and_another_image_is_not_in_it(name):
    x = images((3, 1, 8, 6), dtype=torch.float32)
    given = threat(name, x)
    theta, rows = start(given), torch.tensor([2, 0])
    part, x_adv = given.subset(rows), given.apply(theta)
    assert torch.allclose(part.apply(theta[rows]), x_adv[rows], rtol=0, atol=1e-6)
    assert bool(part.contains(x_adv[rows], theta[rows]).all())
    assert given.contains(x_adv.roll(1, 0), theta).tolist() == [False] * 3
    assert given.contains(given.apply(2 * given.most), 2 * given.most).tolist() == [False] * 3
    with pytest.raises(ValueError, match="give theta"):
        given.distance(x_adv)


BAD = [
    ("bias-field", {"eps": 1.0}, ValueError, "eps=1.0 is no limit for a bias field; give a number from 0 to below 1"),
    ("bias-field", {"eps": -0.1}, ValueError, "eps=-0.1"),
    ("bias-field", {"eps": "8/255"}, ValueError, "eps='8/255'"),
    ("bias-field", {"eps": True}, TypeError, "eps=True"),
    ("vafa", {"eps_step": "far"}, ValueError, "'far'"),
    ("intensity-curve", {"eps": float("nan")}, ValueError, "eps=nan"),
    ("intensity-curve", {"eps": float("inf")}, ValueError, "eps=inf"),
    ("intensity-curve", {"block": 8}, TypeError, "block"),
    ("vafa", {"block": 1}, ValueError, "block=1 must be a whole number of at least 2"),
    ("vafa", {"ssim_weight": -1.0}, ValueError, "ssim_weight=-1.0"),
    ("vafa", {"ssim_weight": "much"}, ValueError, "ssim_weight='much'"),
    ("vafa", {"norm": 2}, ValueError, "the threat 'vafa', which has no norm"),
    ("vafa", {"objective": "dise"}, ValueError, "objective"),
    ("rician-noise", {"max_iter": 3}, TypeError, "max_iter"),
    ("rician-noise", {"targeted": True}, ValueError, "can't be targeted"),
    ("poisson-noise", {"eps": -1}, ValueError, "eps=-1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "error", "message"), BAD)
def test_bad_input_is_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        create(name, setting("class").estimator, **options)


@pytest.mark.parametrize("points", [3, 4.5, True, (5, 5)])
def test_control_points_that_make_no_spline_are_refused(points):
    case = setting("class")
    with pytest.raises(ValueError, match="makes no cubic spline; give a whole number of at least 4"):
        create("bias-field", case.estimator, control_points=points).generate(case.x, case.y)


def test_counts_need_a_signal_in_the_middle_of_the_window():
    intensity = Intensity(0, 1, window=(-3, 1))
    with pytest.raises(ValueError, match="middle below the least grey value"):
        threat("poisson-noise", images((1, 1, 4, 4)), intensity=intensity)


@pytest.mark.parametrize("name", [*ATTACKS, *NOISE])
def test_the_rows_say_what_they_are(name):
    row = CATALOGUE[name]
    assert row.threats == (THREATS[name],) and row.access == ("none" if name in NOISE else "white-box")
    assert row.keep == ("last" if name in NOISE else "score") and row.directed is (name not in NOISE)
