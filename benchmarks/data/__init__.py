"""Data sets by name: synthetic ones that need no download, public ones in their usual layouts, and the user's own.

Nothing is fetched unless an option says ``download=True``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from medadv.benchmarks.data import chest, fundus, skin
from medadv.benchmarks.data.base import SPLITS, Cases, Dataset
from medadv.benchmarks.data.collection import load_collection
from medadv.benchmarks.data.datalists import load_datalist
from medadv.benchmarks.data.embedded import NAMES, load_embedded
from medadv.benchmarks.data.folder import load_folder
from medadv.benchmarks.data.medmnist import STEMS, load_medmnist
from medadv.benchmarks.data.volumes import ANY, DATALISTS, DECATHLON, load_decathlon
from medadv.names import unknown_name

__all__ = ["SPLITS", "Cases", "Dataset", "load", "names"]

Loader = Callable[..., Dataset]
COLLECTIONS = {row.name: row for row in (*fundus.ROWS, *skin.ROWS, *chest.ROWS)}


def _embedded(name: str) -> Loader:
    def loader(*, seed: int, data_root: str | Path | None, **options: Any) -> Dataset:
        # made, not read: the same whatever data_root is
        return load_embedded(name, seed=seed, **options)

    return loader


def _medmnist(stem: str) -> Loader:
    def loader(**options: Any) -> Dataset:
        known = [name for name in signature(load_medmnist).parameters if name != "stem"]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"option {', '.join(unknown)} is none of MedMNIST's; accepted are {', '.join(known)}.")
        return load_medmnist(stem, **options)

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
    **{f"medmnist/{stem}": _medmnist(stem) for stem in STEMS},
    **{name: partial(load_collection, row) for name, row in COLLECTIONS.items()},
    "cxr-lung": _CXR_LUNG,
    "acdc": _ACDC,
    **{row.name: partial(load_datalist, row) for row in (*DATALISTS, ANY)},
    **{row.name: partial(load_decathlon, row) for row in DECATHLON},
    "folder": _folder(),
}


def names() -> list[str]:
    """All names that :func:`load` knows. Any other MedMNIST file is ``"medmnist/<file stem>"``."""
    return list(_LOADERS)


def load(name: str, *, seed: int = 0, data_root: str | Path | None = None, **options: Any) -> Dataset:
    """Loads a data set.

    Args:
        name: one of :func:`names`, or ``"medmnist/<file stem>"`` for a file of another resolution or of one's own.
        seed: decides what is made at random (embedded data), dealt, or left out.
        data_root: folder with the files; the embedded data need none.
        options: of the data set's loader: :class:`~medadv.benchmarks.data.embedded.Cohort`,
            :func:`~medadv.benchmarks.data.medmnist.load_medmnist`,
            :class:`~medadv.benchmarks.data.collection.CollectionOptions`,
            :class:`~medadv.benchmarks.data.datalists.DatalistOptions`,
            :func:`~medadv.benchmarks.data.volumes.load_decathlon`,
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
        loader = _medmnist(name.removeprefix("medmnist/"))
    if loader is None:
        raise unknown_name("data set", name, _LOADERS)
    return loader(seed=seed, data_root=data_root, **options)
