"""MONAI's preprocessing of one case as a differentiable part of the model, from the stored array to the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, MapTransform, Randomizable
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.utils import (
    allow_missing_keys_mode,
    convert_applied_interp_mode,
    generate_spatial_bounding_box,
)
from torch import Tensor

from medadv.adapters.image_statistics import STATISTICAL

STATISTICS = ("differentiated", "frozen")
# shape and affine decide where these put each voxel, whatever its value; True: they mix neighbouring voxels
_GEOMETRIC: dict[str, bool] = {
    "Orientationd": False, "Flipd": False, "Rotate90d": False, "SpatialPadd": False, "BorderPadd": False,
    "DivisiblePadd": False, "SpatialCropd": True, "CenterSpatialCropd": True, "ResizeWithPadOrCropd": True,
    "CropForegroundd": True, "Spacingd": True, "Resized": True, "Zoomd": True, "SpatialResampled": True,
    "ResampleToMatchd": True,
}  # fmt: skip
# MONAI's own are differentiable, or leave values alone
_AS_THEY_ARE = (
    "CastToTyped", "ConcatItemsd", "EnsureChannelFirstd", "EnsureTyped", "GaussianSmoothd", "Identityd",
    "RepeatChanneld", "ScaleIntensityRanged", "ShiftIntensityd", "ThresholdIntensityd", "ToDeviced", "ToTensord",
)  # fmt: skip
# what other keys are made of
_BESIDE = ("CopyItemsd", "DeleteItemsd", "SelectItemsd")
ACCEPTED = tuple(sorted([*_GEOMETRIC, *STATISTICAL, *_AS_THEY_ARE]))
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """One transform, bound to a case.

    Attributes:
        run: image ``(C, *S)`` -> image, differentiable.
        geometric: voxels move and values stay.
        outside: voxels that could move the box of a foreground crop, bool on the grid before it, ``(1, *S)``.
    """

    run: Run
    geometric: bool = False
    outside: Tensor | None = None


class FrozenPreprocessing:
    """The preprocessing of one case; crop boxes and resampling grids are those of the image it was made for.

    Made by :func:`frozen`.

    Args:
        steps: in order.
        transforms: the dictionary transforms they stand for.
        key: of the image.
        result: what MONAI made of the image, with its trace.
    """

    def __init__(self, steps: Sequence[Step], transforms: Sequence[MapTransform], key: str, result: MetaTensor) -> None:
        self.steps = tuple(steps)
        self._key = key
        self._meta = result.meta
        self._trace = result.applied_operations
        self._inverse = Compose([t for t in transforms if isinstance(t, InvertibleTransform)])
        self._mixes = any(_GEOMETRIC.get(type(t).__name__, False) for t in transforms)
        self.moves = any(step.geometric for step in self.steps)

    def __call__(self, images: Tensor) -> Tensor:
        """Stored images ``(N, C, *S)`` of this case -> network inputs, differentiable."""
        return torch.stack([self._one(image) for image in images])

    def _one(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = step.run(image)
        return image

    def region(self, image: Tensor) -> Tensor | None:
        """Where the image may change without moving the box of a foreground crop.

        Args:
            image: as stored, ``(1, C, *S)``.

        Returns:
            bool ``(1, 1, *S)``; None: everywhere.
        """
        region = None
        for place, step in enumerate(self.steps):
            if step.outside is not None:
                leaf = torch.zeros(image.shape[1:], dtype=torch.float32, requires_grad=True)
                moved = leaf
                for earlier in self.steps[:place]:
                    moved = earlier.run(moved) if earlier.geometric else moved
                (reach,) = torch.autograd.grad((moved * step.outside).sum(), leaf)
                inside = (reach == 0).all(0, keepdim=True)[None]
                region = inside if region is None else region & inside
        return region

    def restored(self, probabilities: Tensor, *, nearest: bool) -> Tensor:
        """Channels on the network's grid back on the stored one, differentiable; outside a crop they are 0.

        Args:
            probabilities: ``(N, K, *S')``.
            nearest: take the nearest voxel where a resampling is undone, as MONAI's ``Invertd`` does unless told
                otherwise; else interpolate.

        Returns:
            ``(N, K, *S)``.
        """
        return torch.stack([self._restored(one, nearest) for one in probabilities])

    def _restored(self, channels: Tensor, nearest: bool) -> Tensor:
        trace = deepcopy(self._trace)  # undoing a crop uses its entry up
        if nearest:
            trace = convert_applied_interp_mode(trans_info=trace, mode="nearest", align_corners=None)
        image = MetaTensor(channels, meta=deepcopy(self._meta), applied_operations=trace)
        with allow_missing_keys_mode(self._inverse):
            return self._inverse.inverse({self._key: image})[self._key].as_subclass(Tensor)

    def logits_of(self, logits: Tensor, *, exclusive: bool, nearest: bool) -> Tensor:
        """Logits on the stored grid whose probabilities are those on the network's grid moved back.

        Args:
            logits: ``(N, K, *S')``.
            exclusive: softmax over channels, else a sigmoid per channel.
            nearest: as for :meth:`restored`.

        Returns:
            ``(N, K, *S)``; outside a crop they tell class 0, or no label.
        """
        if not self.moves:
            return logits
        if not self._mixes:
            return self.restored(logits, nearest=nearest)
        if not exclusive:
            return torch.logit(self.restored(logits.sigmoid(), nearest=nearest), eps=1e-7)
        shares = self.restored(logits.softmax(1), nearest=nearest)
        nowhere = shares.sum(1, keepdim=True) == 0
        first = torch.arange(shares.shape[1], device=shares.device).view(1, -1, *[1] * (shares.ndim - 2)) == 0
        shares = torch.where(nowhere & first, torch.ones_like(shares), shares)
        return shares.clamp(min=torch.finfo(shares.dtype).tiny).log()


def frozen(
    transforms: Sequence[Callable[..., Any]],
    data: Mapping[str, Any],
    key: str,
    *,
    result: str | None = None,
    statistics: str = "differentiated",
    any_transform: bool = False,
) -> FrozenPreprocessing:
    """Binds preprocessing to a case, so that it can be differentiated and repeated on changed images.

    Args:
        transforms: MONAI dictionary transforms that follow the reading of the file.
        data: what was read: the image as MetaTensor ``(C, *S)`` under ``key``, other images the transforms need.
        key: of the image.
        result: key under which the last transforms leave the network's input; None: that of the image.
        statistics: ``"differentiated"``: mean, deviation, extremes and percentiles are those of the changed image and
            the gradient goes through them, as in the clinic; ``"frozen"``: those of the image given here.
        any_transform: take transforms that are not in :data:`ACCEPTED` as they are.

    Raises:
        ValueError: a transform is random, unknown, or can't be repeated; the message says which and what to do.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from monai.transforms import ScaleIntensityRanged, SpatialPadd
        >>> chain = [ScaleIntensityRanged("image", -100, 100, 0, 1, clip=True), SpatialPadd("image", (6, 6))]
        >>> image = MetaTensor(torch.zeros(1, 4, 4))
        >>> prepared = frozen(chain, {"image": image}, "image")
        >>> prepared(torch.full((1, 1, 4, 4), 50.0)).amax(), prepared(torch.zeros(1, 1, 4, 4)).shape
        (tensor(0.7500), torch.Size([1, 1, 6, 6]))
    """
    if statistics not in STATISTICS:
        raise ValueError(f"statistics={statistics!r} is unknown; choose one of {', '.join(map(repr, STATISTICS))}.")
    state, now = dict(data), key
    steps: list[Step] = []
    used: list[Any] = []
    for transform in transforms:
        before = state
        copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
        with _missing_keys(transform):
            state = dict(transform(copies))  # some change their input
        concerned = now in getattr(transform, "keys", ()) or state[now] is not copies[now]
        if concerned and type(transform).__name__ not in _BESIDE:
            _check(transform, any_transform)
            # the network's input may get a name of its own where a mask is put beside the image
            then = result if result in state and result not in before else now
            steps.append(_step(transform, before, state[then], now, then, statistics))
            used.append(transform)
            now = then
    if result not in (None, now):
        raise ValueError(f"the preprocessing makes no {result!r} of {key!r}; its last key is {now!r}.")
    made = FrozenPreprocessing(steps, used, key, _traced(state[key]))
    _check_repeats(made, data[key], state[now])
    return made


def _missing_keys(transform: Any) -> Any:
    if not isinstance(transform, MapTransform):
        raise ValueError(
            f"{type(transform).__name__} is no dictionary transform; give preprocessing as MONAI's dictionary "
            "transforms, whose names end in d."
        )
    return allow_missing_keys_mode(transform)


def _check(transform: Any, any_transform: bool) -> None:
    name = type(transform).__name__
    if isinstance(transform, Randomizable):
        raise ValueError(f"preprocessing {name} is random, so no image has one diagnosis; leave augmentation out.")
    if not any_transform and name not in ACCEPTED:
        raise ValueError(
            f"preprocessing {name} is not known to be differentiable; accepted are {', '.join(ACCEPTED)}. Put it into "
            "the network, or leave it out with preprocessing=."
        )


def _step(transform: Any, before: Mapping[str, Any], after: Tensor, key: str, then: str, statistics: str) -> Step:
    name = type(transform).__name__
    if not after.is_floating_point():
        raise ValueError(
            f"preprocessing {name} makes {after.dtype} of the image, which has no gradient; cast to float."
        )
    if name in STATISTICAL:
        where, compute = STATISTICAL[name]
        inner = getattr(transform, where)
        clean = before[key].as_tensor().float()
        if statistics == "frozen":
            return Step(lambda image: compute(inner, image, clean.to(image)))
        return Step(lambda image: compute(inner, image, image))
    if isinstance(transform, CropForegroundd):
        return _foreground_crop(transform, before, key)
    moves = _GEOMETRIC.get(name) is not None or tuple(after.shape[1:]) != tuple(before[key].shape[1:])
    return Step(_repeated(transform, before, key, then), geometric=moves)


def _repeated(transform: Any, before: Mapping[str, Any], key: str, then: str) -> Run:
    """MONAI's transform, run on another image of the same case."""
    meta = _traced(before[key]).meta
    others = {}
    if type(transform).__name__ == "ConcatItemsd":
        others = {name: before[name] for name in transform.keys if name != key and name in before}
    elif type(transform).__name__ == "ResampleToMatchd":
        others = {transform.key_dst: before[transform.key_dst]}

    def run(image: Tensor) -> Tensor:
        shown = MetaTensor(image, meta=deepcopy(meta))
        beside = {name: value.to(image) if isinstance(value, Tensor) else value for name, value in others.items()}
        with allow_missing_keys_mode(transform):
            return transform({key: shown, **beside})[then].as_subclass(Tensor)  # type: ignore[no-any-return]

    return run


def _foreground_crop(transform: CropForegroundd, before: Mapping[str, Any], key: str) -> Step:
    """The crop with the box of this image; a changed foreground would move it."""
    cropper = transform.cropper
    start, end = cropper.compute_bounding_box(img=before[transform.source_key])
    (mode,) = [mode for name, mode in zip(transform.keys, transform.mode, strict=True) if name == key]
    meta, sides = _traced(before[key]).meta, before[key].shape[1:]

    def run(image: Tensor) -> Tensor:
        shown = MetaTensor(image, meta=deepcopy(meta))
        return cropper.crop_pad(shown, start, end, mode).as_subclass(Tensor)

    if transform.source_key != key:
        return Step(run, geometric=True)
    tight = generate_spatial_bounding_box(before[key], cropper.select_fn, cropper.channel_indices)
    # new foreground outside would widen the box, foreground lost on its faces would narrow it
    outside = torch.ones(1, *sides, dtype=torch.bool)
    inside: Any = (0, *[slice(int(first) + 1, int(last) - 1) for first, last in zip(*tight, strict=True)])
    outside[inside] = False
    return Step(run, geometric=True, outside=outside)


def _traced(image: Any) -> MetaTensor:
    return image if isinstance(image, MetaTensor) else MetaTensor(image)


def _check_repeats(made: FrozenPreprocessing, image: Tensor, expected: Tensor) -> None:
    """What was bound must do to the image what MONAI did."""
    with torch.no_grad():
        found = made(image.as_subclass(Tensor)[None].float())[0]
    wanted = expected.as_subclass(Tensor).to(found.dtype)
    scale = float(wanted.abs().max()) or 1.0
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * scale):
        raise ValueError(
            "the preprocessing gives another image when it is repeated, so it can't be attacked through; leave out "
            "what is random or keeps a state."
        )
