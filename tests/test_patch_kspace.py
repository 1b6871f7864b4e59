"""Patches and k-space perturbations: nothing else changes, and on linear models the optimum is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import KINDS, SIDE, setting
from torch import nn

from medadv.adapters import MonaiClassifier
from medadv.attacks import create
from medadv.decisions import Multiclass
from medadv.intensities import Intensity
from medadv.search import RandomDraws
from medadv.threats import CaseRandom, KSpace, Patch
from medadv.threats.kspace import kspace_budget, mirrored_line
from medadv.threats.patches import patch_budget, patch_sides

UNIT, SIGNED = Intensity(0, 1), Intensity(-50, 50)
SHAPE = {2: (12, 10), 3: (8, 10, 6)}


def images(dims, dtype=torch.float64, cases=3, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((cases, channels, *SHAPE[dims]), generator=generator, dtype=torch.float64).to(dtype)


def draws(x, seed=0):
    return CaseRandom(seed, range(len(x)))


def patch(x, eps=0.1, intensity=UNIT, mask=None, **options):
    return Patch(x, patch_budget(eps, intensity), intensity, mask, random=draws(x, 7), **options)


def kspace(x, eps=0.1, intensity=UNIT, mask=None, **options):
    return KSpace(x, kspace_budget(eps, intensity), intensity, mask, random=draws(x, 7), **options)


class Linear(nn.Module):
    """Two logits, half of ``w . x`` and its negative."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        value = (x * self.weight).flatten(1).sum(1) / 2
        return torch.stack([value, -value], dim=1)


def linear_case(dims, intensity, channels=1):
    x = images(dims, channels=channels)
    weight = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    net = Linear(weight)
    estimator = MonaiClassifier(net, tuple(x.shape[1:]), decision=Multiclass(2), intensity=intensity)
    return estimator, x, weight


# ---- patches


@pytest.mark.parametrize("dims", [2, 3])
def test_on_a_linear_model_the_best_patch_is_the_corner_of_signs(dims):
    estimator, x, weight = linear_case(dims, UNIT, channels=2)
    attack = create("patch", estimator, eps=0.2, max_iter=8, keep="loss")
    x_adv = torch.from_numpy(attack.generate(x.numpy(), np.zeros(3, dtype=int)))  # class 0 where w . x > 0
    sides = patch_sides(0.2, SHAPE[dims])
    changed = (x_adv != x).any(1)
    for case in range(3):
        where = changed[case].nonzero()
        start, stop = where.amin(0), where.amax(0) + 1
        assert tuple((stop - start).tolist()) == sides
        box = (slice(None), *[slice(a, b) for a, b in zip(start.tolist(), stop.tolist())])
        assert torch.equal(x_adv[case][box], (weight[box] < 0).to(torch.float64))
    assert float(changed.flatten(1).sum(1).max()) <= 0.2 * changed[0].numel()


@pytest.mark.parametrize("spatial", [(64, 64), (7, 5), (9, 8, 7), (32, 32, 10)])
@pytest.mark.parametrize("share", [0.05, 0.25, 1.0])
def test_a_patch_takes_at_most_its_share_and_never_a_whole_column(spatial, share):
    sides = patch_sides(share, spatial)
    assert np.prod(sides) <= share * np.prod(spatial)
    assert np.prod([side + 1 for side in sides]) > share * np.prod(spatial)
    assert share == 1.0 or all(side < whole for side, whole in zip(sides, spatial))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("location", ["random", "center", "corner"])
def test_outside_the_patch_nothing_changes(dims, dtype, location):
    x = images(dims, dtype, channels=2)
    corner = [side - part for side, part in zip(SHAPE[dims], patch_sides(0.1, SHAPE[dims]))]
    threat = patch(x, location=corner if location == "corner" else location)
    theta = threat.project(threat.ascend(threat.start(draws(x)), torch.randn_like(x), 0.7))
    shown = threat.apply(theta)
    outside = ~threat.region.expand_as(x)
    assert torch.equal(shown[outside], x[outside]) and bool((shown[~outside] != x[~outside]).any())
    assert bool((threat.region.flatten(1).sum(1) == np.prod(patch_sides(0.1, SHAPE[dims]))).all())
    assert bool(threat.contains(shown).all()) and bool((threat.distance(shown) <= 1).all())
    shown[0][outside[0]] = 0.5
    assert threat.contains(shown).tolist() == [False, True, True]
    if location == "corner":
        assert bool(threat.region[..., -1].any()) and bool(threat.region[..., -1, :].any())
    if location == "center":
        first = threat.region[0, 0].nonzero()[0].tolist()
        assert first == [(side - part) // 2 for side, part in zip(SHAPE[dims], patch_sides(0.1, SHAPE[dims]))]


def test_places_are_drawn_evenly_by_case_alone_and_inside_the_mask():
    x = images(2, cases=400)
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[..., 2:9, 3:10] = True
    threat = patch(x, eps=0.1, mask=mask)
    assert not bool((threat.region & ~mask).any())
    starts = torch.stack([region[0].nonzero()[0] for region in threat.region])
    sides = patch_sides(0.1, SHAPE[2])
    counts = [torch.bincount(starts[:, 0] - 2, minlength=1), torch.bincount(starts[:, 1] - 3, minlength=1)]
    for count, room, side in zip(counts, (7, 7), sides):
        assert len(count) == room - side + 1 and float(count.min()) > 0.5 * len(x) / len(count)
    alone = Patch(x[5:6], patch_budget(0.1, UNIT), UNIT, mask[5:6], random=CaseRandom(7, [5]))
    assert torch.equal(alone.region, threat.region[5:6])
    part = threat.subset(torch.tensor([5, 0]))
    assert torch.equal(part.region, threat.region[[5, 0]]) and torch.equal(part.lower, threat.lower[[5, 0]])


def test_where_one_channel_may_change_the_patch_changes_that_channel():
    x = images(2, channels=2)
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, 1] = True
    threat = patch(x, mask=mask)
    shown = threat.apply(threat.start(draws(x)))
    assert torch.equal(shown[:, 0], x[:, 0]) and not torch.equal(shown[:, 1], x[:, 1])


def test_voxels_below_the_patch_do_not_count_unless_wanted():
    x = images(3)
    threat, counting = patch(x), patch(x, score_patch=True)
    covered = threat.region[:, 0]
    voxels, theta = torch.ones(3, *SHAPE[3], dtype=torch.int64), threat.start(None)
    valid = torch.rand(voxels.shape, generator=torch.Generator().manual_seed(0)) > 0.1
    assert torch.equal(threat.apply_target(theta, voxels, valid)[1], valid & ~covered)
    labels, all_valid = voxels[:, None].expand(-1, 2, -1, -1, -1), valid[:, None].expand(-1, 2, -1, -1, -1)
    assert torch.equal(threat.apply_target(theta, labels, all_valid)[1], all_valid & ~covered[:, None])
    assert torch.equal(counting.apply_target(theta, voxels, valid)[1], valid)
    image_level = torch.ones(3, 2, dtype=torch.int64)
    assert bool(threat.apply_target(theta, image_level, image_level > 0)[1].all())


def test_steps_are_in_windows_and_starts_inside_the_window():
    hu = Intensity(-1024, 3071, unit="HU", window=(-175, 250), grid=(1, 0))
    x = torch.zeros(2, 1, 12, 10)
    threat = patch(x, intensity=hu)
    step = threat.ascend(torch.zeros_like(x), -torch.ones_like(x), torch.tensor([0.1, 1.0]))
    assert step[:, 0, 0, 0].tolist() == pytest.approx([-42.5, -425.0])
    start = threat.apply(threat.start(draws(x)))[threat.region]
    assert float(start.min()) >= -175 and float(start.max()) <= 250 and len(start.unique()) > 3
    # every value of the range is allowed, also beyond the window
    far = threat.apply(threat.project(torch.full_like(x, 1e5)))
    assert float(far[threat.region].min()) == 3071 and threat.distance(far).tolist() == pytest.approx([3071 / 4095] * 2)


def test_each_channel_has_its_own_range():
    intensity = Intensity((0.0, -2.0), (1.0, 6.0))
    x = torch.full((2, 2, 12, 10), 0.5, dtype=torch.float64)
    threat = patch(x, intensity=intensity)
    shown = threat.apply(threat.project(threat.ascend(torch.zeros_like(x), torch.ones_like(x), 0.25)))
    inside = threat.region[:, 0]
    assert shown[:, 0][inside].unique().tolist() == [0.75] and shown[:, 1][inside].unique().tolist() == [2.5]
    assert threat.distance(shown).tolist() == [0.25, 0.25]


# ---- k-space


def transformed(values):
    """Orthonormal centred Fourier transform by numpy."""
    axes = tuple(range(2, values.ndim))
    return np.fft.fftshift(np.fft.fftn(np.asarray(values), axes=axes, norm="ortho"), axes=axes)


def untransformed(values):
    axes = tuple(range(2, values.ndim))
    return np.fft.ifftn(np.fft.ifftshift(values, axes=axes), axes=axes, norm="ortho")


@pytest.mark.parametrize("intensity", [UNIT, SIGNED])
@pytest.mark.parametrize("dims", [2, 3])
def test_images_are_reconstructed_from_the_changed_k_space(dims, intensity):
    x = images(dims, channels=2)
    threat = kspace(x, eps=0.3, intensity=intensity, lines=0.5)
    theta = threat.start(draws(x))
    added = torch.view_as_complex(theta).numpy() * np.linalg.norm(x.flatten(1).numpy(), axis=1).reshape(
        -1, *[1] * (dims + 1)
    )
    reconstructed = untransformed(transformed(x) + added)
    expected = np.abs(reconstructed) if intensity is UNIT else reconstructed.real
    assert np.allclose(threat.transform(theta).numpy(), expected, rtol=0, atol=1e-13)
    assert np.allclose(threat.apply(theta).numpy(), expected.clip(intensity.low, intensity.high), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dims", [2, 3])
def test_parseval_the_budget_in_k_space_bounds_the_change_of_the_image(dims):
    x = images(dims, channels=2)
    energy = x.flatten(1).norm(dim=1)
    # the transform of a real change reaches the bound
    change = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = torch.view_as_real(torch.from_numpy(transformed(change)))
    threat = kspace(x, eps=0.2, intensity=SIGNED)
    theta = threat.project(10 * spectrum)
    moved = (threat.apply(theta) - x).flatten(1).norm(dim=1)
    assert torch.allclose(moved, 0.2 * energy, rtol=1e-9) and torch.allclose(
        threat.distance(x, theta), torch.full((3,), 0.2, dtype=torch.float64)
    )
    for intensity in (UNIT, SIGNED):
        threat = kspace(x, eps=0.2, intensity=intensity)
        theta = threat.project(100 * threat.start(draws(x)))
        assert bool(((threat.apply(theta) - x).flatten(1).norm(dim=1) <= 0.2 * energy).all())


@pytest.mark.parametrize("shape", [(7, 10), (6, 9), (4, 5, 8)])
@pytest.mark.parametrize("lines", [0.3, "explicit"])
def test_only_allowed_lines_change(shape, lines):
    x = torch.rand((4, 1, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count = shape[-1]
    explicit = np.zeros(count, dtype=bool)
    explicit[[count // 2 + 2, mirrored_line(count // 2 + 2, count)]] = True
    threat = kspace(x, intensity=SIGNED, lines=explicit if lines == "explicit" else lines)
    allowed = threat.lines.flatten(1)
    theta = threat.project(threat.ascend(threat.start(draws(x)), torch.randn_like(threat.least), 0.05))
    change = np.abs(transformed(threat.apply(theta) - x))
    for case in range(4):
        per_line = change[case].reshape(-1, count).max(0)
        assert (per_line[~allowed[case].numpy()] < 1e-12).all() and (per_line[allowed[case].numpy()] > 1e-6).all()
    if lines == "explicit":
        assert bool((allowed == torch.from_numpy(explicit)).all())
    else:
        number = allowed.sum(1)
        assert bool((number >= 0.3 * count).all()) and bool((number <= 0.3 * count + 2).all())
        assert len({tuple(row) for row in allowed.tolist()}) > 1


@pytest.mark.parametrize("dims", [2, 3])
def test_on_a_linear_model_the_best_change_is_the_weight_on_the_allowed_lines(dims):
    estimator, x, weight = linear_case(dims, SIGNED, channels=2)
    lines = np.zeros(SHAPE[dims][-1], dtype=bool)
    lines[[1, mirrored_line(1, len(lines)), len(lines) // 2]] = True
    attack = create("kspace", estimator, eps=0.05, lines=list(lines), max_iter=30, keep="loss")
    x_adv = attack.generate(x.numpy(), np.zeros(3, dtype=int))
    kept = untransformed(transformed(weight[None]) * lines).real[0]
    energy = np.linalg.norm(x.flatten(1).numpy(), axis=1).reshape(-1, *[1] * (dims + 1))
    expected = x.numpy() - 0.05 * energy * kept / np.linalg.norm(kept)
    assert np.allclose(x_adv, expected, rtol=0, atol=1e-8)


def test_lines_are_drawn_by_case_alone_and_follow_the_rows():
    x = images(2)
    threat = kspace(x, lines=0.4)
    alone = KSpace(x[1:2], threat.budget, UNIT, lines=0.4, random=CaseRandom(7, [1]))
    assert torch.equal(alone.lines, threat.lines[1:2])
    theta = threat.start(draws(x))
    rows = torch.tensor([2, 1])
    assert torch.allclose(threat.subset(rows).apply(theta[rows]), threat.apply(theta)[rows], rtol=0, atol=1e-13)


def test_black_images_and_signed_ranges():
    x = images(2)
    x[1] = 0
    threat = kspace(x, eps=0.5)
    shown = threat.apply(threat.start(draws(x)))
    assert torch.equal(shown[1], x[1]) and not torch.equal(shown[0], x[0])
    assert not kspace(x, intensity=SIGNED).magnitude and kspace(x).magnitude
    assert not kspace(x, reconstruction="real").magnitude


# ---- what both keep


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("build", "intensity"), [(patch, UNIT), (kspace, UNIT), (kspace, SIGNED)])
def test_gradients_equal_finite_differences(build, intensity, dims):
    x = images(dims, channels=2) * 0.5 + 0.25
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, 0, -1] = False
    options = {"location": "center"} if build is patch else {"lines": 0.6}
    threat = build(x, mask=mask, intensity=intensity, **options)
    theta = 0.1 * threat.start(draws(x))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient, step = threat.pullback(theta, weight), 1e-6
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ahead, behind = (threat.apply(theta + sign * step * direction) for sign in (1, -1))
    measured = ((ahead - behind) * weight).flatten(1).sum(1) / (2 * step)
    assert torch.allclose((gradient * direction).flatten(1).sum(1), measured, rtol=1e-6, atol=1e-8)
    assert bool((gradient != 0).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("build", [patch, kspace])
def test_without_a_budget_nothing_changes_by_a_bit(build, dims, dtype):
    x = images(dims, dtype)
    threat = build(x)
    assert torch.equal(threat.apply(threat.start(None)), x)
    none = build(x, eps=0)
    theta = none.project(none.ascend(none.start(draws(x)), torch.ones_like(none.start(None)), 0.5))
    assert torch.equal(none.apply(theta), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [patch, kspace])
def test_range_mask_grid_and_set_hold(build, dtype):
    grid = Intensity(0, 255, grid=(1, 0))
    x = (images(3, dtype) * 255).round()
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[..., -1] = False
    threat = build(x, eps=0.2, intensity=grid, mask=mask)
    for seed in range(3):
        theta = threat.start(draws(x, seed))
        gradient = torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        theta = threat.project(threat.ascend(theta, gradient, 5 * threat.radius))
        shown = threat.apply(theta)
        assert shown.dtype == dtype and torch.equal(shown, shown.round())
        assert float(shown.min()) >= 0 and float(shown.max()) <= 255 and torch.equal(shown[..., -1], x[..., -1])
        assert bool(threat.contains(shown, theta).all()) and bool(
            (threat.distance(shown, theta) <= threat.radius).all()
        )
    assert not bool(threat.contains(shown + 9, theta).any())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["patch", "kspace"])
def test_attacks_do_more_than_random_draws(name, kind, dims):
    case = setting(kind, dims, cases=4)
    found = scored(case, create(name, case.estimator, eps=0.15, max_iter=12))
    random = create(name, case.estimator, eps=0.15)
    random._search = RandomDraws(steps=0, restarts=13)
    drawn = scored(case, random)
    assert found.mean() <= drawn.mean() <= 1 and found.mean() < 1
    if case.estimator.segments:
        assert found.mean() < drawn.mean()


def scored(case, attack):
    x_adv = attack.generate(case.x, case.y)
    target, valid = map(torch.from_numpy, attack.reference)
    with torch.no_grad():
        case.net.eval()
        logits = case.net(torch.from_numpy(x_adv))
    if attack.name == "patch" and case.estimator.segments:
        assert (~valid).flatten(1).any(1).all() and valid.float().mean() >= 1 - 0.15
    return case.decision.score(logits, target, valid).numpy()


def test_restarts_search_the_same_place():
    case = setting("class")
    one, three = (create("patch", case.estimator, eps=0.1, max_iter=2, num_random_init=n, keep="loss") for n in (1, 3))
    changed = [(attack.generate(case.x, case.y) != case.x).any(1) for attack in (one, three)]
    assert np.array_equal(*changed)
    other = create("patch", case.estimator, eps=0.1, max_iter=2, seed=1).generate(case.x, case.y) != case.x
    assert not np.array_equal(other.any(1), changed[0])


@pytest.mark.parametrize(("name", "options", "message"), [
    ("patch", {"eps": 1.2}, "more than the whole image"),
    ("patch", {"eps": "8/255"}, "no limit for the share of voxels"),
    ("patch", {"eps": 1e-3}, "less than a voxel along an axis; give eps of at least 0.0278"),
    ("patch", {"location": "middle"}, "location='middle' does not fit; give 'random' or 'center'"),
    ("patch", {"location": (1, 2, 3)}, "location=.* does not fit"),
    ("patch", {"location": (0, 99)}, "at most"),
    ("patch", {"location": (0.5, 1)}, "location=.* does not fit"),
    ("patch", {"location": None}, "location=None does not fit"),
    ("patch", {"score_patch": 1}, "score_patch=1 must be True or False"),
    ("kspace", {"eps": -0.1}, "no limit for the L2 norm"),
    ("kspace", {"lines": "some"}, "lines='some' can't be read"),
    ("kspace", {"lines": 0}, "lines=0 can't be read"),
    ("kspace", {"lines": 1.5}, "lines=1.5 can't be read"),
    ("kspace", {"lines": [True, False]}, "6 bools, one per position"),
    ("kspace", {"lines": [False] * 6}, "at least one True"),
    ("kspace", {"lines": [False, True, False, False, False, False]}, "lines must hold with each line its mirror"),
    ("kspace", {"reconstruction": "phase"}, "reconstruction 'phase' is unknown"),
])  # fmt: skip
def test_what_can_t_be_right_is_refused(name, options, message):
    case = setting("voxel-class")
    assert SIDE[2] == (8, 6)
    with pytest.raises(ValueError, match=message):
        create(name, case.estimator, **options).generate(case.x, case.y)


def test_a_magnitude_of_signed_data_is_refused():
    case = setting("voxel-class", intensity=Intensity(-1, 1))
    with pytest.raises(ValueError, match="reconstruction='magnitude' is never negative"):
        create("kspace", case.estimator, reconstruction="magnitude").generate(case.x, case.y)


@pytest.mark.parametrize("location", ["random", "center", (0, 0)])
def test_a_mask_that_does_not_hold_the_patch_is_refused(location):
    case = setting("voxel-class")
    mask = np.ones((3, 1, *SIDE[2]), dtype=bool)
    mask[1, :, ::2] = False
    attack = create("patch", case.estimator, eps=0.2, location=location)
    with pytest.raises(ValueError, match="the mask of case 1 of the batch does not hold a patch of 3 x 2 voxels"):
        attack.generate(case.x, case.y, mask=mask)


def test_draws_that_are_needed_are_asked_for():
    x = images(2)
    with pytest.raises(ValueError, match="location='random' needs the draws"):
        Patch(x, patch_budget(0.1, UNIT), UNIT)
    with pytest.raises(ValueError, match="share of lines needs the draws"):
        KSpace(x, kspace_budget(0.1, UNIT), UNIT, lines=0.5)
    with pytest.raises(TypeError, match="a patch has no radius"):
        patch(x).scaled(2.0)
    with pytest.raises(ValueError, match="give theta"):
        kspace(x).distance(x)
