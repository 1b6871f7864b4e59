"""MedMNIST v2 files (Yang et al., Scientific Data 10:41, 2023): 2D and 3D, one class of several or several labels."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.request import urlopen

import numpy as np

from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.data.cache import write_atomically
from medadv.decisions import Decision, Multiclass, Multilabel
from medadv.intensities import Intensity

ZENODO = "https://zenodo.org/records/10519652/files/{stem}.npz?download=1"
SIZES = {"": (28, 64, 128, 224), "3d": (28, 64)}
_SETS = {
    "": "path chest derma oct pneumonia retina breast blood tissue organa organc organs",
    "3d": "organ nodule adrenal fracture vessel synapse",
}
STEMS = tuple(f"{stem}mnist{dims}" for dims, stems in _SETS.items() for stem in stems.split())
_PARTS = {"train": "train", "validation": "val", "test": "test"}
_KEYS = tuple(f"{part}_{what}" for part in _PARTS.values() for what in ("images", "labels"))


def load_medmnist(
    stem: str,
    *,
    seed: int = 0,
    data_root: str | Path | None = None,
    max_train: int | None = None,
    max_test: int | None = None,
    size: int | None = None,
    download: bool = False,
) -> Dataset:
    """Reads one MedMNIST file.

    Images are the stored bytes divided by 255, so that ``"8/255"`` is eight grey levels of the file. MedMNIST does not
    say which images are of one patient, so ``patients`` is None.

    Args:
        stem: file name without ``.npz``, for example ``"pneumoniamnist"`` or ``"adrenalmnist3d"``.
        seed: decides which cases ``max_train`` and ``max_test`` keep.
        data_root: folder with the file, or with a folder ``medmnist`` that holds it.
        max_train: keep so many training cases at most.
        max_test: keep so many validation and so many test cases at most.
        size: voxels per axis, for a data set of MedMNIST: 28, 64, 128 or 224 in 2D, 28 or 64 in 3D; the larger ones
            are files of their own, ``<stem>_<size>.npz``.
        download: fetch the file from Zenodo into ``data_root/medmnist`` if it is not there.

    Raises:
        FileNotFoundError: no such file, and ``download`` is not asked for.
        ValueError: the file is no MedMNIST file, or ``stem`` no file name.
    """
    if not stem.isidentifier():
        raise ValueError(f"{stem!r} is no MedMNIST file name; give the stem alone, as in 'medmnist/pneumoniamnist'.")
    stem = _sized(stem, size)
    path = _find(stem, data_root, download)
    arrays = _read(path)
    decision = _decision(arrays, path)
    word = "label" if isinstance(decision, Multilabel) else "class"
    rng = np.random.default_rng(seed)
    splits: dict[str, Cases] = {}
    for split, part in _PARTS.items():
        limit = max_train if split == "train" else max_test
        splits[split] = _cases(arrays, part, decision, limit, rng)
    return Dataset(
        name=f"medmnist/{stem}",
        task="classification",
        decision=decision,
        intensity=Intensity(0.0, 1.0),
        classes=tuple(f"{word} {i}" for i in range(decision.channels)),
        source="MedMNIST v2 (Yang et al., Scientific Data 10:41, 2023); licence: CC BY 4.0, DermaMNIST CC BY-NC 4.0.",
        notes=("MedMNIST names no patients: intervals resample images.",),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
    )


def download_medmnist(stem: str, folder: Path, opener: Callable[..., IO[bytes]] = urlopen) -> Path:
    """Fetches ``<stem>.npz`` of MedMNIST v2 from Zenodo.

    Args:
        stem: file name without ``.npz``.
        folder: where the file is put; it appears there only when it is whole.
        opener: opens a URL.

    Raises:
        ConnectionError: Zenodo can't be reached or has no such file.
    """
    url, path = ZENODO.format(stem=stem), folder / f"{stem}.npz"

    def fetch(temporary: Path) -> None:
        with opener(url, timeout=60) as source, temporary.open("wb") as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)
        # a truncated or foreign answer must not be taken for the data set from now on
        _read(temporary)

    try:
        write_atomically(path, fetch)
    except OSError as error:
        raise ConnectionError(
            f"{url} could not be fetched ({error}); download it by hand and put it at {path}."
        ) from error
    return path


def _sized(stem: str, size: int | None) -> str:
    if size is None:
        return stem
    sizes = SIZES["3d" if stem.endswith("3d") else ""]
    if stem not in STEMS or size not in sizes:
        raise ValueError(
            f"medmnist/{stem} has no size {size}; sizes of the 2D sets are {', '.join(map(str, SIZES['']))}, of the 3D "
            f"sets {', '.join(map(str, SIZES['3d']))}, and other files have none to choose."
        )
    return stem if size == sizes[0] else f"{stem}_{size}"


def _find(stem: str, data_root: str | Path | None, download: bool) -> Path:
    if data_root is None:
        raise FileNotFoundError(
            f"medmnist/{stem} needs the file {stem}.npz; give the folder that holds it as data_root (--data-root)."
        )
    root = Path(data_root)
    candidates = (root / f"{stem}.npz", root / "medmnist" / f"{stem}.npz")
    for path in candidates:
        if path.is_file():
            return path
    if download:
        return download_medmnist(stem, root / "medmnist")
    raise FileNotFoundError(
        f"{stem}.npz is neither at {candidates[0]} nor at {candidates[1]}; download it from "
        f"{ZENODO.format(stem=stem)} or give the option download=True."
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no npz archive; a download may have been cut off: delete it and fetch it again.")
    with np.load(path, allow_pickle=False) as stored:
        missing = [key for key in _KEYS if key not in stored.files]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; a MedMNIST file holds {', '.join(_KEYS)}.")
        try:
            return {key: stored[key] for key in _KEYS}
        except (ValueError, zlib.error, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds an array that can't be read ({error}); fetch the file again.") from error


def _decision(arrays: dict[str, np.ndarray], path: Path) -> Decision:
    labels = arrays["train_labels"]
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path} has {labels.dtype} labels of shape {labels.shape}; MedMNIST's are integers (N, 1) or (N, L)."
        )
    if labels.shape[1] > 1:
        return Multilabel(labels.shape[1])
    return Multiclass(max(2, int(max(arrays[f"{part}_labels"].max() for part in _PARTS.values())) + 1))


def _cases(
    arrays: dict[str, np.ndarray], part: str, decision: Decision, limit: int | None, rng: np.random.Generator
) -> Cases:
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
        raise ValueError(
            f"{part}_images are {images.dtype} of shape {images.shape} with {len(labels)} labels; MedMNIST's are uint8 "
            "(N, H, W), (N, H, W, 3) or (N, D, H, W), one label row each."
        )
    rows = np.arange(len(images))
    if limit is not None and limit < len(images):
        rows = np.sort(rng.permutation(len(images))[:limit])
    x = images[rows].astype(np.float32) / np.float32(255)
    # colour comes last in the file; a 3D image has one channel and a last axis longer than 3
    x = np.moveaxis(x, -1, 1) if x.ndim == 4 and x.shape[-1] == 3 else x[:, None]
    multilabel = isinstance(decision, Multilabel)
    y = labels[rows].astype(np.uint8) if multilabel else labels[rows, 0].astype(np.int64)
    return Cases(np.ascontiguousarray(x), y, tuple(f"{part}-{row:06d}" for row in rows))
