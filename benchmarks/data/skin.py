"""Dermoscopic images of ISIC 2017: two or three diagnoses, and the outline of the lesion."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medadv.benchmarks.data.collection import Collection, ImageFiles, read_table, tables

_SPLITS = {"training": "train", "validation": "validation", "test": "test"}
_PART = re.compile(r"ISIC-2017_(Training|Validation|Test)", re.IGNORECASE)
_DIAGNOSES = ("melanoma", "seborrheic_keratosis")


def _part(path: Path) -> str:
    """The split that the challenge's name of a file or folder states; empty where there is none."""
    found = _PART.search(str(path))
    return _SPLITS[found[1].lower()] if found else ""


def _diagnoses(files: ImageFiles) -> pd.DataFrame | None:
    """0 nevus, 1 melanoma, 2 seborrheic keratosis, from ``ISIC-2017_*_Part3_GroundTruth.csv``."""
    parts = []
    for path in tables(files.root, r"isic-2017_.*part3_groundtruth\.csv"):
        truth = read_table(path, ("image_id", *_DIAGNOSES))
        flags = truth[list(_DIAGNOSES)].apply(pd.to_numeric, errors="coerce")
        if not flags.isin((0, 1)).all(axis=None) or (flags.sum(axis=1) > 1).any():
            raise ValueError(f"{path.name} must hold 0 or 1 for {' and '.join(_DIAGNOSES)}, and 1 for one at most.")
        label = (flags @ [1, 2]).astype(int)
        # of the path's name alone: a data root may be named after one part
        parts.append(pd.DataFrame({"name": truth["image_id"], "split": _part(Path(path.name)), "label": label}))
    return pd.concat(parts, ignore_index=True) if parts else None


def _suspicious(files: ImageFiles) -> pd.DataFrame | None:
    table = _diagnoses(files)
    return None if table is None else table.assign(label=(table["label"] > 0).astype(int))


def _outlines(files: ImageFiles) -> pd.DataFrame | None:
    """Images that have a ``<name>_segmentation`` anywhere; the split is in the name of the image's folder."""
    rows = [
        (path.stem, _part(path.relative_to(files.root)), f"{path.stem}_segmentation")
        for path in files.images
        if not path.stem.endswith(("_segmentation", "_superpixels"))
    ]
    table = pd.DataFrame(rows, columns=["name", "split", "mask"])
    has_mask = [files.mask(mask) is not None for mask in table["mask"]]
    return table[has_mask].reset_index(drop=True) if any(has_mask) else None


_THREE = Collection(
    name="isic2017",
    folder="isic2017",
    layout="ISIC-2017_{Training,Validation,Test_v2}_Part3_GroundTruth.csv and the images in any folders",
    form="label",
    classes=("nevus", "melanoma", "seborrheic keratosis"),
    annotations=_diagnoses,
    reading={"mode": "RGB", "low": 0, "high": 255, "scale_to_unit": True, "resize": (224, 224)},
    source="ISIC 2017 challenge (Codella et al., arXiv 1710.05006); CC0.",
)
ROWS = (
    replace(
        _THREE,
        name="isic2017-binary",
        classes=("nevus", "melanoma or seborrheic keratosis"),
        annotations=_suspicious,
        stem="bin",
    ),
    _THREE,
    replace(
        _THREE,
        name="isic2017-lesion",
        layout="images in ISIC-2017_{Training,Validation,Test_v2}_Data/ and <image>_segmentation.png in any folders",
        form="mask",
        classes=("background", "lesion"),
        annotations=_outlines,
        stem="Seg",
        reading={**_THREE.reading, "resize": (256, 256), "mask_values": {0: 0, 255: 1}},
    ),
)
