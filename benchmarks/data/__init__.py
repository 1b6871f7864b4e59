"""Data sets by name: synthetic ones that need no download, and the user's own files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from medadv.benchmarks.data.base import SPLITS, Cases, Dataset
from medadv.benchmarks.data.embedded import NAMES, load_embedded
from medadv.benchmarks.data.folder import load_folder
from medadv.benchmarks.data.medmnist import load_medmnist
from medadv.names import unknown_name

__all__ = ["SPLITS", "Cases", "Dataset", "load", "names"]

Loader = Callable[..., Dataset]

_MEDMNIST = {
    "": "path chest derma oct pneumonia retina breast blood tissue organa organc organs",
    "3d": "organ nodule adrenal fracture vessel synapse",
}
_MEDMNIST_STEMS = [f"{stem}mnist{dims}" for dims, stems in _MEDMNIST.items() for stem in stems.split()]


def _embedded(name: str) -> Loader:
    def loader(*, seed: int, data_root: str | Path | None, **options: Any) -> Dataset:
        # made, not read: the same whatever data_root is
        return load_embedded(name, seed=seed, **options)

    return loader


def _folder(subfolder: str = "", **fixed: Any) -> Loader:
    def loader(*, seed: int, data_root: str | Path | None, **options: Any) -> Dataset:
        # nothing is drawn: the table says which case is in which split
        root = None if data_root is None else Path(data_root) / subfolder
        return load_folder(data_root=root, **{**fixed, **options})

    return loader


_CXR_LUNG = _folder(
    "cxr_lung",
    name="cxr-lung",
    csv="split.csv",
    image_column="name",
    mask_column="name",
    image_folder="images",
    mask_folder="masks",
    mask_values={0: 0, 255: 1},
    classes=("background", "lung"),
    resize=(128, 128),
    low=0,
    high=255,
    scale_to_unit=True,
    source=(
        "Montgomery and Shenzhen chest X-rays of the NLM (Jaeger et al., 2014; Candemir et al., 2014) with lung masks "
        "(Stirenko et al., 2018); citation asked."
    ),
)
_ACDC = _folder(
    "acdc_ed",
    name="acdc",
    csv="split.csv",
    image_column="file",
    mask_column="file",
    patient_column="patient",
    image_folder="images",
    mask_folder="labels",
    classes=("background", "right ventricle", "myocardium", "left ventricle"),
    crop=(192, 192, 12),
    resize=(96, 96, 12),
    low=0,
    high=4095,
    window="percentiles",
    source="ACDC, end-diastole (Bernard et al., IEEE TMI 37(11), 2018); CC BY-NC-SA 4.0, non-commercial.",
)

_LOADERS: dict[str, Loader] = {
    **{name: _embedded(name) for name in NAMES},
    **{f"medmnist/{stem}": partial(load_medmnist, stem) for stem in _MEDMNIST_STEMS},
    "cxr-lung": _CXR_LUNG,
    "acdc": _ACDC,
    "folder": _folder(),
}


def names() -> list[str]:
    """All names that :func:`load` knows. Any other MedMNIST file is ``"medmnist/<file stem>"``."""
    return list(_LOADERS)


def load(name: str, *, seed: int = 0, data_root: str | Path | None = None, **options: Any) -> Dataset:
    """Loads a data set.

    Args:
        name: one of :func:`names`, or ``"medmnist/<file stem>"`` for a file of another resolution or of one's own.
        seed: decides what is made at random (embedded data) or left out (MedMNIST).
        data_root: folder with the files; the embedded data need none.
        options: of the data set's loader: :class:`~medadv.benchmarks.data.embedded.Cohort`,
            :func:`~medadv.benchmarks.data.medmnist.load_medmnist`,
            :class:`~medadv.benchmarks.data.folder.FolderOptions`.

    Raises:
        ValueError: unknown name, or an option that the data set doesn't have.
        FileNotFoundError: the files are not in ``data_root``.

    Example:
        >>> from medadv.benchmarks.data import load
        >>> load("embedded-lesions-2d", subjects=(2, 1, 1)).train.x.shape
        (6, 1, 64, 64)
    """
    loader = _LOADERS.get(name)
    if loader is None and name.startswith("medmnist/"):
        loader = partial(load_medmnist, name.removeprefix("medmnist/"))
    if loader is None:
        raise unknown_name("data set", name, _LOADERS)
    return loader(seed=seed, data_root=data_root, **options)
