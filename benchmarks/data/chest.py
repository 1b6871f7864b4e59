"""Chest X-rays: ChestX-ray14 with one question or 14 labels, and lung fields of two COVID-19 collections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from medadv.benchmarks.data.collection import Collection, ImageFiles, read_table, tables

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
_NO_FINDING = "No Finding"
_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_GREY_BYTES = {"mode": "L", "low": 0, "high": 255, "scale_to_unit": True}


def _findings(files: ImageFiles) -> pd.DataFrame | None:
    """14 labels an image from ``Data_Entry_2017*.csv``, and the split of NIH's two lists where they are there."""
    found = tables(files.root, r"data_entry_2017.*\.csv")
    if not found:
        return None
    entries = read_table(found[0], ("Image Index", "Finding Labels", "Patient ID"))
    names, cells = entries["Image Index"], [cell.split("|") for cell in entries["Finding Labels"]]
    for name, cell, patient in zip(names, cells, entries["Patient ID"], strict=True):
        if cell != [_NO_FINDING] and (unknown := sorted(set(cell) - set(FINDINGS))):
            raise ValueError(
                f"{found[0].name}: label {unknown[0]!r} of {name} is unknown; they are {', '.join(FINDINGS)}, or "
                f"{_NO_FINDING} alone."
            )
        if name.split("_")[0].lstrip("0") != patient.lstrip("0"):
            raise ValueError(f"{found[0].name} says patient {patient} of {name}, whose name says another; correct it.")
    labels = [tuple(int(finding in cell) for finding in FINDINGS) for cell in map(set, cells)]
    return pd.DataFrame({"name": names, "split": names.map(_lists(files.root)).fillna(""), "label": labels})


def _lists(root: Path) -> dict[str, str]:
    paths = {name: tables(root, name.replace(".", r"\.")) for name in _LISTS}
    if lacking := [name for name, found in paths.items() if not found]:
        if len(lacking) == len(_LISTS):
            return {}
        raise FileNotFoundError(f"{root} holds no {lacking[0]} to the other list; fetch both or remove the one.")
    return {line.strip(): _LISTS[name] for name, found in paths.items() for line in found[0].read_text().splitlines()}


def _any_finding(files: ImageFiles) -> pd.DataFrame | None:
    table = _findings(files)
    return None if table is None else table.assign(label=[int(any(label)) for label in table["label"]])


def _lungs_by_split(files: ImageFiles) -> pd.DataFrame | None:
    """Images in ``Train|Val|Test/<class>/images``."""
    images = [path for path in files.images if path.parent.name == "images" and _split_folder(path) in _SPLITS]
    names, split = [path.name for path in images], [_SPLITS[_split_folder(path)] for path in images]
    return pd.DataFrame({"name": names, "split": split, "mask": names}) if names else None


def _split_folder(path: Path) -> str:
    return path.parent.parent.parent.name.lower()


def _lungs_by_class(files: ImageFiles) -> pd.DataFrame | None:
    """Images in ``<class>/images``."""
    names = [path.name for path in files.images if path.parent.name == "images"]
    return pd.DataFrame({"name": names, "split": "", "mask": names}) if names else None


_LABELS = Collection(
    name="chestxray14",
    folder="chestxray14",
    layout="Data_Entry_2017*.csv, images in any folders, and for NIH's split train_val_list.txt and test_list.txt",
    form="labels",
    classes=FINDINGS,
    annotations=_findings,
    stem="MultiLabel_1w",
    patient=r"(\d+)_",
    reading={**_GREY_BYTES, "resize": (224, 224)},
    limits={"max_train": 8000, "max_test": 2000},
    source=(
        "ChestX-ray14 of the NIH Clinical Center (Wang et al., CVPR 2017; labels mined from reports); free to use, "
        "with citation and a link."
    ),
)
_LUNGS = Collection(
    name="covid-qu-ex-lungs",
    folder="covid-qu-ex",
    part="Lung Segmentation Data",
    layout="Train, Val and Test, in each the classes, in each of these images/ and 'lung masks/' with the same names",
    form="mask",
    classes=("background", "lung"),
    annotations=_lungs_by_split,
    stem="Seg",
    reading={**_GREY_BYTES, "mask_values": {0: 0, 255: 1}, "resize": (256, 256)},
    limits={"max_train": 2000, "max_test": 750},
    source="COVID-QU-Ex (Tahir et al., Computers in Biology and Medicine 139:105002, 2021); terms: its Kaggle page.",
)
ROWS = (
    replace(
        _LABELS,
        name="chestxray14-binary",
        form="label",
        classes=("no finding", "finding"),
        annotations=_any_finding,
        stem="bin",
        # the survey's files write 1 for no finding
        codes={0: 1, 1: 0},
    ),
    _LABELS,
    _LUNGS,
    replace(
        _LUNGS,
        name="covid-radiography-lungs",
        folder="covid-radiography",
        part=None,
        layout="COVID, Lung_Opacity, Normal, 'Viral Pneumonia', in each images/ and masks/ with the same names",
        annotations=_lungs_by_class,
        # masks are smaller than images there
        reading={**_LUNGS.reading, "fit_masks": True},
        source=(
            "COVID-19 Radiography Database (Chowdhury et al., IEEE Access 8, 2020; Rahman et al., Computers in Biology "
            "and Medicine 132:104319, 2021); terms: its Kaggle page."
        ),
    ),
)
