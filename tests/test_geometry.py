"""Deformations and affine maps against splines and maps of other libraries, and image and reference side by side."""

from __future__ import annotations

import itertools
import math
from functools import reduce

import numpy as np
import pytest
import torch
from builders import KINDS, SIDE, setting
from scipy import ndimage
from scipy.interpolate import BSpline, NdBSpline

from medadv.attacks import create
from medadv.intensities import Intensity
from medadv.search import RandomDraws
from medadv.threats import Affine, CaseRandom, Deformation
from medadv.threats.geometry import _STEEPEST, affine_budget, displacement_budget

UNIT = Intensity(0, 1)
SHAPE = {2: (12, 9), 3: (9, 8, 7)}
KINDS_OF_WARP = ("deformation", "affine")


def images(dims, dtype=torch.float64, cases=2, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((cases, channels, *SHAPE[dims]), generator=generator, dtype=torch.float64).to(dtype)


def warp(kind, x, eps=None, intensity=UNIT, mask=None, **options):
    if kind == "affine":
        shear = options.pop("shear", 0.1)
        return Affine(x, affine_budget(1 if eps is None else eps, intensity), intensity, mask, shear=shear, **options)
    return Deformation(x, displacement_budget(0.9 if eps is None else eps, intensity), intensity, mask, **options)


def random_theta(threat, seed=0):
    return threat.start(CaseRandom(seed, range(len(threat.x))))


def places(shape):
    return np.stack(np.meshgrid(*[np.arange(side) for side in shape], indexing="ij")).astype(float)


# ---- closed forms


@pytest.mark.parametrize("dims", [2, 3])
def test_affine_maps_equal_those_of_scipy(dims):
    x = images(dims, cases=3)
    threat = warp("affine", x)
    theta = random_theta(threat)
    shown = threat.apply(theta)
    labels = (x[:, 0] > 0.5).to(torch.int64)
    moved, valid = threat.apply_target(theta, labels, torch.ones_like(labels, dtype=torch.bool))
    pairs = list(itertools.combinations(range(dims), 2))
    for case, values in enumerate(theta.numpy()):
        angles, scales, shifts, shears = np.split(values, np.cumsum([len(pairs), dims, dims]))
        rotation, shear = np.eye(dims), np.eye(dims)
        for number, (i, j) in enumerate(pairs):
            angle = math.radians(30) * angles[number]
            turn = np.eye(dims)
            turn[[i, i, j, j], [i, j, i, j]] = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
            rotation = rotation @ turn
            shear[i, j] = 0.1 * shears[number]
        matrix = rotation @ shear @ np.diag(1 + 0.2 * scales)
        centre = (np.array(SHAPE[dims]) - 1) / 2
        offset = centre - matrix @ centre + 0.1 * shifts * SHAPE[dims]
        expected = ndimage.affine_transform(x[case, 0].numpy(), matrix, offset, order=1, mode="nearest")
        assert np.allclose(shown[case, 0].numpy(), expected, rtol=0, atol=1e-12)
        nearest = ndimage.affine_transform(labels[case].numpy(), matrix, offset, order=0, mode="nearest")
        assert np.array_equal(moved[case].numpy(), nearest)
        there = np.tensordot(matrix, places(SHAPE[dims]), 1) + offset.reshape(-1, *[1] * dims)
        inside = [(a.round() >= 0) & (a.round() <= side - 1) for a, side in zip(there, SHAPE[dims])]
        assert np.array_equal(valid[case].numpy(), np.all(inside, axis=0)) and not valid[case].all()


def test_a_quarter_turn_and_a_shift_by_whole_voxels_are_exact():
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = warp("affine", x, rotation=90, shear=0).apply(torch.tensor([[1.0, 0, 0, 0, 0, 0]], dtype=torch.float64))
    assert torch.allclose(turned, x.rot90(-1, (2, 3)), atol=1e-12)
    shift = warp("affine", x, translation=0.25, shear=0)
    theta = torch.tensor([[0.0, 0, 0, 1, -0.5, 0]], dtype=torch.float64)  # 2 down, 1 to the left
    assert torch.allclose(shift.apply(theta)[0, 0, :6, 1:], x[0, 0, 2:, :7], atol=1e-12)
    labels = torch.arange(64).view(1, 8, 8)
    moved, valid = shift.apply_target(theta, labels, labels != 2 * 8)
    assert torch.equal(moved[0, :6, 1:], labels[0, 2:, :7])
    expected = torch.zeros(1, 8, 8, dtype=torch.bool)
    expected[0, :6, 1:] = True
    expected[0, 0, 1] = False  # where the voxel that was not valid went
    assert torch.equal(valid, expected)


def test_turning_and_scaling_are_in_mm_where_the_spacing_is_given():
    x = torch.rand(1, 1, 5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threat = warp("affine", x, rotation=90, shear=0, spacing=(2.0, 1.0))
    turned = threat.apply(torch.tensor([[1.0, 0, 0, 0, 0, 0]], dtype=torch.float64))
    # both sides are 8 mm, so every second column becomes a row
    assert torch.allclose(turned[0, 0, :, ::2], x[0, 0, :, ::2].rot90(-1), atol=1e-12)


@pytest.mark.parametrize("interpolation", ["bspline", "linear"])
@pytest.mark.parametrize("dims", [2, 3])
def test_fields_equal_tensor_splines_of_scipy(dims, interpolation):
    points = (5, 4, 6)[:dims]
    x = images(dims)
    threat = warp("deformation", x, eps=0.1, control_points=points, interpolation=interpolation)
    theta = random_theta(threat)
    assert tuple(theta.shape) == (2, dims, *points)
    degree = 3 if interpolation == "bspline" else 1
    knots, at = [], []
    for side, count in zip(SHAPE[dims], points):
        knots.append(np.arange(-degree, count + 1.0))
        at.append(np.linspace(0, count - degree, side))
    where = np.stack(np.meshgrid(*at, indexing="ij"), axis=-1)
    found = threat.displacement(theta)
    for case, axis in itertools.product(range(2), range(dims)):
        spline = NdBSpline(tuple(knots), theta[case, axis].numpy(), degree)
        assert np.allclose(found[case, axis].numpy(), spline(where), rtol=0, atol=1e-12)
    shown = threat.apply(theta)
    for case in range(2):
        there = places(SHAPE[dims]) + found[case].numpy()
        expected = ndimage.map_coordinates(x[case, 0].numpy(), there, order=1, mode="nearest")
        assert np.allclose(shown[case, 0].numpy(), expected, rtol=0, atol=1e-12)


# ---- fields can't fold


def slopes(dims, interpolation, at):
    """For every control point around a place its derivatives along the axes, spacing 1, from scipy's splines."""
    degree = 3 if interpolation == "bspline" else 1
    values, derivatives = [], []
    for t in at:
        pieces = [
            BSpline.basis_element(np.arange(degree + 2) - degree + k, extrapolate=False) for k in range(degree + 1)
        ]
        values.append(np.nan_to_num([piece(t) for piece in pieces]))
        derivatives.append(np.nan_to_num([piece.derivative()(t) for piece in pieces]))
    pieces_of = [[derivatives[i] if i == axis else values[i] for i in range(dims)] for axis in range(dims)]
    return [reduce(np.multiply.outer, pieces).ravel() for pieces in pieces_of]


@pytest.mark.parametrize(("interpolation", "dims", "at"), [
    ("bspline", 2, 0.755179), ("bspline", 3, 0.835934), ("linear", 2, 1e-9), ("linear", 3, 1e-9)
])  # fmt: skip
def test_the_bound_of_folding_is_sharp(interpolation, dims, at):
    steepest = np.array(slopes(dims, interpolation, [at] * dims))
    worst = -np.sign(steepest.sum(0))  # every component of the field contracts as much as it can
    gradient = steepest @ worst
    constant = _STEEPEST[interpolation][dims]
    assert np.abs(gradient).sum() == pytest.approx(constant, abs=1e-6)
    for factor, folds in ((0.999, False), (1.001, True)):
        jacobian = np.eye(dims) + factor / constant * np.tile(gradient, (dims, 1))
        assert (np.linalg.det(jacobian) < 0) == folds
    # no place and no signs of the derivatives give more
    rng = np.random.default_rng(0)
    for place in rng.random((150, dims)):
        parts = slopes(dims, interpolation, place)
        for signs in itertools.product((1, -1), repeat=dims):
            assert np.abs(sum(s * p for s, p in zip(signs, parts))).sum() <= constant + 1e-9


@pytest.mark.parametrize("interpolation", ["bspline", "linear"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_largest_budget_keeps_neighbours_in_order(dims, interpolation):
    x = images(dims)
    with pytest.raises(ValueError, match="can fold") as refusal:
        warp("deformation", x, eps=8.0, interpolation=interpolation)
    limit = float(str(refusal.value).split("below ")[1].split()[0])
    limit *= 0.9999
    threat = warp("deformation", x, eps=limit, interpolation=interpolation)
    theta = torch.where(random_theta(threat) > 0, threat.most, threat.least)  # corners of the box
    u = threat.displacement(theta)
    assert float(u.abs().max()) <= limit + 1e-12
    for axis in range(dims):
        assert float(u.diff(dim=2 + axis).abs().max()) < 1


def test_a_budget_in_mm_bounds_each_axis_in_mm():
    x = images(3)
    threat = warp("deformation", x, eps="1 mm", spacing=(2.0, 1.0, 1.0))
    reach = threat.displacement(threat.most)
    assert torch.allclose(reach.amax((0, 2, 3, 4)), torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64))
    assert threat.budget.unit == "mm" and math.isnan(threat.budget.fraction)


# ---- landmarks: image and reference side by side


def landmark(dims):
    """A bright smooth structure and its mask."""
    side = {2: 64, 3: 40}[dims]
    grid = places((side,) * dims)
    centre = side / 2 + np.array([3.0, -2.5, 1.5])[:dims]
    distance = np.sqrt(((grid - centre.reshape(-1, *[1] * dims)) ** 2).sum(0))
    image = 1 / (1 + np.exp(distance - side / 5))
    return torch.from_numpy(image)[None, None], torch.from_numpy(image > 0.5)[None].to(torch.int64)


def centre_of(values):
    return np.array(ndimage.center_of_mass(values.numpy()))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS_OF_WARP)
def test_a_structure_and_its_reference_move_alike(kind, dims):
    x, labels = landmark(dims)
    threat = warp(kind, x, eps=3.0 if kind == "deformation" else None)
    travelled = []
    for seed in range(4):
        theta = random_theta(threat, seed)
        theta = torch.where(theta > 0, threat.most, threat.least)
        shown = threat.apply(theta)[0, 0]
        moved, valid = (part[0] for part in threat.apply_target(theta, labels, labels >= 0))
        segmented = (shown > 0.5) & valid
        overlap = 2 * (segmented & (moved == 1)).sum() / (segmented.sum() + (moved == 1).sum())
        before = 2 * (segmented & (labels[0] == 1)).sum() / (segmented.sum() + (labels[0] == 1).sum())
        assert overlap > {2: 0.97, 3: 0.94}[dims] and before < overlap - 0.02
        assert np.abs(centre_of(segmented.double()) - centre_of(moved.double())).max() < 0.3
        travelled.append(np.abs(centre_of(moved.double()) - centre_of(labels[0].double())).max())
    assert max(travelled) > 1


@pytest.mark.parametrize("kind", KINDS_OF_WARP)
def test_overlapping_labels_move_as_each_does_alone(kind):
    x = images(2)
    threat = warp(kind, x)
    theta = random_theta(threat)
    labels = torch.stack([images(2, seed=seed)[:, 0] > 0.4 for seed in (1, 2, 3)], dim=1).to(torch.int64)
    valid = images(2, channels=3, seed=4) > 0.2
    moved, still_valid = threat.apply_target(theta, labels, valid)
    assert moved.shape == labels.shape and moved.dtype == torch.int64 and still_valid.dtype == torch.bool
    for channel in range(3):
        alone = threat.apply_target(theta, labels[:, channel], valid[:, channel])
        assert torch.equal(moved[:, channel], alone[0]) and torch.equal(still_valid[:, channel], alone[1])
    assert not torch.equal(moved, labels)


@pytest.mark.parametrize("kind", KINDS_OF_WARP)
@pytest.mark.parametrize("dims", [2, 3])
def test_a_diagnosis_of_the_whole_image_stays(kind, dims):
    threat = warp(kind, images(dims))
    for target in (torch.tensor([0, 1]), torch.ones(2, 3, dtype=torch.int64)):
        moved, valid = threat.apply_target(random_theta(threat), target, target >= 0)
        assert moved is target and bool(valid.all())


@pytest.mark.parametrize("kind", KINDS_OF_WARP)
def test_inside_a_region_image_and_reference_move_and_outside_neither(kind):
    x, labels = images(2, channels=2), (images(2)[:, 0] > 0.5).to(torch.int64)
    whole = warp(kind, x)
    theta = random_theta(whole)
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, :, 2:9], mask[:, 0, 9:] = True, True
    threat = warp(kind, x, mask=mask)
    assert torch.equal(threat.apply(theta), torch.where(mask, whole.apply(theta), x))
    moved, valid = threat.apply_target(theta, labels, labels >= 0)
    everywhere = whole.apply_target(theta, labels, labels >= 0)
    inside = mask.all(1)
    assert torch.equal(moved, torch.where(inside, everywhere[0], labels))
    assert torch.equal(valid[inside], everywhere[1][inside])
    assert bool(valid[:, :2].all()) and not bool(valid[:, 9:].any())  # there one channel of two may move


# ---- what every threat keeps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS_OF_WARP)
def test_without_a_budget_nothing_moves_by_a_bit(kind, dims, dtype):
    x = images(dims, dtype)
    labels = (x[:, 0] > 0.5).to(torch.int64)
    for threat, theta in ((t := warp(kind, x), t.start(None)), (t := warp(kind, x, eps=0), random_theta(t))):
        assert torch.equal(threat.apply(theta), x)
        moved, valid = threat.apply_target(theta, labels, labels >= 0)
        assert torch.equal(moved, labels) and bool(valid.all())
        assert threat.distance(x, theta).tolist() == [0, 0]


@pytest.mark.parametrize("interpolation", ["bspline", "linear"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS_OF_WARP)
def test_gradients_equal_finite_differences(kind, dims, interpolation):
    x = images(dims, channels=2)
    mask = images(dims, channels=2, seed=9) > 0.3
    options = {"interpolation": interpolation, "eps": 0.2} if kind == "deformation" else {}
    threat = warp(kind, x, mask=mask, **options)
    theta, weight = random_theta(threat), torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    gradient = threat.pullback(theta, weight)
    step = 1e-7
    for seed in range(3):
        direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed)).double()
        ahead, behind = (threat.apply(theta + sign * step * direction) for sign in (1, -1))
        measured = ((ahead - behind) * weight).flatten(1).sum(1) / (2 * step)
        assert torch.allclose((gradient * direction).flatten(1).sum(1), measured, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS_OF_WARP)
def test_images_stay_in_range_and_on_the_grid_and_rows_stand_for_themselves(kind):
    intensity = Intensity(-1024, 3071, unit="HU", window=(-175, 250), grid=(1, 0))
    x = (images(2, torch.float32, cases=3) * 4095 - 1024).round()
    threat = warp(kind, x, intensity=intensity)
    theta = threat.project(10 * threat.ascend(random_theta(threat), random_theta(threat, 1), 0.1))
    assert threat.distance(x, theta).max() <= threat.radius
    shown = threat.apply(theta)
    assert torch.equal(shown, shown.round()) and bool(threat.contains(shown, theta).all())
    assert float(shown.min()) >= -1024 and float(shown.max()) <= 3071
    assert not bool(threat.contains(shown, 2 * theta).any()) and not bool(threat.contains(shown + 3, theta).any())
    rows = torch.tensor([2, 0])
    part = threat.subset(rows)
    assert torch.equal(part.apply(theta[rows]), shown[rows]) and torch.equal(part.most, threat.most[rows])


# ---- the attacks


def scored(case, attack, x_adv):
    target, valid = map(torch.from_numpy, attack.reference)
    with torch.no_grad():
        case.net.eval()
        logits = case.net(torch.from_numpy(x_adv))
    return case.decision.score(logits, target, valid).numpy()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", KINDS_OF_WARP)
def test_attacks_do_more_than_random_draws_and_tell_the_moved_reference(name, kind, dims):
    case = setting(kind, dims, cases=4)
    attack = create(name, case.estimator, eps=0.5, max_iter=12, num_random_init=1)
    found = scored(case, attack, attack.generate(case.x, case.y))
    draws = create(name, case.estimator, eps=0.5)
    draws._search = RandomDraws(steps=0, restarts=13)
    drawn = scored(case, draws, draws.generate(case.x, case.y))
    assert found.mean() <= drawn.mean() < case.scores(case.x).mean()
    target, valid = attack.reference
    if "voxel" in kind:
        assert target.shape == valid.shape == case.y.shape and not np.array_equal(target[valid], case.y[valid])
    else:
        assert np.array_equal(target, case.y) and valid.all()


def test_the_reference_of_an_attack_that_moves_nothing_is_the_one_given():
    case = setting("voxel-class", ignore_index=7)
    y = case.y.copy()
    y[0, 0] = 7
    attack = create("pgd-dice", case.estimator, eps="2/255", max_iter=1)
    assert attack.reference is None
    attack.generate(case.x, y)
    target, valid = attack.reference
    assert np.array_equal(valid, y != 7) and np.array_equal(target[valid], y[valid])


def test_the_worst_of_restarts_comes_with_its_own_reference():
    case = setting("voxel-class", cases=5)
    attack = create("affine", case.estimator, max_iter=3, num_random_init=3, batch_size=2)
    x_adv = attack.generate(case.x, case.y)
    single = create("affine", case.estimator, max_iter=3, num_random_init=1)
    assert (scored(case, attack, x_adv) <= scored(case, single, single.generate(case.x, case.y))).all()


@pytest.mark.parametrize(("name", "options", "message"), [
    ("deformation", {"eps": -1}, "no limit for the displacement"),
    ("deformation", {"eps": "8/255"}, "no limit for the displacement"),
    ("deformation", {"eps": "far mm"}, "no limit for the displacement"),
    ("deformation", {"eps": 4}, "can fold images of 8 x 6 with 5 x 5 control points"),
    ("deformation", {"eps": 0.5, "control_points": 3}, "control_points=3 does not fit.*at least 4"),
    ("deformation", {"eps": 0.5, "control_points": (5, 5, 5)}, "each of the 2 axes"),
    ("deformation", {"eps": 0.5, "control_points": 4.5}, "control_points=4.5"),
    ("deformation", {"eps": 0.5, "control_points": 1, "interpolation": "linear"}, "at least 2"),
    ("deformation", {"eps": 0.5, "interpolation": "cubic"}, "interpolation 'cubic' is unknown"),
    ("deformation", {"eps": "2 mm"}, "eps is in mm and spacing=None"),
    ("deformation", {"eps": 0.5, "spacing": (1, 1)}, "eps is in voxel and spacing"),
    ("deformation", {"eps": "0.5 mm", "spacing": (1, 1, 1)}, "each of the 2 axes"),
    ("deformation", {"eps": "0.5 mm", "spacing": (1, 0)}, "spacing=.* does not fit"),
    ("affine", {"eps": 1.5}, "more than all of the limits"),
    ("affine", {"eps": "10 HU"}, "no limit for the share of the limits"),
    ("affine", {"rotation": 180}, "rotation=180 is no limit.*below 180, degrees"),
    ("affine", {"scale": 1.0}, "scale=1.0 is no limit"),
    ("affine", {"translation": -0.1}, "translation=-0.1 is no limit"),
    ("affine", {"shear": float("nan")}, "shear=nan is no limit"),
    ("affine", {"scale": True}, "scale=True is no limit"),
    ("affine", {"spacing": 2.0}, "spacing=2.0 does not fit"),
])  # fmt: skip
def test_what_can_t_be_right_is_refused(name, options, message):
    case = setting("voxel-class")
    assert SIDE[2] == (8, 6)
    with pytest.raises(ValueError, match=message):
        create(name, case.estimator, **options).generate(case.x, case.y)


def test_a_budget_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="no limit for the displacement"):
        create("deformation", setting("class").estimator, eps=[1])
