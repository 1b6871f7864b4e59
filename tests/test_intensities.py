"""Ranges, windows, grids and budgets: known answers and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medadv.intensities import Intensity

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
UNIT = Intensity(0, 1)
HU = Intensity(-1024, 3071, unit="HU", window=(-175, 250))
BARE_HU = Intensity(-1024, 3071, unit="HU")
CHANNELS = Intensity((0, -2), (1, 6))


@pytest.mark.parametrize(("intensity", "given_eps", "eps", "fraction"), [
    (UNIT, "8/255", 8 / 255, 8 / 255), (UNIT, " 8 / 255 ", 8 / 255, 8 / 255), (UNIT, "0.5/100", 0.005, 0.005),
    (UNIT, "1e-2", 0.01, 0.01), (UNIT, 0.03, 0.03, 0.03), (UNIT, 0, 0, 0), (UNIT, np.float32(0.5), 0.5, 0.5),
    (UNIT, "0/255", 0, 0), (Intensity(-3, 5), "51/255", 1.6, 0.2), (Intensity(0, 255), 8, 8, 8 / 255),
    (HU, "8/255", 425 * 8 / 255, 8 / 255), (HU, "10 HU", 10, 10 / 425), (HU, "10HU", 10, 10 / 425),
    (HU, 10, 10, 10 / 425), (HU, "10", 10, 10 / 425), (BARE_HU, "10 HU", 10, 10 / 4095),
])  # fmt: skip
def test_budgets(intensity, given_eps, eps, fraction):
    budget = intensity.budget(given_eps)
    assert budget.eps == pytest.approx(eps, rel=1e-15) and budget.fraction == pytest.approx(fraction)
    assert budget.unit == intensity.unit and budget.weights is None


def test_a_fraction_of_per_channel_ranges_is_taken_channel_by_channel_and_a_number_of_none():
    budget = CHANNELS.budget("51/255")
    assert [budget.eps * w for w in budget.weights] == pytest.approx([0.2, 1.6])
    assert CHANNELS.budget(0.3).weights is None and CHANNELS.budget(0.3).eps == 0.3
    assert Intensity((0, 0), (4, 4), window=(1, 2)).budget("1/2").weights is None


@pytest.mark.parametrize(("intensity", "eps", "message"), [
    (UNIT, -0.1, "eps=-0.1 must be finite and not negative"), (UNIT, "-8/255", "not negative"),
    (UNIT, float("nan"), "finite"), (UNIT, float("inf"), "finite"), (UNIT, "1e999", "finite"),
    (UNIT, "8/0", "no positive denominator"), (UNIT, "8/-255", "no positive denominator"),
    (UNIT, "eight", "can't be read; write '8/255' or a number"), (UNIT, "", "can't be read"),
    (UNIT, "8/255/2", "can't be read"), (UNIT, "8//255", "can't be read"), (UNIT, "nan", "can't be read"),
    (BARE_HU, "8/255", "fraction, but the data are in HU without a window.*window=.low, high.. or eps in HU"),
    (HU, "10 mm", "is in mm, but the data are in HU"), (HU, "10 hu", "is in hu, but"),
    (UNIT, "10 HU", "is in HU, but the data have no unit"), (HU, "ten HU", "'8/255', '10 HU' or a number"),
])  # fmt: skip
def test_budgets_that_cannot_be_read_are_refused(intensity, eps, message):
    with pytest.raises(ValueError, match=message):
        intensity.budget(eps)


@pytest.mark.parametrize("eps", [True, None, [0.1], torch.tensor(0.1), 1j])
def test_budgets_of_another_type_are_refused(eps):
    with pytest.raises(TypeError, match="eps must be a number or a string such as '8/255', got"):
        UNIT.budget(eps)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"low": 1, "high": 1}, "no range; give finite numbers with low < high"), ({"low": 2, "high": 1}, "no range"),
    ({"low": 0, "high": float("nan")}, "no range"), ({"low": -float("inf"), "high": 1}, "no range"),
    ({"low": (0, 0), "high": (1, 0)}, "no range"), ({"low": (0, 0), "high": (1,)}, "low has 2 values and high 1"),
    ({"low": (0, 0), "high": 1}, "low has 2 values and high 1"),
    ({"low": 0, "high": 1, "window": (1, 0)}, "window=.* is no range"),
    ({"low": 0, "high": 1, "window": (0, float("inf"))}, "window=.* is no range"),
    ({"low": 0, "high": 1, "grid": (0, 0)}, "no storage grid; give .step, offset. with step > 0"),
    ({"low": 0, "high": 1, "grid": (-1, 0)}, "no storage grid"),
    ({"low": 0, "high": 1, "grid": (1, float("nan"))}, "no storage grid"),
])  # fmt: skip
def test_intensities_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Intensity(**arguments)


@pytest.mark.parametrize(("intensity", "x", "message"), [
    (UNIT, torch.full((1, 1, 2, 2), float("nan")), "NaN or infinite"),
    (UNIT, torch.full((1, 1, 2, 2), float("inf")), "NaN or infinite"),
    (UNIT, torch.full((1, 1, 2, 2), 1.0001), "1.0001, outside the intensity range 0.0 to 1.0;.*Nothing is clamped"),
    (UNIT, torch.full((1, 1, 2, 2), -1e-6), "outside"),
    (HU, torch.full((1, 1, 2, 2), 4000.0), "-1024.0 to 3071.0 HU"),
    (CHANNELS, torch.full((1, 2, 2, 2), 3.0), "outside"),
    (CHANNELS, torch.zeros(1, 3, 2, 2), "images have 3 channels, the intensity range has 2"),
    (Intensity(0, 255, grid=(1, 0)), torch.full((1, 1, 2, 2), 3.5), "off the storage grid"),
])  # fmt: skip
def test_images_that_are_not_what_was_said_are_refused(intensity, x, message):
    with pytest.raises(ValueError, match=message):
        intensity.check(x)


def test_images_at_the_bounds_pass_in_both_precisions():
    for dtype in (torch.float32, torch.float64):
        for intensity in (UNIT, HU, Intensity(0.1, 0.3)):
            low, high = intensity.bounds(torch.zeros(1, 1, 1, 1, dtype=dtype))
            intensity.check(torch.cat([low, high], -1))
    UNIT.check(torch.full((1, 1, 1, 1), 1.0005), tolerance=1e-3)
    CHANNELS.check(torch.tensor([1.0, 6.0]).view(1, 2, 1, 1))


@QUICK
@given(
    step=st.sampled_from([1.0, 0.5, 1 / 255, 0.1, 2.7, 1e-4]),
    offset=st.sampled_from([0.0, -1024.0, 0.25]),
    cell=st.integers(-3000, 3000),
    shift=st.floats(-0.45, 0.45),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_snapping(step, offset, cell, shift, dtype):
    intensity = Intensity(-1e5, 1e5, grid=(step, offset))
    exact = torch.tensor([cell * step + offset], dtype=torch.float64).to(dtype)
    assert torch.equal(intensity.snap(exact), exact) and bool(intensity.on_grid(exact))
    blur = torch.finfo(dtype).eps * (abs(offset) + abs(float(exact))) / step
    if 10 * blur > 0.05:
        return  # the float type can hardly tell cells apart
    near = torch.tensor([(cell + shift) * step + offset], dtype=torch.float64).to(dtype)
    assert torch.equal(intensity.snap(near), exact)
    assert float(intensity.snap(near, "up")) >= float(near) - blur * step - 1e-6 * (abs(cell) + 1) * step
    assert float(intensity.snap(near, "down")) <= float(near) + blur * step + 1e-6 * (abs(cell) + 1) * step
    if abs(shift) > 0.1:
        assert not bool(intensity.on_grid(near))
        assert torch.equal(intensity.snap(near, "up" if shift < 0 else "down"), exact)


def test_without_a_grid_nothing_is_moved():
    x = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert UNIT.snap(x) is x and bool(UNIT.on_grid(x).all())


def test_measured_ranges():
    x = np.stack([np.linspace(-2, 2, 12).reshape(3, 4), np.linspace(0, 10, 12).reshape(3, 4)])[None]
    assert Intensity.from_data(x) == Intensity(-2, 10)
    assert Intensity.from_data(torch.from_numpy(x), per_channel=True, unit="a.u.") == Intensity(
        (-2, 0), (2, 10), "a.u."
    )
    assert Intensity.from_data(x, margin=0.5) == Intensity(-8, 16)
    Intensity.from_data(x.astype(np.float32)).check(torch.from_numpy(x.astype(np.float32)))


@pytest.mark.parametrize(("x", "message"), [
    (np.zeros((0, 1, 2, 2)), "cannot measure a range"), (np.array([[[[np.nan]]]]), "give finite images"),
    (np.zeros(3), "shape .3,."), (np.zeros((1, 1, 2, 2)), "no range"),
])  # fmt: skip
def test_ranges_that_cannot_be_measured_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        Intensity.from_data(x)
