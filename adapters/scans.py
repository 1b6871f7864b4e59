"""Images as they are stored: read with the grid of their values, and written back so that they read the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import optional_import
from torch import Tensor

from medadv.files import written_whole
from medadv.names import unknown_name

nibabel, _HAS_NIBABEL = optional_import("nibabel")
pillow, _HAS_PILLOW = optional_import("PIL.Image")

VOLUME_ENDINGS = (".nii.gz", ".nii")
PLANE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
STORAGE = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
ACCEPTED = f"NIfTI ({', '.join(VOLUME_ENDINGS)}), images ({', '.join(PLANE_ENDINGS)}) and folders of a DICOM series"


@dataclass(frozen=True)
class Stored:
    """One file.

    Attributes:
        path: of the file, or the folder of a DICOM series.
        dtype: of the values on disk.
        step, offset: a value is ``step`` times what is on disk plus ``offset``.
        channels: how many channels of the image it holds.
        arranged: image ``(C, *S)`` -> array as on disk.
        header: of a NIfTI file.
    """

    path: Path
    dtype: np.dtype
    step: float
    offset: float
    channels: int
    arranged: Callable[[np.ndarray], np.ndarray]
    header: Any = None

    @property
    def ending(self) -> str:
        """Of the file that a changed image of this kind is written to: lossless."""
        name = self.path.name.lower()
        if name.endswith(PLANE_ENDINGS):
            return ".png"
        return ".nii" if name.endswith(".nii") else ".nii.gz"


@dataclass(frozen=True)
class Scan:
    """An image as it is stored, in its units, on its grid.

    Attributes:
        image: float32 ``(C, *S)``, as the model's own loader gives it.
        files: one per file that was read; their channels in order make the image.
        storage: dtype the values are written as.
    """

    image: MetaTensor
    files: tuple[Stored, ...]
    storage: np.dtype

    @property
    def grid(self) -> tuple[float, float] | None:
        """(step, offset) between the values that can be written; None: as fine as floats are."""
        if not np.issubdtype(self.storage, np.integer):
            return None
        return (self.files[0].step, self.files[0].offset) if self._as_it_is else (1.0, 0.0)

    @property
    def _as_it_is(self) -> bool:
        return self.storage == self.files[0].dtype

    @property
    def values(self) -> Tensor:
        """The image, exactly on its grid, ``(1, C, *S)``."""
        return self.image.as_tensor()[None]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel along each axis, in mm where the header says so."""
        dims = self.image.ndim - 1
        matrix = np.asarray(self.image.affine.cpu(), dtype=np.float64)[:dims, :dims]
        return tuple(float(size) for size in np.linalg.norm(matrix, axis=0))

    def write(self, image: Tensor | np.ndarray, folder: Path, suffix: str) -> tuple[Path, ...]:
        """Writes a changed image beside nothing of its own: a file per file that was read.

        Args:
            image: ``(C, *S)`` or ``(1, C, *S)``, in the units of this scan.
            folder: where to.
            suffix: put behind the name of each file.

        Returns:
            The paths written; each file is whole or not there.

        Raises:
            ValueError: values that the storage can't hold exactly.
        """
        values = np.asarray(image.cpu() if isinstance(image, Tensor) else image)
        values = values[0] if values.ndim == self.image.ndim + 1 else values
        if values.shape != tuple(self.image.shape):
            raise ValueError(f"the image has shape {values.shape}; give that of the scan, {tuple(self.image.shape)}.")
        paths, first = [], 0
        for file in self.files:
            part = values[first : first + file.channels]
            first += file.channels
            name = file.path.name
            for ending in (*VOLUME_ENDINGS, *PLANE_ENDINGS):
                name = name[: -len(ending)] if name.lower().endswith(ending) else name
            path = folder / f"{name}{suffix}{file.ending}"
            self._write_one(file, file.arranged(self._raw(part)), path)
            paths.append(path)
        return tuple(paths)

    def write_mask(self, mask: Tensor, path: Path) -> Path:
        """Writes classes ``(*S)`` or labels ``(K, *S)`` on the grid of this scan, as small whole numbers.

        Args:
            mask: whole numbers from 0 to 255.
            path: without its ending, which is that of the scan's kind.

        Returns:
            The path written.
        """
        file = self.files[0]
        values = np.asarray(mask.cpu()).astype(np.uint8)
        if file.ending == ".png":
            planes = values if values.ndim == self.image.ndim else values[None]
            array = np.concatenate([np.atleast_3d(p.T) for p in planes], -1).squeeze()
        else:
            array = values if values.ndim < self.image.ndim else np.moveaxis(values, 0, -1)
        whole = path.with_name(path.name + file.ending)
        with written_whole(whole) as temporary:
            self._save(file, array, temporary, 1.0, 0.0)
        return whole

    def _raw(self, values: np.ndarray) -> np.ndarray:
        """What has to be on disk for these values to be read."""
        if self.grid is None:
            return values.astype(self.storage)
        step, offset = self.grid
        cells = (values.astype(np.float64) - offset) / step
        whole = np.rint(cells)
        limits = np.iinfo(self.storage)
        # float32 resolves large values to a few hundred-thousandths of a cell only
        if np.abs(cells - whole).max() > 1e-2 or whole.min() < limits.min or whole.max() > limits.max:
            raise ValueError(
                f"the image holds values that {self.storage} on the grid (step {step:g}, offset {offset:g}) does not; "
                "attack on that grid (an estimator of this case does), or choose storage='float32'."
            )
        return whole.astype(self.storage)

    def _write_one(self, file: Stored, array: np.ndarray, path: Path) -> None:
        scaling = (file.step, file.offset) if self._as_it_is and self.grid else (1.0, 0.0)
        with written_whole(path) as temporary:
            self._save(file, array, temporary, *scaling)

    def _save(self, file: Stored, array: np.ndarray, path: Path, step: float, offset: float) -> None:
        if file.ending == ".png":
            pillow.fromarray(array).save(path, format="PNG")
            return
        affine = np.asarray(self.image.affine.cpu(), dtype=np.float64)
        header = None if file.header is None else file.header.copy()
        volume = nibabel.Nifti1Image(array, affine, header, dtype=array.dtype)
        if file.header is not None:  # as it was, down to the code of the space it is in
            volume.set_sform(*file.header.get_sform(coded=True))
            volume.set_qform(*file.header.get_qform(coded=True))
        volume.header.set_slope_inter(step, offset)
        nibabel.save(volume, path)


def read_scan(
    paths: Sequence[Path], load: Callable[[list[str] | str], MetaTensor], *, storage: str | None = None
) -> Scan:
    """Reads an image as the model does, and how it is stored.

    Args:
        paths: one file or folder, or a file per channel.
        load: the model's own loader: path(s) -> ``(C, *S)``.
        storage: what a changed image is to be written as, one of :data:`STORAGE`; None: as the file is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a kind of file that can't be written back, a loader that changes values or moves voxels, or values
            that ``storage`` can't hold.
    """
    if storage not in (None, *STORAGE):
        raise unknown_name("storage", storage, STORAGE)
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}; correct the path of the image.")
    shown = load([str(path) for path in paths] if len(paths) > 1 else str(paths[0]))
    image = shown if isinstance(shown, MetaTensor) else MetaTensor(shown)
    image = MetaTensor(image.as_tensor().to(torch.float32), meta=image.meta)
    if not bool(image.isfinite().all()):
        raise ValueError(f"{paths[0].name} holds NaN or infinite values; replace them.")
    files, first = [], 0
    for path in paths:
        file, exact = _stored(path, image.as_tensor()[first:])
        if exact is not None:
            image[first : first + file.channels] = torch.from_numpy(exact)
        first += file.channels
        files.append(file)
    if first != len(image):
        raise ValueError(
            f"the loader gives {len(image)} channels of files that hold {first}; give each channel a file."
        )
    return _checked(image, tuple(files), storage)


def _checked(image: MetaTensor, files: tuple[Stored, ...], storage: str | None) -> Scan:
    if len({(file.dtype, file.step, file.offset) for file in files}) > 1:
        raise ValueError(
            f"the channels are stored differently ({', '.join(f'{f.path.name}: {f.dtype}' for f in files)}); save them "
            "with one dtype, slope and intercept."
        )
    scan = Scan(image, files, np.dtype(storage or files[0].dtype))
    if scan.grid is not None:
        limits = np.iinfo(scan.storage)
        step, offset = scan.grid
        cells = (image.as_tensor().to(torch.float64) - offset) / step
        if (
            bool((cells - cells.round()).abs().max() > 1e-2)
            or not limits.min <= cells.min() <= cells.max() <= limits.max
        ):
            raise ValueError(
                f"{files[0].path.name} holds values that storage={str(scan.storage)!r} does not (from "
                f"{float(image.min()):g} to {float(image.max()):g}); round the file first, or choose another storage."
            )
    return scan


def _stored(path: Path, image: Tensor) -> tuple[Stored, np.ndarray | None]:
    """How a file is stored, and the part of the image it holds exactly on the grid."""
    name = path.name.lower()
    if name.endswith(VOLUME_ENDINGS):
        return _stored_volume(path, image)
    if name.endswith(PLANE_ENDINGS):
        return _stored_plane(path, image)
    if path.is_dir() or name.endswith(".dcm"):
        whole = bool((image == image.round()).all()) and float(image.abs().max()) < 2**15
        dtype = np.dtype(np.int16 if whole else np.float32)
        squeeze = len(image) == 1
        return Stored(path, dtype, 1.0, 0.0, len(image), lambda x: x[0] if squeeze else np.moveaxis(x, 0, -1)), None
    raise ValueError(f"{path.name} is of no kind that can be written back; accepted are {ACCEPTED}.")


def _stored_volume(path: Path, image: Tensor) -> tuple[Stored, np.ndarray]:
    if not _HAS_NIBABEL:
        raise ValueError("NIfTI files need nibabel, which is not installed; run pip install 'medadv[files]'.")
    volume = nibabel.load(path)
    proxy = volume.dataobj
    raw = np.asarray(proxy.get_unscaled())
    step, offset = float(proxy.slope), float(proxy.inter)
    shape = tuple(image.shape[1:])
    if raw.shape == shape:
        channels, first, arranged = 1, raw[None], lambda x: x[0]
    elif raw.shape == (*shape, len(image)):
        channels, first, arranged = len(image), np.moveaxis(raw, -1, 0), lambda x: np.moveaxis(x, 0, -1)
    else:
        raise _moved(path, raw.shape, image)
    exact = (first.astype(np.float64) * step + offset).astype(np.float32)
    _check_same(path, exact, image[:channels])
    if not np.issubdtype(raw.dtype, np.integer):  # floats are written as the values they stand for
        step, offset = 1.0, 0.0
    return Stored(path, raw.dtype.newbyteorder("="), step, offset, channels, arranged, volume.header), exact


def _stored_plane(path: Path, image: Tensor) -> tuple[Stored, np.ndarray]:
    if not _HAS_PILLOW:
        raise ValueError("2D images need pillow, which is not installed; run pip install 'medadv[files]'.")
    with pillow.open(path) as picture:
        if picture.mode not in ("L", "RGB", "I;16"):
            raise ValueError(f"{path.name} has mode {picture.mode}; save it as grey or RGB.")
        raw = np.asarray(picture)
    planes = raw[None] if raw.ndim == 2 else np.moveaxis(raw, -1, 0)
    turned = tuple(image.shape[1:]) != planes.shape[1:] or not np.allclose(planes, image[: len(planes)].numpy())
    if turned:  # MONAI's reader gives width first
        planes = planes.swapaxes(1, 2)
    if planes.shape[1:] != tuple(image.shape[1:]) or len(planes) > len(image):
        raise _moved(path, raw.shape, image)
    _check_same(path, planes.astype(np.float32), image[: len(planes)])

    def arranged(x: np.ndarray) -> np.ndarray:
        x = x.swapaxes(1, 2) if turned else x
        return np.ascontiguousarray(x[0] if raw.ndim == 2 else np.moveaxis(x, 0, -1))

    return Stored(path, raw.dtype, 1.0, 0.0, len(planes), arranged), planes.astype(np.float32)


def _moved(path: Path, stored: tuple[int, ...], image: Tensor) -> ValueError:
    return ValueError(
        f"the model's loader makes {tuple(image.shape)} of {path.name}, which holds {stored}, so it could not be "
        "written back; read it with MONAI's plain LoadImaged and EnsureChannelFirstd, and convert afterwards."
    )


def _check_same(path: Path, exact: np.ndarray, image: Tensor) -> None:
    """The loader must give the values of the file, voxel by voxel."""
    values = image.numpy()
    if not np.allclose(exact, values, rtol=1e-5, atol=1e-5 * max(float(np.abs(exact).max()), 1e-30)):
        raise ValueError(
            f"the model's loader changes the values of {path.name} or moves its voxels, so it could not be written "
            "back; read it with MONAI's plain LoadImaged and EnsureChannelFirstd, and convert afterwards."
        )
