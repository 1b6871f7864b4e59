"""Intensity transforms with statistics of the image: MONAI's values, and gradients that MONAI does not give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import (
    ClipIntensityPercentiles,
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRangePercentiles,
)

from medadv.adapters.image_statistics import (
    clipped_at_percentiles,
    normalized,
    percentile,
    scaled,
    scaled_by_percentiles,
)

SHAPES = [(2, 5, 6), (3, 4, 5, 3)]
CASES = {
    "z-score": (normalized, NormalizeIntensity()),
    "z-score per channel": (normalized, NormalizeIntensity(channel_wise=True)),
    "z-score of the body": (normalized, NormalizeIntensity(nonzero=True)),
    "z-score of the body per channel": (normalized, NormalizeIntensity(nonzero=True, channel_wise=True)),
    "mean given": (normalized, NormalizeIntensity(subtrahend=3.0)),
    "deviation given": (normalized, NormalizeIntensity(divisor=2.0, nonzero=True)),
    "0 to 1": (scaled, ScaleIntensity()),
    "-1 to 1 per channel": (scaled, ScaleIntensity(-1, 1, channel_wise=True)),
    "a factor": (scaled, ScaleIntensity(None, None, factor=0.5)),
    "percentiles": (scaled_by_percentiles, ScaleIntensityRangePercentiles(5, 95, 0, 1)),
    "percentiles, clipped, per channel": (
        scaled_by_percentiles, ScaleIntensityRangePercentiles(1, 90, -1, 1, clip=True, channel_wise=True)
    ),
    "percentiles, relative": (scaled_by_percentiles, ScaleIntensityRangePercentiles(10, 90, 0, 2, relative=True)),
    "clipped": (clipped_at_percentiles, ClipIntensityPercentiles(5, 95)),
    "clipped above per channel": (clipped_at_percentiles, ClipIntensityPercentiles(None, 80, channel_wise=True)),
}  # fmt: skip


def picture(shape, seed=0):
    """Values far enough apart that a small change swaps no two of them, some of them 0."""
    rng = np.random.default_rng(seed)
    values = rng.permutation(int(np.prod(shape))).reshape(shape) * 0.1 - 1.05
    values[:, 0] = 0
    return torch.from_numpy(values)


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_monai(case, shape):
    compute, transform = CASES[case]
    image = picture(shape).float()
    expected = transform(image.clone())
    assert torch.allclose(compute(transform, image, image), torch.as_tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_differences(case):
    compute, transform = CASES[case]
    image = picture((2, 4, 5)).requires_grad_()
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=image.shape))
    moving = image != 0  # at 0 the mask of nonzero= jumps
    if transform.__class__ is not NormalizeIntensity:
        moving = torch.ones_like(moving)

    def value(x):
        return (compute(transform, x, x) * weights).sum()

    (grad,) = torch.autograd.grad(value(image), image)
    step = 1e-6
    for place in moving.nonzero()[::3].tolist():
        moved = torch.zeros_like(image)
        moved[tuple(place)] = step
        with torch.no_grad():
            difference = (value(image + moved) - value(image - moved)) / (2 * step)
        assert float(grad[tuple(place)]) == pytest.approx(float(difference), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", [name for name in CASES if name != "a factor"])
def test_statistics_of_another_image_are_held(case):
    compute, transform = CASES[case]
    clean = picture((2, 4, 5))
    changed = (clean + 0.01).requires_grad_()
    held = compute(transform, changed, clean)
    (grad,) = torch.autograd.grad(held.sum(), changed)
    # each voxel answers for itself alone
    one = torch.zeros_like(clean)
    one[0, 2, 2] = 1e-3
    moved = compute(transform, changed.detach() + one, clean) - held.detach()
    assert int((moved != 0).sum()) <= 1
    assert float(moved[0, 2, 2]) == pytest.approx(float(grad[0, 2, 2]) * 1e-3, abs=1e-9)


def test_input_is_left_alone():
    image = picture((2, 4, 5))
    before = image.clone()
    normalized(NormalizeIntensity(nonzero=True, channel_wise=True), image, image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("share", [0, 0.5, 33.3, 50, 99.5, 100])
def test_percentile_is_that_of_numpy(share):
    values = np.random.default_rng(0).normal(size=(7, 9))
    assert float(percentile(torch.from_numpy(values), share)) == pytest.approx(np.percentile(values, share), rel=1e-12)


@pytest.mark.parametrize("transform", [NormalizeIntensity(nonzero=True), ScaleIntensity()])
def test_a_flat_image_stays_finite(transform):
    compute = normalized if isinstance(transform, NormalizeIntensity) else scaled
    for level in (0.0, 5.0):
        flat = torch.full((1, 3, 3), level)
        assert torch.equal(compute(transform, flat, flat), torch.as_tensor(transform(flat.clone())))


def test_components_must_be_as_many_as_channels():
    transform = NormalizeIntensity(subtrahend=[1.0, 2.0, 3.0], divisor=[1.0, 1.0, 1.0], channel_wise=True)
    with pytest.raises(ValueError, match="2 channels, but subtrahend has 3"):
        normalized(transform, *2 * [picture((2, 4, 5))])


def test_soft_clipping_is_refused():
    with pytest.raises(ValueError, match="sharpness_factor is not supported"):
        clipped_at_percentiles(ClipIntensityPercentiles(5, 95, sharpness_factor=1.0), *2 * [picture((2, 4, 5))])
