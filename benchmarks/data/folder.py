"""Any folder of images with a table of cases: PNG, JPEG, TIFF, NIfTI; a label per image or a mask per image."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medadv.benchmarks.data.base import SPLITS, Dataset
from medadv.benchmarks.data.reading import Reading, options_of, read_dataset
from medadv.decisions import Decision, Multiclass, Multilabel

_SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "test": "test"}
_SPLIT_NAMES["validation"] = "validation"
_SEPARATOR = ";"


@dataclass(frozen=True, kw_only=True)
class FolderOptions(Reading):
    """How a folder is read; see also :class:`~medadv.benchmarks.data.reading.Reading`.

    Paths are relative to ``data_root``.

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
        decision: ``"multiclass"`` or ``"multilabel"``.
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
    decision: str = "multiclass"
    name: str = "folder"
    source: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decision not in ("multiclass", "multilabel"):
            raise ValueError(f"decision={self.decision!r} is none; choose 'multiclass' or 'multilabel'.")
        if self.decision == "multilabel" and self.mask_column:
            raise ValueError("decision='multilabel' is for labels of images; a mask file holds one class per voxel.")


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
    given = options_of(FolderOptions, options, "a folder's")
    if data_root is None:
        raise FileNotFoundError(f"{given.name} needs the folder with the files; give it as data_root (--data-root).")
    root = Path(data_root)
    table = _read_table(root, given)
    cases = pd.DataFrame({"id": table[given.image_column], "split": table["__split__"]})
    cases["image"] = [_file(root, given.image_folder, cell, given) for cell in table[given.image_column]]
    decision: Decision | None = None
    if given.mask_column:
        cases["mask"] = [_file(root, given.mask_folder, cell, given) for cell in table[given.mask_column]]
    else:
        classes, cases["label"] = _labels(table, given)
        decision = Multilabel(len(classes)) if given.decision == "multilabel" else Multiclass(len(classes))
        given = replace(given, classes=classes)
    if given.patient_column:
        cases["patient"] = table[given.patient_column]
    return read_dataset(cases, given, name=given.name, source=given.source, decision=decision)


def _read_table(root: Path, given: FolderOptions) -> pd.DataFrame:
    path = inside(root, ".", given.csv)
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


def inside(root: Path, folder: str, cell: str) -> Path:
    """``root/folder/cell``, refused where the text leads out of ``root``: a table is data, not a licence to read."""
    # not resolve(): a data root may hold links to where the files are
    base = Path(os.path.normpath(Path(root).absolute()))
    path = Path(os.path.normpath(base / folder / cell))
    if not path.is_relative_to(base):
        raise ValueError(f"path {cell!r} leads out of {base}; give paths inside data_root.")
    return path


def _file(root: Path, folder: str, cell: str, given: FolderOptions) -> Path:
    return inside(root, folder, given.pattern.format(cell))


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
        return classes, [index[cell[0]] for cell in cells]
    return classes, [np.isin(np.arange(len(classes)), [index[n] for n in cell if n]) for cell in cells]
