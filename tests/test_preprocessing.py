"""Preprocessing as part of the model: what MONAI makes of an image, its gradient, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    BorderPadd,
    CastToTyped,
    CenterSpatialCropd,
    Compose,
    ConcatItemsd,
    CopyItemsd,
    CropForegroundd,
    DivisiblePadd,
    EnsureTyped,
    Flipd,
    Invertd,
    Lambdad,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    Resized,
    ResizeWithPadOrCropd,
    Rotate90d,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacing,
    Spacingd,
    SpatialPadd,
)

from medadv.adapters.preprocessing import frozen

I = "image"  # noqa: E741
AFFINE = np.array([[0, -1.2, 0, 3], [1.5, 0, 0, -4], [0, 0, 2.5, 5], [0, 0, 0, 1]], dtype=np.float64)
CHAINS = {
    "window": [ScaleIntensityRanged(I, -175, 250, 0, 1, clip=True)],
    "orientation": [Orientationd(I, "RAS", labels=None), ScaleIntensityd(I)],
    "spacing": [Orientationd(I, "RAS", labels=None), Spacingd(I, (1.0, 1.0, 2.0), mode="bilinear")],
    "ct": [
        Orientationd(I, "RAS", labels=None), Spacingd(I, (1.0, 1.0, 2.0), mode="bilinear"),
        ScaleIntensityRanged(I, -175, 250, 0, 1, clip=True), CropForegroundd(I, source_key=I, margin=1),
        SpatialPadd(I, (24, 24, 24)), EnsureTyped(I),
    ],
    "mr": [NormalizeIntensityd(I, nonzero=True, channel_wise=True), DivisiblePadd(I, 8)],
    "percentiles": [ScaleIntensityRangePercentilesd(I, 1, 99, 0, 1, clip=True), BorderPadd(I, 2)],
    "flipped": [Flipd(I, 0), Rotate90d(I, 1, spatial_axes=(0, 1)), CastToTyped(I, torch.float32)],
    "resized": [Resized(I, (8, 8, 8), mode="trilinear"), NormalizeIntensityd(I)],
    "cropped": [CenterSpatialCropd(I, (8, 8, 8)), ResizeWithPadOrCropd(I, (12, 6, 8))],
}  # fmt: skip


def scan(channels=1, sides=(12, 14, 10), seed=0):
    """A body in air, turned and with voxels of three sizes."""
    rng = np.random.default_rng(seed)
    values = np.full((channels, *sides), -1000.0)
    values[:, 3:9, 4:11, 2:8] = rng.normal(40, 60, (channels, 6, 7, 6))
    return MetaTensor(torch.from_numpy(values).float(), affine=torch.from_numpy(AFFINE))


def prepared(chain, image=None, **options):
    image = scan() if image is None else image
    return frozen(CHAINS[chain] if isinstance(chain, str) else chain, {I: image}, I, **options)


@pytest.mark.parametrize("chain", CHAINS)
def test_images_are_those_of_monai(chain):
    image = scan()
    expected = Compose(CHAINS[chain])({I: image.clone()})[I]
    assert torch.allclose(prepared(chain, image)(image.as_tensor()[None])[0], expected.as_tensor(), atol=1e-5)


@pytest.mark.parametrize("chain", [name for name in CHAINS if name not in ("ct", "spacing")])
def test_changed_images_are_those_of_monai(chain):
    changed = scan()
    changed[:, 4:8, 5:9, 3:6] += 20
    expected = Compose(CHAINS[chain])({I: changed.clone()})[I]
    assert torch.allclose(prepared(chain)(changed.as_tensor()[None])[0], expected.as_tensor(), atol=1e-5)


@pytest.mark.parametrize("statistics", ["differentiated", "frozen"])
@pytest.mark.parametrize("chain", CHAINS)
def test_gradient_is_that_of_the_difference(chain, statistics):
    made = prepared(chain, statistics=statistics)
    image = scan().as_tensor()[None].clone().requires_grad_()
    shown = made(image)
    weights = torch.randn(shown.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad((shown * weights).sum(), image)
    inside = torch.zeros_like(image)
    inside[..., 4:8, 5:10, 3:7] = torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(2))
    step = 0.05
    with torch.no_grad():
        ends = [(made(image + sign * step * inside).double() * weights).sum() for sign in (1, -1)]
    difference = float(ends[0] - ends[1]) / (2 * step)
    assert float((grad * inside).sum()) == pytest.approx(difference, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("chain", ["orientation", "spacing", "ct", "mr", "flipped", "resized", "cropped"])
def test_the_way_back_is_that_of_monai(chain, nearest):
    image = scan()
    data = Compose(CHAINS[chain])({I: image.clone()})
    channels = torch.rand(2, *data[I].shape[1:], generator=torch.Generator().manual_seed(0))
    data["pred"] = MetaTensor(channels.clone())
    back = Invertd("pred", Compose(CHAINS[chain]), orig_keys=I, nearest_interp=nearest)(data)["pred"]
    leaf = channels[None].requires_grad_()
    found = prepared(chain, image).restored(leaf, nearest=nearest)
    assert found.shape[2:] == image.shape[1:]
    assert torch.allclose(found[0].detach(), back.as_tensor(), atol=1e-6)
    assert float(torch.autograd.grad(found.sum(), leaf)[0].abs().sum()) > 0


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("chain", ["window", "orientation", "ct", "resized"])
def test_logits_on_the_stored_grid_decide_as_the_clinic_does(chain, exclusive):
    image = scan()
    data = Compose(CHAINS[chain])({I: image.clone()})
    logits = torch.randn(3, *data[I].shape[1:], generator=torch.Generator().manual_seed(0))
    data["pred"] = MetaTensor(logits.softmax(0) if exclusive else logits.sigmoid())
    back = Invertd("pred", Compose(CHAINS[chain]), orig_keys=I, nearest_interp=False)(data)["pred"].as_tensor()
    found = prepared(chain, image).logits_of(logits[None], exclusive=exclusive, nearest=False)[0]
    if exclusive:
        assert torch.equal(found.argmax(0), back.argmax(0))
    else:
        clear = (back - 0.5).abs() > 1e-6
        assert torch.equal((found > 0)[clear], (back > 0.5)[clear])


def test_changes_in_the_region_leave_the_crop_where_it_is():
    made, image = prepared("ct"), scan()
    region = made.region(image.as_tensor()[None])
    assert region is not None and 0 < float(region.float().mean()) < 1
    generator = torch.Generator().manual_seed(0)
    for size in (10.0, 2000.0):
        noise = size * torch.randn(image.shape, generator=generator).abs()
        changed = image.clone()
        changed += noise * region[0]
        expected = Compose(CHAINS["ct"])({I: changed.clone()})[I].as_tensor()
        assert torch.allclose(made(changed.as_tensor()[None])[0], expected, atol=1e-4)


def test_without_a_crop_all_of_the_image_may_change():
    assert prepared("spacing").region(scan().as_tensor()[None]) is None


def test_a_mask_beside_the_image_is_seen_and_stays():
    image, mask = scan(), MetaTensor(torch.ones(1, 12, 14, 10), affine=torch.from_numpy(AFFINE))
    chain = [ScaleIntensityRanged(I, -100, 100, 0, 1), ConcatItemsd([I, "mask"], I)]
    made = frozen(chain, {I: image, "mask": mask}, I)
    shown = made(image.as_tensor()[None] + 10)
    assert shown.shape[1] == 2 and bool((shown[:, 1] == 1).all())


def test_what_leaves_the_image_alone_is_no_step():
    assert len(prepared([CopyItemsd(I, names="copy"), ScaleIntensityd(I)]).steps) == 1


def test_the_image_that_was_given_is_left_alone():
    image = scan(channels=2)
    before = image.as_tensor().clone()
    prepared("mr", image)
    assert torch.equal(image.as_tensor(), before)


REFUSED = {
    "random": ([RandFlipd(I, 1.0)], "RandFlipd is random"),
    "unknown": ([Lambdad(I, lambda x: x)], "Lambdad is not known to be differentiable; accepted are BorderPadd"),
    "array": ([Spacing((1.0, 1.0, 1.0))], "Spacing is no dictionary transform"),
    "integers": ([CastToTyped(I, torch.int16)], "makes torch.int16 of the image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_right_is_refused(case):
    chain, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        prepared(chain)


def test_other_transforms_are_taken_where_asked_for():
    made = prepared([Lambdad(I, lambda x: x * 2)], any_transform=True)
    assert torch.equal(made(torch.ones(1, 1, 12, 14, 10)), torch.full((1, 1, 12, 14, 10), 2.0))


def test_what_can_not_be_repeated_is_refused():
    calls = []

    def drifting(x):
        calls.append(1)
        return x + len(calls)

    with pytest.raises(ValueError, match="gives another image when it is repeated"):
        prepared([Lambdad(I, drifting)], any_transform=True)


def test_unknown_statistics_are_refused():
    with pytest.raises(ValueError, match="statistics='live' is unknown"):
        prepared("window", statistics="live")


def test_the_input_may_have_a_key_of_its_own():
    image, mask = scan(), MetaTensor(torch.ones(1, 12, 14, 10), affine=torch.from_numpy(AFFINE))
    chain = [ScaleIntensityRanged(I, -100, 100, 0, 1), ConcatItemsd([I, "mask"], "input"), NormalizeIntensityd("input")]
    made = frozen(chain, {I: image, "mask": mask}, I, result="input")
    expected = Compose(chain)({I: image.clone(), "mask": mask.clone()})["input"]
    assert torch.allclose(made(image.as_tensor()[None])[0], expected.as_tensor(), atol=1e-5)
    with pytest.raises(ValueError, match="makes no 'seen' of 'image'"):
        frozen(chain[:1], {I: image}, I, result="seen")
