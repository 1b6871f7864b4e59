"""Any folder of images with a table of cases: PNG, JPEG, TIFF, NIfTI; a label per image or a mask per image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medadv.benchmarks.data.base import SPLITS, Cases, Dataset
from medadv.benchmarks.data.images import Geometry, read_image, read_mask
from medadv.decisions import Decision, Multiclass, Multilabel
from medadv.intensities import Intensity

_SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "test": "test"}
_SPLIT_NAMES["validation"] = "validation"
_SEPARATOR = ";"


@dataclass(frozen=True)
class FolderOptions:
    """How a folder is read. Paths are relative to ``data_root``.

    Args:
        csv: the table of cases.
        image_column: column with the image file.
        mask_column: column with the mask file; with it the task is segmentation.
        label_column: column with the label: a class name or number; for ``decision="multilabel"`` names joined by
            ``;`` (empty: none). Used where there is no ``mask_column``.
        split_column: column with train, validation (or val) and test.
        patient_column: column with the patient; None: not known.
        image_folder: folder that image files are relative to.
        mask_folder: folder that mask files are relative to; ``mask_column`` may be ``image_column`` where both files
            have one name.
        pattern: file name made from a cell, for example ``"{}.nii.gz"``.
        classes: names in the order of the class numbers; None: the labels of the table, sorted.
        background: in segmentation the class that does not count in a Dice score.
        decision: ``"multiclass"`` or ``"multilabel"``.
        mask_values: what a mask holds -> class number; None: masks hold class numbers.
        crop: voxels per axis after a centred crop or padding, before ``resize``.
        resize: voxels per axis after resampling (images linear, masks nearest).
        low: least value an image can have; None: the least in the files. A bound of what an attacker may write, not
            a fitted parameter, so it is taken over all splits.
        high: greatest value an image can have; None: the greatest in the files.
        unit: unit of the values.
        window: ``(low, high)`` that fractions of a budget refer to; ``"percentiles"`` measures the 0.5th and 99.5th
            percentile of the training images.
        scale_to_unit: map ``low`` to ``high`` onto 0 to 1; needs both. A window and a unit then make no sense.
        spacing: voxel size in mm of the files, if known; scaled by ``resize``.
        name: name of the data set.
        source: origin and licence.
    """

    csv: str
    image_column: str = "image"
    mask_column: str | None = None
    label_column: str = "label"
    split_column: str = "split"
    patient_column: str | None = None
    image_folder: str = "."
    mask_folder: str = "."
    pattern: str = "{}"
    classes: tuple[str, ...] | None = None
    background: int | None = 0
    decision: str = "multiclass"
    mask_values: Mapping[Any, int] | None = None
    crop: tuple[int, ...] | None = None
    resize: tuple[int, ...] | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    window: tuple[float, float] | str | None = None
    scale_to_unit: bool = False
    spacing: tuple[float, ...] | None = None
    name: str = "folder"
    source: str = ""


def load_folder(*, data_root: str | Path | None = None, **options: Any) -> Dataset:
    """Reads images named by a table.

    Grey values stay what the files hold (``scale_to_unit`` apart): what is attacked is what is stored. 2D images are
    ``(C, H, W)`` with rows first; volumes are ``(1, R, A, S)``, reoriented by their affine without resampling.

    Args:
        data_root: folder that all paths are relative to.
        options: fields of :class:`FolderOptions`.

    Raises:
        FileNotFoundError: the table or a file is missing.
        ValueError: the table, an image or an option is not what it must be.

    Example:
        ``load_folder(data_root="data", csv="cases.csv", label_column="finding", resize=(128, 128))``
    """
    given = _options(options)
    if data_root is None:
        raise FileNotFoundError(f"{given.name} needs the folder with the files; give it as data_root (--data-root).")
    root = Path(data_root)
    table = _read_table(root, given)
    images, masks = _read_files(root, table, given)
    classes, y = _masks(masks, given) if given.mask_column else _labels(table, given)
    decision = _decision(classes, given)
    intensity, x = _intensity(images, table, given)
    train, validation, test = (_split(table, split, x, y, given) for split in SPLITS)
    for cases in (train, validation, test):
        intensity.check(torch.as_tensor(cases.x))
    return Dataset(
        name=given.name,
        task="segmentation" if given.mask_column else "classification",
        decision=decision,
        intensity=intensity,
        classes=classes,
        spacing=_geometry(given).spacing(given.spacing, images[0].shape[1:]),
        source=given.source,
        train=train,
        validation=validation,
        test=test,
    )


def _options(options: Mapping[str, Any]) -> FolderOptions:
    known = [field.name for field in fields(FolderOptions)]
    unknown = sorted(set(options) - set(known))
    if unknown or "csv" not in options:
        wrong = f"option {', '.join(unknown)} is none of a folder's" if unknown else "option csv is missing"
        raise ValueError(f"{wrong}; accepted are {', '.join(known)}, of which csv must be given.")
    # YAML and JSON know lists only
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    given = FolderOptions(**plain)
    if given.decision not in ("multiclass", "multilabel"):
        raise ValueError(f"decision={given.decision!r} is none; choose 'multiclass' or 'multilabel'.")
    if given.decision == "multilabel" and given.mask_column:
        raise ValueError("decision='multilabel' is for labels of images; a mask file holds one class per voxel.")
    if given.scale_to_unit and (given.low is None or given.high is None or given.unit or given.window):
        raise ValueError("scale_to_unit needs low and high, and leaves no unit and no window; give those or drop it.")
    if isinstance(given.window, str) and given.window != "percentiles":
        raise ValueError(f"window={given.window!r} can't be read; give (low, high), 'percentiles' or None.")
    return given


def _read_table(root: Path, given: FolderOptions) -> pd.DataFrame:
    path = _inside(root, ".", given.csv)
    if not path.is_file():
        raise FileNotFoundError(f"there is no table {path}; give csv relative to data_root.")
    # text only: an id such as 007 or a class named NA is not to be read as a number or as missing
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    needed = [given.image_column, given.mask_column or given.label_column, given.split_column, given.patient_column]
    missing = [column for column in needed if column is not None and column not in table.columns]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(table.columns)}. Name the columns with "
            "image_column, mask_column, label_column, split_column, patient_column."
        )
    names = table[given.split_column].str.strip().str.lower()
    if unknown := sorted(set(names) - set(_SPLIT_NAMES)):
        raise ValueError(f"{path} names the split {unknown[0]!r}; accepted are {', '.join(_SPLIT_NAMES)}.")
    table["__split__"] = names.map(_SPLIT_NAMES)
    if empty := [split for split in SPLITS if not (table["__split__"] == split).any()]:
        raise ValueError(f"{path} has no case in {', '.join(empty)}; every split needs at least one.")
    if (twice := table[given.image_column].duplicated()).any():
        raise ValueError(f"{path} names {table[given.image_column][twice].iloc[0]} twice; give each image one row.")
    return table


def _inside(root: Path, folder: str, cell: str) -> Path:
    """``root/folder/cell``, refused where the text leads out of ``root``: a table is data, not a licence to read."""
    # not resolve(): a data root may hold links to where the files are
    base = Path(os.path.normpath(Path(root).absolute()))
    path = Path(os.path.normpath(base / folder / cell))
    if not path.is_relative_to(base):
        raise ValueError(f"path {cell!r} leads out of {base}; give paths inside data_root.")
    return path


def _geometry(given: FolderOptions) -> Geometry:
    return Geometry(given.crop, given.resize)


def _read_files(root: Path, table: pd.DataFrame, given: FolderOptions) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images ``(C, *S)`` as stored and masks ``(*S)`` of class numbers (none without a column), not yet resampled."""
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for _, row in table.iterrows():
        path = _inside(root, given.image_folder, given.pattern.format(row[given.image_column]))
        image = read_image(path)
        images.append(image)
        if given.mask_column is None:
            continue
        mask_path = _inside(root, given.mask_folder, given.pattern.format(row[given.mask_column]))
        mask = _map_values(read_mask(mask_path), given, mask_path)
        if mask.shape != image.shape[1:]:
            raise ValueError(
                f"image {path.name} has shape {image.shape[1:]} and its mask {mask_path.name} {mask.shape}; "
                "they must be voxel by voxel the same."
            )
        masks.append(mask)
    return images, masks


def _map_values(mask: np.ndarray, given: FolderOptions, path: Path) -> np.ndarray:
    values = np.unique(mask)
    if given.mask_values is not None:
        # keys of a YAML or JSON mapping may be text
        mapping = {float(value): int(number) for value, number in given.mask_values.items()}
    elif (values == values.round()).all() and values.min() >= 0:
        mapping = {float(value): int(value) for value in values}
    else:
        raise ValueError(f"mask {path.name} holds values that are no class numbers; give mask_values {{value: class}}.")
    count = len(given.classes) if given.classes else None
    unknown = [v for v in values.tolist() if v not in mapping or (count is not None and not 0 <= mapping[v] < count)]
    if unknown:
        accepted = ", ".join(f"{v:g}" for v in mapping) if given.mask_values else f"0 to {(count or 1) - 1}"
        raise ValueError(
            f"mask {path.name} holds {', '.join(f'{v:g}' for v in unknown[:5])}; accepted are {accepted}: give the "
            "right mask_values or classes."
        )
    classes = np.array([mapping[value] for value in values.tolist()], dtype=np.int64)
    return classes[np.searchsorted(values, mask)]


def _masks(masks: Sequence[np.ndarray], given: FolderOptions) -> tuple[tuple[str, ...], list[np.ndarray]]:
    number = max(2, 1 + max(int(mask.max()) for mask in masks))
    classes = given.classes or ("background", *(f"class {i}" for i in range(1, number)))
    return classes, [_geometry(given).mask(mask) for mask in masks]


def _labels(table: pd.DataFrame, given: FolderOptions) -> tuple[tuple[str, ...], list[Any]]:
    several = given.decision == "multilabel"
    texts = table[given.label_column].str.strip()
    cells = [[name.strip() for name in text.split(_SEPARATOR)] if several else [text] for text in texts]
    names = {name for cell in cells for name in cell if name}
    # numbers in their order (2 before 10), then names in theirs
    ordered = sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    classes = given.classes or tuple(ordered)
    index = {str(position): position for position in range(len(classes))} | {name: i for i, name in enumerate(classes)}
    for cell, image in zip(cells, table[given.image_column], strict=True):
        for name in cell:
            if name not in index and (name or not several):
                raise ValueError(f"label {name!r} of {image} is none of the classes {', '.join(classes)}; correct one.")
    if not several:
        return classes, [np.int64(index[cell[0]]) for cell in cells]
    return classes, [np.isin(np.arange(len(classes)), [index[n] for n in cell if n]).astype(np.uint8) for cell in cells]


def _decision(classes: tuple[str, ...], given: FolderOptions) -> Decision:
    if given.decision == "multilabel":
        return Multilabel(len(classes))
    return Multiclass(len(classes), background=given.background if given.mask_column else None)


def _intensity(
    images: Sequence[np.ndarray], table: pd.DataFrame, given: FolderOptions
) -> tuple[Intensity, list[np.ndarray]]:
    low = float(min(image.min() for image in images)) if given.low is None else float(given.low)
    high = float(max(image.max() for image in images)) if given.high is None else float(given.high)
    resampled = [_geometry(given).image(image, fill=low) for image in images]
    if given.scale_to_unit:
        return Intensity(0.0, 1.0), [((image - low) / np.float32(high - low)).astype(np.float32) for image in resampled]
    window = given.window
    if isinstance(window, str):
        train = [image.ravel() for image, split in zip(images, table["__split__"], strict=True) if split == "train"]
        start, stop = np.percentile(np.concatenate(train), (0.5, 99.5)).tolist()
        window = (float(start), float(stop))
    return Intensity(low, high, unit=given.unit, window=window), resampled


def _split(table: pd.DataFrame, split: str, x: Sequence[np.ndarray], y: Sequence[Any], given: FolderOptions) -> Cases:
    rows = np.flatnonzero((table["__split__"] == split).to_numpy()).tolist()
    chosen = table.iloc[rows]
    shapes = sorted({image.shape for image in x})
    if len(shapes) > 1:
        raise ValueError(
            f"images have shapes {', '.join(map(str, shapes[:3]))}; give crop or resize, so that all have one shape."
        )
    patients = None if given.patient_column is None else tuple(chosen[given.patient_column])
    return Cases(
        np.stack([x[i] for i in rows]), np.stack([y[i] for i in rows]), tuple(chosen[given.image_column]), patients
    )
