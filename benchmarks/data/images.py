"""Image files as arrays through MONAI's readers, in one orientation, brought to one shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, NibabelReader, PILReader
from monai.transforms import Orientation, Resize, ResizeWithPadOrCrop

PLANE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
_GREY_OR_COLOUR = ("1", "L", "I", "I;16", "I;16B", "F", "RGB")


def read_image(path: Path) -> np.ndarray:
    """An image as ``(C, H, W)`` or ``(1, R, A, S)``, float32, with the values of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file can't be read as an image, or not without guessing what its values mean.
    """
    return _read(path, strict=True)


def read_mask(path: Path) -> np.ndarray:
    """A mask as ``(H, W)`` or ``(R, A, S)``; palette images give their indices.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file can't be read, or has several channels.
    """
    mask = _read(path, strict=False)
    if len(mask) != 1:
        raise ValueError(f"mask {path.name} has {len(mask)} channels; save it with one channel of class values.")
    return mask[0]


def _refuse_palette(image: Any) -> Any:
    if image.mode not in _GREY_OR_COLOUR:
        raise ValueError(f"its mode is {image.mode}; save it as grey or RGB")
    return image


def _read(path: Path, *, strict: bool) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; correct the table, image_folder, mask_folder or pattern.")
    name = path.name.lower()
    plane = name.endswith(PLANE_SUFFIXES)
    if not plane and not name.endswith(VOLUME_SUFFIXES):
        kinds = ", ".join(PLANE_SUFFIXES + VOLUME_SUFFIXES)
        raise ValueError(f"{path.name} is of no known kind; accepted are {kinds}.")
    try:
        array = _plane(path, strict) if plane else _volume(path)
    except Exception as error:  # readers raise whatever their decoder raises
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(f"{path.name} can't be read as an image ({reason}); repair or remove it.") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{path.name} holds NaN or infinite values; replace them.")
    return array


# MONAI's readers are called directly: LoadImage tries the next reader where one refuses, and that one would transpose.


def _plane(path: Path, strict: bool) -> np.ndarray:
    reader = PILReader(converter=_refuse_palette if strict else None, reverse_indexing=False)
    array, _ = reader.get_data(reader.read(str(path)))
    return np.asarray(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0), dtype=np.float32)


def _volume(path: Path) -> np.ndarray:
    reader = NibabelReader()
    array, meta = reader.get_data(reader.read(str(path)))
    if array.ndim != 3:
        raise ValueError(f"its shape is {array.shape}; give one three-dimensional volume a file")
    volume = MetaTensor(torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32))[None], affine=meta["affine"])
    return np.asarray(Orientation(axcodes="RAS", labels=None)(volume), dtype=np.float32)


@dataclass(frozen=True)
class Geometry:
    """Brings images to one shape: a centred crop or padding, then resampling.

    Args:
        crop: voxels per axis after crop or padding; None: as it is.
        resize: voxels per axis after resampling; None: as it is.
    """

    crop: tuple[int, ...] | None
    resize: tuple[int, ...] | None

    def image(self, image: np.ndarray, *, fill: float) -> np.ndarray:
        """Mean over the area where every axis shrinks (linear alone would alias), else linear; pads with ``fill``."""
        framed = self._frame(image, fill)
        if self.resize is None:
            return framed
        self._check(self.resize, image, "resize")
        shrinks = all(new <= old for new, old in zip(self.resize, framed.shape[1:], strict=True))
        mode = "area" if shrinks else "bilinear" if image.ndim == 3 else "trilinear"
        resized = np.asarray(Resize(self.resize, mode=mode)(torch.as_tensor(framed)), dtype=np.float32)
        # a mean of equal values may differ from them in the last bit
        return resized.clip(framed.min(), framed.max())

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Nearest neighbour; padding is class 0."""
        framed = self._frame(mask[None].astype(np.float32), 0.0)
        if self.resize is not None:
            framed = np.asarray(Resize(self.resize, mode="nearest-exact")(torch.as_tensor(framed)))
        return framed[0].astype(np.int64)

    def spacing(self, spacing: tuple[float, ...] | None, shape: tuple[int, ...]) -> tuple[float, ...] | None:
        """Voxel size after resampling, from the file's ``spacing`` and ``shape``."""
        if spacing is None or self.resize is None:
            return spacing
        before = self.crop or shape
        return tuple(mm * old / new for mm, old, new in zip(spacing, before, self.resize, strict=True))

    def _frame(self, image: np.ndarray, fill: float) -> np.ndarray:
        if self.crop is None:
            return image
        self._check(self.crop, image, "crop")
        return np.asarray(ResizeWithPadOrCrop(self.crop, value=fill)(torch.as_tensor(image)), dtype=np.float32)

    @staticmethod
    def _check(size: tuple[int, ...], image: np.ndarray, option: str) -> None:
        if len(size) != image.ndim - 1 or min(size) < 1:
            raise ValueError(f"{option}={size} doesn't fit images of {image.ndim - 1} axes; give a size per axis.")
