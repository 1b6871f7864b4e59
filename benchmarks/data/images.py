"""Image files as arrays through MONAI's readers, in one orientation, brought to one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor, NibabelReader, PILReader
from monai.transforms import Orientation, Resize, ResizeWithPadOrCrop

PLANE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
_GREY_OR_COLOUR = ("1", "L", "I", "I;16", "I;16B", "F", "RGB")


class Stored(NamedTuple):
    """What a file holds: values ``(C, *S)`` (a mask: ``(*S)``) and the voxel size in mm its header states, if any."""

    values: np.ndarray
    spacing: tuple[float, ...] | None


def read_image(path: Path, *, mode: str | None = None, channels: int | str | None = None) -> Stored:
    """An image as ``(C, H, W)`` or ``(C, R, A, S)``, float32, with the values of the file.

    Args:
        path: the file.
        mode: ``"L"`` (grey) or ``"RGB"``: what a 2D image is converted to (grey: luminance; transparency is dropped,
            a palette is looked up); None: it must be grey or RGB and stays what it is.
        channels: which channel of a volume with several is read, or ``"all"``; None: it must have one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file can't be read as an image, or not without guessing what its values mean.
    """
    return _read(path, _refuse_palette if mode is None else lambda image: image.convert(mode), channels)


def read_mask(path: Path, *, mode: str | None = None) -> Stored:
    """A mask as ``(H, W)`` or ``(R, A, S)``; palette images give their indices.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file can't be read, or has several channels.
    """
    mask, spacing = _read(path, None if mode is None else lambda image: image.convert(mode), None)
    if len(mask) != 1:
        raise ValueError(f"mask {path.name} has {len(mask)} channels; save it with one channel of class values.")
    return Stored(mask[0], spacing)


def _refuse_palette(image: Any) -> Any:
    if image.mode not in _GREY_OR_COLOUR:
        raise ValueError(f"its mode is {image.mode}; save it as grey or RGB")
    return image


def _read(path: Path, converter: Callable[[Any], Any] | None, channels: int | str | None) -> Stored:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; correct the table, image_folder, mask_folder or pattern.")
    name = path.name.lower()
    plane = name.endswith(PLANE_SUFFIXES)
    if not plane and not name.endswith(VOLUME_SUFFIXES):
        kinds = ", ".join(PLANE_SUFFIXES + VOLUME_SUFFIXES)
        raise ValueError(f"{path.name} is of no known kind; accepted are {kinds}.")
    try:
        stored = Stored(_plane(path, converter), None) if plane else _volume(path, channels)
    except Exception as error:  # readers raise whatever their decoder raises
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(f"{path.name} can't be read as an image ({reason}); repair or remove it.") from error
    if not np.isfinite(stored.values).all():
        raise ValueError(f"{path.name} holds NaN or infinite values; replace them.")
    return stored


# MONAI's readers are called directly: LoadImage tries the next reader where one refuses, and that one would transpose.


def _plane(path: Path, converter: Callable[[Any], Any] | None) -> np.ndarray:
    reader = PILReader(converter=converter, reverse_indexing=False)
    array, _ = reader.get_data(reader.read(str(path)))
    return np.asarray(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0), dtype=np.float32)


def _volume(path: Path, channels: int | str | None) -> Stored:
    reader = NibabelReader()
    array, meta = reader.get_data(reader.read(str(path)))
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim != 4 or channels is None:
        raise ValueError(f"its shape is {array.shape}; give one three-dimensional volume a file")
    if isinstance(channels, int):
        if not 0 <= channels < array.shape[-1]:
            raise ValueError(f"it has {array.shape[-1]} channels, counted from 0, and channels={channels} is asked for")
        array = array[..., channels : channels + 1]
    values = torch.as_tensor(np.ascontiguousarray(np.moveaxis(array, -1, 0), dtype=np.float32))
    volume: Any = Orientation(axcodes="RAS", labels=None)(MetaTensor(values, affine=meta["affine"]))
    spacing = tuple(float(mm) for mm in np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0))
    return Stored(np.asarray(volume, dtype=np.float32), spacing)


@dataclass(frozen=True)
class Geometry:
    """Brings images to one shape: voxels of one size, a centred crop or padding, then resampling.

    Args:
        crop: voxels per axis after crop or padding; None: as it is.
        resize: voxels per axis after resampling; None: as it is.
        pixdim: voxel size in mm that volumes are brought to first (rounded to whole voxels of the volume); None: as it
            is. It needs the file's voxel size as ``spacing``.
    """

    crop: tuple[int, ...] | None
    resize: tuple[int, ...] | None
    pixdim: tuple[float, ...] | None = None

    def image(self, image: np.ndarray, *, fill: float, spacing: tuple[float, ...] | None = None) -> np.ndarray:
        """Mean over the area where every axis shrinks (linear alone would alias), else linear; pads with ``fill``."""
        framed = self._frame(_resampled(image, self._even(image.shape[1:], spacing)), fill)
        self._check(self.resize, image, "resize")
        return _resampled(framed, self.resize)

    def mask(self, mask: np.ndarray, *, spacing: tuple[float, ...] | None = None) -> np.ndarray:
        """Nearest neighbour; padding is class 0."""
        values = mask[None].astype(np.float32)
        framed = self._frame(_nearest(values, self._even(mask.shape, spacing)), 0.0)
        return _nearest(framed, self.resize)[0].astype(np.int64)

    def spacing(self, spacing: tuple[float, ...] | None, shape: tuple[int, ...]) -> tuple[float, ...] | None:
        """Voxel size in the end, from the file's ``spacing`` and ``shape``."""
        if spacing is None:
            return None
        even = self._even(shape, spacing) or shape
        sizes = tuple(mm * old / new for mm, old, new in zip(spacing, shape, even, strict=True))
        before = self.crop or even
        return tuple(mm * old / new for mm, old, new in zip(sizes, before, self.resize or before, strict=True))

    def _even(self, shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> tuple[int, ...] | None:
        """Voxels per axis at ``pixdim``."""
        if self.pixdim is None:
            return None
        if spacing is None or len(self.pixdim) != len(shape) or min(self.pixdim) <= 0:
            raise ValueError(f"pixdim={self.pixdim} is for volumes whose files state a voxel size, in mm per axis.")
        return tuple(max(1, round(n * mm / new)) for n, mm, new in zip(shape, spacing, self.pixdim, strict=True))

    def _frame(self, image: np.ndarray, fill: float) -> np.ndarray:
        if self.crop is None:
            return image
        self._check(self.crop, image, "crop")
        return np.asarray(ResizeWithPadOrCrop(self.crop, value=fill)(torch.as_tensor(image)), dtype=np.float32)

    @staticmethod
    def _check(size: tuple[int, ...] | None, image: np.ndarray, option: str) -> None:
        if size is not None and (len(size) != image.ndim - 1 or min(size) < 1):
            raise ValueError(f"{option}={size} doesn't fit images of {image.ndim - 1} axes; give a size per axis.")


def _resampled(image: np.ndarray, size: tuple[int, ...] | None) -> np.ndarray:
    if size is None:
        return image
    shrinks = all(new <= old for new, old in zip(size, image.shape[1:], strict=True))
    mode = "area" if shrinks else "bilinear" if image.ndim == 3 else "trilinear"
    resized = np.asarray(Resize(size, mode=mode)(torch.as_tensor(image)), dtype=np.float32)
    # a mean of equal values may differ from them in the last bit
    return resized.clip(image.min(), image.max())


def _nearest(values: np.ndarray, size: tuple[int, ...] | None) -> np.ndarray:
    return values if size is None else np.asarray(Resize(size, mode="nearest-exact")(torch.as_tensor(values)))


def fit_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask of class numbers brought to ``shape`` by nearest neighbour."""
    return _nearest(mask[None].astype(np.float32), shape)[0].astype(np.int64)
