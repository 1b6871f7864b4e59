"""The threat sets against independent solutions of the same geometry."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from medadv.intensities import Intensity
from medadv.threats import CaseRandom, L1Ball, L2Ball, LInfBall, case_norm
from medadv.threats.exact import largest_share, not_further

QUICK = settings(max_examples=30, deadline=None, derandomize=True)
UNIT = Intensity(0, 1)


def ball(kind, x, eps, intensity=UNIT, mask=None):
    return kind(x, intensity.budget(eps), intensity, mask)


def images(seed, shape=(2, 1, 3, 4), dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def perturbations(seed, x, scale):
    return scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(1000 + seed), dtype=x.dtype)


def nearest(v, low, high, radius):
    """Nearest point of ball and box by a general solver."""
    found = minimize(
        lambda d: 0.5 * ((d - v) ** 2).sum(),
        np.clip(v, low, high) * min(1, radius / np.linalg.norm(np.clip(v, low, high))),
        jac=lambda d: d - v,
        bounds=list(zip(low, high)),
        constraints={"type": "ineq", "fun": lambda d: radius**2 - d @ d, "jac": lambda d: -2 * d},
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 500},
    )
    return found.x


@QUICK
@given(seed=st.integers(0, 10_000), radius=st.floats(0.05, 2.0), scale=st.floats(0.05, 3.0))
def test_l2_projection_is_the_nearest_point_of_ball_and_box(seed, radius, scale):
    x = images(seed)
    v = perturbations(seed, x, scale)
    projected = ball(L2Ball, x, radius).project(v)
    for i in range(len(x)):
        low, high = (bound.flatten().numpy() for bound in (-x[i], 1 - x[i]))
        expected = nearest(v[i].flatten().numpy(), low, high, radius)
        ours = projected[i].flatten().numpy()
        assert np.linalg.norm(ours) <= radius
        assert np.linalg.norm(ours - v[i].flatten().numpy()) <= np.linalg.norm(expected - v[i].flatten().numpy()) + 1e-7
        assert np.allclose(ours, expected, atol=2e-5)


def test_the_projection_is_nearer_than_clipping_after_scaling():
    x = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    x[..., 0] = 0.9
    v = torch.tensor([[[[3.0, 4.0]]]], dtype=torch.float64)
    # the box stops the first voxel at 0.1, so all that is left of the radius goes to the second
    exact = ball(L2Ball, x, 0.3).project(v)
    assert torch.allclose(exact, torch.tensor([[[[0.1, (0.09 - 0.01) ** 0.5]]]], dtype=torch.float64), atol=1e-9)
    clipped = (v * 0.3 / 5).clamp(-x, 1 - x)
    assert float((exact - v).norm()) < float((clipped - v).norm()) - 0.02


@QUICK
@given(seed=st.integers(0, 10_000), radius=st.floats(0.01, 2.0), kind=st.sampled_from([LInfBall, L2Ball, L1Ball]))
def test_projections_are_idempotent_and_do_not_widen_distances(seed, radius, kind):
    x = images(seed)
    threat = ball(kind, x, radius)
    a, b = perturbations(seed, x, 1.0), perturbations(seed + 1, x, 0.3)
    pa, pb = threat.project(a), threat.project(b)
    assert torch.allclose(threat.project(pa), pa, rtol=0, atol=1e-10)
    assert bool((case_norm(pa - pb) <= case_norm(a - b) + 1e-9).all())


@QUICK
@given(seed=st.integers(0, 10_000), eps=st.floats(0.0, 1.5))
def test_linf_projection_is_clamping(seed, eps):
    x = images(seed)
    v = perturbations(seed, x, 0.5)
    expected = np.clip(np.clip(v.numpy(), -eps, eps), -x.numpy(), 1 - x.numpy())
    assert np.allclose(ball(LInfBall, x, eps).project(v).numpy(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", [LInfBall, L2Ball, L1Ball])
def test_per_channel_ranges_are_the_plain_ball_in_rescaled_data(kind):
    widths = torch.tensor([1.0, 10.0], dtype=torch.float64).view(1, 2, 1, 1)
    x, v = images(3, (2, 2, 3, 4)), perturbations(3, images(3, (2, 2, 3, 4)), 2.0)
    plain = ball(kind, x, "51/255")
    threat = ball(kind, x * widths, "51/255", Intensity((0.0, 0.0), (1.0, 10.0)))
    assert torch.allclose(threat.project(v * widths) / widths, plain.project(v), atol=1e-6)
    step = threat.ascend(torch.zeros_like(x), v / widths, 10 * 0.1) / widths
    assert torch.allclose(step, plain.ascend(torch.zeros_like(x), v, 0.1), atol=1e-6)
    x_adv = threat.apply(threat.project(v * widths))
    assert bool(threat.contains(x_adv).all())


@pytest.mark.parametrize("kind", [LInfBall, L2Ball, L1Ball])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outside_the_mask_nothing_moves(kind, dtype):
    x = images(4, dtype=dtype)
    mask = images(5) > 0.5
    threat = ball(kind, x, 0.3, mask=mask)
    starts = [threat.start(CaseRandom(0, "ab")), threat.start(None)]
    steps = [threat.ascend(starts[0], threat.pullback(starts[0], perturbations(6, x, 1.0)), 0.2)]
    for theta in [*starts, *steps, perturbations(7, x, 1.0)]:
        x_adv = threat.apply(threat.project(theta))
        assert torch.equal(x_adv[~mask], x[~mask])
        assert bool(threat.contains(x_adv).all())
    assert not torch.equal(threat.apply(starts[0]), x)


@pytest.mark.parametrize("kind", [LInfBall, L2Ball, L1Ball])
def test_a_mask_without_a_voxel_leaves_the_image(kind):
    x = images(4)
    threat = ball(kind, x, 0.3, mask=torch.zeros_like(x, dtype=torch.bool))
    assert torch.equal(threat.apply(threat.project(threat.start(CaseRandom(0, "ab")))), x)


@QUICK
@given(
    seed=st.integers(0, 10_000),
    grid=st.sampled_from([(1.0, 0.0), (0.5, 0.25), (1 / 255, 0.0), (0.1, -1024.0), (3.0, 1.0)]),
    steps=st.floats(0.0, 40.0),
    kind=st.sampled_from([LInfBall, L2Ball, L1Ball]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_images_on_a_grid_stay_on_it_and_within_whole_steps(seed, grid, steps, kind, dtype):
    step, offset = grid
    whole = torch.randint(10, 200, (2, 1, 3, 4), generator=torch.Generator().manual_seed(seed))
    x = (whole.to(torch.float64) * step + offset).to(dtype)
    intensity = Intensity(offset, offset + 255 * step, grid=grid)
    threat = ball(kind, x, steps * step, intensity)
    intensity.check(x)
    for theta in (threat.start(CaseRandom(seed, "ab")), threat.project(perturbations(seed, x, 100.0 * step))):
        x_adv = threat.apply(theta)
        intensity.check(x_adv)
        moved = ((x_adv.to(torch.float64) - offset) / step).round() - whole
        furthest = moved.abs().max() if kind is LInfBall else case_norm(moved).max()
        assert float(furthest) <= steps + 1e-5
        assert bool(threat.contains(x_adv).all())


@pytest.mark.parametrize("kind", [LInfBall, L2Ball, L1Ball])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_starts_belong_to_the_case_and_are_inside(kind, dtype):
    x = images(8, (3, 2, 4, 5), dtype)
    start = ball(kind, x, 0.2).start(CaseRandom(5, ["a", "b", "c"]))
    swapped = ball(kind, x[[2, 0]], 0.2).start(CaseRandom(5, ["c", "a"]))
    assert torch.equal(start[[2, 0]], swapped)
    others = [CaseRandom(6, ["a", "b", "c"]), CaseRandom(5, ["a", "b", "c"], restart=1), CaseRandom(5, ["d", "e", "f"])]
    assert all(not torch.equal(ball(kind, x, 0.2).start(random), start) for random in others)
    threat = ball(kind, x, 0.2)
    assert bool(threat.contains(threat.apply(start)).all())


def test_linf_starts_are_uniform_and_l2_starts_fill_the_ball():
    free, n = Intensity(-10, 10), 3000
    x = torch.zeros(n, 1, 1, 3, dtype=torch.float64)
    ids = range(n)
    linf = ball(LInfBall, x, 0.5, free).start(CaseRandom(0, ids)).flatten()
    levels = torch.linspace(-0.5, 0.5, 11, dtype=torch.float64)
    share = torch.histogram(linf, levels)[0] / linf.numel()
    assert float((share - 0.1).abs().max()) < 0.015
    length = case_norm(ball(L2Ball, x, 0.5, free).start(CaseRandom(0, ids))).sort().values
    # P(|v| <= r) = (r / eps)^3 in three dimensions; Kolmogorov distance, 1 % level 1.63 / sqrt(n)
    expected = (length / 0.5) ** 3
    assert float((expected - torch.arange(1, n + 1) / n).abs().max()) < 1.63 / n**0.5


def test_a_masked_l2_start_is_uniform_in_the_ball_of_the_voxels_left():
    free, n = Intensity(-10, 10), 3000
    x = torch.zeros(n, 1, 1, 8, dtype=torch.float64)
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[..., :2] = True
    length = case_norm(ball(L2Ball, x, 0.5, free, mask).start(CaseRandom(0, range(n)))).sort().values
    assert float(((length / 0.5) ** 2 - torch.arange(1, n + 1) / n).abs().max()) < 1.63 / n**0.5


@QUICK
@given(
    x=st.floats(-3000, 3000, width=32),
    eps=st.one_of(st.floats(1e-6, 300), st.sampled_from([8 / 255, 4 / 255, 0.1, 10.0])),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_linf_box_is_strict_and_wastes_at_most_two_roundings(x, eps, dtype):
    image = torch.full((1, 1, 1, 1), x, dtype=dtype)
    threat = ball(LInfBall, image, eps, Intensity(-4000, 4000))
    for bound in (threat.lower, threat.upper):
        reach = abs(float(bound) - float(image))
        unit = torch.finfo(dtype).eps * (abs(x) + eps)
        assert eps - 2 * unit <= reach <= eps
        assert float((bound - image).abs()) <= float(torch.tensor(eps, dtype=dtype))


@QUICK
@given(
    x=st.floats(-3000, 3000, width=32),
    reach=st.one_of(st.floats(0, 300), st.floats(0, 1e-6), st.sampled_from([8 / 255, 4 / 255, 0.1])),
    sign=st.sampled_from([-1, 1]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_not_further_is_the_furthest_number_within_reach(x, reach, sign, dtype):
    image, wanted = torch.tensor([x], dtype=dtype), torch.tensor(reach, dtype=torch.float64)
    found = not_further(image, wanted, sign)
    beyond = torch.nextafter(found, torch.tensor([sign * torch.inf], dtype=dtype))
    # the radius as far as the images' own type can tell it; fractions are exact
    limit = wanted.to(dtype) if float(wanted.to(dtype)) <= reach else torch.nextafter(wanted.to(dtype), image * 0)
    assert Fraction(float(limit)) <= Fraction(reach)
    distances = [sign * (Fraction(float(point)) - Fraction(float(image))) for point in (found, beyond)]
    assert 0 <= distances[0] <= Fraction(float(limit)) < distances[1]


@QUICK
@given(seed=st.integers(0, 10_000), eps=st.floats(0.9, 1.2), kind=st.sampled_from([LInfBall, L2Ball]))
def test_a_radius_near_the_width_of_the_range_gives_the_same_box_as_any(seed, eps, kind):
    x = images(seed, dtype=torch.float32)
    x[:, :, 0, 0], x[:, :, 0, 1] = 0, 1
    threat = ball(kind, x, eps)
    assert torch.equal(threat.lower, not_further(x, threat.reach, -1).clamp(min=0))
    assert torch.equal(threat.upper, not_further(x, threat.reach, 1).clamp(max=1))


@pytest.mark.parametrize("kind", [L1Ball, L2Ball])
def test_the_radius_is_used_and_kept_by_images_of_many_voxels(kind):
    x = images(1, (2, 1, 64, 64, 64), torch.float32)
    radius = 0.05 * x[0].numel() ** (1 / kind.norm)
    threat = ball(kind, x, radius)
    theta = threat.project(perturbations(1, x, 0.3))
    assert bool((theta < -x).any()) is False and bool(((theta == 1 - x) | (theta == -x)).any())
    for moved in (theta, threat.apply(theta) - x.double()):
        reached = case_norm(moved.double(), kind.norm) / radius
        assert bool((reached <= 1).all()) and bool((reached > 1 - 1e-6).all())


@QUICK
@given(seed=st.integers(0, 10_000), eps=st.floats(1e-4, 50), offset=st.sampled_from([0.0, 1000.0]))
def test_the_l2_norm_is_strict_in_float32_without_wasting_the_budget(seed, eps, offset):
    x = images(seed, dtype=torch.float32) + offset
    threat = ball(L2Ball, x, eps, Intensity(offset - 100, offset + 101))
    x_adv = threat.apply(threat.project(perturbations(seed, x, 1e3)))
    reached = case_norm(x_adv.double() - x.double())
    assert float(reached.max()) <= eps
    rounding = 12**0.5 * torch.finfo(torch.float32).eps * (offset + eps + 1)
    assert float(reached.min()) >= eps * (1 - 1e-5) - 3 * rounding


@pytest.mark.parametrize("kind", [LInfBall, L2Ball, L1Ball])
def test_ascent_has_the_length_that_was_asked_for_per_case(kind):
    x = images(9)
    threat = ball(kind, x, 0.5)
    grad = perturbations(9, x, 1.0)
    grad[1] *= 1e-30
    step = torch.tensor([0.1, 0.2], dtype=torch.float64)
    moved = threat.ascend(torch.zeros_like(x), grad, step)
    assert torch.allclose(case_norm(moved, threat.norm), step)
    assert bool(((moved * grad).flatten(1).sum(1) > 0).all())


def test_a_step_within_a_mask_is_not_spent_outside_it():
    x, mask = images(9), images(5) > 0.5
    threat = ball(L2Ball, x, 0.5, mask=mask)
    moved = threat.ascend(torch.zeros_like(x), threat.pullback(x, perturbations(9, x, 1.0)), 0.2)
    assert torch.allclose(case_norm(moved * mask), torch.full((2,), 0.2, dtype=torch.float64))


def nearest_l1(v, low, high, radius):
    """Nearest point of the L1 ball and the box, as a quadratic program in positive and negative parts."""
    n = len(v)
    found = minimize(
        lambda z: 0.5 * ((z[:n] - z[n:] - v) ** 2).sum(),
        np.zeros(2 * n),
        jac=lambda z: np.concatenate([z[:n] - z[n:] - v, v - z[:n] + z[n:]]),
        bounds=[(0, max(h, 0)) for h in high] + [(0, max(-b, 0)) for b in low],
        constraints={"type": "ineq", "fun": lambda z: radius - z.sum(), "jac": lambda z: -np.ones(2 * n)},
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 500},
    )
    return found.x[:n] - found.x[n:]


@QUICK
@given(seed=st.integers(0, 10_000), radius=st.floats(0.05, 4.0), scale=st.floats(0.05, 2.0))
def test_l1_projection_is_the_nearest_point_of_ball_and_box(seed, radius, scale):
    x = images(seed)
    v = perturbations(seed, x, scale)
    projected = ball(L1Ball, x, radius).project(v)
    for i in range(len(x)):
        low, high = (bound.flatten().numpy() for bound in (-x[i], 1 - x[i]))
        ours, theirs = projected[i].flatten().numpy(), nearest_l1(v[i].flatten().numpy(), low, high, radius)
        assert np.abs(ours).sum() <= radius and (ours >= low).all() and (ours <= high).all()
        assert np.linalg.norm(ours - v[i].flatten().numpy()) <= np.linalg.norm(theirs - v[i].flatten().numpy()) + 1e-6


def test_an_l1_step_moves_the_voxels_with_the_largest_gradients_and_has_the_size_asked_for():
    x = images(2)
    grad = perturbations(2, x, 1.0)
    threat = ball(L1Ball, x, 1.0)
    for count in (1, 3, 12):
        step = threat.ascend(torch.zeros_like(x), grad, 0.6, torch.full((2,), count))
        assert torch.allclose(step.abs().flatten(1).sum(1), torch.tensor(0.6, dtype=x.dtype))
        for i in range(2):
            moved = step[i].flatten().nonzero()[:, 0]
            assert set(moved.tolist()) == set(grad[i].flatten().abs().topk(count).indices.tolist())
            assert bool((step[i].sign() == grad[i].sign())[step[i] != 0].all())


@pytest.mark.parametrize("kind", [L1Ball, L2Ball])
def test_random_starts_fill_the_ball(kind):
    x = torch.full((400, 1, 1, 2), 0.5, dtype=torch.float64)
    threat = ball(kind, x, 0.4)
    distance = threat.distance(x + threat.start(CaseRandom(0, range(400)))) / 0.4
    # in a plane the share within half the radius is a quarter
    assert distance.max() <= 1 and abs(float((distance < 0.5).double().mean()) - 0.25) < 0.07


def test_a_share_that_is_found_waits_while_others_are_still_sought():
    # rounded as in float32 images, so that a step from a share that is found would not come back to it
    goal = torch.tensor([1.0, 0.3, 7.7, 900.0], dtype=torch.float64)

    def rounds_for(rows):
        asked = []

        def measure(share):
            asked.append(share)
            return (share**3).float().double() - goal[rows], lambda: 3 * share**2

        short, long = torch.zeros(len(rows), dtype=torch.float64), torch.full((len(rows),), 20.0, dtype=torch.float64)
        found = largest_share(measure, short, long, long, tolerance=1e-6, resolution=6e-8)
        excess = (found**3).float().double() - goal[rows]
        assert bool(((excess <= 0) & (excess >= -1e-6 - 1e-7 * goal[rows])).all())
        return len(asked)

    assert rounds_for([0, 1, 2, 3]) == max(rounds_for([row]) for row in range(4))
