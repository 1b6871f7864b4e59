"""MONAI's intensity transforms that depend on statistics of the image, differentiable in them or with them held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.transforms import (
    ClipIntensityPercentiles,
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
)
from torch import Tensor

# image (C, *S), the image whose statistics count -> image
Statistical = Callable[[Any, Tensor, Tensor], Tensor]


def normalized(transform: NormalizeIntensity, image: Tensor, source: Tensor) -> Tensor:
    """As MONAI's ``NormalizeIntensity``, which detaches its statistics and changes its input where it is masked.

    Args:
        transform: MONAI's transform, whose parameters count.
        image: ``(C, *S)``.
        source: ``(C, *S)``, what mean, standard deviation and the mask of ``nonzero`` are taken from: ``image`` itself
            to differentiate them, an image without gradient to hold them.

    Returns:
        ``(C, *S)``.

    Example:
        >>> import torch
        >>> normalized(NormalizeIntensity(), *2 * [torch.tensor([[1.0, 3.0]])])
        tensor([[-1.,  1.]])
    """
    if not transform.channel_wise:
        return _normalized(image, source, transform.subtrahend, transform.divisor, transform.nonzero)
    less = _per_channel_given("subtrahend", transform.subtrahend, len(image))
    by = _per_channel_given("divisor", transform.divisor, len(image))
    return torch.stack([_normalized(*each, transform.nonzero) for each in zip(image, source, less, by, strict=True)])


def _per_channel_given(name: str, given: Any, channels: int) -> list[Any]:
    """What was given for each channel, or None for each."""
    if given is not None and len(given) != channels:
        raise ValueError(f"the image has {channels} channels, but {name} has {len(given)} components.")
    return [None] * channels if given is None else list(given)


def _normalized(image: Tensor, source: Tensor, subtrahend: Any, divisor: Any, nonzero: bool) -> Tensor:
    counted = source != 0
    if nonzero and not bool(counted.any()):
        return image
    values = source[counted] if nonzero else source
    mean = values.mean() if subtrahend is None else torch.as_tensor(subtrahend).to(image)
    deviation = values.std(unbiased=False) if divisor is None else torch.as_tensor(divisor).to(image)
    result = (image - mean) / torch.where(deviation == 0, torch.ones_like(deviation), deviation)
    return torch.where(counted, result, image) if nonzero else result


def scaled(transform: ScaleIntensity, image: Tensor, source: Tensor) -> Tensor:
    """As MONAI's ``ScaleIntensity``: the smallest value becomes ``minv``, the largest ``maxv``.

    Args:
        transform, image, source: as for :func:`normalized`.
    """
    if transform.minv is None and transform.maxv is None:
        return image if transform.factor is None else image * (1 + transform.factor)
    if not transform.channel_wise:
        return _scaled(image, source, transform.minv, transform.maxv)
    return torch.stack([_scaled(*pair, transform.minv, transform.maxv) for pair in zip(image, source, strict=True)])


def _scaled(image: Tensor, source: Tensor, minv: float | None, maxv: float | None) -> Tensor:
    least, greatest = source.min(), source.max()
    if bool(least == greatest):
        return image if minv is None else image * minv
    share = (image - least) / (greatest - least)
    return share if minv is None or maxv is None else share * (maxv - minv) + minv


def scaled_by_percentiles(transform: ScaleIntensityRangePercentiles, image: Tensor, source: Tensor) -> Tensor:
    """As MONAI's ``ScaleIntensityRangePercentiles``.

    Args:
        transform, image, source: as for :func:`normalized`.
    """

    def one(image: Tensor, source: Tensor) -> Tensor:
        low, high = (percentile(source, share) for share in (transform.lower, transform.upper))
        least, greatest = transform.b_min, transform.b_max
        if transform.relative:
            assert transform.b_min is not None and transform.b_max is not None
            width = transform.b_max - transform.b_min
            least, greatest = (width * share / 100 + transform.b_min for share in (transform.lower, transform.upper))
        # MONAI's formula serves, with percentiles that carry a gradient
        between: Any = ScaleIntensityRange(low, high, least, greatest, clip=transform.clip, dtype=image.dtype)  # type: ignore[arg-type]
        return between(image)

    return _per_channel(one, transform.channel_wise, image, source)


def clipped_at_percentiles(transform: ClipIntensityPercentiles, image: Tensor, source: Tensor) -> Tensor:
    """As MONAI's ``ClipIntensityPercentiles``.

    Args:
        transform, image, source: as for :func:`normalized`.

    Raises:
        ValueError: soft clipping (``sharpness_factor``).
    """
    if transform.sharpness_factor is not None:
        raise ValueError("ClipIntensityPercentiles with sharpness_factor is not supported; leave it out or clip hard.")
    lower = 0.0 if transform.lower is None else transform.lower
    upper = 100.0 if transform.upper is None else transform.upper

    def one(image: Tensor, source: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(image, percentile(source, lower)), percentile(source, upper))

    return _per_channel(one, transform.channel_wise, image, source)


def _per_channel(one: Callable[[Tensor, Tensor], Tensor], each: bool, image: Tensor, source: Tensor) -> Tensor:
    if not each:
        return one(image, source)
    return torch.stack([one(*pair) for pair in zip(image, source, strict=True)])


def percentile(values: Tensor, share: float) -> Tensor:
    """The percentile of all values, linear between neighbours, differentiable, of any number of values.

    ``torch.quantile`` stops at 16 million values, and MONAI turns to numpy long before.

    Args:
        values: of any shape.
        share: 0 to 100.

    Example:
        >>> import torch
        >>> percentile(torch.tensor([4.0, 1.0, 3.0, 2.0]), 50)
        tensor(2.5000)
    """
    flat = values.flatten()
    place = share / 100 * (flat.numel() - 1)
    below = int(place)
    lower = flat.kthvalue(below + 1).values
    if place == below:
        return lower
    return torch.lerp(lower, flat.kthvalue(below + 2).values, place - below)


# name of a dictionary transform -> where it keeps the transform itself, and what computes it here
STATISTICAL: dict[str, tuple[str, Statistical]] = {
    "NormalizeIntensityd": ("normalizer", normalized),
    "ScaleIntensityd": ("scaler", scaled),
    "ScaleIntensityRangePercentilesd": ("scaler", scaled_by_percentiles),
    "ClipIntensityPercentilesd": ("scaler", clipped_at_percentiles),
}
