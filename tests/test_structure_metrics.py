"""Overlap, volume and surfaces of one structure: known answers, and distances counted one by one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from medadv.adapters.structure_metrics import structure_metrics

SPACINGS = {2: (0.7, 1.9), 3: (0.7, 1.9, 3.0)}


def surface(mask, spacing):
    """Centres in mm of the voxels that touch the outside."""
    inner = ndimage.binary_erosion(np.pad(mask, 1))[(slice(1, -1),) * mask.ndim]
    return np.argwhere(mask & ~inner) * spacing


def by_hand(prediction, reference, spacing, tolerance):
    one, other = surface(prediction, spacing), surface(reference, spacing)
    between = cdist(one, other)
    there, back = between.min(1), between.min(0)
    close = ((there <= tolerance).sum() + (back <= tolerance).sum()) / (len(one) + len(other))
    return close, max(np.percentile(there, 95), np.percentile(back, 95))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dims", [2, 3])
def test_surfaces_are_those_counted_one_by_one(dims, seed):
    rng = np.random.default_rng(seed)
    reference, prediction = (ndimage.binary_opening(rng.random((9, 8, 7)[:dims]) < 0.75) for _ in range(2))
    assert reference.any() and prediction.any()  # some of them touch the border
    spacing = SPACINGS[dims]
    found = structure_metrics(prediction, reference, spacing, tolerance=1.0)
    close, far = by_hand(prediction, reference, spacing, 1.0)
    assert found["surface_dice"] == pytest.approx(close, abs=1e-6)
    assert found["hd95_mm"] == pytest.approx(far, rel=1e-5)
    overlap = 2 * (prediction & reference).sum() / (prediction.sum() + reference.sum())
    assert found["dice"] == pytest.approx(overlap)


def cube(shift=0):
    mask = np.zeros((20, 16, 12), dtype=bool)
    mask[4 + shift : 10 + shift, 4:10, 3:8] = True
    return mask


def test_a_shifted_cube_has_known_numbers():
    found = structure_metrics(cube(2), cube(), (1.5, 1.0, 2.0), tolerance=3.0)
    assert found["hd95_mm"] == pytest.approx(3.0) and found["surface_dice"] == 1
    assert found["dice"] == pytest.approx(4 / 6)
    assert found["volume_ml"] == found["volume_ml_reference"] == pytest.approx(6 * 6 * 5 * 3.0 / 1000)
    assert (found["missed"], found["invented"], found["components"]) == (0, 0, 1)
    assert structure_metrics(cube(2), cube(), (1.5, 1.0, 2.0), tolerance=2.9)["surface_dice"] < 1


def test_the_same_mask_is_perfect():
    found = structure_metrics(cube(), cube(), (1, 1, 1), tolerance=0.0)
    assert (found["dice"], found["surface_dice"], found["hd95_mm"]) == (1, 1, 0)


def test_a_missed_structure_is_as_far_as_the_image_is_wide():
    nothing = np.zeros_like(cube())
    found = structure_metrics(nothing, cube(), (1.5, 1.0, 2.0), tolerance=1.0)
    assert (found["dice"], found["surface_dice"], found["missed"], found["volume_ml"]) == (0, 0, 1, 0)
    assert found["hd95_mm"] == pytest.approx(np.sqrt(30**2 + 16**2 + 24**2))


def test_an_invented_structure_has_a_volume_and_no_dice():
    nothing = np.zeros_like(cube())
    found = structure_metrics(cube(), nothing, (1, 1, 1), tolerance=1.0)
    assert (found["invented"], found["missed"], found["volume_ml"]) == (1, 0, pytest.approx(0.18))
    assert all(np.isnan(found[name]) for name in ("dice", "surface_dice", "hd95_mm"))
    assert structure_metrics(nothing, nothing, (1, 1, 1), tolerance=1.0)["invented"] == 0


def test_planes_have_an_area():
    found = structure_metrics(cube()[5], cube()[5], (0.5, 2.0), tolerance=1.0)
    assert found["area_mm2"] == 30 and "volume_ml" not in found


@pytest.mark.parametrize(("change", "words"), [
    ({"prediction": cube()[1:]}, "give two bool masks of one shape"),
    ({"prediction": cube().astype(int)}, "give two bool masks of one shape"),
    ({"spacing": (1, 1)}, "give a positive size in mm each"), ({"spacing": (1, 1, 0)}, "give a positive size"),
    ({"tolerance": -1.0}, "tolerance=-1.0 is no distance"),
])  # fmt: skip
def test_what_can_not_be_measured_is_refused(change, words):
    given = {"prediction": cube(), "reference": cube(), "spacing": (1, 1, 1), "tolerance": 1.0, **change}
    with pytest.raises(ValueError, match=words):
        structure_metrics(**given)
